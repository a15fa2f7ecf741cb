"""One training a run folder: real processes, killed ones, and numbers of processes that are given again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bit_transformer.errors import ConfigError, RunBusy
from bit_transformer.runs import lock
from bit_transformer.runs.lock import LOCK_FILE, check_free, held, holder

HOLD = """
import sys, time
from pathlib import Path
from bit_transformer.runs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
TAKE = """
import sys, time
from pathlib import Path
from bit_transformer.errors import RunBusy
from bit_transformer.runs.lock import held
try:
    with held(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except RunBusy:
    print("busy", flush=True)
"""


def other(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_live_process_keeps_others_out_and_a_killed_one_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    process = other(HOLD, folder)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    there = holder(folder)
    assert there is not None and there.pid == process.pid
    with pytest.raises(RunBusy, match=f"process {process.pid} on .* is training there"), held(folder):
        raise AssertionError("two of them")
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
    process.kill()
    # Not waited for: it is a zombie, whose number is still taken.
    while holder(folder) is not None:
        pass
    with held(folder):
        assert holder(folder) is not None and holder(folder).pid == os.getpid()  # type: ignore[union-attr]
        with pytest.raises(RunBusy), held(folder):  # nor twice in one process
            pass
    process.communicate()
    assert list(folder.iterdir()) == []


def test_what_was_put_into_the_folder_stays_and_an_empty_one_goes(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError), held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").write_text("x")
        raise ValueError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


def test_a_number_that_was_given_again_holds_nothing(tmp_path: Path) -> None:
    with held(tmp_path):
        named = json.loads((tmp_path / LOCK_FILE).read_text())
        kept = (tmp_path / LOCK_FILE).read_text()
    assert named["started"]
    (tmp_path / LOCK_FILE).write_text(kept.replace(named["started"], "another start"))
    assert holder(tmp_path) is None
    (tmp_path / LOCK_FILE).write_text(json.dumps({**named, "host": "another machine"}))
    assert holder(tmp_path) is not None  # it cannot be asked, so it is believed
    with pytest.raises(RunBusy, match="if there is no such process, remove"):
        check_free(tmp_path)
    for damaged in ("", "{}", "[1]", "\x00"):
        (tmp_path / LOCK_FILE).write_text(damaged)
        assert holder(tmp_path) is None


def test_without_proc_the_system_is_asked_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PROC", tmp_path / "none")
    calls = []

    class Said:
        stdout = "Mon Jan  1 00:00:00 2024\n"

    def ps(command: list[str], **_: object) -> Said:
        calls.append(command)
        return Said()

    monkeypatch.setattr(lock.subprocess, "run", ps)
    with held(tmp_path), pytest.raises(RunBusy):
        check_free(tmp_path)
    assert calls[0] == ["ps", "-o", "lstart=", "-p", str(os.getpid())]
    with held(tmp_path):
        Said.stdout = "Tue Jan  2 00:00:00 2024\n"
        assert holder(tmp_path) is None


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": lock.platform.node(), "pid": 1, "started": "long ago"}))
    processes = [other(TAKE, tmp_path) for _ in range(6)]
    said = [process.stdout.readline() for process in processes if process.stdout]
    assert sorted(said) == ["busy\n"] * 5 + ["held\n"]
    for process in processes:
        process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="Not a directory"), held(tmp_path / "file" / "below"):
        pass
    place = Path("/proc/self")  # takes no files, of whomever
    if place.exists():
        with pytest.raises(ConfigError, match="out='/proc/self': cannot be written"), held(place):
            pass
