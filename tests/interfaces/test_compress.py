"""`btlm compress` and `btlm decompress`, as a user meets them."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from bit_transformer.coding import container
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import TEXT
from tests.interfaces.test_cli import SMALL


def test_a_file_goes_there_and_back(btlm, text_file, tmp_path):
    done = btlm("compress", text_file)
    assert done.returncode == 0, done.stderr
    assert "times smaller" in done.stdout and "text.txt.btlm" in done.stdout
    assert "compressed" in done.stderr
    text_file.unlink()
    done = btlm("decompress", "text.txt.btlm")
    assert done.returncode == 0, done.stderr
    assert text_file.read_bytes() == TEXT
    made = json.loads(btlm("compress", text_file, "-o", "b.btlm", "--frame-bytes", 5000, "--jobs", 2, "--json").stdout)
    assert made["frames"] == -(-len(TEXT) // 5000) and made["compressed"] == (tmp_path / "b.btlm").stat().st_size
    found = json.loads(btlm("decompress", "b.btlm", "-o", "b", "--json").stdout)
    assert found == {"file": "b.btlm", "out": "b", "bytes": len(TEXT), "lost": [], "cut": False}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.btlm", "text.txt", "text.txt.btlm"]


def test_several_files_and_an_empty_one(btlm, text_file, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    done = btlm("compress", text_file, "empty", "--no-verify")
    assert done.returncode == 0, done.stderr
    done = btlm("decompress", "text.txt.btlm", "empty.btlm", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "empty").read_bytes() == b"" and text_file.read_bytes() == TEXT


def test_pipes(text_file, tmp_path):
    command = [sys.executable, "-m", "bit_transformer.cli"]
    packed = subprocess.run([*command, "compress", "-"], input=TEXT, capture_output=True, cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout[:8] == container.MAGIC
    plain = subprocess.run([*command, "decompress", "-"], input=packed.stdout, capture_output=True, cwd=tmp_path)
    assert plain.stdout == TEXT
    one = subprocess.run([*command, "compress", str(text_file), "-o", "-"], capture_output=True, cwd=tmp_path)
    assert len(one.stdout) == len(packed.stdout) and b"times smaller" in one.stderr
    subprocess.run([*command, "decompress", "-", "-o", "made"], input=packed.stdout, check=True, cwd=tmp_path)
    assert (tmp_path / "made").read_bytes() == TEXT
    made = subprocess.run(
        [*command, "compress", "-", "-o", "j", "--json"], input=TEXT, capture_output=True, cwd=tmp_path
    )
    assert json.loads(made.stdout)["bytes"] == len(TEXT) and (tmp_path / "j").exists()
    shell = f"{shlex.join(command)} compress <(cat {shlex.quote(str(text_file))}) -o fifo && {shlex.join(command)} decompress fifo -o -"
    fifo = subprocess.run(
        ["bash", "-c", shell], capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert fifo.stdout.endswith(TEXT), fifo.stderr
    hurt = packed.stdout[: len(packed.stdout) // 2]
    refused = subprocess.run([*command, "decompress", "-", "-o", "no"], input=hurt, capture_output=True, cwd=tmp_path)
    assert refused.returncode == 2 and b"ends too early" in refused.stderr and not (tmp_path / "no").exists()


def test_a_run_compresses_what_it_was_trained_on_better(btlm, text_file, tmp_path):
    assert btlm("train", text_file, *SMALL, "--steps", 30, "--out", "runs/one").returncode == 0
    (tmp_path / "some").write_bytes(TEXT[:2000])
    alone, with_run = (
        json.loads(btlm("compress", "some", "-o", name, *more, "--json").stdout)["compressed"]
        for name, more in (("alone", ()), ("with", ("--model", "one")))
    )
    assert with_run < alone
    assert btlm("decompress", "with", "-o", "back", "--model", "runs/one").returncode == 0
    assert (tmp_path / "back").read_bytes() == TEXT[:2000]
    refused = btlm("decompress", "with", "-o", "never")
    assert refused.returncode == 2 and "the same model is needed" in refused.stderr
    assert btlm("train", text_file, *SMALL, "--steps", 3, "--out", "runs/two").returncode == 0
    refused = btlm("decompress", "with", "-o", "never", "--model", "two")
    assert refused.returncode == 2 and "another model" in refused.stderr
    adapted = json.loads(btlm("compress", "some", "-o", "ad", "--model", "one", "--adapt", 0.02, "--json").stdout)
    assert adapted["bytes"] == 2000
    assert btlm("decompress", "ad", "-o", "back2", "--model", "one").returncode == 0
    assert (tmp_path / "back2").read_bytes() == TEXT[:2000]
    assert not (tmp_path / "never").exists()


def test_what_exists_is_not_replaced_unasked(btlm, text_file, tmp_path):
    assert btlm("compress", text_file).returncode == 0
    (tmp_path / "text.txt.btlm").write_bytes(b"precious")
    refused = btlm("compress", text_file)
    assert refused.returncode == 2 and "exists" in refused.stderr and "--overwrite" in refused.stderr
    assert (tmp_path / "text.txt.btlm").read_bytes() == b"precious"
    assert btlm("compress", text_file, "--overwrite").returncode == 0
    refused = btlm("decompress", "text.txt.btlm")
    assert refused.returncode == 2 and text_file.read_bytes() == TEXT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compress", "gone"], "cannot be read"),
        (["compress", "."], "is a folder"),
        (["compress", "text.txt", "-o", "nowhere/x"], "existing folder"),
        (["compress", "text.txt", "--model", "nothing"], "run"),
        (["compress", "text.txt", "--adapt", "0.01"], "without a model"),
        (["compress", "text.txt", "--frame-bytes", "0"], "frame_bytes"),
        (["compress", "text.txt", "--jobs", "0"], "jobs"),
        (["compress", "text.txt", "text.txt", "-o", "x"], "one is needed"),
        (["compress", "-", "--json"], "--json"),
        (["decompress", "text.txt"], "--out"),
        (["decompress", "text.txt", "-o", "x"], "does not begin"),
        (["decompress", "empty.btlm"], "empty"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(btlm, text_file, tmp_path, arguments, said):
    (tmp_path / "empty.btlm").write_bytes(b"")
    done = btlm(*arguments, stdin=b"abc")
    assert done.returncode == 2
    assert said in done.stderr and "Try" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"text.txt", "empty.btlm", "runs"}


def test_each_of_several_files_is_tried_and_mode_and_time_stay(btlm, text_file, tmp_path):
    text_file.chmod(0o755)
    os.utime(text_file, (1e9, 1e9))
    (tmp_path / "also").write_bytes(b"x" * 1000)
    done = btlm("compress", text_file, "gone", "also")
    assert done.returncode == 2 and "gone: cannot be read" in done.stderr
    assert (tmp_path / "text.txt.btlm").exists() and (tmp_path / "also.btlm").exists()
    made = (tmp_path / "text.txt.btlm").stat()
    assert made.st_mode & 0o777 == 0o755 and made.st_mtime == 1e9
    (tmp_path / "text.txt.btlm").write_bytes(b"damaged")
    done = btlm("decompress", "text.txt.btlm", "also.btlm", "--overwrite")
    assert done.returncode == 2 and "text.txt.btlm: got a file that does not begin" in done.stderr
    assert (tmp_path / "also").read_bytes() == b"x" * 1000 and text_file.read_bytes() == TEXT


def test_what_is_intact_before_damage_goes_into_a_pipe(text_file, tmp_path):
    command = [sys.executable, "-m", "bit_transformer.cli"]
    subprocess.run([*command, "compress", str(text_file), "--frame-bytes", "1000", "-o", "p"], check=True, cwd=tmp_path)
    packed = bytearray((tmp_path / "p").read_bytes())
    packed[len(packed) // 2] ^= 1
    (tmp_path / "p").write_bytes(packed)
    done = subprocess.run([*command, "decompress", "p", "-o", "-", "--jobs", "4"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 2 and b"p: got a damaged file" in done.stderr
    assert len(done.stdout) >= 8000 and TEXT.startswith(done.stdout)


def test_damage_is_refused_or_gone_around(btlm, text_file, tmp_path):
    assert btlm("compress", text_file, "--frame-bytes", 6000).returncode == 0
    packed = bytearray((tmp_path / "text.txt.btlm").read_bytes())
    packed[container.HEADER_SIZE + container.FRAME_SIZE + 20] ^= 1
    (tmp_path / "hurt.btlm").write_bytes(packed)
    refused = btlm("decompress", "hurt.btlm")
    assert refused.returncode == 2 and "--keep-going" in refused.stderr and not (tmp_path / "hurt").exists()
    (tmp_path / "end.btlm").write_bytes((tmp_path / "text.txt.btlm").read_bytes()[:-20])
    kept = btlm("decompress", "end.btlm", "--keep-going")
    assert kept.returncode == 2 and "the end is damaged or missing" in kept.stderr
    assert (tmp_path / "end").read_bytes() == TEXT
    kept = btlm("decompress", "hurt.btlm", "--keep-going")
    assert kept.returncode == 2 and "bytes 0 to 6,000 are lost" in kept.stderr
    assert (tmp_path / "hurt").read_bytes() == bytes(6000) + TEXT[6000:]


def test_more_than_the_disk_holds_is_refused_before_it_is_written(btlm, text_file, tmp_path, monkeypatch):
    assert btlm("compress", text_file).returncode == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    refused = btlm("decompress", "text.txt.btlm", "-o", "x")
    assert refused.returncode == 2 and "1,000 are free" in refused.stderr and not (tmp_path / "x").exists()


def test_operations_do_the_same(text_file, tmp_path):
    made = call("compress", {"path": text_file}, Workspace())
    assert made.bytes == len(TEXT) and made.bpb == pytest.approx(8 * made.compressed / len(TEXT))
    found = call("decompress", {"path": made.out, "out": tmp_path / "y"}, Workspace())
    assert found.bytes == len(TEXT) and (tmp_path / "y").read_bytes() == TEXT
