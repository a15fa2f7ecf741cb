"""Training data: named corpora, files, folders, globs, standard input, bytes in memory.

Files stay on disk, memory-mapped. A `Corpus` is a list of spans that reads like one long array. Named corpora are in `registry.py`, data sets of
the Hugging Face hub in `hub_sets.py`.
"""

from __future__ import annotations

import atexit
import bisect
import contextlib
import difflib
import glob
import hashlib
import itertools
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bit_transformer.data.hub_sets import is_hub_name, part_file, row_file
from bit_transformer.data.registry import DATA_DIR_VARIABLE as DATA_DIR_VARIABLE
from bit_transformer.data.registry import PARTS, PartName, corpus_cache, named_files, with_parts, write_pieces
from bit_transformer.data.registry import REGISTRY as REGISTRY
from bit_transformer.data.registry import named_file as named_file
from bit_transformer.errors import BitStreamError, ConfigError, Give

LEAST_BLOCK, HELD_BLOCK = 1 << 12, 1 << 16  # bytes of what `blocks` holds out


class InMemory:
    """Bytes in memory instead of a file; the name is their SHA-256."""

    def __init__(self, data: bytes) -> None:
        self.contents: NDArray[np.uint8] = np.frombuffer(data, dtype=np.uint8)

    @cached_property
    def name(self) -> str:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.contents.data).hexdigest()

    def __repr__(self) -> str:
        return f"InMemory({len(self.contents):,} bytes)"


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a file, or of bytes in memory.

    Attributes:
        identity: of the file when the span was made: another file of the same name is not read in its place.
    """

    path: Path | InMemory
    start: int
    stop: int
    identity: tuple[int, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.path, Path) and not self.identity:
            object.__setattr__(self, "identity", _identity(self.path))

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) of the span, counted from its start; fewer at its end."""
        contents = self.path.contents if isinstance(self.path, InMemory) else _mapped(self.path, self.identity)
        return contents[self.start + start : min(self.start + stop, self.stop)]


def _identity(path: Path) -> tuple[int, ...]:
    """Which file a path leads to now, and in which state."""
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=64)
def _mapped(path: Path, identity: tuple[int, ...]) -> NDArray[np.uint8]:
    """A file in memory. What is mapped stays readable, even if the file is removed.

    Raises:
        BitStreamError: it is not the file any more that it was.
    """
    try:
        contents = np.memmap(path, dtype=np.uint8, mode="r")
        changed = _identity(path) != identity
    except OSError:
        changed = True
    if changed:
        raise BitStreamError(f"{path}: was changed or removed while it was in use. Try again, with a copy of it")
    return contents


