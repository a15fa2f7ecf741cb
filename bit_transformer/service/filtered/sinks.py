"""Files that a filter writes: under a name of their own until they are complete, with a note beside them that says how far it was.

    out.jsonl.partial        what was kept so far; of parquet a folder with a file for each piece
    out.jsonl.partial.json   where to go on: place in the input, sizes of the files, counts

The note is written after the data that it speaks of. What a killed run wrote after its last note is cut off, and made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from bit_transformer.errors import ConfigError, Give
from bit_transformer.extras import require
from bit_transformer.quality.documents import STDIN, packer
from bit_transformer.service.files import new_file, write_file

STDOUT = STDIN


class Sink(Protocol):
    """Takes what was kept, piece by piece."""

    def write(self, data: Any) -> None:
        """Take the next piece."""

    def sync(self) -> int:
        """See that all of it is on the disk; how much there is."""

    def finish(self) -> None:
        """Give it its name."""

    def close(self) -> None:
        """Let go of files; what was written stays."""


class Nowhere:
    """For what nobody wants."""

    def write(self, data: Any) -> None:
        """As in `Sink`."""

    def sync(self) -> int:
        """As in `Sink`."""
        return 0

    def finish(self) -> None:
        """As in `Sink`."""

    def close(self) -> None:
        """As in `Sink`."""


class Pipe(Nowhere):
    """Standard output, which cannot be taken up again."""

    def write(self, data: bytes) -> None:
        """As in `Sink`."""
        sys.stdout.buffer.write(data)

    def sync(self) -> int:
        """As in `Sink`."""
        sys.stdout.buffer.flush()
        return 0


class Lines:
    """A file of lines, compressed if its name says so: each piece by itself.

    Args:
        size: bytes of what was written before that are kept.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.partial, self._pack = path, partial(path), packer(path.suffix)
        self._file: BinaryIO = self.partial.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, data: bytes) -> None:
        """As in `Sink`."""
        if data:
            self._file.write(self._pack(data))

    def sync(self) -> int:
        """As in `Sink`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self) -> None:
        """As in `Sink`."""
        if not self._file.tell() and self.path.suffix in (".gz", ".zst"):
            self._file.write(self._pack(b""))  # nothing was kept: an empty file, compressed
        self.sync()
        self.close()
        os.replace(self.partial, self.path)

    def close(self) -> None:
        """As in `Sink`."""
        self._file.close()


class Tables:
    """A parquet file. Its footer comes last, so pieces wait in files of their own.

    Args:
        size: pieces that were written before and are kept.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.partial = path, partial(path)
        self._parquet = require("pyarrow.parquet", extra="parquet", purpose="parquet")
        if not size:
            _remove(self.partial)
        self.partial.mkdir(exist_ok=True)
        self._count = size

    def write(self, data: Any) -> None:
        """As in `Sink`."""
        self._parquet.write_table(data, self._part(self._count))
        self._count += 1

    def sync(self) -> int:
        """As in `Sink`."""
        return self._count

    def finish(self) -> None:
        """As in `Sink`."""
        with new_file(self.path) as file:
            writer = None
            for number in range(self._count):
                table = self._parquet.read_table(self._part(number))
                if writer is None:
                    writer = self._parquet.ParquetWriter(file, table.schema)
                if table.num_rows or self._count == 1:
                    writer.write_table(table)
            if writer is not None:
                writer.close()
        _remove(self.partial)

    def close(self) -> None:
        """As in `Sink`."""

    def _part(self, number: int) -> Path:
        return self.partial / f"{number:08}.parquet"


def partial(path: Path) -> Path:
    """The name of a file that is not complete."""
    return path.with_name(f"{path.name}.partial")


def note(path: Path) -> Path:
    """The name of the note beside it."""
    return path.with_name(f"{path.name}.partial.json")


def read_note(path: Path, asked: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """How far an earlier run came with the same; None: there was none.

    Raises:
        ConfigError: it was asked for something else, and what it wrote would be lost.
    """
    try:
        told = json.loads(note(path).read_text())
        same = told["asked"] == asked
        if same and all(_has(Path(name), size) for name, size in told["files"].items()):
            return dict(told)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        same = True  # nothing that could be taken up
    if not same and not overwrite:
        raise ConfigError(
            f"{partial(path)}: is of an interrupted run with other inputs or settings",
            field="out",
            tries=("the same command, which goes on", Give("out"), Give("overwrite", True)),
        )
    return None


def _has(path: Path, size: int) -> bool:
    """Whether a file, or a folder of pieces, holds as much as was noted."""
    return len(list(path.iterdir())) >= size if path.is_dir() else path.stat().st_size >= size


def write_note(path: Path, told: dict[str, Any]) -> None:
    """Write how far it is."""
    write_file(note(path), json.dumps(told).encode())


def clear(*paths: Path) -> None:
    """Remove what is partial."""
    for path in paths:
        _remove(partial(path))
        _remove(note(path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
