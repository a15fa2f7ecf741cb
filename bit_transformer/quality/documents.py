"""Documents in files: JSON lines (also compressed, also from standard input), folders of text files, parquet.

A source gives pieces: some documents in their order, and where the source goes on after them, so that reading can be taken up there. A JSON line keeps its
bytes: new columns are spliced in before its last brace, so that numbers, escapes and the order of keys stay as they were.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

from bit_transformer.errors import BitStreamError, Give
from bit_transformer.extras import require

PIECE = 1 << 18  # bytes that are scored between two looks at how far it is
ROWS = 1000  # rows of a table at a time
LONGEST_LINE = 1 << 26
LINES = (".jsonl", ".ndjson", ".json", ".jsonlines")
PACKED = (".gz", ".zst")
STDIN = "-"
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"

Form = Literal["lines", "files", "parquet"]


@dataclass
class Piece:
    """Some documents of a source, in order.

    Attributes:
        first: number of the first, from 1.
        lines: of JSON, or the names of files; or `table`: rows of a parquet file.
        end: where the source goes on; `count`: documents before there.
        size: bytes, for progress.
        too_long: indices of lines of which only the beginning was read.
    """

    first: int
    lines: list[bytes]
    end: int
    count: int
    size: int
    table: Any = None
    too_long: dict[int, int] = field(default_factory=dict)


class Found(NamedTuple):
    """A document, or why there is none.

    Attributes:
        text: None if it cannot be read; then `why` says so in a few words that are the same for all of a kind.
    """

    text: str | None
    why: str = ""


# ---- sources ----


class Source:
    """A file or folder with documents.

    Args:
        name: as it was given; `-` is standard input.

    Raises:
        BitStreamError: there is no such file.
    """

    def __init__(self, name: str, text_field: str = "text") -> None:
        self.name, self.field, self.path = name, text_field, Path(name)
        if name != STDIN and not self.path.exists():
            raise BitStreamError(f"got {name!r}; there is no such file or folder. Try another path", field="names")
        self.form: Form = _form(self.path, name)
        if self.form == "parquet":
            _check_table(self.path, text_field)

    @property
    def size(self) -> int:
        """Bytes of it, as far as they are known; for progress."""
        if self.name == STDIN or self.packed:
            return 0
        return sum(path.stat().st_size for path in self.files()) if self.form == "files" else self.path.stat().st_size

    @property
    def packed(self) -> bool:
        """Whether it is compressed as a whole."""
        return self.name != STDIN and self.form == "lines" and self.path.suffix in PACKED

    def files(self) -> list[Path]:
        """The files of a folder, or the one file that is a document."""
        if not self.path.is_dir():
            return [self.path]
        found = (p for p in self.path.rglob("*") if p.is_file())
        return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(self.path).parts))

    def pieces(self, start: int = 0, count: int = 0) -> Iterator[Piece]:
        """What it holds, from a place that an earlier piece ended at.

        Raises:
            BitStreamError: it cannot be read, or is damaged.
        """
        if self.form == "parquet":
            yield from self._tables(start)
        elif self.form == "files":
            yield from self._files(start)
        else:
            try:
                with _opened(self.path, self.name) as file:
                    yield from _lines(file, start, count, seekable=self.name != STDIN and not self.packed)
            except (EOFError, zlib.error, gzip.BadGzipFile) as broken:
                raise BitStreamError(
                    f"{self.name}: is damaged, or ends too early ({broken}). Try an intact copy", field="names"
                ) from None
            except OSError as unreadable:  # also what pyarrow says of damaged zstd
                raise BitStreamError(
                    f"{self.name}: cannot be read ({unreadable.strerror or unreadable}). Try another file",
                    field="names",
                ) from None

    def _files(self, start: int) -> Iterator[Piece]:
        files = self.files()
        while start < len(files):
            stop, size = start, 0
            while stop < len(files) and (stop == start or size < PIECE):
                size += files[stop].stat().st_size
                stop += 1
            yield Piece(start + 1, [os.fsencode(path) for path in files[start:stop]], stop, stop, size)
            start = stop

    def _tables(self, start: int) -> Iterator[Piece]:
        parquet = _parquet()
        with parquet.ParquetFile(self.path) as file:
            at = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if at + rows > start:
                    table = file.read_row_group(group)
                    for begin in range(0, rows, ROWS):
                        if at + begin >= start:
                            part = table.slice(begin, ROWS)
                            end = at + begin + part.num_rows
                            yield Piece(at + begin + 1, [], end, end, part.nbytes, part)
                at += rows

    def read_file(self, name: bytes) -> Found:
        """A file that is a document."""
        try:
            return _as_text(Path(os.fsdecode(name)).read_bytes())
        except OSError as unreadable:
            return Found(None, f"cannot be read: {unreadable.strerror}")

    def documents(self) -> Iterator[Found]:
        """All documents, one by one; also those that cannot be read."""
        for piece in self.pieces():
            if piece.table is not None:
                for text in piece.table.column(self.field).to_pylist():
                    yield Found(text, "" if text is not None else "no text: null")
                continue
            for number, line in enumerate(piece.lines):
                yield self.read_file(line) if self.form == "files" else read_line(line, self.field, piece, number)[0]


def _form(path: Path, name: str) -> Form:
    if name == STDIN:
        return "lines"
    if path.is_dir():
        return "files"
    suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
    last = suffixes[-1] if suffixes else ""
    if path.suffix == ".parquet":
        return "parquet"
    if last in LINES or path.suffix in PACKED:
        return "lines"
    with path.open("rb") as file:
        return "lines" if file.read(1 << 10).removeprefix(_BOM).lstrip(_SPACE)[:1] == b"{" else "files"


def _lines(file: BinaryIO, start: int, count: int, *, seekable: bool) -> Iterator[Piece]:
    """Lines in pieces. The bytes before `start` are skipped; `count` lines are in them."""
    if seekable:
        file.seek(start)
    else:
        left = start
        while left and (skipped := file.read(min(left, 1 << 20))):
            left -= len(skipped)
    at, lines, size, too_long = start, list[bytes](), 0, dict[int, int]()
    while True:
        line = file.readline(LONGEST_LINE)
        whole = len(line)
        if line and not line.endswith(b"\n") and whole == LONGEST_LINE:
            while rest := file.readline(LONGEST_LINE):
                whole += len(rest)
                if rest.endswith(b"\n"):
                    break
            if whole > LONGEST_LINE:
                too_long[len(lines)], line = whole, line[: 1 << 12]
        if line:
            if not at:
                line = line.removeprefix(_BOM)
            at += whole
            size += whole
            lines.append(line.removesuffix(b"\n"))
        if lines and (not line or size >= PIECE):
            yield Piece(count + 1, lines, at, count + len(lines), size, None, too_long)
            count += len(lines)
            lines, size, too_long = [], 0, {}
        if not line:
            return


def _opened(path: Path, name: str) -> BinaryIO:
    if name == STDIN:
        return cast(BinaryIO, _KeptOpen(sys.stdin.buffer))
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return _zstd_reader(path)
    return path.open("rb")


class _KeptOpen(io.BufferedIOBase):
    """Standard input, which is not ours to close."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner = inner

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._inner.readline(-1 if size is None else size)

    def read(self, size: int | None = -1, /) -> bytes:
        return self._inner.read(-1 if size is None else size)


