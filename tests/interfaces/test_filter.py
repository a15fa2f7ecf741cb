"""`btlm fit` and `btlm filter`, as a user meets them."""

from __future__ import annotations

import base64
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bit_transformer.errors import Cancelled, MissingExtra
from bit_transformer.quality import documents as documents_module
from bit_transformer.quality.model import COLUMNS, QualityModel
from bit_transformer.service.jobs import Job
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import prose
from tests.interfaces.test_cli import SMALL

Rows = list[dict[str, object]]


def texts(seed: int, count: int) -> list[str]:
    words = np.random.default_rng(seed).integers(9, 120, count)
    return [prose(1000 * seed + i, int(n)).decode() for i, n in enumerate(words)]


@pytest.fixture(scope="session")
def quality(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "quality.btlm"
    QualityModel.fit(texts(1, 200), jobs=1).save(path)
    return path


LOOP = "round and round it goes " * 30


def as_lines(values: list[str]) -> bytes:
    rows = [{"id": i, "text": text, "pi": 3.10} for i, text in enumerate(values)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(path: Path) -> Rows:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


def test_fit_writes_one_small_file(btlm, tmp_path):
    (tmp_path / "clean.jsonl").write_bytes(as_lines(texts(1, 200)) + b"broken\n\n")
    done = btlm("fit", "clean.jsonl", "-o", "q.btlm")
    assert done.returncode == 0, done.stderr
    assert "200 documents" in done.stdout and "could not be read: 1 broken JSON" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"clean.jsonl", "q.btlm"}
    refused = btlm("fit", "clean.jsonl", "-o", "q.btlm")
    assert refused.returncode == 2 and "is there already" in refused.stderr and "--overwrite" in refused.stderr
    nothing = btlm("fit", "clean.jsonl", "-o", "other", "--field", "body")
    assert nothing.returncode == 2 and "200 no field 'body'" in nothing.stderr
    (tmp_path / "few.txt").write_text("too little")
    assert "bytes of clean text" in btlm("fit", "few.txt", "-o", "other").stderr
    for name in ("clean.jsonl", "few.txt", "missing.btlm"):
        refused = btlm("filter", "clean.jsonl", "--run", name)
        assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_fit_reads_folders_and_a_run_can_be_fitted_beforehand(btlm, tmp_path):
    (tmp_path / "clean" / "deep").mkdir(parents=True)
    (tmp_path / "clean" / "a.txt").write_bytes(prose(1, 7000))
    (tmp_path / "clean" / "deep" / "b.md").write_bytes(prose(2, 2000))
    (tmp_path / "clean" / "c.bin").write_bytes(bytes(range(256)))
    made = json.loads(btlm("fit", "clean", "--json").stdout)
    assert made["documents"] == 2 and made["out"] == "quality.btlm" and made["unreadable"] == {"binary": 1}
    assert made["bytes"] == 9000 * 7 - 2


def test_lines_get_columns_and_keep_their_order(btlm, quality, tmp_path):
    given = as_lines([*texts(2, 30), LOOP, *texts(3, 30)])
    (tmp_path / "in.jsonl").write_bytes(given)
    done = btlm("filter", "in.jsonl", "--run", quality)
    assert done.returncode == 0, done.stderr
    out = (tmp_path / "in.filtered.jsonl").read_bytes()
    for before, after in zip(given.splitlines(), out.splitlines(), strict=True):
        assert after.startswith(before[:-1] + b', "bpb": ')
    rows = read(tmp_path / "in.filtered.jsonl")
    assert list(rows[0]) == ["id", "text", "pi", *COLUMNS] and [row["id"] for row in rows] == list(range(61))
    assert rows[30]["gate"] == "block" and rows[30]["percentile"] > 99 and rows[30]["reason"]
    assert sum(row["percentile"] < 90 for row in rows) > 45
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "in.filtered.jsonl"}
    refused = btlm("filter", "in.jsonl", "--run", quality)
    assert refused.returncode == 2 and "is there already" in refused.stderr
    assert btlm("filter", "in.jsonl", "--run", quality, "--overwrite", "--jobs", 2).returncode == 0
    assert (tmp_path / "in.filtered.jsonl").read_bytes() == out  # as with any number of threads
    again = btlm("filter", "in.filtered.jsonl", "--run", quality, "-o", "twice.jsonl")
    assert again.returncode == 0 and (tmp_path / "twice.jsonl").read_bytes() == out  # columns are replaced


