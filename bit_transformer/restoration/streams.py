"""Infilling, repair and continuation of byte strings of any length, window by window."""

# Shapes: B windows, T bits of a stream or a window, N patches.
from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits, bits_to_bytes, bytes_to_bits
from bit_transformer.config import Sampling
from bit_transformer.diffusion.infill import calls_needed, check_filling, diffusion_inference, fillings
from bit_transformer.diffusion.repair import FIRST_RATE, RATE_ROUNDS, check_rate, finished, repair, repairing
from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.evaluation.metrics import window_bytes
from bit_transformer.model import BitTransformerLM
from bit_transformer.restoration.beam import BEFORE, search

BATCH = 16  # windows that are repaired in one batch
SAMPLE = 1 << 15  # bits from which a flip rate is estimated
PIECE = 1 << 16  # bytes that are repaired at a time


def hidden_bits(
    size: int, byte_bits: int, holes: Sequence[tuple[int, int]], bit_holes: Sequence[tuple[int, int]] = ()
) -> NDArray[np.bool_]:
    """Which bits are to be filled in, of `size` bytes.

    Args:
        holes: first byte of each, and the byte after its last.
        bit_holes: the same in bits of the stream as the model reads it, with `byte_bits` per byte.

    Raises:
        BitStreamError: no holes, an empty hole, or one outside the data.
    """
    hidden_T = np.zeros(size * byte_bits, dtype=bool)
    for unit, name, ranges in ((byte_bits, "bytes", holes), (1, "bits", bit_holes)):
        most = len(hidden_T) // unit
        for begin, end in ranges:
            if not 0 <= begin < end <= most:
                raise BitStreamError(
                    f"got the hole {begin}:{end}; it must lie within {name} 0:{most}, and not be empty. Try 0:{max(1, most // 2)}"
                )
            hidden_T[begin * unit : end * unit] = True
    if not hidden_T.any():
        raise BitStreamError(
            "got nothing to fill in; at least one hole is needed",
            field="holes",
            tries=("a gap mark in the data", Give("holes", f"0:{max(1, size // 2)}")),
        )
    return hidden_T


class Step(NamedTuple):
    """A stream that is being filled in or repaired, after a network call. Its arrays are changed by the next one.

    Attributes:
        bits: (T,), as far as they are known now; masked bits have no meaning.
        masked: (T,), which bits are still to be filled in; in a repair: which the call was about.
        calls: made so far; `total`: in all.
        window_done: whether the call was the last one for its windows.
    """

    bits: Bits
    masked: NDArray[np.bool_]
    calls: int
    total: int
    window_done: bool


def fill_bits(
    model: BitTransformerLM,
    known: Bits,
    hidden_T: NDArray[np.bool_],
    *,
    on_window: Callable[[int, int], None] = lambda done, total: None,
    **how: Any,
) -> Bits:
    """Fill in the masked bits of a stream of any length. A stream longer than a window is filled in windows around these bits.

    Args:
        known: (T,) bits; the values of masked bits do not matter.
        hidden_T: (T,), which bits are masked.
        on_window: called with the number of bits filled in so far, and their total.
        how: steps, order, temperature and seed, as in `diffusion_inference`.

    Raises:
        BitStreamError: different lengths, or fixed bytes with odd parity.
        ConfigError: as in `diffusion_inference`.
    """
    bits, total = known.copy(), int(hidden_T.sum())
    for step in filling_bits(model, known, hidden_T, **how):
        bits = step.bits
        if step.window_done:
            on_window(total - int(step.masked.sum()), total)
    return bits


def filling_bits(model: BitTransformerLM, known: Bits, hidden_T: NDArray[np.bool_], **how: Any) -> Iterator[Step]:
    """`fill_bits` call by call: the stream after each network call. The last one is its result.

    Arguments and errors as there; errors of settings are raised here, before the first step.
    """
    if known.shape != hidden_T.shape or known.ndim != 1:
        raise BitStreamError(
            f"got bits of shape {known.shape} and hidden_T of shape {hidden_T.shape}; both must be (bits,)"
        )
    check_filling(model, **{name: value for name, value in how.items() if name != "force_parity"})
    return _filling_bits(model, known, hidden_T, how)