class Corpus:
    """Spans that read like one long array of bytes. Files of any size take constant memory."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = tuple(span for span in spans if len(span))
        self._ends = list(itertools.accumulate(len(span) for span in self.spans))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, offset: int, length: int) -> NDArray[np.uint8]:
        """`length` bytes from `offset`; fewer at the end."""
        index = bisect.bisect_right(self._ends, offset)
        parts: list[NDArray[np.uint8]] = []
        while length > 0 and index < len(self.spans):
            span = self.spans[index]
            inside = offset - (self._ends[index] - len(span))
            part = span.read(inside, inside + length)
            parts.append(part)
            offset, length, index = offset + len(part), length - len(part), index + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)

    def spans_at(self) -> list[tuple[int, int]]:
        """Start and stop of each span in the corpus."""
        return [(end - len(span), end) for span, end in zip(self.spans, self._ends, strict=True)]

    def aligned(self, align: int) -> Corpus:
        """The same corpus, with each span cut to a multiple of `align` bytes."""
        return self if align == 1 else Corpus(replace(s, stop=s.stop - len(s) % align) for s in self.spans)

    def thinned(self, limit: int, piece: int, align: int = 1) -> Corpus:
        """A sample of at most `limit` bytes: at least eight pieces of at most `piece` bytes, evenly spread.

        Args:
            align: pieces start at multiples of this many bytes. The corpus must be `aligned` too.
        """
        if len(self) <= limit:
            return self
        piece = max(1, min(piece, limit // 8) // align) * align
        count = max(1, limit // piece)
        gap = (len(self) - piece) / max(1, count - 1)
        starts = [int(i * gap) // align * align for i in range(count)]
        return Corpus(span for start in starts for span in self._between(start, start + piece))

    def part(self, start: int, stop: int) -> Corpus:
        """Bytes [start, stop) of the corpus."""
        return Corpus(self._between(start, stop))

    def without(self, part: Corpus) -> Corpus:
        """The bytes of the corpus that are not in `part`, which must be a part of it."""
        kept: list[Span] = []
        for span in self.spans:
            begin = span.start
            for hole in sorted((s for s in part.spans if s.path == span.path), key=lambda s: s.start):
                if begin < hole.stop and hole.start < span.stop:
                    kept.append(replace(span, start=begin, stop=hole.start))
                    begin = hole.stop
            kept.append(replace(span, start=begin))
        return Corpus(kept)

    def _between(self, start: int, stop: int) -> Iterator[Span]:
        for span, end in zip(self.spans, self._ends, strict=True):
            begin = end - len(span)
            low, high = max(start, begin), min(stop, end)
            if low < high:
                yield replace(span, start=span.start + low - begin, stop=span.start + high - begin)

    def digest(self) -> str:
        """A fingerprint: names, sizes and limits of the spans. It does not depend on the contents of files."""
        lines = "\n".join(f"{s.path.name} {_size(s.path)} {s.start} {s.stop}" for s in self.spans)
        return hashlib.sha256(lines.encode()).hexdigest()


def bytes_corpus(data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> Corpus:
    """A corpus of bytes in memory. Mutable data is copied."""
    kept = data if isinstance(data, bytes) else bytes(data)
    return Corpus([Span(InMemory(kept), 0, len(kept))])


def as_corpus(data: bytes | Corpus) -> Corpus:
    """A corpus as it is, or one of bytes.

    Raises:
        BitStreamError: data of another kind.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes_corpus(bytes(data))
    if not isinstance(data, Corpus):
        raise BitStreamError(
            f"got {type(data).__name__} as data; bytes or a Corpus is needed. Try data.encode(), or open(path, 'rb').read()"
        )
    return data


def _size(path: Path | InMemory) -> int:
    return len(path.contents) if isinstance(path, InMemory) else path.stat().st_size


def find_files(names: Sequence[str], *, stdin: BinaryIO | None = None, leave_out: Sequence[Path] = ()) -> list[Path]:
    """The files of corpora, each once, in a fixed order.

    Args:
        names: corpus names, `hf:NAME` for a data set of the Hugging Face hub, files, folders, globs, or "-" for standard input. `NAME:test`
            is a standard part of a corpus.
        leave_out: files and folders to skip even if they are inside a corpus's folder, such as a run folder.

    Raises:
        BitStreamError: there is no such corpus, or it cannot be read or is empty.
    """
    found = {path.resolve(): path for name in names for path in _files_of(name, stdin)}
    own = [path.resolve() for path in leave_out]
    files = [path for real, path in found.items() if not any(real == o or o in real.parents for o in own)]
    for path in files:
        try:
            with path.open("rb"):
                pass
        except OSError as unreadable:
            raise BitStreamError(f"{path}: cannot be read ({unreadable.strerror}). Try another file") from None
    filled = [path for path in files if path.stat().st_size]
    if not filled:
        raise BitStreamError(f"{', '.join(names)}: got an empty file; at least one byte is needed. Try another file")
    return filled


def find_file(name: str, verb: str, instead: str = "") -> Path:
    """The file of a corpus that must be a single file.

    Args:
        verb: the command that takes one file, for the error message.
        instead: another command to try, for the error message.

    Raises:
        BitStreamError: as `find_files`, or several files.
    """
    path, *others = find_files([name])
    if others:
        raise BitStreamError(f"{name}: got {len(others) + 1} files; {verb} takes one. Try {path}{instead}")
    return path


def whole_files(paths: Iterable[Path]) -> Corpus:
    """All bytes of some files."""
    return Corpus(Span(path, 0, path.stat().st_size) for path in paths)


