"""Compression of files and byte strings of any length: cut into frames, coded in parallel, read back and checked."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from bit_transformer.coding import container
from bit_transformer.coding.container import Entry, Header
from bit_transformer.compression.codec import BankCoder, Coder, ModelCoder, Packed, check_rate, checked, coder_for
from bit_transformer.errors import CompressedFileError, ConfigError, Give
from bit_transformer.machine import cores

if TYPE_CHECKING:
    from bit_transformer.model import BitTransformerLM

Tell = Callable[[int], None]


@dataclass(frozen=True)
class Packing:
    """What became of a compression: bytes before and after, and the number of frames."""

    size: int
    coded: int
    frames: int


@dataclass(frozen=True)
class Unpacking:
    """What became of a decompression.

    Attributes:
        size: bytes of data that were written.
        lost: ranges of bytes that could not be decoded, and are zeros.
        cut: whether the file ended before its end, so that more may be missing.
    """

    size: int
    lost: list[tuple[int, int]]
    cut: bool


def compress_bytes(
    data: bytes,
    model: BitTransformerLM | None = None,
    *,
    adapt: float = 0.0,
    frame_bytes: int | None = None,
    jobs: int = 1,
) -> bytes:
    """Compress bytes.

    Args:
        model: predicts the data; the same model is needed to decompress. Default: the experts alone, which begin empty.
        adapt: step size by which the model's head and mixer learn from each bit while coding; 0: they do not. Try 0.002.
        frame_bytes: bytes of a frame. Frames are independent.
        jobs: threads.

    Raises:
        ConfigError: a model that cannot be used, or invalid sizes.
    """
    made = io.BytesIO()
    coder = new_coder(model, adapt)
    compress_stream(io.BytesIO(data), made, coder, size=len(data), frame_bytes=frame_bytes, jobs=jobs)
    return made.getvalue()


def decompress_bytes(data: bytes, model: BitTransformerLM | None = None, *, jobs: int = 1) -> bytes:
    """The inverse of `compress_bytes`.

    Raises:
        CompressedFileError: damage, or another model.
    """
    made = io.BytesIO()
    decompress_stream(io.BytesIO(data), made, lambda header: coder_for(header, model), jobs=jobs)
    return made.getvalue()


def new_coder(model: BitTransformerLM | None = None, adapt: float = 0.0) -> Coder:
    """The coder for a model, or for the experts alone.

    Raises:
        ConfigError: a model that cannot be used, or an invalid step size.
    """
    rate = check_rate(adapt)
    if model is None:
        if rate:
            raise ConfigError(
                "got adapt without a model; only a model's head and mixer learn so", field="adapt", tries=(Give("run"),)
            )
        return BankCoder()
    return ModelCoder(model, rate)


def compress_stream(
    source: BinaryIO,
    target: BinaryIO,
    coder: Coder,
    *,
    size: int | None = None,
    frame_bytes: int | None = None,
    jobs: int | None = None,
    verify: bool = True,
    tell: Tell = lambda done: None,
) -> Packing:
    """Compress a stream; memory does not grow with it.

    Args:
        size: its length, if known.
        frame_bytes: bytes of a frame. Default: the coder's.
        jobs: threads. Default: one per core.
        verify: whether to decode each frame again and compare.
        tell: called with the bytes done.

    Raises:
        ConfigError: an invalid size of frames or number of threads.
        CompressedFileError: a frame was decoded into other data: this machine does not compute reliably.
    """
    each = coder.frame_bytes if frame_bytes is None else frame_bytes
    if not 1 <= each <= container.LARGEST_FRAME:
        raise ConfigError(
            f"got frame_bytes={each}; 1 to {container.LARGEST_FRAME} is needed. Try {coder.frame_bytes}",
            field="frame_bytes",
        )

    count = _Count(tell, 2 if verify else 1)

    def work(pieces: list[bytes]) -> list[Packed]:
        arrays = [np.frombuffer(piece, dtype=np.uint8) for piece in pieces]
        made = coder.encode(arrays, count.add)
        if verify:
            for (frame, _), again in zip(made, coder.decode(made, count.add), strict=True):
                checked(frame, again)
        return made

    known = container.UNKNOWN if size is None else size
    target.write(
        container.pack_header(Header(coder.predictor, coder.rate, known, version("bit-transformer"), coder.digest))
    )
    entries: list[Entry] = []
    done = 0
    for made in _in_order(work, _grouped(_pieces(source, each), coder.together), _checked_jobs(jobs)):
        for frame, payload in made:
            target.write(container.pack_frame(frame) + payload)
            entries.append(Entry(frame.size, frame.coded))
            done += frame.size
    tell(done)
    if size is not None and done != size:
        raise CompressedFileError(
            f"got {done} bytes from a file of {size}; it changed while it was read", tries=("again, or a copy",)
        )
    target.write(container.pack_end(entries))
    coded = container.HEADER_SIZE + len(container.pack_end(entries))
    return Packing(done, coded + sum(container.FRAME_SIZE + entry.coded for entry in entries), len(entries))


def _pieces(source: BinaryIO, each: int) -> Iterator[bytes]:
    while piece := _read(source, each):
        yield piece


def _read(source: BinaryIO, size: int) -> bytes:
    """So many bytes, or what is left: a pipe may give fewer at a time."""
    parts: list[bytes] = []
    while size and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def decompress_stream(
    source: BinaryIO,
    target: BinaryIO,
    coder_of: Callable[[Header], Coder],
    *,
    jobs: int | None = None,
    keep_going: bool = False,
    before: Callable[[int | None], None] = lambda size: None,
    tell: Tell = lambda done: None,
) -> Unpacking:
    """Decompress a stream; memory does not grow with it.

    Args:
        coder_of: gives the coder that a header asks for.
        jobs: threads. Default: one per core.
        keep_going: whether to write zeros for damaged frames and go on. Their ranges are in the result.
        before: called with the declared length, if it is known, before anything is written; it may raise an error.
        tell: called with the bytes done.

    Raises:
        CompressedFileError: damage, missing bytes, trailing bytes, or another model.
    """
    header = container.read_header(source)
    coder = coder_of(header)
    frames = _Frames(source, keep_going)
    before(frames.declared if header.size == container.UNKNOWN else header.size)

    count = _Count(tell)

    def work(group: list[_Found]) -> list[tuple[int, bytes | None]]:
        intact = [packed for _, packed in group if packed is not None]
        made: list[tuple[int, bytes | None]] = [(size, None) for size, _ in group]
        try:
            decoded = iter(coder.decode(intact, count.add) if intact else [])
            for index, (size, packed) in enumerate(group):
                if packed is not None:
                    made[index] = size, checked(packed[0], next(decoded))
        except CompressedFileError:
            if not keep_going:
                raise
        return made

    lost: list[tuple[int, int]] = []
    done = 0
    for made in _in_order(work, _grouped(frames.read(), coder.together), _checked_jobs(jobs)):
        for size, data in made:
            target.write(bytes(size) if data is None else data)
            if data is None:
                lost.append((done, done + size))
            done += size
    tell(done)
    if header.size not in (container.UNKNOWN, done) and not keep_going:
        raise CompressedFileError(
            f"got {done} bytes of data where {header.size} were declared", tries=("an intact copy of the file",)
        )
    return Unpacking(done, lost, frames.cut)


class _Count:
    """Adds up the bytes that several threads have done.

    Args:
        passes: how often each byte is gone through.
    """

    def __init__(self, tell: Tell, passes: int = 1) -> None:
        self.tell, self.passes, self.done, self.lock = tell, passes, 0, Lock()

    def add(self, count: int) -> None:
        """Some more bytes were gone through."""
        with self.lock:
            self.done += count
            done = self.done // self.passes
        self.tell(done)


_Found = tuple[int, "Packed | None"]  # bytes of data of a frame; the frame, if it is intact


class _Frames:
    """The frames of a compressed stream after its header.

    Args:
        keep_going: whether damaged frames are skipped. The frame table at the end of the stream then says where the next one begins.

    Attributes:
        declared: bytes of data by the frame table, if the stream can be searched.
        cut: whether frames may be missing at the end.
    """

    def __init__(self, source: BinaryIO, keep_going: bool) -> None:
        self.source, self.keep_going, self.cut = source, keep_going, False
        self.table = container.read_table(source) if source.seekable() else None
        self.declared = None if self.table is None else sum(entry.size for entry in self.table)

    def read(self) -> Iterator[_Found]:
        """The frames, in order.

        Raises:
            CompressedFileError: damage that is not to be skipped.
        """
        place, seen = container.HEADER_SIZE, list[Entry]()
        while True:
            listed = self.table[len(seen)] if self.table is not None and len(seen) < len(self.table) else None
            try:
                frame = container.read_frame(self.source)
                if frame is None:
                    container.read_end(self.source, seen)
                    return
            except CompressedFileError:
                if not self.keep_going:
                    raise
                if listed is None:
                    self.cut = self.table is None
                    return
                seen.append(listed)
                place += container.FRAME_SIZE + listed.coded
                self.source.seek(place)
                yield listed.size, None
                continue
            seen.append(Entry(frame.size, frame.coded))
            place += container.FRAME_SIZE + frame.coded
            try:
                payload = container.read_payload(self.source, frame)
            except CompressedFileError:
                if not self.keep_going:
                    raise
                yield frame.size, None
                continue
            yield frame.size, (frame, payload)


_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def _grouped(items: Iterator[_Given], size: int) -> Iterator[list[_Given]]:
    while group := list(islice(items, size)):
        yield group


def _in_order(work: Callable[[_Given], _Made], groups: Iterator[_Given], jobs: int) -> Iterator[_Made]:
    """The results of some work on groups, in their order; at most one group per thread waits."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque[Future[_Made]] = deque()
        try:
            for group in groups:
                waiting.append(pool.submit(work, group))
                if len(waiting) > jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _checked_jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise ConfigError(f"got jobs={jobs}; at least 1 is needed. Try {cores()}", field="jobs")
    return jobs or cores()
