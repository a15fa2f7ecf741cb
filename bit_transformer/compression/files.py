"""Compression of files and byte strings of any length: cut into frames, coded in parallel, read back and checked."""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, TypeVar, get_args

import numpy as np

from bit_transformer.coding import container
from bit_transformer.coding.container import Entry, Header, Seal, Table
from bit_transformer.compression.codec import BankCoder, Coder, ModelCoder, Packed, check_rate, checked, coder_for
from bit_transformer.compression.profiles import LIGHT, Experts, name_of
from bit_transformer.errors import BitTransformerError, Cancelled, CompressedFileError, ConfigError, Give
from bit_transformer.experts.bank import Tell, ignore
from bit_transformer.machine import cores, free_memory

if TYPE_CHECKING:
    from bit_transformer.model import BitTransformerLM


@dataclass(frozen=True)
class Packing:
    """What became of a compression: bytes before and after, the number of frames, and how many of them each kind of predictor coded."""

    size: int
    coded: int
    frames: int
    coded_by: dict[str, int]


@dataclass(frozen=True)
class Unpacking:
    """What became of a decompression.

    Attributes:
        size: bytes of data that were written.
        lost: ranges of bytes that could not be decoded, and are zeros.
        cut: whether the end of the file is damaged or missing, so that there may have been more data.
    """

    size: int
    lost: list[tuple[int, int]]
    cut: bool


def compress_bytes(
    data: bytes,
    model: BitTransformerLM | None = None,
    *,
    adapt: float = 0.0,
    experts: Experts = LIGHT,
    frame_bytes: int | None = None,
    jobs: int = 1,
) -> bytes:
    """Compress bytes.

    Args:
        model: predicts the data; the same model is needed to decompress. Default: the experts alone, which begin empty.
        adapt: step size by which the model's head and mixer learn from each bit while coding; 0: they do not. Try 0.002.
        experts: without a model: `light`; `rich`, smaller and slower; `auto`, what fits each frame.
        frame_bytes: bytes of a frame. Frames are independent.
        jobs: threads.

    Raises:
        ConfigError: a model that cannot be used, or invalid sizes.
    """
    made = io.BytesIO()
    coder = new_coder(model, adapt, experts)
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


def new_coder(model: BitTransformerLM | None = None, adapt: float = 0.0, experts: Experts = LIGHT) -> Coder:
    """The coder for a model, or for the experts alone.

    Raises:
        ConfigError: a model that cannot be used, or an invalid step size.
    """
    rate = check_rate(adapt)
    if experts not in get_args(Experts):
        raise ConfigError(
            f"got experts={experts!r}; one of {', '.join(get_args(Experts))} is needed",
            field="experts",
            tries=(Give("experts", LIGHT),),
        )
    if model is None:
        if rate:
            raise ConfigError(
                "got adapt without a model; only a model's head and mixer learn so",
                field="adapt",
                tries=("a model", Give("adapt", 0.0)),
            )
        return BankCoder(experts)
    check_experts(experts, model is not None)
    return ModelCoder(model, rate)


def check_experts(experts: Experts, with_model: bool) -> None:
    """Refuse experts where a model codes.

    Raises:
        ConfigError: other than light ones.
    """
    if with_model and experts != LIGHT:
        raise ConfigError(
            f"got experts={experts} and a model; only one of them codes, and a model has experts of its own",
            field="experts",
            tries=(Give("experts", LIGHT), "no model"),
        )


