"""Infilling, repair of flipped bits, and protection of files by parity, which makes more errors repairable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bit_transformer.bit_io import Bits, bits_to_bytes, bytes_to_bits, find_parity_errors, pack_bits, unpack_bits
from bit_transformer.config import ModelConfig
from bit_transformer.diffusion.repair import check_rate
from bit_transformer.errors import Ask, BitStreamError, ConfigError, Give, ParityError
from bit_transformer.model import BitTransformerLM
from bit_transformer.restoration.streams import PIECE, MendedPiece, fill_bits, hidden_bits, repair_pieces
from bit_transformer.service.files import check_out, read_file, write_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import BASE64, InfillRequest, ProtectRequest, RepairRequest
from bit_transformer.service.workspace import Workspace

WRONG = 0.4  # fraction of bytes with odd parity above which a file was never protected: at random it is half
SHOWN = 1000  # most changes that are listed


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
    run, data, gap, holes, samples = request.run, request.data, request.gap, request.holes, request.samples
    if samples < 1:
        raise ConfigError(f"got samples={samples}; at least 1 is needed. Try 1", field="samples")
    model = _diffusion(run, workspace)
    width = model.config.byte_bits
    marked = [found.span() for found in re.finditer(re.escape(gap) if gap else rb"(?!)", data)]
    hidden_T = hidden_bits(len(data), width, [*holes, *marked], request.bit_holes)
    known = bytes_to_bits(data, parity=model.config.parity)
    made = []
    with job.cancellable():
        for sample in range(samples):

            def tell(done: int, total: int, sample: int = sample) -> None:
                job.tell(Reading(sample * total + done, samples * total, "filled", "bits"))

            bits = fill_bits(
                model,
                known,
                hidden_T,
                on_window=tell,
                steps=request.steps,
                order=request.order,
                temperature=request.temperature,
                seed=None if request.seed is None else request.seed + 1_000_003 * sample,
            )
            made.append(bits_to_bytes(bits, parity=model.config.parity))
    return Filled(run, made, int(hidden_T.sum()), _merged([*holes, *marked]))


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
    begin, end = request.span or (0, received.size)
    if not 0 <= begin < end <= received.size:
        raise BitStreamError(
            f"got the range {begin}:{end}; it must lie within bytes 0:{received.size}, and not be empty. Try 0:{received.size}"
        )
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


class _Stopped(Exception):
    """The repair was stopped."""


class _Received:
    """A received file: `size` data bytes, and their bits as the model reads them."""

    def __init__(self, data: bytes, parity: bool, path: Path) -> None:
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


def _check_protected(size: int, wrong: int, path: Path) -> None:
    """Refuse bytes that were never protected.

    Raises:
        BitStreamError: too many bytes are odd, or there are none.
    """
    if not size:
        raise BitStreamError(
            f"{path}: holds no byte of nine bits", tries=(Ask("protect", more=(Give("path", str(path)),)),)
        )
    if wrong > WRONG * size:
        raise BitStreamError(
            f"{path}: {wrong:,} of {size:,} bytes have odd parity; a run with parity needs a protected file",
            tries=(Ask("protect", more=(Give("path", str(path)),)), "a run without parity"),
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
