"""Reading and writing whole files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bit_transformer.errors import BitStreamError, ConfigError, Give


def read_file(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        BitStreamError: it cannot be read, or is empty.
    """
    try:
        data = path.read_bytes()
    except OSError as unreadable:
        raise BitStreamError(f"{path}: cannot be read ({unreadable.strerror}). Try another file") from None
    if not data:
        raise BitStreamError(f"{path}: is empty; at least one byte is needed. Try another file")
    return data


@contextlib.contextmanager
def new_file(path: Path, *, like: Path | None = None) -> Iterator[BinaryIO]:
    """Within: a file under a temporary name. At the end it gets its name; after an error nothing is left.

    Args:
        like: a file whose permissions and times it gets.

    Raises:
        OSError: writing failed; it names the file, not the temporary one.
    """
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            yield file
        if like is not None and like.is_file():
            with contextlib.suppress(OSError):  # not every file system has them
                shutil.copystat(like, temporary)
        os.replace(temporary, path)
    except OSError as refused:
        _remove(temporary)
        raise OSError(refused.errno, refused.strerror, str(path)) from None
    except BaseException:
        _remove(temporary)
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write bytes to a temporary name beside the file, and rename it; an old file stays until then.

    Raises:
        OSError: writing failed; it names the file, not the temporary one.
    """
    with new_file(path) as file:
        file.write(data)


def check_out(out: Path, what: str = "out") -> None:
    """Refuse a file that cannot be written, before the work for it starts.

    Raises:
        ConfigError: a folder, a device, or a file in a folder that does not exist or cannot be written to.
    """
    temporary = _beside(out) if out.name else out
    try:
        if (out.exists() and not out.is_file()) or not out.absolute().parent.is_dir():
            raise ConfigError(
                f"got {what}={str(out)!r}; it must be a file in an existing folder. Try ./{out.name or 'out'}"
            )
        temporary.touch()
    except OSError as refused:
        raise ConfigError(
            f"got {what}={str(out)!r}; it cannot be written ({refused.strerror}). Try another path"
        ) from None
    finally:
        _remove(temporary)


def check_run_folder(out: Path) -> None:
    """Refuse a run folder that cannot be made.

    Raises:
        ConfigError: it is a file, or below one.
    """
    if out.is_file():
        raise ConfigError(
            f"{out} is a file; a run needs its own folder", field="out", tries=(Give("out", "runs/NAME"),)
        )
    there_already = next(path for path in out.absolute().parents if path.exists())
    if not there_already.is_dir():
        raise ConfigError(f"{out}: {there_already} is a file; a folder is needed", field="out", tries=(Give("out"),))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # on a disk that cannot be written this fails too
        temporary.unlink(missing_ok=True)
