"""One training a run folder: real processes, killed ones, and what they leave behind."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bit_transformer.errors import ConfigError, RunBusy
from bit_transformer.runs import lock
from bit_transformer.runs.lock import LOCK_FILE, Holder, check_free, held, holder

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
    deadline = time.monotonic() + 30
    while holder(folder) is not None and time.monotonic() < deadline:  # not waited for: a zombie
        time.sleep(0.01)
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


@pytest.mark.parametrize("left", ["", "{}", "[1]", '{"host": "here", "pid": 1}', '{"host": "elsewhere", "pid": 1}'])
def test_what_a_killed_process_left_behind_is_no_obstacle(tmp_path: Path, left: str) -> None:
    (tmp_path / LOCK_FILE).write_text(left)
    assert holder(tmp_path) is None
    with held(tmp_path):
        assert holder(tmp_path) == Holder(platform.node(), os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_removed_while_it_was_waited_for_is_asked_for_again(tmp_path: Path, monkeypatch) -> None:
    lock_once, removed = lock._lock, []

    def remove_first(file, **how):
        if not removed:
            removed.append((tmp_path / LOCK_FILE).unlink())
        return lock_once(file, **how)

    monkeypatch.setattr(lock, "_lock", remove_first)
    with held(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
        with pytest.raises(RunBusy):
            check_free(tmp_path)


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("left behind")
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
