"""Filling holes in bytes, setting flipped bits right, and protecting bytes by parity, so that more can be set right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.bit_io import Bits, bits_to_bytes, bytes_to_bits, find_parity_errors, pack_bits, unpack_bits
from bit_transformer.diffusion import check_rate
from bit_transformer.errors import BitStreamError, ConfigError, ParityError
from bit_transformer.model import BitTransformerLM
from bit_transformer.restoration import fill_bits, hidden_bits, repair_bits
from bit_transformer.service import DEFAULT_STORE
from bit_transformer.service.files import check_out, read_file, write_file
from bit_transformer.service.models import load_model
from bit_transformer.service.observers import Reading, Report

WRONG = 0.4  # share of bytes with odd parity from which on a file was never protected: half are by chance
SHOWN = 1000  # changes that are listed, at most


@dataclass(frozen=True)
class Filled:
    """Bytes whose holes were filled in.

    Attributes:
        data: one for each sample.
        hidden_bits: how many were filled in.
        holes: first byte and the byte after the last, of each hole.
    """

    run: str
    data: list[bytes]
    hidden_bits: int
    holes: list[tuple[int, int]]


@dataclass(frozen=True)
class Change:
    """A byte that was changed: what was received, what it was set to, and the chance that it still is wrong.

    Attributes:
        received, now: the data byte; they are equal where only the parity bit was wrong.
    """

    offset: int
    received: int
    now: int
    doubt: float


@dataclass(frozen=True)
class RepairReport:
    """A file whose flipped bits were set right.

    Attributes:
        bytes: data bytes.
        flipped_bits: how many were changed.
        rate: chance of a flip, as given or as found.
        doubtful: patches of which the model is less than half sure.
        changes: the first thousand.
    """

    run: str
    file: str
    bytes: int
    flipped_bits: int
    rate: float
    doubtful: int
    changes: list[Change]


def infill(
    run: str,
    data: bytes,
    *,
    gap: bytes = b"",
    holes: Sequence[tuple[int, int]] = (),
    bit_holes: Sequence[tuple[int, int]] = (),
    samples: int = 1,
    steps: int | None = None,
    order: str | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    store: Path = DEFAULT_STORE,
    report: Report | None = None,
) -> Filled:
    """Fill in what is missing of some bytes, from what stands before and after it.

    Args:
        gap: a mark; wherever it stands its bytes are missing.
        holes: ranges of missing bytes; bit_holes: of bits, as the model reads them.
        steps, order, temperature: as of `diffusion_inference`.

    Raises:
        CheckpointError: no such run.
        BitStreamError: nothing is missing, or a hole that reaches outside.
        ConfigError: an autoregressive model, or settings that cannot be.
    """
    if samples < 1:
        raise ConfigError(f"samples={samples}; at least 1 is needed. Try 1")
    model = _diffusion(run, store)
    width = model.config.byte_bits
    marked = [found.span() for found in re.finditer(re.escape(gap) if gap else rb"(?!)", data)]
    hidden_T = hidden_bits(len(data), width, [*holes, *marked], bit_holes)
    known = bytes_to_bits(data, parity=model.config.parity)
    made = []
    for sample in range(samples):

        def tell(done: int, total: int, sample: int = sample) -> None:
            if report:
                report(Reading(sample * total + done, samples * total, "filled", "bits"))

        bits = fill_bits(
            model,
            known,
            hidden_T,
            on_window=tell,
            steps=steps,
            order=order,
            temperature=temperature,
            seed=None if seed is None else seed + 1_000_003 * sample,
        )
        made.append(bits_to_bytes(bits, parity=model.config.parity))
    return Filled(run, made, int(hidden_T.sum()), _merged([*holes, *marked]))


def _merged(holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same holes in order, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(holes):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def repair_file(
    run: str,
    path: Path,
    out: Path,
    *,
    rate: float | None = None,
    store: Path = DEFAULT_STORE,
    report: Report | None = None,
) -> RepairReport:
    """Set right the flipped bits of a file, as far as the model can tell, and write its bytes.

    Args:
        path: bytes; of a model with parity, as `protect` wrote them.
        out: gets the bytes, without parity.
        rate: chance with which bits were flipped, in (0, 0.5); not given: found from the file.

    Raises:
        CheckpointError: no such run.
        BitStreamError: an unreadable file, or one that is too short.
        ConfigError: a rate that cannot be.
    """
    check_out(out)
    received = read_file(path)
    check_rate(rate)
    model = load_model(run, store)
    c = model.config
    bits = _unprotected(received, path) if c.parity else bytes_to_bits(received)

    def tell(done: int, total: int) -> None:
        if report and (done == total or done % 16 == 0):
            report(Reading(done, total, "repaired", "patches of a part" if c.causal else "windows"))

    mended = repair_bits(model, bits, rate=rate, on_progress=tell)
    before, now = (bits_to_bytes(x, parity=c.parity, on_error="keep") for x in (bits, mended.bits))
    write_file(out, now)
    changes = []
    for offset in sorted({int(place) // c.byte_bits for place in mended.flipped})[:SHOWN]:
        patches = slice(offset * c.byte_bits // c.patch_bits, -(-(offset + 1) * c.byte_bits // c.patch_bits))
        doubt = float(mended.doubt[patches].max(initial=0.0))
        changes.append(Change(offset, before[offset], now[offset], doubt))
    doubtful = int((mended.doubt > 0.5).sum())
    return RepairReport(run, str(path), len(now), len(mended.flipped), mended.rate, doubtful, changes)


def protect_file(path: Path, out: Path, *, undo: bool = False) -> int:
    """Write a file's bytes with a parity bit each, nine bits to a byte, packed; or read such a file back.

    Returns:
        data bytes.

    Raises:
        BitStreamError: an unreadable file.
        ParityError: read back, bytes whose parity is odd; nothing is written.
    """
    check_out(out)
    data = read_file(path)
    if out.resolve() == path.resolve():
        raise ConfigError(f"out={str(out)!r} is the file itself, which would be lost. Try another")
    if undo:
        try:
            plain = bits_to_bytes(_unprotected(data, path), parity=True)
        except ParityError as odd:
            raise ParityError(
                f"{path}: got odd parity in {len(odd.offsets)} bytes, the first at {odd.offsets[0]}; all must be even. Try btlm repair",
                odd.offsets,
            ) from None
        write_file(out, plain)
        return len(plain)
    write_file(out, pack_bits(bytes_to_bits(data, parity=True))[0])
    return len(data)


def _unprotected(data: bytes, path: Path) -> Bits:
    size = 8 * len(data) // 9
    if not size:
        raise BitStreamError(f"{path}: holds no byte of nine bits. Try btlm protect {path} first")
    bits = unpack_bits(data, 9 * size)
    if len(find_parity_errors(bits)) > WRONG * size:
        raise BitStreamError(
            f"{path}: {len(find_parity_errors(bits)):,} of {size:,} bytes have odd parity; a run with parity needs a protected file. Try "
            f"btlm protect {path} first, or a run without parity"
        )
    return bits


def _diffusion(run: str, store: Path) -> BitTransformerLM:
    model = load_model(run, store)
    if model.config.causal:
        raise ConfigError(
            f"{run}: is an autoregressive model, which reads only what stands before; got causal=True. Try a run of "
            f"btlm train --diffusion"
        )
    return model