def compress_stream(
    source: BinaryIO,
    target: BinaryIO,
    coder: Coder,
    *,
    size: int | None = None,
    frame_bytes: int | None = None,
    jobs: int | None = None,
    verify: bool = True,
    tell: Tell = ignore,
) -> Packing:
    """Compress a stream. Memory does not grow with it, but for a line of the frame table per frame.

    Args:
        size: its length, if known.
        frame_bytes: bytes of a frame. Default: the coder's.
        jobs: threads. Default: one per core, as far as memory allows.
        verify: whether to decode each frame again and compare.
        tell: called with the bytes done; it may raise an error to stop.

    Raises:
        ConfigError: an invalid size of frames or number of threads, or not enough memory.
        BitStreamError: the stream cannot be read.
        CompressedFileError: a frame was decoded into other data, so this machine does not compute reliably; or the length changed.
    """
    each = coder.frame_bytes if frame_bytes is None else frame_bytes
    largest = container.LARGEST_FRAME[coder.predictor]
    if not 1 <= each <= largest:
        raise ConfigError(
            f"got frame_bytes={each}; 1 to {largest} is needed",
            field="frame_bytes",
            tries=(Give("frame_bytes", coder.frame_bytes),),
        )
    threads = _threads(jobs, coder.memory(each if size is None else min(each, size)))
    count = _Count(tell, 2 if verify else 1)

    def work(pieces: list[bytes]) -> list[Packed]:
        arrays = [np.frombuffer(piece, dtype=np.uint8) for piece in pieces]
        made = coder.encode(arrays, count.add)
        if verify:
            for (frame, _), again in zip(made, coder.decode(made, count.add), strict=True):
                checked(frame, again)
        return made

    known = container.UNKNOWN if size is None else size
    header = Header(coder.predictor, coder.rate, known, version("bit-transformer"), coder.digest)
    packed, seal = container.pack_header(header)
    _write(target, packed)
    entries: list[Entry] = []
    done, coded, coded_by = 0, len(packed), Counter[str]()
    together = _together(coder, None if size is None else -(-size // each), threads)
    for made in _in_order(work, _grouped(_pieces(source, each), together), threads):
        for frame, payload in made:
            packed = container.pack_frame(frame, len(entries), seal) + payload
            _write(target, packed)
            entries.append(frame.entry)
            done, coded = done + frame.size, coded + len(packed)
            modelled = "the model" if coder.predictor == container.MODEL else name_of(frame.profile, frame.filter)
            coded_by["nothing: stored as it is" if frame.method == container.STORED else modelled] += 1
    count.reach(done)
    if size is not None and done != size:
        raise CompressedFileError(
            f"got {done} bytes from a file of {size}; it changed while it was read", tries=("again, or a copy",)
        )
    packed = container.pack_end(entries, seal)
    _write(target, packed)
    return Packing(done, coded + len(packed), len(entries), dict(coded_by))


def decompress_stream(
    source: BinaryIO,
    target: BinaryIO,
    coder_of: Callable[[Header], Coder],
    *,
    jobs: int | None = None,
    keep_going: bool = False,
    before: Callable[[int | None], None] = lambda size: None,
    tell: Tell = ignore,
) -> Unpacking:
    """Decompress a stream. Memory does not grow with it, but for a line of the frame table per frame.

    Args:
        coder_of: gives the coder that a header asks for.
        jobs: threads. Default: one per core, as far as memory allows.
        keep_going: whether to write zeros for damaged frames and go on. Their ranges are in the result.
        before: called with the declared length, if it is known, before anything is written; it may raise an error.
        tell: called with the bytes done; it may raise an error to stop.

    Raises:
        CompressedFileError: damage, missing bytes, trailing bytes, or another model.
        ConfigError: an invalid number of threads, or not enough memory.
    """
    header, seal = container.read_header(source)
    coder = coder_of(header)
    table = container.read_table(source, seal) if source.seekable() else None
    declared = header.size if header.size != container.UNKNOWN else table.size if table else None
    before(declared)
    frames = _Frames(source, seal)
    found = frames.by_table(table) if keep_going and table else frames.in_order(keep_going)
    largest = max((entry.size for entry in table.entries), default=1) if table else coder.frame_bytes
    threads = _threads(jobs, coder.memory(largest))
    count = _Count(tell)

    def work(group: list[_Found]) -> list[tuple[int, bytes | None]]:
        intact = [packed for _, packed in group if packed is not None]
        decoded = iter(_decoded(coder, intact, count.add, keep_going))
        return [(size, None if packed is None else next(decoded)) for size, packed in group]

    lost: list[tuple[int, int]] = []
    done = 0
    together = _together(coder, len(table.entries) if table else None, threads)
    for made in _in_order(work, _grouped(found, together), threads):
        for size, data in made:
            if declared is not None and done + size > declared and not keep_going:
                raise _other_size(declared)
            _write(target, bytes(size) if data is None else data)
            if data is None:
                lost.append((done, done + size))
            done += size
        count.reach(done)
    if declared is not None and done != declared and not keep_going:
        raise _other_size(declared)
    return Unpacking(done, lost, frames.cut or (declared is not None and done < declared))


def _other_size(declared: int) -> CompressedFileError:
    return CompressedFileError(
        f"got another number of bytes than the {declared} that were declared", tries=("an intact copy of the file",)
    )


def _decoded(coder: Coder, frames: list[Packed], tell: Tell, keep_going: bool) -> list[bytes | None]:
    """The data of intact frames; None for one that cannot be decoded."""
    try:
        return [checked(frame, data) for (frame, _), data in zip(frames, coder.decode(frames, tell), strict=True)]
    except Cancelled:
        raise
    except BitTransformerError:
        if not keep_going:
            raise
    if len(frames) == 1:
        return [None]
    return [_decoded(coder, [packed], tell, keep_going)[0] for packed in frames]


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

    def reach(self, done: int) -> None:
        """So many bytes are done; stored ones were not counted."""
        with self.lock:
            behind = self.done < done * self.passes
            self.done = max(self.done, done * self.passes)
        if behind:
            self.tell(done)


_Found = tuple[int, "Packed | None"]  # bytes of data of a frame; the frame, if it is intact


class _Frames:
    """The frames of a compressed stream after its header.

    Attributes:
        cut: whether the end is damaged, so that frames may be missing.
    """

    def __init__(self, source: BinaryIO, seal: Seal) -> None:
        self.source, self.seal, self.cut = source, seal, False

    def in_order(self, keep_going: bool) -> Iterator[_Found]:
        """The frames one after the other. To keep going, damaged payloads are skipped; after a damaged header nothing can be found.

        Raises:
            CompressedFileError: damage that is not to be skipped.
        """
        seen: list[Entry] = []
        while True:
            try:
                frame = container.read_frame(self.source, len(seen), self.seal)
            except CompressedFileError:
                if not keep_going:
                    raise
                self.cut = True
                return
            if frame is None:
                try:
                    container.read_end(self.source, seen, self.seal)
                except CompressedFileError:
                    if not keep_going:
                        raise
                    self.cut = True
                return
            seen.append(frame.entry)
            try:
                yield frame.size, (frame, container.read_payload(self.source, frame))
            except CompressedFileError:
                if not keep_going:
                    raise
                yield frame.size, None

    def by_table(self, table: Table) -> Iterator[_Found]:
        """The frames that the frame table lists. Each is looked for where it is if nothing was lost before it, and where it is if nothing was
        lost after it."""
        from_begin = container.HEADER_SIZE
        from_end = table.begin - sum(container.FRAME_SIZE + entry.coded for entry in table.entries)
        for index, entry in enumerate(table.entries):
            yield entry.size, self._at(from_begin, index, entry) or self._at(from_end, index, entry)
            from_begin += container.FRAME_SIZE + entry.coded
            from_end += container.FRAME_SIZE + entry.coded

    def _at(self, place: int, index: int, entry: Entry) -> Packed | None:
        if place < container.HEADER_SIZE:
            return None
        self.source.seek(place)
        try:
            frame = container.read_frame(self.source, index, self.seal)
            if frame is None or frame.entry != entry:
                return None
            return frame, container.read_payload(self.source, frame)
        except CompressedFileError:
            return None


def _pieces(source: BinaryIO, each: int) -> Iterator[bytes]:
    while piece := container.read_bytes(source, each):
        yield piece


def _write(target: BinaryIO, data: bytes) -> None:
    """Write all of it: an unbuffered stream may take less at a time."""
    left = memoryview(data)
    while left:
        left = left[target.write(left) :]


_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def _grouped(items: Iterator[_Given], size: int) -> Iterator[list[_Given]]:
    group: list[_Given] = []
    while True:
        try:
            item = next(items)
        except StopIteration:
            break
        except CompressedFileError:
            if group:  # what was intact before the damage goes out
                yield group
            raise
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _in_order(work: Callable[[_Given], _Made], groups: Iterator[_Given], jobs: int) -> Iterator[_Made]:
    """The results of some work on groups, in their order; at most one group per thread waits."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque[Future[_Made]] = deque()
        try:
            damage = None
            try:
                for group in groups:
                    waiting.append(pool.submit(work, group))
                    if len(waiting) > jobs:
                        yield waiting.popleft().result()
            except CompressedFileError as found:
                damage = found
            while waiting:
                yield waiting.popleft().result()
            if damage is not None:
                raise damage
        finally:
            for future in waiting:
                future.cancel()


def _together(coder: Coder, frames: int | None, threads: int) -> int:
    """Frames of a group: as many as are coded together, but so that every thread has work."""
    return coder.together if frames is None else max(1, min(coder.together, -(-frames // threads)))


def _threads(jobs: int | None, memory: int) -> int:
    """The number of threads.

    Args:
        memory: bytes that one of them needs.

    Raises:
        ConfigError: less than one.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"got jobs={jobs}; at least 1 is needed", field="jobs", tries=(Give("jobs", cores()),))
    if jobs is not None:
        return jobs
    free = free_memory()
    return cores() if free is None else max(1, min(cores(), free // max(1, memory)))