def _files_of(name: str, stdin: BinaryIO | None) -> list[Path]:
    if name == "-":
        stream = stdin or sys.stdin.buffer
        return [_spool(iter(lambda: stream.read(1 << 20), b""))]
    if name == "stdlib":
        return stdlib_files()
    path = Path(name)
    if is_hub_name(name) and not path.exists():
        return [row_file(name)]
    if not name:
        found = []
    elif path.is_dir():
        found = sorted(
            p for p in path.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(path).parts)
        )
    elif path.exists():
        found = [path]
    elif name in REGISTRY:
        found = named_files(name)
    elif (part := _part_named(name)) is not None:
        found = [_file_of_part(*part)]
    else:
        found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
    if not found:
        nothing = "there is no such file, no folder with files, no glob that matches and no corpus of that name"
        if near := _similar(name):
            raise BitStreamError(f"got corpus {name!r}; {nothing}. Did you mean {near!r}?")
        names = ", ".join(("stdlib", *REGISTRY))
        raise BitStreamError(
            f"got corpus {name!r}; {nothing} ({names}). Try a path, hf:NAME for a data set of the hub, or '-' for standard input"
        )
    return found


def is_corpus(name: str) -> bool:
    """Whether a name stands for a corpus, and not for a file."""
    return name == "stdlib" or name in REGISTRY or is_hub_name(name) or _part_named(name) is not None


# ---- standard parts ----


class StandardParts(NamedTuple):
    """The parts into which a corpus is divided by those who publish results on it."""

    train: Corpus
    validation: Corpus
    test: Corpus


def standard_parts(names: Sequence[str]) -> StandardParts:
    """The standard parts of corpora, all training parts together, and so on.

    Args:
        names: corpora that have them, or `hf:NAME` with splits of the names train, validation and test.

    Raises:
        ConfigError: one of them has none.
        BitStreamError: as `find_files`.
    """
    parts: dict[PartName, list[Span]] = {part: [] for part in PARTS}
    for name in dict.fromkeys(names):
        if is_hub_name(name):
            files = {part: part_file(name, part) for part in PARTS}
            spans = {part: Span(path, 0, path.stat().st_size) for part, path in files.items()}
        elif name in REGISTRY and REGISTRY[name].parts:
            files_of = named_files(name)
            spans = {part: _span_of_part(name, part, files_of) for part in PARTS}
        else:
            raise ConfigError(
                f"got data.split='standard' for {name!r}, which has no standard parts; {', '.join(with_parts())} have them",
                field="data.split",
                tries=(Give("data.split", "auto"),),
            )
        for part in PARTS:
            parts[part].append(spans[part])
    return StandardParts(*(Corpus(parts[part]) for part in PARTS))


def _span_of_part(name: str, part: PartName, files: Sequence[Path]) -> Span:
    place = REGISTRY[name].parts[part]
    path = files[place.file]
    return Span(path, place.start, path.stat().st_size if place.stop is None else place.stop)


def _part_named(name: str) -> tuple[str, PartName] | None:
    """Corpus and part that `CORPUS:PART` names."""
    corpus, _, wanted = name.partition(":")
    part = next((part for part in PARTS if part == wanted), None)
    return (corpus, part) if part is not None and corpus in REGISTRY and REGISTRY[corpus].parts else None


def _file_of_part(name: str, part: PartName) -> Path:
    """A file with a standard part. A part of a larger file is written to the cache once."""
    span = _span_of_part(name, part, named_files(name))
    assert isinstance(span.path, Path)
    if len(span) == span.path.stat().st_size:
        return span.path
    path = corpus_cache() / f"{name}.{part}"
    if not path.is_file() or not _holds(path, span):
        pieces = (span.read(at, at + (1 << 20)).tobytes() for at in range(0, len(span), 1 << 20))
        write_pieces(path, pieces)
    return path


def _holds(path: Path, span: Span) -> bool:
    """Whether a file holds just the bytes of a span."""
    if path.stat().st_size != len(span):
        return False
    there = Span(path, 0, len(span))
    piece = 1 << 20
    return all(
        np.array_equal(there.read(at, at + piece), span.read(at, at + piece)) for at in range(0, len(span), piece)
    )