BROKEN = [
    (b'{"text": "cut', "broken JSON"),
    (b'{"body": "a"}', "no field 'text'"),
    (b'{"text": 5}', "'text' is no string"),
    (b'{"text": null}', "'text' is no string"),
    (b'["text"]', "not a JSON object"),
    (b"\x00\x01\x02\x7fELF", "binary"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    (b"[" * 100_000, "broken JSON"),
    (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "broken JSON"),
]


def test_nothing_is_lost(btlm, quality, tmp_path):
    good = as_lines([*texts(2, 12), LOOP, "", "short"]).splitlines()
    lines = [b"\xef\xbb\xbf" + good[0], *good[1:8], *(line for line, _ in BROKEN), b"", *good[8:]]
    (tmp_path / "in.jsonl").write_bytes(b"\r\n".join(lines))
    done = btlm(
        "filter", "in.jsonl", "--run", quality, "--keep-below", 99, "--rejects", "rejects.jsonl", "--report", "r.html",
        "-o", "out.jsonl", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["documents"] == 15 and found["kept"] + found["dropped"] == 15 and found["empty"] == 1
    assert sum(found["unreadable"].values()) == len(BROKEN) and found["blank"] == 1
    kept, rejected = read(tmp_path / "out.jsonl"), read(tmp_path / "rejects.jsonl")
    assert len(kept) == found["kept"] and len(rejected) == found["dropped"] + len(BROKEN)
    assert sorted(row["id"] for row in [*kept, *rejected] if "id" in row) == list(range(15))
    unreadable = [row for row in rejected if "unreadable" in row]
    for (line, why), row, number in zip(BROKEN, unreadable, range(9, 30), strict=False):
        raw = row["raw"].encode() if "raw" in row else base64.b64decode(row["raw_base64"])
        assert (row["unreadable"], row["line"], raw.rstrip(b"\r")) == (why, number, line)
    reasons = {row["id"]: row["reason"] for row in rejected if "id" in row}
    assert (
        reasons[13] == "empty"
        and reasons[14].startswith("short: ")
        and reasons[12].partition(":")[0] in found["reasons"]
    )
    page = (tmp_path / "r.html").read_text()
    for text in (
        "Quality of in.jsonl",
        "What was left out",
        "broken JSON",
        "round and round",
        "prefers-color-scheme: dark",
    ):
        assert text in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_reports_escape_what_they_show(btlm, quality, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(as_lines(["<script>alert(1)</script> & more of it " * 3, *texts(2, 5)]))
    assert btlm("filter", "in.jsonl", "--run", quality, "--report", "r.html").returncode == 0
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page


def test_if_nothing_can_be_read_it_is_an_error(btlm, quality, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"body": "a"}\n' * 5 + b"x\n")
    refused = btlm("filter", "in.jsonl", "--run", quality, "--rejects", "r.jsonl")
    assert refused.returncode == 2
    assert "none of 6 lines or files could be read as a document: 5 no field 'text', 1 broken JSON" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    (tmp_path / "in.jsonl").write_bytes(b"\n\n")
    assert "got no documents" in btlm("filter", "in.jsonl", "--run", quality).stderr


def test_compressed_lines(btlm, quality, tmp_path):
    given = as_lines(texts(2, 20))
    (tmp_path / "in.jsonl").write_bytes(given)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(given))
    assert btlm("filter", "in.jsonl", "--run", quality).returncode == 0
    assert btlm("filter", "in.jsonl.gz", "--run", quality).returncode == 0
    plain = (tmp_path / "in.filtered.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "in.filtered.jsonl.gz").read_bytes()) == plain
    (tmp_path / "hurt.jsonl.gz").write_bytes(gzip.compress(given)[:-30])
    refused = btlm("filter", "hurt.jsonl.gz", "--run", quality)
    assert refused.returncode == 2 and "damaged, or ends too early" in refused.stderr
    pytest.importorskip("pyarrow")
    (tmp_path / "in.jsonl.zst").write_bytes(documents_module.packer(".zst")(given))
    assert btlm("filter", "in.jsonl.zst", "--run", quality, "-o", "zst.jsonl").returncode == 0
    assert (tmp_path / "zst.jsonl").read_bytes() == plain
    assert btlm("filter", "in.jsonl", "--run", quality, "-o", "out.jsonl.zst").returncode == 0
    assert btlm("filter", "out.jsonl.zst", "--run", quality, "-o", "back.jsonl").returncode == 0
    assert (tmp_path / "back.jsonl").read_bytes() == plain


def test_pipes(btlm, quality, tmp_path):
    given = as_lines(texts(2, 8))
    (tmp_path / "in.jsonl").write_bytes(given)
    assert btlm("filter", "in.jsonl", "--run", quality).returncode == 0
    done = btlm("filter", "-", "--run", quality, stdin=given)
    assert done.returncode == 0 and done.stdout.encode() == (tmp_path / "in.filtered.jsonl").read_bytes()
    assert "8 documents" in done.stderr
    assert btlm("filter", "-", "--run", quality, "--json", stdin=given).returncode == 2


def test_folders_of_text(btlm, quality, tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    clean = texts(2, 2)
    (tmp_path / "texts" / "b.txt").write_text(clean[0])
    (tmp_path / "texts" / "deep" / "ä.txt").write_text(clean[1])
    (tmp_path / "texts" / "x.png").write_bytes(bytes(range(256)))
    (tmp_path / "texts" / "latin.txt").write_bytes("schön".encode("latin-1"))
    done = btlm("filter", "texts", "--run", quality, "--rejects", "r.jsonl")
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "texts.filtered.jsonl")
    assert [(row["file"], row["text"]) for row in rows] == [("b.txt", clean[0]), ("deep/ä.txt", clean[1])]
    assert [row["unreadable"] for row in read(tmp_path / "r.jsonl")] == ["invalid UTF-8", "binary"]
    both = btlm("filter", "texts", "texts/b.txt", "--run", quality)
    assert both.returncode == 2 and "--out" in both.stderr
    assert btlm("filter", "texts", "texts/b.txt", "--run", quality, "-o", "both.jsonl").returncode == 0
    assert len(read(tmp_path / "both.jsonl")) == 3
    refused = btlm("filter", "texts/b.txt", "--run", quality, "-o", "texts/b.txt", "--overwrite")
    assert refused.returncode == 2 and "is an input" in refused.stderr


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "PIECE", 1 << 12)
    monkeypatch.setattr(documents_module, "ROWS", 7)
    monkeypatch.setattr("bit_transformer.service.filtering.EVERY", 0.0)


def stopped_after(readings: int) -> Job:
    """A job that is asked to stop when it has told how far it is so many times."""
    told = []

    def report(message: object) -> None:
        told.append(message)
        if len(told) == readings:
            job.cancel()

    job = Job(report, listens=False)
    return job


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_an_interrupted_run_goes_on(btlm, quality, tmp_path, monkeypatch, suffix):
    small_pieces(monkeypatch)
    lines = as_lines([*texts(2, 30), LOOP, *texts(3, 30)]).splitlines()
    lines.insert(20, b"broken")
    data, name = b"\n".join(lines) + b"\n", f"in{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
        to_parquet(tmp_path / name, [json.loads(line) for line in lines if line != b"broken"])
    else:
        (tmp_path / name).write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    whole, parts, rejects = (tmp_path / f"{what}{suffix}" for what in ("whole", "parts", "rejects"))
    rejects = tmp_path / "rejects.jsonl"
    asked = {"names": (name,), "run": str(quality), "keep_below": 80.0, "jobs": 1}
    first = call("filter", {**asked, "out": whole, "rejects": tmp_path / "r.jsonl", "report": "a.html"}, Workspace())
    again = {**asked, "out": parts, "rejects": rejects, "report": "b.html"}
    for _ in range(2):
        with pytest.raises(Cancelled, match="the same command goes on from there"):
            call("filter", again, Workspace(), stopped_after(3))
        assert not parts.exists() and not rejects.exists()
        partial = parts.with_name(f"{parts.name}.partial")
        assert partial.exists() and parts.with_name(f"{parts.name}.partial.json").exists()
        if partial.is_file():
            with partial.open("ab") as file:
                file.write(b"what a killed run wrote after its last note")
    refused = btlm("filter", name, "--run", quality, "-o", parts, "--keep-below", 70)
    assert refused.returncode == 2 and "of an interrupted run with other inputs or settings" in refused.stderr
    last = call("filter", {**again, "jobs": 2}, Workspace())
    assert last.resumed and parts.read_bytes() == whole.read_bytes()
    assert rejects.read_bytes() == (tmp_path / "r.jsonl").read_bytes()
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    counted = ("documents", "bytes", "kept", "dropped", "unreadable", "reasons", "odd", "bpb")
    assert [getattr(last, key) for key in counted] == [getattr(first, key) for key in counted]
    assert not list(tmp_path.glob("*.partial*"))


def test_a_killed_run_goes_on(btlm, quality, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(as_lines(texts(2, 300) * 12))
    command = [sys.executable, "-m", "bit_transformer.cli", "filter", "in.jsonl", "--run", str(quality), "--jobs", "1"]
    killed = subprocess.Popen([*command, "-o", "out.jsonl"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    note = tmp_path / "out.jsonl.partial.json"
    until = time.monotonic() + 120
    while not note.exists() and killed.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "out.jsonl").exists()
    done = btlm("filter", "in.jsonl", "--run", quality, "-o", "out.jsonl", "--json")
    assert done.returncode == 0 and "going on after" in done.stderr
    assert 0 < json.loads(done.stdout)["scored_bytes"] < json.loads(done.stdout)["bytes"]
    assert btlm("filter", "in.jsonl", "--run", quality, "-o", "whole.jsonl").returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "whole.jsonl"}


def to_parquet(path: Path, rows: Rows) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=25)


def test_parquet(btlm, quality, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows: Rows = [{"id": i, "text": text, "blob": bytes([i])} for i, text in enumerate([*texts(2, 40), LOOP])]
    rows.insert(3, {"id": 99, "text": None, "blob": b""})
    to_parquet(tmp_path / "in.parquet", rows)
    done = btlm("filter", "in.parquet", "--run", quality, "--keep-below", 99.5, "--rejects", "r.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "in.filtered.parquet")
    assert table.column_names == ["id", "text", "blob", *COLUMNS]
    found = json.loads(done.stdout)
    assert found["unreadable"] == {"no text: null": 1} and table.num_rows == found["kept"] == 41 - found["dropped"]
    kept = table.to_pylist()
    assert [row["blob"] for row in kept] == [bytes([row["id"]]) for row in kept]
    assert {row["id"] for row in read(tmp_path / "r.jsonl")} >= {40, 99}
    (tmp_path / "same.jsonl").write_bytes(as_lines(texts(2, 40)))
    assert btlm("filter", "same.jsonl", "--run", quality).returncode == 0
    lines = {row["id"]: row["percentile"] for row in read(tmp_path / "same.filtered.jsonl")}
    assert all(lines[row["id"]] == row["percentile"] for row in kept)
    assert btlm("filter", "in.parquet", "--run", quality, "-o", "lines.jsonl").returncode == 0
    refused = btlm("filter", "in.parquet", "--run", quality, "--field", "body", "-o", "x.jsonl")
    assert refused.returncode == 2 and "has no column 'body'" in refused.stderr and "--field text" in refused.stderr
    refused = btlm("filter", "in.parquet", "--run", quality, "--field", "id", "-o", "x.jsonl")
    assert refused.returncode == 2 and "holds int64; text is needed" in refused.stderr
    assert btlm("filter", "same.jsonl", "--run", quality, "-o", "x.parquet").returncode == 2


def test_without_pyarrow_parquet_names_the_extra(btlm, quality, tmp_path, monkeypatch):
    (tmp_path / "in.parquet").write_bytes(b"PAR1")

    def missing(module: str, *, extra: str, purpose: str) -> None:
        raise MissingExtra(f"{purpose} needs {module}. Try: pip install 'bit-transformer[{extra}]'")

    monkeypatch.setattr(documents_module, "require", missing)
    refused = btlm("filter", "in.parquet", "--run", quality)
    assert refused.returncode == 2 and "bit-transformer[parquet]" in refused.stderr


def test_a_run_whose_experts_read_bytes_filters_too(btlm, tmp_path):
    (tmp_path / "text.txt").write_bytes(prose(1, 60_000))
    assert btlm("train", "text.txt", *SMALL, "--steps", 2, "--out", "runs/one").returncode == 0
    (tmp_path / "in.jsonl").write_bytes(as_lines([*texts(2, 20), LOOP]))
    done = btlm("filter", "in.jsonl", "--run", "runs/one")
    assert done.returncode == 0, done.stderr
    assert "held-out bytes" in done.stderr
    rows = read(tmp_path / "in.filtered.jsonl")
    assert rows[20]["percentile"] > 99 and sum(row["percentile"] < 95 for row in rows) > 14
    assert btlm("train", "text.txt", *SMALL, "--no-experts", "--steps", 2, "--out", "runs/none").returncode == 0
    refused = btlm("filter", "in.jsonl", "--run", "runs/none", "-o", "x.jsonl")
    assert refused.returncode == 2 and "without experts" in refused.stderr