def _filling_bits(
    model: BitTransformerLM, known: Bits, hidden_T: NDArray[np.bool_], how: dict[str, Any]
) -> Iterator[Step]:
    c, T = model.config, len(known)
    unit = c.align_bytes * c.byte_bits
    room = -T % unit  # the last unit may be partial: the rest of it is sampled and dropped
    made_T, fixed_T = np.pad(known, (0, room)), np.pad(~hidden_T, (0, room))
    windows = _windows_of_holes(fixed_T, T, unit, min(window_bytes(model) * c.byte_bits, len(made_T)))
    settings = check_filling(model, steps=how.get("steps"), order=how.get("order"))
    open_patches = [int((~fixed_W.reshape(-1, c.patch_bits).all(-1)).sum()) for _, fixed_W in windows]
    total = sum(calls_needed(settings, c.noise == "flips", count) for count in open_patches)
    seed, before, left_T = how.get("seed"), 0, ~fixed_T
    for here, fixed_W in windows:
        for filling in fillings(model, made_T[None, here], fixed_W[None], **{**how, "seed": seed}):
            if not filling.calls:
                continue
            made_T[here], left_T[here] = filling.bits_BT[0].numpy(), filling.masked_BT[0].numpy()
            window_done = filling.calls == filling.total
            yield Step(made_T[:T], left_T[:T], before + filling.calls, total, window_done)
        before += filling.total
        seed = None if seed is None else seed + 1