# ---- compression ----


def _zstd_reader(path: Path) -> BinaryIO:
    if sys.version_info >= (3, 14):
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]

        return zstd.open(path, "rb")
    if importlib.util.find_spec("zstandard"):
        reader = require("zstandard", extra="parquet", purpose=".zst").ZstdDecompressor()
        return io.BufferedReader(reader.stream_reader(path.open("rb"), read_across_frames=True, closefd=True))
    arrow = require("pyarrow", extra="parquet", purpose=f"reading {path.name}")
    return io.BufferedReader(arrow.input_stream(str(path), compression="zstd"), 1 << 20)


def packer(suffix: str) -> Any:
    """A function that compresses some lines, so that files of its results are files of all lines.

    Raises:
        MissingExtra: a library is needed.
    """
    if suffix == ".gz":
        return lambda data: gzip.compress(data, 6, mtime=0)
    if suffix != ".zst":
        return lambda data: data
    if sys.version_info >= (3, 14):
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]

        return zstd.compress
    if importlib.util.find_spec("zstandard"):
        return require("zstandard", extra="parquet", purpose=".zst").ZstdCompressor().compress
    codec = require("pyarrow", extra="parquet", purpose="writing .zst").Codec("zstd")
    return lambda data: codec.compress(data, asbytes=True)


