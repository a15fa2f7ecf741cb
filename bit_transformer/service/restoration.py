"""Infilling, repair of flipped bits, and protection of files by parity, which makes more errors repairable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits, bits_to_bytes, bytes_to_bits, find_parity_errors, pack_bits, unpack_bits
from bit_transformer.config import ModelConfig
from bit_transformer.diffusion.repair import check_rate
from bit_transformer.errors import Ask, BitStreamError, ConfigError, Give, ParityError
from bit_transformer.model import BitTransformerLM
from bit_transformer.restoration.streams import (
    PIECE,
    MendedPiece,
    MendingPiece,
    Step,
    fill_bits,
    filling_bits,
    hidden_bits,
    repair_pieces,
    repairing_pieces,
)
from bit_transformer.service.files import check_out, read_file, write_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import (
    BASE64,
    InfillRequest,
    ProtectRequest,
    RepairBytesRequest,
    RepairRequest,
)
from bit_transformer.service.workspace import Workspace

WRONG = 0.4  # fraction of bytes with odd parity above which a file was never protected: at random it is half
SHOWN = 1000  # most changes that are listed
MOST = 1 << 16  # bytes that are repaired in memory
NEXT_SAMPLE = 1_000_003  # from the seed of a sample to that of the next


@dataclass(frozen=True)
class Filled:
    """Bytes with their holes filled in.

    Attributes:
        data: one result per sample.
        hidden_bits: number of bits filled in.
        holes: first byte of each hole, and the byte after its last.
    """

    __pydantic_config__ = BASE64

    run: str
    data: list[bytes]
    hidden_bits: int
    holes: list[tuple[int, int]]


@dataclass(frozen=True)
class InfillFrame:
    """Bytes that are being filled in, after a network call. The last frame of a sample has its result.

    Ranges are of bits of the stream as the model reads it, with `byte_bits` per byte: (first bit, bit after the last).

    Attributes:
        sample: which one is being made, from 0.
        data: as far as it is filled in; masked bits are 0.
        masked: still to be filled in.
        changed: filled in or changed by this call.
        calls: made so far, for all samples; `total`: in all.
    """

    __pydantic_config__ = BASE64

    sample: int
    data: bytes
    byte_bits: int
    masked: list[tuple[int, int]]
    changed: list[tuple[int, int]]
    calls: int
    total: int


@dataclass(frozen=True)
class Change:
    """A changed byte: its received value, its new value, and the probability that this is still wrong.

    Attributes:
        received, now: the data byte; they are equal if only the parity bit was wrong.
    """

    offset: int
    received: int
    now: int
    doubt: float


@dataclass(frozen=True)
class RepairReport:
    """The result of a repair.

    Attributes:
        bytes: data bytes.
        flipped_bits: number of bits changed.
        rate: probability of a flip, as given or as estimated.
        doubtful: patches that are more likely wrong than right.
        changes: the first thousand changes.
        repaired: first byte that was repaired, and the byte after the last; `asked`: the same, as requested.
        parity: whether the file was protected.
        stopped: whether the repair was stopped early. If nothing was repaired by then, nothing is written.
    """

    run: str
    file: str
    bytes: int
    flipped_bits: int
    rate: float
    doubtful: int
    changes: list[Change]
    repaired: tuple[int, int]
    asked: tuple[int, int]
    parity: bool
    stopped: bool


@dataclass(frozen=True)
class RepairedBytes:
    """Bytes whose flipped bits were corrected. Attributes as of `RepairReport`.

    Attributes:
        data: the repaired bytes, without parity.
    """

    __pydantic_config__ = BASE64

    run: str
    data: bytes
    bytes: int
    flipped_bits: int
    rate: float
    doubtful: int
    changes: list[Change]
    repaired: tuple[int, int]
    parity: bool


@dataclass(frozen=True)
class RepairFrame:
    """Bytes that are being repaired: after each network call of a diffusion model, and after each piece. The last frame has the result.

    Ranges are of bits of the stream as the model reads it, with `byte_bits` per byte: (first bit, bit after the last).

    Attributes:
        data: as far as it is repaired, without parity.
        changed: bits that differ from the received ones.
        asked: bits that the call was about.
        calls: made so far, without those that estimate the rate; `total`: in all, None if unknown. An autoregressive model, which searches,
            counts none.
    """

    __pydantic_config__ = BASE64

    data: bytes
    byte_bits: int
    changed: list[tuple[int, int]]
    asked: list[tuple[int, int]]
    calls: int
    total: int | None


@dataclass(frozen=True)
class Protected:
    """A file that was protected, or read back.

    Attributes:
        bytes: data bytes, without parity.
    """

    file: str
    bytes: int


def infill(request: InfillRequest, workspace: Workspace, job: Job) -> Filled:
    """Fill in missing bytes from what is before and after them.

    Raises:
        CheckpointError: no such run.
        BitStreamError: nothing is missing, or a hole is outside the data.
        ConfigError: an autoregressive model, or invalid settings.
    """
    asked = _Holes(request, workspace)
    made = []
    with job.cancellable():
        for sample in range(request.samples):

            def tell(done: int, total: int, sample: int = sample) -> None:
                job.tell(Reading(sample * total + done, request.samples * total, "filled", "bits"))

            bits = fill_bits(asked.model, asked.known, asked.hidden_T, on_window=tell, **asked.how(sample))
            made.append(bits_to_bytes(bits, parity=asked.model.config.parity))
    return Filled(request.run, made, int(asked.hidden_T.sum()), asked.holes)


def stream_infill(request: InfillRequest, workspace: Workspace) -> Iterator[InfillFrame]:
    """Fill in missing bytes, as it is seen after each network call, sample after sample.

    Raises:
        CheckpointError: no such run.
        BitStreamError: nothing is missing, or a hole is outside the data.
        ConfigError: an autoregressive model, or invalid settings.
    """
    asked = _Holes(request, workspace)
    first = filling_bits(asked.model, asked.known, asked.hidden_T, **asked.how(0))  # invalid settings are refused here
    return _frames(asked, first, request.samples)


def _frames(asked: _Holes, steps: Iterator[Step], samples: int) -> Iterator[InfillFrame]:
    c, done = asked.model.config, 0
    for sample in range(samples):
        bits, masked_T, total = asked.known.copy(), asked.hidden_T.copy(), 0
        for step in steps:
            total, fresh_T = step.total, ~step.masked & (masked_T | (bits != step.bits))
            bits, masked_T = step.bits.copy(), step.masked.copy()
            yield InfillFrame(
                sample=sample,
                data=bits_to_bytes(bits * ~masked_T, parity=c.parity, on_error="keep"),
                byte_bits=c.byte_bits,
                masked=_ranges(masked_T),
                changed=_ranges(fresh_T),
                calls=done + step.calls,
                total=samples * total,
            )
        done += total
        steps = filling_bits(asked.model, asked.known, asked.hidden_T, **asked.how(sample + 1))


class _Holes:
    """What is to be filled in: the known bits, which bits are hidden, and the holes, merged.

    Raises:
        BitTransformerError: as `infill`.
    """

    def __init__(self, request: InfillRequest, workspace: Workspace) -> None:
        if request.samples < 1:
            raise ConfigError(f"got samples={request.samples}; at least 1 is needed. Try 1", field="samples")
        self.request, self.model = request, _diffusion(request.run, workspace)
        c, data = self.model.config, request.data
        marked = [found.span() for found in re.finditer(re.escape(request.gap) if request.gap else rb"(?!)", data)]
        self.hidden_T = hidden_bits(len(data), c.byte_bits, [*request.holes, *marked], request.bit_holes)
        self.known = bytes_to_bits(data, parity=c.parity)
        self.holes = _merged([*request.holes, *marked])

    def how(self, sample: int) -> dict[str, Any]:
        """Settings for one of the samples."""
        r = self.request
        seed = None if r.seed is None else r.seed + NEXT_SAMPLE * sample
        return {"steps": r.steps, "order": r.order, "temperature": r.temperature, "seed": seed}


def _ranges(mask_T: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where a mask is true: first place of each range, and the place after its last."""
    edges = np.flatnonzero(np.diff(mask_T, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _merged(holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort holes and merge those that touch."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(holes):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def repair_file(request: RepairRequest, workspace: Workspace, job: Job) -> RepairReport:
    """Correct flipped bits of a file, as far as the model can tell, and write the result. If stopped, it writes what is done, and the rest as
    received.

    Raises:
        CheckpointError: no such run.
        BitStreamError: an unreadable file, one that is too short, or a span outside it.
        ConfigError: an invalid rate.
    """
    run, path, out, rate = request.run, request.path, request.out, request.rate
    check_out(out)
    data = read_file(path)
    check_rate(rate)
    model = workspace.model(run)
    received = _Received(data, model.config.parity, path)
    begin, end = _span(request.span, received.size)
    tally = _Tally(model.config, (begin, end), received)
    with job.stoppable() as asked:

        def tell(done: int, total: int) -> None:
            if asked() and done < total:
                raise _Stopped
            job.tell(Reading(done, total, "repaired", "bytes"))

        try:
            for piece, found in repair_pieces(
                model, received.bits, received.size, (begin, end), rate, on_progress=tell
            ):
                rate = found
                tally.add(piece)
        except _Stopped:
            pass
    if tally.done > begin:
        write_file(out, bytes(tally.now))
    return RepairReport(
        run, str(path), received.size, tally.flipped, rate or 0.0, tally.doubtful, tally.changes,
        repaired=(begin, tally.done), asked=(begin, end), parity=received.parity,
        stopped=tally.done < min(end, tally.whole),
    )  # fmt: skip


def repair_bytes(request: RepairBytesRequest, workspace: Workspace, job: Job) -> RepairedBytes:
    """Correct flipped bits of bytes in memory, as far as the model can tell.

    Raises:
        CheckpointError: no such run.
        BitStreamError: no bytes, too many or too few, or a span outside them.
        ConfigError: an invalid rate.
    """
    model, received, span = _asked_for(request, workspace)
    tally, rate = _Tally(model.config, span, received), request.rate
    tell = lambda done, total: job.tell(Reading(done, total, "repaired", "bytes"))  # noqa: E731
    with job.cancellable():
        for piece, found in repair_pieces(model, received.bits, received.size, span, rate, on_progress=tell):
            rate = found
            tally.add(piece)
    return RepairedBytes(
        run=request.run,
        data=bytes(tally.now),
        bytes=received.size,
        flipped_bits=tally.flipped,
        rate=rate or 0.0,
        doubtful=tally.doubtful,
        changes=tally.changes,
        repaired=(span[0], tally.done),
        parity=received.parity,
    )


def stream_repair(request: RepairBytesRequest, workspace: Workspace) -> Iterator[RepairFrame]:
    """Correct flipped bits of bytes in memory, as it is seen after each network call.

    Raises:
        CheckpointError: no such run.
        BitStreamError: no bytes, too many or too few, or a span outside them.
        ConfigError: an invalid rate.
    """
    return _repair_frames(*_asked_for(request, workspace), request.rate)


def _repair_frames(
    model: BitTransformerLM, received: _Received, span: tuple[int, int], rate: float | None
) -> Iterator[RepairFrame]:
    c = model.config
    before_T = received.bits(0, received.size)
    now_T, calls, whole = before_T.copy(), 0, len(before_T)
    alone = received.size <= PIECE // c.align_bytes * c.align_bytes  # all of it is one piece
    inside_T = np.zeros(whole, dtype=bool)
    inside_T[span[0] * c.byte_bits : span[1] * c.byte_bits] = True

    def frame(begin: int, bits: Bits, asked: NDArray[np.bool_], calls: int, total: int | None) -> RepairFrame:
        here = slice(begin * c.byte_bits, begin * c.byte_bits + len(bits))
        now_T[here] = np.where(inside_T[here], bits, before_T[here])
        asked_T = np.zeros(whole, dtype=bool)
        asked_T[here] = asked
        return RepairFrame(
            data=bits_to_bytes(now_T, parity=c.parity, on_error="keep"),
            byte_bits=c.byte_bits,
            changed=_ranges(now_T != before_T),
            asked=_ranges(asked_T),
            calls=calls,
            total=total,
        )

    for made in repairing_pieces(model, received.bits, received.size, span, rate):
        if isinstance(made, MendingPiece):
            calls += 1
            yield frame(made.begin, made.bits, made.asked, calls, made.total if alone else None)
        elif c.causal:
            yield frame(made[0].begin, made[0].bits, np.zeros(len(made[0].bits), dtype=bool), 0, None)


def _asked_for(
    request: RepairBytesRequest, workspace: Workspace
) -> tuple[BitTransformerLM, _Received, tuple[int, int]]:
    """The model, the received bytes, and the bytes to repair."""
    data = request.data
    check_rate(request.rate)
    model = workspace.model(request.run)
    most = MOST + (MOST // 8 if model.config.parity else 0)
    if not 1 <= len(data) <= most:
        raise BitStreamError(
            f"got {len(data):,} bytes; it must be 1 to {most:,}",
            field="data",
            tries=("a part of them", Ask("repair", request.run)) if data else ("at least one byte",),
        )
    received = _Received(data, model.config.parity)
    span, align = _span(request.span, received.size), model.config.align_bytes
    if span[0] // align * align >= received.size // align * align:
        raise BitStreamError(
            f"got {received.size:,} bytes; it must be at least {align}, and what is repaired must begin before the last whole {align}",
            field="data",
            tries=("more bytes",),
        )
    return model, received, span


def _span(asked: tuple[int, int] | None, size: int) -> tuple[int, int]:
    """The bytes to repair.

    Raises:
        BitStreamError: they are none, or outside the data.
    """
    begin, end = asked or (0, size)
    if not 0 <= begin < end <= size:
        raise BitStreamError(
            f"got the range {begin}:{end}; it must lie within bytes 0:{size}, and not be empty. Try 0:{size}",
            field="span",
        )
    return begin, end


class _Stopped(Exception):
    """The repair was stopped."""


class _Received:
    """Received bytes, of a file or not: `size` data bytes, and their bits as the model reads them."""

    def __init__(self, data: bytes, parity: bool, path: Path | None = None) -> None:
        self.data, self.parity = data, parity
        self.size = 8 * len(data) // 9 if parity else len(data)
        if parity:
            wrong = sum(len(find_parity_errors(self.bits(at, end))) for at, end in self._pieces())
            _check_protected(self.size, wrong, path)

    def bits(self, begin: int, end: int) -> Bits:
        """The bits of bytes [begin, end)."""
        if not self.parity:
            return bytes_to_bits(self.data[begin:end])
        first, last = 9 * begin // 8, -(-9 * end // 8)
        skipped = 9 * begin - 8 * first
        return unpack_bits(self.data[first:last], skipped + 9 * (end - begin))[skipped:]

    def plain(self) -> bytearray:
        """All bytes, without parity."""
        made = bytearray()
        for begin, end in self._pieces():
            made += bits_to_bytes(self.bits(begin, end), parity=self.parity, on_error="keep")
        return made

    def _pieces(self) -> Iterator[tuple[int, int]]:
        return ((at, min(self.size, at + PIECE)) for at in range(0, self.size, PIECE))


class _Tally:
    """The state of a repair.

    Attributes:
        now: the file so far; done: end of the repaired bytes; whole: end of what can be repaired (an incomplete last unit cannot).
    """

    def __init__(self, config: ModelConfig, span: tuple[int, int], received: _Received) -> None:
        self.config, self.span, self.received = config, span, received
        self.now = received.plain()
        self.done, self.whole = span[0], received.size // config.align_bytes * config.align_bytes
        self.flipped = self.doubtful = 0
        self.changes: list[Change] = []

    def add(self, piece: MendedPiece) -> None:
        """Add the part of a piece that is within the span."""
        c, width = self.config, self.config.byte_bits
        begin, end = max(self.span[0], piece.begin), min(self.span[1], piece.begin + len(piece.bits) // width)
        inside = slice((begin - piece.begin) * width, (end - piece.begin) * width)
        before_T, bits_T = self.received.bits(begin, end), piece.bits[inside]
        before, after = (bits_to_bytes(x, parity=c.parity, on_error="keep") for x in (before_T, bits_T))
        self.now[begin:end], self.done = after, end
        patches = slice(inside.start // c.patch_bits, -(-inside.stop // c.patch_bits))
        self.doubtful += int((piece.doubt[patches] > 0.5).sum())
        places = np.flatnonzero(before_T != bits_T)
        self.flipped += len(places)
        for at in np.unique(places // width)[: max(0, SHOWN - len(self.changes))].tolist():
            first = inside.start + at * width
            doubt_N = piece.doubt[first // c.patch_bits : -(-(first + width) // c.patch_bits)]
            self.changes.append(Change(begin + at, before[at], after[at], float(doubt_N.max(initial=0.0))))


def protect_file(request: ProtectRequest, workspace: Workspace, job: Job) -> Protected:
    """Write a file with a parity bit for each byte (nine bits per byte, packed), or read such a file back.

    Raises:
        BitStreamError: an unreadable file.
        ParityError: when reading back: bytes with odd parity; nothing is written.
    """
    path, out = request.path, request.out
    check_out(out)
    data = read_file(path)
    if out.resolve() == path.resolve():
        raise ConfigError(f"got out={str(out)!r}, which is the input file and would be overwritten. Try another")
    if request.undo:
        try:
            plain = bits_to_bytes(_unprotected(data, path), parity=True)
        except ParityError as odd:
            raise ParityError(
                f"{path}: got odd parity in {len(odd.offsets)} bytes, the first at {odd.offsets[0]}; all must be even",
                odd.offsets,
                tries=(Ask("repair"),),
            ) from None
        write_file(out, plain)
        return Protected(str(out), len(plain))
    write_file(out, pack_bits(bytes_to_bits(data, parity=True))[0])
    return Protected(str(out), len(data))


def _unprotected(data: bytes, path: Path) -> Bits:
    size = 8 * len(data) // 9
    bits = unpack_bits(data, 9 * size)
    _check_protected(size, len(find_parity_errors(bits)), path)
    return bits


def _check_protected(size: int, wrong: int, path: Path | None) -> None:
    """Refuse bytes that were never protected.

    Raises:
        BitStreamError: too many bytes are odd, or there are none.
    """
    name, field = ("data", "data") if path is None else (str(path), None)
    protect = Ask("protect", more=(Give("path", name),) if path is not None else ())
    if not size:
        raise BitStreamError(f"{name}: holds no byte of nine bits", field=field, tries=(protect,))
    if wrong > WRONG * size:
        raise BitStreamError(
            f"{name}: {wrong:,} of {size:,} bytes have odd parity; a run with parity needs a protected file",
            field=field,
            tries=(protect, "a run without parity"),
        )


def _diffusion(run: str, workspace: Workspace) -> BitTransformerLM:
    model = workspace.model(run)
    if model.config.causal:
        raise ConfigError(
            f"{run}: got an autoregressive model, which reads only the past; a diffusion model is needed",
            field="run",
            tries=("a run of a diffusion model",),
        )
    return model
