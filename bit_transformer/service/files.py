"""Whole files in and out."""

from __future__ import annotations

import os
from pathlib import Path

from bit_transformer.errors import BitStreamError, ConfigError


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


def write_file(path: Path, data: bytes) -> None:
    """Write bytes to a temporary name beside it, and rename that; what was there before stays until then."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def check_out(out: Path) -> None:
    """Refuse a file that could not be written, before the work for it.

    Raises:
        ConfigError: a folder, a device, or a file in a folder that is not there.
    """
    if (out.exists() and not out.is_file()) or not out.absolute().parent.is_dir():
        raise ConfigError(f"out={str(out)!r}; it must be a file in a folder that is there. Try ./{out.name or 'out'}")