# ---- JSON ----


def read_line(line: bytes, text_field: str, piece: Piece | None = None, number: int = 0) -> tuple[Found, Any]:
    """The text of a JSON line, and the whole row."""
    if piece is not None and number in piece.too_long:
        return Found(None, f"longer than {LONGEST_LINE >> 20} MiB"), None
    if not line.strip(_SPACE):
        return Found(None, "blank line"), None
    if b"\0" in line:
        return Found(None, "binary"), None
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return Found(None, "invalid UTF-8"), None
    except (ValueError, RecursionError):  # also numbers of more digits than Python takes
        return Found(None, "broken JSON"), None
    if not isinstance(row, dict):
        return Found(None, "not a JSON object"), None
    if text_field not in row:
        return Found(None, f"no field {text_field!r}"), row
    text = row[text_field]
    if not isinstance(text, str):
        return Found(None, f"{text_field!r} is no string"), row
    try:
        text.encode()
    except UnicodeEncodeError:
        return Found(None, "half of a surrogate pair"), row
    return Found(text), row


def with_columns(line: bytes, row: Mapping[str, Any], columns: Mapping[str, Any]) -> bytes:
    """A JSON line with more columns at its end. Columns of these names that it has are taken out; all else stays as it is, byte by byte."""
    text = line.decode().strip()
    if any(name in row for name in columns):
        text = _without(text, columns)
    inner = text[:-1].rstrip()
    comma = ", " if len(inner) > 1 else ""
    return f"{inner}{comma}{json.dumps(columns, ensure_ascii=False)[1:]}".encode()


def _without(text: str, names: Mapping[str, Any]) -> str:
    """A JSON object without some members."""
    decoder, kept = json.JSONDecoder(), []
    at = _skip(text, 1)
    while text[at] != "}":
        name, end = scanstring(text, at + 1)
        value = _skip(text, _skip(text, end) + 1)
        _, end = decoder.raw_decode(text, value)
        if name not in names:
            kept.append(text[at:end])
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return "{" + ", ".join(kept) + "}"


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _as_text(data: bytes) -> Found:
    if b"\0" in data:
        return Found(None, "binary")
    try:
        return Found(data.removeprefix(_BOM).decode())
    except UnicodeDecodeError:
        return Found(None, "invalid UTF-8")


# ---- parquet ----


def _parquet() -> Any:
    return require("pyarrow.parquet", extra="parquet", purpose="parquet")


def _check_table(path: Path, text_field: str) -> None:
    """Refuse what is no parquet file with text in that column.

    Raises:
        BitStreamError: as above.
        MissingExtra: pyarrow is not installed.
    """
    parquet = _parquet()
    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError) as broken:
        raise BitStreamError(
            f"{path}: is no parquet file, or damaged ({str(broken).splitlines()[0]}). Try an intact copy", field="names"
        ) from None
    if text_field not in schema.names:
        others = [f.name for f in schema if "string" in str(f.type)]
        raise BitStreamError(
            f"{path}: has no column {text_field!r}; it has {', '.join(schema.names)}",
            field="field",
            tries=tuple(Give("field", name) for name in others[:2]),
        )
    kind = str(schema.field(text_field).type)
    if "string" not in kind or kind.startswith(("list", "large_list", "struct", "map")):
        raise BitStreamError(
            f"{path}: column {text_field!r} holds {kind}; text is needed", field="field", tries=(Give("field"),)
        )