def _windows_of_holes(
    fixed_T: NDArray[np.bool_], length: int, unit: int, size: int
) -> list[tuple[slice, NDArray[np.bool_]]]:
    """Windows of `size` bits around the masked bits of a stream, in order, and which of their bits are fixed when it comes to them."""
    fixed_T, windows, units = fixed_T.copy(), list[tuple[slice, NDArray[np.bool_]]](), size // unit
    while (left := np.flatnonzero(~fixed_T[:length])).size:
        begin = max(0, min(int(left[0]) // unit - units // 2, len(fixed_T) // unit - units)) * unit
        here = slice(begin, begin + size)
        windows.append((here, fixed_T[here].copy()))
        fixed_T[here] = True
    return windows


def continued(model: BitTransformerLM, prompt: bytes, sampling: Sampling) -> Iterator[bytes]:
    """Continue a prompt endlessly with a diffusion model: half a window at a time, given the half before.

    Raises:
        ConfigError: a sampling setting that only autoregressive models have.
    """
    only = {"temperature", "force_parity", "seed"}
    for name, value in sampling.model_dump(exclude=only).items():
        if value != Sampling.model_fields[name].default:
            raise ConfigError(f"got causal=False; {name}={value!r} needs an autoregressive model. Try without")
    return _continued(model, prompt, sampling)


def _continued(model: BitTransformerLM, prompt: bytes, sampling: Sampling) -> Iterator[bytes]:
    c = model.config
    whole = window_bytes(model)
    text, seed = prompt, sampling.seed
    while True:
        # The window starts where both a byte and a patch start, as in training.
        whole_units, seen_units = whole // c.align_bytes, len(text) // c.align_bytes
        begin = max(0, seen_units - whole_units // 2) * c.align_bytes
        seen, fresh = text[begin:], whole - len(text[begin:])
        known = bytes_to_bits(seen + bytes(fresh), parity=c.parity)
        fixed = np.arange(len(known)) < len(seen) * c.byte_bits
        drawn = diffusion_inference(
            model,
            known[None],
            fixed[None],
            temperature=sampling.temperature,
            force_parity=sampling.force_parity,
            seed=seed,
        )
        made = bits_to_bytes(drawn[0].numpy(), parity=c.parity, on_error="keep")[len(seen) :]
        yield made
        text, seed = text[begin:] + made, None if seed is None else seed + 1


@dataclass(frozen=True)
class Mended:
    """A stream whose flipped bits were corrected.

    Attributes:
        bits: (T,), after the repair.
        flipped: positions of the bits that were changed.
        doubt: by patch: the probability that it is still wrong.
        rate: of flipped bits, as given or as estimated.
    """

    bits: Bits
    flipped: NDArray[np.int64]
    doubt: NDArray[np.float64]
    rate: float


def repair_bits(
    model: BitTransformerLM,
    received: Bits,
    *,
    rate: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mended:
    """Correct flipped bits in a stream of any length. An autoregressive model uses `beam.search`. A diffusion model uses
    `diffusion.repair` in windows that overlap by half; the middle of each is kept.

    Args:
        received: (T,) bits, T a whole number of bytes. An incomplete last unit of bytes and patches is not changed.
        rate: probability that a bit was flipped, in (0, 0.5). Default: estimated from the stream.
        on_progress: called with the work done so far, and its total.

    Raises:
        BitStreamError: less than one unit.
        ConfigError: an invalid rate.
    """
    return finished(repairing_bits(model, received, rate=rate, on_progress=on_progress))


def repairing_bits(
    model: BitTransformerLM,
    received: Bits,
    *,
    rate: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Generator[Step, None, Mended]:
    """`repair_bits` call by call: the stream after each network call of a diffusion model, without those that estimate the rate. An
    autoregressive model gives no steps. Returns the result. Arguments and errors as there.
    """
    c = model.config
    check_rate(rate)
    unit = c.align_bytes * c.byte_bits
    whole = received[: len(received) // unit * unit]
    if not len(whole):
        raise BitStreamError(f"got {len(received)} bits; at least {unit} are needed. Try a longer file")
    mended = received.copy()
    if rate is None:
        rate = found_rate(model, whole)
    if c.causal:
        mended[: len(whole)], doubt = search(model, whole, rate, on_patch=on_progress)
    else:
        doubt = yield from _repairing(model, mended, len(whole), rate, on_progress)
    return Mended(mended, np.flatnonzero(mended != received), doubt, rate)


class MendedPiece(NamedTuple):
    """A piece of a repaired stream: `bits` and `doubt` as in `Mended`, starting at byte `begin`."""

    begin: int
    bits: Bits
    doubt: NDArray[np.float64]


class MendingPiece(NamedTuple):
    """A piece of a stream that is being repaired, after a network call: `bits` as far as they are repaired, starting at byte `begin`.

    Attributes:
        asked: which of the bits the call was about.
        calls: made so far for this piece; `total`: in all.
    """

    begin: int
    bits: Bits
    asked: NDArray[np.bool_]
    calls: int
    total: int


def repair_pieces(
    model: BitTransformerLM,
    received: Callable[[int, int], Bits],
    size: int,
    span: tuple[int, int],
    rate: float | None = None,
    *,
    piece: int = PIECE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[MendedPiece, float]]:
    """`repair_bits` for a stream of any length, piece by piece, each with its surroundings. Memory does not grow with the stream.

    Args:
        received: gives the bits of bytes [begin, end).
        size: bytes of the stream.
        span: bytes to repair, widened to whole units; an incomplete last unit is not repaired.
        piece: bytes per piece; a shorter stream is repaired as by `repair_bits`.
        on_progress: called with the bytes done so far, and their total.

    Yields:
        each piece, and the rate, as given or as estimated from the middle of the span.

    Raises:
        BitStreamError: less than one unit.
        ConfigError: an invalid rate.
    """
    for made in repairing_pieces(model, received, size, span, rate, piece=piece, on_progress=on_progress):
        if not isinstance(made, MendingPiece):
            yield made


def repairing_pieces(
    model: BitTransformerLM,
    received: Callable[[int, int], Bits],
    size: int,
    span: tuple[int, int],
    rate: float | None = None,
    *,
    piece: int = PIECE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[MendingPiece | tuple[MendedPiece, float]]:
    """`repair_pieces` with, for a diffusion model, the state of each piece after each network call before it. Arguments and errors as there."""
    c = model.config
    check_rate(rate)
    align, width = c.align_bytes, c.byte_bits
    last = min(size, -(-span[1] // align) * align) // align * align
    first, step = min(span[0] // align * align, last), max(1, piece // align) * align
    if first == last:
        raise BitStreamError(f"got {span[1] - span[0]} bytes; at least {align} are needed. Try a longer file, or range")
    around = BEFORE * c.patch_bits // width if c.causal else window_bytes(model) // 2
    around = -(-around // align) * align
    for begin in range(first, last, step):
        end = min(last, begin + step)
        left, right = max(0, begin - around), min(size // align * align, end + around)
        if rate is None and end - begin < last - first:
            rate = found_rate(model, _middle(model, received, first, last))

        def tell(done: int, total: int, begin: int = begin, end: int = end) -> None:
            on_progress(begin - first + (end - begin) * done // total, last - first)

        bits, patches = slice((begin - left) * width, (end - left) * width), c.patch_bits
        steps = repairing_bits(model, received(left, right), rate=rate, on_progress=tell)
        while True:
            try:
                now = next(steps)
            except StopIteration as ended:
                found: Mended = ended.value
                break
            yield MendingPiece(begin, now.bits[bits], now.masked[bits], now.calls, now.total)
        rate = found.rate
        doubt = found.doubt[bits.start // patches : bits.stop // patches]
        yield MendedPiece(begin, found.bits[bits], doubt), rate


def _middle(model: BitTransformerLM, received: Callable[[int, int], Bits], first: int, last: int) -> Bits:
    """The bits from which a rate is estimated, from the middle of a span of bytes."""
    c = model.config
    wanted = SAMPLE // c.byte_bits if c.causal else BATCH * window_bytes(model)
    count = min(last - first, max(1, wanted // c.align_bytes) * c.align_bytes)
    begin = first + (last - first - count) // 2 // c.align_bytes * c.align_bytes
    return received(begin, begin + count)


def found_rate(model: BitTransformerLM, received: Bits) -> float:
    """Estimate the flip rate from a part of a stream, in whole units.

    Raises:
        BitStreamError: the model predicts NaN.
    """
    unit = model.config.align_bytes * model.config.byte_bits
    if model.config.causal:
        return _searched_rate(model, received, unit)
    size, starts = _windows(model, len(received))
    some = starts[:: -(-len(starts) // BATCH)]
    return repair(model, np.stack([received[at : at + size] for at in some])).rate


def _searched_rate(model: BitTransformerLM, received: Bits, unit: int) -> float:
    """Estimate the flip rate from the middle of a stream: the rate at which a search, told this rate, changes as many bits."""
    size = min(len(received), max(unit, SAMPLE // unit * unit))
    begin = (len(received) - size) // 2 // unit * unit
    some, rate = received[begin : begin + size], FIRST_RATE
    for _ in range(RATE_ROUNDS - 1):
        changed = float((search(model, some, rate).bits != some).mean())
        rate, before = min(max(changed, 1e-6), 0.49), rate
        if abs(rate - before) < 0.2 * before:
            break
    return rate


def _windows(model: BitTransformerLM, whole: int) -> tuple[int, NDArray[np.int64]]:
    """Bits per window, and the starts of windows that overlap by half, for `whole` bits."""
    c = model.config
    unit = c.align_bytes * c.byte_bits
    size = min(window_bytes(model) * c.byte_bits, whole)
    step = max(unit, size // 2 // unit * unit)
    return size, np.append(np.arange(0, whole - size, step), whole - size)


def _repairing(
    model: BitTransformerLM, mended_T: Bits, whole: int, rate: float, on_progress: Callable[[int, int], None]
) -> Generator[Step, None, NDArray[np.float64]]:
    """Repair the first `whole` bits of a stream in place. Returns the doubt of each patch."""
    c = model.config
    unit = c.align_bytes * c.byte_bits
    received = mended_T[:whole].copy()
    size, starts = _windows(model, whole)
    step = max(unit, size // 2 // unit * unit)
    doubt, done, calls = np.zeros(whole // c.patch_bits), 0, 0
    groups = [starts[first : first + BATCH] for first in range(0, len(starts), BATCH)]
    for number, group in enumerate(groups):
        # Windows overlap: each gives its middle, the first and the last their outer parts too.
        ends = [at + size if at + size == whole else at + size - (size - step) // 2 // unit * unit for at in group]
        kept = [slice(begin, end) for begin, end in zip([done, *ends], ends, strict=False)]
        windows = repairing(model, np.stack([received[at : at + size] for at in group]), rate=rate)
        while True:
            try:
                now = next(windows)
            except StopIteration as end:
                found = end.value
                break
            asked_T = np.zeros(len(mended_T), dtype=bool)
            for at, part, bits_T, asked_W in zip(group, kept, now.bits_BT.numpy(), now.asked_BT.numpy(), strict=True):
                inside = slice(part.start - at, part.stop - at)
                mended_T[part], asked_T[part] = bits_T[inside], asked_W[inside]
            calls += 1
            yield Step(mended_T, asked_T, calls, now.total * len(groups), now.calls == now.total)
        for at, part, doubt_N in zip(group, kept, found.doubt_BN, strict=True):
            of = slice(part.start // c.patch_bits, part.stop // c.patch_bits)
            doubt[of] = doubt_N[of.start - at // c.patch_bits : of.stop - at // c.patch_bits]
        done = ends[-1]
        on_progress(min(len(starts), (number + 1) * BATCH), len(starts))
    return doubt
