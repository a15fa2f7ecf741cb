"""One training per run folder: its process locks a file there, and the system releases the lock when the process ends in any way.

The file names the process, for messages. Only the lock counts, so the file of a killed process does no harm. Windows has no such locks; there,
folders are not locked.

Source: flock(2).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from bit_transformer.errors import ConfigError, Give, RunBusy

LOCK_FILE = ".lock"
TRIES, PAUSE = 10, 0.02  # checking whether a folder is locked locks it for a moment


class Holder(NamedTuple):
    """The process that a lock file names."""

    host: str
    pid: int


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within the context, no other training can use the folder. The folder is made, and removed if it stays empty.

    Raises:
        RunBusy: another training uses it.
        ConfigError: it cannot be written.
    """
    path = folder.absolute()
    made = [part for part in (path, *path.parents) if not part.exists()]
    try:
        with _taken(path / LOCK_FILE):
            try:
                yield
            finally:
                # Before the lock is released, so that nobody waits for a removed file.
                (path / LOCK_FILE).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # from the first folder that is not empty
            for part in made:
                part.rmdir()


def holder(folder: Path) -> Holder | None:
    """The process that trains in a folder, if any."""
    try:
        with (folder / LOCK_FILE).open() as file:
            return None if _lock(file, shared=True) else _named(file)
    except OSError:
        return None


def check_free(folder: Path) -> None:
    """Refuse a folder that a training uses.

    Raises:
        RunBusy: a training uses it.
    """
    found = holder(folder)
    if found:
        raise RunBusy(
            f"{folder}: process {found.pid} on {found.host} is training there; a run folder takes one training at a time",
            field="out",
            tries=(Give("out"), "again when it has ended"),
        )


def _taken(path: Path) -> IO[str]:
    """The lock file, open and locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            file = path.open("a+")
            if _lock(file) and _is_at(file, path):
                file.truncate(0)
                file.write(json.dumps(Holder(platform.node(), os.getpid())._asdict()))
                file.flush()
                return file
            file.close()
            time.sleep(PAUSE)
    except OSError as refused:
        raise ConfigError(
            f"out={str(path.parent)!r}: cannot be written ({refused.strerror}). Try another folder"
        ) from None
    check_free(path.parent)
    raise RunBusy(f"{path.parent}: another training is about to start there", field="out", tries=("again", Give("out")))


def _lock(file: IO[str], *, shared: bool = False) -> bool:
    """Lock a file; whether that succeeded. Closing the file releases the lock."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the file at a path, and was not removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _named(file: IO[str]) -> Holder:
    """The process that a lock file names; process 0 if it is not written yet."""
    try:
        return Holder(**json.loads(file.read()))
    except (ValueError, TypeError):
        return Holder(platform.node(), 0)