def _similar(name: str) -> str | None:
    """The existing path, or the corpus, whose name is most similar to one that does not exist."""
    path = Path(name)
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), None)
    if not name or missing is None or glob.has_magic(name):
        return None
    rest = path.relative_to(missing)
    beside: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that cannot be read
        beside = [p for p in missing.parent.iterdir() if (p / rest).exists()]
    candidates = {p.name.casefold(): str(p / rest) for p in beside}
    if path.name == name:
        candidates |= {known: known for known in ("stdlib", *REGISTRY)}
    near = difflib.get_close_matches(missing.name.casefold(), candidates, n=1, cutoff=0.6)
    return candidates[near[0]] if near else None


def stdlib_files() -> list[Path]:
    """The source files of Python's standard library, without tests: a corpus that every machine has."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return sorted(p for p in root.rglob("*.py") if not skipped & set(p.relative_to(root).parts) and p.stat().st_size)


def _spool(chunks: Iterable[bytes]) -> Path:
    """Write a stream to a temporary file, so that it can be mapped. The file is removed when the process ends."""
    with tempfile.NamedTemporaryFile(prefix="bit-transformer-", delete=False) as file:
        path = Path(file.name)
        atexit.register(path.unlink, missing_ok=True)
        for chunk in chunks:
            file.write(chunk)
    return path


def split(
    files: Sequence[Path] | Corpus, how: Literal["auto", "position", "file", "blocks"], holdout: float, align: int = 1
) -> tuple[Corpus, Corpus]:
    """Split files, or the spans of a corpus, into a training part and a held-out part. No byte is in both.

    Args:
        how: `position` holds out the end of each file. `file` holds out whole files, selected by a hash of the last two
            parts of their paths, which is the same on every machine. `blocks` holds out blocks that are spread evenly over each file: for
            binaries, whose end is unlike their beginning. `auto` is `file` for ten files or more.
        holdout: the fraction to hold out, in [0, 1).
        align: cuts are at multiples of this many bytes.

    Raises:
        BitStreamError: `file` with a single file.
    """
    spans = (files if isinstance(files, Corpus) else whole_files(files)).spans
    paths = list(dict.fromkeys(span.path for span in spans))
    if how == "auto":
        how = "file" if len(paths) >= 10 else "position"
    if how == "position" or not holdout:
        cuts = [span.start + int(len(span) * (1 - holdout)) // align * align for span in spans]
        return (
            Corpus(replace(span, stop=cut) for span, cut in zip(spans, cuts, strict=True)),
            Corpus(replace(span, start=cut) for span, cut in zip(spans, cuts, strict=True)),
        )
    if how == "blocks":
        parts = [_in_blocks(span, holdout, align) for span in spans]
        return Corpus(s for train, _ in parts for s in train), Corpus(s for _, held in parts for s in held)
    if len(paths) < 2:
        raise BitStreamError(f"got {len(paths)} file to split by file; two are needed. Try data.split='position'")
    held = set(sorted(paths, key=_rank)[: max(1, round(len(paths) * holdout))])
    return Corpus(s for s in spans if s.path not in held), Corpus(s for s in spans if s.path in held)


def _in_blocks(span: Span, holdout: float, align: int) -> tuple[list[Span], list[Span]]:
    """What is kept and what is held out of a span: blocks of 4 to 64 KiB, at least eight of them held out if there is room for that. Of a smaller
    span its end is held out."""
    size = max(LEAST_BLOCK, min(HELD_BLOCK, int(len(span) * holdout / 8))) // align * align
    if size * 2 > len(span) * holdout:
        cut = span.start + int(len(span) * (1 - holdout)) // align * align
        return [replace(span, stop=cut)], [replace(span, start=cut)]
    kept, held = list[Span](), list[Span]()
    for index, start in enumerate(range(span.start, span.stop, size)):
        block = replace(span, start=start, stop=min(span.stop, start + size))
        part = held if int((index + 1) * holdout) > int(index * holdout) else kept
        if part and part[-1].stop == block.start:
            part[-1] = replace(part[-1], stop=block.stop)
        else:
            part.append(block)
    return kept, held


def _rank(path: Path | InMemory) -> bytes:
    """A hash that does not depend on the folders above the file's own."""
    name = "/".join(path.parts[-2:]) if isinstance(path, Path) else path.name
    return hashlib.sha256(name.encode()).digest()
