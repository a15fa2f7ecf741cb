"""Long work says how far it is, and keeps what it has when it is stopped."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

import bit_transformer.restoration.streams
from bit_transformer.cli import training_output
from bit_transformer.cli.training_output import live_progress
from bit_transformer.restoration.streams import repair_pieces
from bit_transformer.service import restoration
from bit_transformer.service.jobs import Reading
from tests.conftest import TEXT
from tests.interfaces.test_cli import SMALL, start


@pytest.fixture
def trained(btlm, text_file, tmp_path) -> Path:
    done = btlm("train", text_file, *SMALL, "--steps", 20, "--out", "runs/one")
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs" / "one"


def stopped(number: signal.Signals, said: str, *args: object, cwd: Path) -> tuple[int, str, str]:
    """A process that is stopped as soon as it says something on standard error."""
    process = start(*args, cwd=cwd)
    assert process.stderr is not None
    lines = b""
    while said.encode() not in lines:
        line = process.stderr.readline()
        assert line, lines
        lines += line
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out.decode(), (lines + err).decode()


@pytest.fixture
def at_once(tmp_path, monkeypatch) -> None:
    """Processes that are started say every piece of progress: their clock is fast."""
    (tmp_path / "fast").mkdir()
    code = "import itertools, time\ntick = itertools.count(0.0, 20.0)\nreal = time.monotonic\n"
    code += "time.monotonic = lambda: real() + next(tick)\n"
    (tmp_path / "fast" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "fast"), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_that_is_stopped_gives_what_it_has(trained, tmp_path, at_once, number) -> None:
    long = tmp_path / "long"
    long.write_bytes(TEXT * 40)
    code, out, err = stopped(number, "eta", "evaluate", trained, long, "--json", cwd=tmp_path)
    found = json.loads(out)
    assert code == 130 and "Traceback" not in err and found["stopped"] and found["total"]["compressors"] == {}
    assert 0 < found["total"]["bytes"] < found["of_bytes"] == len(TEXT) * 40 and 0 < found["total"]["bpb"] < 8


def test_a_scoring_that_is_stopped_gives_what_it_has(trained, tmp_path, at_once) -> None:
    long = tmp_path / "long"
    long.write_bytes(TEXT * 40)
    code, out, err = stopped(signal.SIGTERM, "eta", "score", trained, long, cwd=tmp_path)
    assert code == 130 and "Traceback" not in err
    assert f" of {len(TEXT) * 40:,} bytes: " in out and "bits per byte so far" in out and "most surprising" in out


def test_a_repair_that_is_stopped_keeps_what_it_has_and_says_how_to_go_on(trained, tmp_path, btlm, monkeypatch) -> None:
    received = bytearray(TEXT[:2500])
    for at in (500, 1500, 2300):
        received[at] ^= 4
    (tmp_path / "hurt").write_bytes(received)
    call = ["repair", trained, "hurt", "--rate", 1e-3]
    monkeypatch.setattr(restoration, "repair_pieces", partial(repair_pieces, piece=1000))
    assert btlm(*call, "--out", "at-once").returncode == 0
    search, begun = bit_transformer.restoration.streams.search, []

    def interrupted(*args, **how):
        begun.append(how)
        if len(begun) == stop_in:
            os.kill(os.getpid(), signal.SIGINT)
        return search(*args, **how)

    monkeypatch.setattr(bit_transformer.restoration.streams, "search", interrupted)
    stop_in = 1
    none = btlm(*call, "--out", "mended")
    assert none.returncode == 130 and "nothing was written" in none.stdout and not (tmp_path / "mended").exists()
    begun.clear()
    stop_in = 2
    done = btlm(*call, "--out", "mended")
    assert done.returncode == 130 and "Stopped: bytes 0 to 1000 are repaired, the others as received" in done.stdout
    made = (tmp_path / "mended").read_bytes()
    assert made[:1000] == (tmp_path / "at-once").read_bytes()[:1000] and made[1000:] == received[1000:]
    how = done.stdout.split("Go on with: btlm ")[1].split()
    assert " ".join(how) == f"repair {trained} mended --range 1000:2500 --rate 0.001 --out mended"
    assert btlm(*how).returncode == 0
    assert (tmp_path / "mended").read_bytes()[:1000] == made[:1000]
    begun.clear()
    found = json.loads(btlm(*call, "--out", "again", "--json").stdout)
    assert found["stopped"] and found["repaired"] == [0, 1000] and found["asked"] == [0, 2500]


def test_a_range_is_repaired_and_the_rest_copied(btlm, trained, tmp_path) -> None:
    received = bytearray(TEXT[:3000])
    for at in (300, 1500, 2700):
        received[at] ^= 4
    (tmp_path / "hurt").write_bytes(received)
    found = json.loads(
        btlm("repair", trained, "hurt", "--rate", 1e-3, "--range", "1000:2000", "--out", "mended", "--json").stdout
    )
    made = (tmp_path / "mended").read_bytes()
    assert made[:1000] == received[:1000] and made[2000:] == received[2000:] and not found["stopped"]
    assert found["repaired"] == [1000, 2000] and all(1000 <= change["offset"] < 2000 for change in found["changes"])
    for bad, said in (("5:5", "not be empty"), ("2000:4000", "within bytes 0:3000"), ("5", "got the range '5'")):
        refused = btlm("repair", trained, "hurt", "--range", bad, "--out", "x")
        assert refused.returncode == 2 and said in refused.stderr and not (tmp_path / "x").exists()


def test_progress_names_what_is_left_and_when_it_ends(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(training_output.time, "monotonic", lambda: now[0])
    with live_progress() as job:
        for done in range(0, 101, 5):
            job.tell(Reading(done * 10_000, 1_000_000, "scored"))
            now[0] += 3.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scored 0.2 of 1.0 MB · eta 0:48"  # at 12 s, of 20 pieces of 3 s four are done
    assert lines[-1] == "scored 1.0 of 1.0 MB" and len(lines) == 5
    with live_progress() as job:  # what takes no time says only that it is done
        for done in (10, 20):
            job.tell(Reading(done, 20, "filled", "bits"))
    assert capsys.readouterr().err.splitlines() == ["filled 20 of 20 bits"]


def test_the_final_figures_say_how_validation_differs(btlm, text_file) -> None:
    done = btlm("train", text_file, *SMALL, "--steps", 5, "--out", "runs/one")
    assert "val during training (" in done.stdout and "small sample" in done.stdout
    none = btlm("train", text_file, *SMALL, "--steps", 5, "--set", "data.holdout=0", "--out", "runs/two")
    assert none.returncode == 0 and "val during training" not in none.stdout
