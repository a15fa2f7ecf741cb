"""`btlm map`, `locate`, `explain RUN FILE`, and `repair` with a proof."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path

import pytest

from bit_transformer.data.sources import stdlib_files
from tests.interfaces.test_cli import SMALL

CODE = b"".join(path.read_bytes() for path in stdlib_files()[:30])


@pytest.fixture
def damaged(tmp_path) -> Path:
    """A file with a shifted range and zeros; `clean.py` is what it was."""
    data = bytearray(CODE[:60_000])
    (tmp_path / "clean.py").write_bytes(data)
    number = int.from_bytes(data[20_000:20_300], "big")
    data[20_000:20_300] = (number >> 1).to_bytes(300, "big")
    data[40_000:40_100] = bytes(100)
    path = tmp_path / "damaged.py"
    path.write_bytes(data)
    return path


def test_a_map_is_written_in_every_format(btlm, damaged, tmp_path) -> None:
    outs = (
        "-o",
        "m.html",
        "--csv",
        "m.csv",
        "--json-lines",
        "m.jsonl",
        "--png",
        "m.png",
        "--imhex",
        "m.hexbm",
        "--window",
        "64",
    )
    done = btlm("map", damaged, *outs)
    assert done.returncode == 0, done.stderr
    assert "60,000 bytes" in done.stdout and "m.html" in done.stdout and "experts alone" in done.stdout
    rows = list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(rows) == -(-60_000 // 64) == len(lines) - 1
    assert max(rows, key=lambda row: float(row["bits_per_byte"]))["offset"] in {
        str(at) for at in range(19_968, 20_320, 64)
    }
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG" and b"<!doctype html>" in (
        tmp_path / "m.html"
    ).read_bytes().lower()
    marks = json.loads((tmp_path / "m.hexbm").read_text())["bookmarks"]
    assert any(19_950 < mark["region"]["address"] < 20_310 for mark in marks)
    again = btlm("map", damaged, *outs)
    assert again.returncode == 2 and "is there already" in again.stderr and "--overwrite" in again.stderr


def test_a_map_of_a_part_has_the_offsets_of_the_file(btlm, damaged) -> None:
    shown = btlm("map", damaged, "--range", "16384:32768", "--window", 4096, "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert [int(row["offset"]) for row in rows] == [16_384, 20_480, 24_576, 28_672]
    made = json.loads(btlm("map", damaged, "--range", "16384:32768", "--json").stdout)
    assert made["bytes"] == 16_384 and made["segments"][0]["begin"] == 16_384 and made["segments"][-1]["end"] == 32_768
    assert Path(made["written"][0]).name == "damaged.py.map.html"


def test_damage_is_located_against_an_intact_version(btlm, damaged, tmp_path) -> None:
    found = json.loads(btlm("locate", damaged, "--against", "clean.py", "--json").stdout)
    kinds = {d["kind"]: d["begin"] for d in found["ranges"]}
    assert set(kinds) == {"shifted", "zeros"} and abs(kinds["shifted"] - 20_000) < 40 and kinds["zeros"] == 40_000
    assert found["false_alarms"] is None and found["reference_bytes"] == 60_000
    shown = btlm("locate", damaged, "--against", "clean.py")
    assert (
        "2 ranges look damaged" in shown.stdout
        and "1 bit too late" in shown.stdout
        and "what clean.py has too is not reported" in shown.stdout
    )


def test_without_anything_clean_it_says_that_alarms_are_not_known(btlm, damaged) -> None:
    shown = btlm("locate", damaged)
    assert shown.returncode == 0 and "is not known" in shown.stdout and "shifted" in shown.stdout


def test_damage_in_what_is_compressed_leaves_no_mark_and_that_is_said(btlm, tmp_path) -> None:
    (tmp_path / "both").write_bytes(CODE[:20_000] + gzip.compress(CODE[:60_000]))
    shown = btlm("locate", "both")
    assert "compressed or encrypted; damage leaves no mark there" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("map", "small"), "got 100 bytes and no run; experts alone need 1,024"),
        (("locate", "small"), "got 100 bytes and no run"),
        (("map", "nothing"), "nothing"),
        (("map", "empty"), "got an empty file"),
        (("map", "huge"), "got 10,000,000,000 bytes; at most 268,435,456 can be read at once. Try --range 0:268435456"),
        (("map", "clean.py", "--range", "50000:70000"), "it must be in 0:60000"),
        (("locate", "clean.py", "--reference", "clean.py"), "can only show 17 per megabyte or more"),
        (("map", "clean.py", "-o", "clean.py", "--overwrite"), "which is an input too"),
        (("map", "clean.py", "--csv", "a", "-o", "a"), "which is out too"),
        (("map", "clean.py", "-o", "-"), "only tables go to standard output"),
        (("map", "clean.py", "--png", "a.jpg"), "a name that ends in .png is needed"),
        (("locate", "clean.py", "--reference", "small"), "at least 16,384 are needed"),
        (("locate", "clean.py", "--run", "runs/one", "--reference", "clean.py"), "got a run and a reference"),
        (("repair", "clean.py", "--proof", "crc32:12345678", "--rate", "0.1"), "got --rate and a proof"),
        (("repair", "huge", "--proof", "crc32:12345678"), "at most 33,554,432 can be read at once"),
        (("repair", "clean.py"), "got neither a run nor a proof"),
        (("repair", "clean.py", "--proof", "crc32:12"), "got 2 characters for crc32; must be 8 hex digits"),
        (("repair", "clean.py", "--proof", "crc31:12345678"), "got 'crc31'; must be one of"),
        (("repair", "clean.py", "--proof", "auto"), "there is no check in it"),
        (("repair", "clean.py", "--block-size", "512"), "no checksums of blocks"),
        (("repair", "clean.py", "--proof", "crc32:12345678", "--lost", "70000:70004"), "it must be in 0:60000"),
    ],
)
def test_bad_input_is_one_line(btlm, damaged, tmp_path, arguments, says) -> None:
    (tmp_path / "small").write_bytes(CODE[:100])
    (tmp_path / "empty").touch()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10_000_000_000)
    done = btlm(*arguments)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_repair_is_written_when_the_checksum_holds(btlm, tmp_path) -> None:
    whole = CODE[70_000:90_000]
    data = bytearray(whole)
    data[5_000] ^= 4
    data[15_000] ^= 64
    (tmp_path / "backup.py").write_bytes(data)
    proof = f"crc32:{zlib.crc32(whole):08x}"
    done = btlm("repair", "backup.py", "--proof", proof)
    assert done.returncode == 0 and "repaired and proved" in done.stdout, done.stderr
    assert (tmp_path / "backup.py.repaired").read_bytes() == whole and (tmp_path / "backup.py").read_bytes() == data
    refused = btlm("repair", "backup.py", "--proof", proof)
    assert refused.returncode == 2 and "is there already" in refused.stderr
    again = json.loads(btlm("repair", "backup.py.repaired", "--proof", proof, "--json").stdout)
    assert again["already"] and again["out"] is None


def test_what_is_not_proved_is_listed_and_not_written(btlm, tmp_path) -> None:
    (tmp_path / "backup.py").write_bytes(CODE[70_000:74_000])
    done = btlm("repair", "backup.py", "--proof", "crc32:00000000", "--seconds", 3, "--json")
    found = json.loads(done.stdout)
    assert (
        done.returncode == 5 and not found["proved"] and found["candidates"] and not list(tmp_path.glob("*.repaired"))
    )
    assert found["candidates"][0]["changes"][0].keys() == {"offset", "old", "new", "text"}
    both = ("--proof", "crc32:00000000", "--proof", "sha256:" + "0" * 64)
    shown = btlm("repair", "backup.py", *both, "--seconds", 3)
    assert shown.returncode == 5 and "Nothing was written" in shown.stdout


def test_checks_are_found_in_files_and_in_lists(btlm, tmp_path) -> None:
    whole = CODE[:30_000]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.py", whole)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[10_000] ^= 2
    (tmp_path / "a.zip").write_bytes(data)
    done = btlm("repair", "a.zip", "--proof", "auto", "-o", "good.zip")
    assert done.returncode == 0, done.stdout + done.stderr
    assert zipfile.ZipFile(tmp_path / "good.zip").read("a.py") == whole
    broken = bytearray(whole)
    broken[100] ^= 1
    broken[9_000] ^= 8
    broken[20_000:20_002] = b"\0\0"
    (tmp_path / "disk.img").write_bytes(broken)
    sums = [f"{zlib.crc32(whole[at : at + 4096]):08x}" for at in range(0, len(whole), 4096)]
    (tmp_path / "blocks").write_text("\n".join(sums))
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(whole).hexdigest()}  disk.img\n{'0' * 64}  other\n")
    done = btlm("repair", "disk.img", "--checksums", "blocks", "--block-size", 4096, "-o", "good.img")
    assert done.returncode == 0 and (tmp_path / "good.img").read_bytes() == whole, done.stdout + done.stderr
    assert "5 of 8 checks hold as received" in done.stdout
    held = btlm("repair", "good.img", "--checksums", "SHA256SUMS")
    assert held.returncode == 2 and "no line for good.img" in held.stderr


def test_a_run_reads_maps_and_explains_files(btlm, text_file, tmp_path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(bytes(range(256)) * 3 + CODE[:300_000])
    done = btlm("train", binary, *SMALL, "--steps", 20, "--set", "data.split=blocks", "--out", "runs/one")
    assert done.returncode == 0, done.stderr
    (tmp_path / "part").write_bytes(CODE[300_000:304_000] + bytes(1500))
    mapped = btlm("map", "part", "--run", "runs/one", "--false-alarms", 200, "--json")
    found = json.loads(mapped.stdout)
    assert mapped.returncode == 0 and "model of runs/one forwards" in found["reader"], mapped.stderr
    assert all(segment["like"] is not None for segment in found["segments"])
    assert btlm("calibrate", "runs/one", "--alpha", 0.05).returncode == 0
    shown = btlm("explain", "runs/one", "part", "--bytes", 256)
    assert shown.returncode == 0 and "windows of 256 bytes" in shown.stdout, shown.stderr
    judged = json.loads(btlm("explain", "runs/one", "part", "--bytes", 256, "--json").stdout)
    assert sum(judged["kinds"].values()) == judged["windows"] and judged["kinds"].get("repetitive", 0) >= 4
    assert any(s["kind"] == "repetitive" and s["end"] > 4_500 for s in judged["stretches"])
    scored = btlm("score", "runs/one", "part", "--window", 100)
    assert "least surprising" in scored.stdout and "begins with" in scored.stdout
    neither = btlm("explain", "runs/one")
    assert neither.returncode == 2 and "btlm explain RUN FILE" in neither.stderr
