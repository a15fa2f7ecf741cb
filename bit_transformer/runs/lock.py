"""One training a run folder: while it goes on, a file there names its process. Of a process that was killed the file stays, and holds nothing."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bit_transformer.errors import ConfigError, RunBusy

LOCK_FILE = ".lock"
_PROC = Path("/proc")


class Holder(NamedTuple):
    """A process: numbers of processes are given again, so when it started is part of its name."""

    host: str
    pid: int
    started: str


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within: no other process, nor this one again, trains in the folder. It is made; where nothing was put into it, it goes again.

    Raises:
        RunBusy: another training has it.
        ConfigError: it cannot be written to.
    """
    path = folder.absolute()
    made = [part for part in (path, *path.parents) if not part.exists()]
    try:
        _take(path / LOCK_FILE)
        try:
            yield
        finally:
            (path / LOCK_FILE).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # of the first that is not empty
            for part in made:
                part.rmdir()


def holder(folder: Path) -> Holder | None:
    """The process that trains in a folder, if there is one: of another machine it is believed, for it cannot be asked."""
    found = _read(folder / LOCK_FILE)
    return found if found and (found.host != platform.node() or _started(found.pid) == found.started) else None


def check_free(folder: Path) -> None:
    """Refuse a folder in which a training goes on.

    Raises:
        RunBusy: one does.
    """
    found = holder(folder)
    if found:
        raise RunBusy(
            f"{folder}: process {found.pid} on {found.host} is training there; a run folder is for one at a time. Try another --out, or "
            f"wait for it; if there is no such process, remove {folder / LOCK_FILE}"
        )


def _take(path: Path) -> None:
    """Become the holder: a file with our name is linked to the lock's, which succeeds for one alone."""
    mine, stale = (path.with_name(f"{LOCK_FILE}.{os.getpid()}{end}") for end in ("", ".stale"))
    me = Holder(platform.node(), os.getpid(), _started(os.getpid()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text(json.dumps(me._asdict()))
        while True:
            with contextlib.suppress(FileExistsError):
                os.link(mine, path)
                return
            dead = _read(path)
            check_free(path.parent)
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, stale)
                if _read(stale) != dead:  # between the two looks another training took it
                    os.rename(stale, path)
    except OSError as refused:
        raise ConfigError(
            f"out={str(path.parent)!r}: cannot be written ({refused.strerror}). Try another folder"
        ) from None
    finally:
        for left in (mine, stale):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """Whom a lock names; none where there is none, or nothing that can be read."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _started(pid: int) -> str:
    """When a process started, as its system says it; nothing where it is gone."""
    try:
        if (_PROC / "self" / "stat").exists():
            state, *numbers = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
            return "" if state in "ZX" else f"{boot} {numbers[18]}"  # ticks since this start of the machine
        if os.name == "posix":
            asked = ["ps", "-o", "lstart=", "-p", str(pid)]
            return subprocess.run(asked, capture_output=True, text=True, timeout=5).stdout.strip()
    except (FileNotFoundError, ProcessLookupError, subprocess.TimeoutExpired):
        return ""
    return "unknown"  # a system that does not say: a lock is believed
