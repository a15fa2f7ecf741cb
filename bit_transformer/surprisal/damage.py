"""Damaged ranges of a file, at a known rate of false alarms.

There are five signs, each with a score and a limit of its own:

- `flip`: flipping one bit back makes the file so much likelier (nats).
- `shift`: moving the bits of 64 bytes by one to seven makes them so much likelier (nats).
- `burst`, `patch`: the bytes of 16, of 64 bytes cost much, both ways (bits).
- `fill`: a pattern of one to eight bytes goes on and on, and begins and ends where nobody expected it (bits of its ends).

The limits follow from the false alarms that are allowed. Clean data of the same kind is read in the same way, and what would be reported in it is
counted: a limit is the score that no more ranges per megabyte exceed than were allowed.

In what is compressed or encrypted damage leaves no mark: every byte costs eight bits with or without it.
"""

# Shapes: N bytes, W windows.
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import BitStreamError, Give
from bit_transformer.experts.bank import ExpertBank, Tell, ignore
from bit_transformer.surprisal.alternatives import Alternatives, gains
from bit_transformer.surprisal.reading import Bytes, Costs

Sign = Literal["fill", "shift", "patch", "flip", "burst"]
SIGNS: tuple[Sign, ...] = ("shift", "fill", "flip", "patch", "burst")  # the most particular first
DamageKind = Literal["flips", "overwritten", "zeros", "filled", "shifted"]
BURST, PATCH, SHIFTED = 16, 64, 64  # bytes of a window
GAP = 32  # bytes between ranges that are one
TRIED = 1 / 50  # of all bytes, the dearest: their bits are flipped back; and of all windows: their bits are moved
LEAST_TRIED = 2000  # bytes
MOST_PERIOD = 8
LEAST = {"fill": 12.0, "shift": 8.0, "patch": 12.0, "flip": 8.0, "burst": 12.0}  # scores that are never damage
LEAST_EVIDENCE = 10.0  # bits
SEAM = 4  # bytes where a fill begins, and where it ends
PER_MEGABYTE = 2000  # candidates of a sign that are kept
_UNKNOWN: dict[Sign, float] = {
    "flip": 14.0,
    "shift": 14.0,
    "fill": 20.0,
}  # limits where there is nothing clean to compare with
_BACKGROUND = 2.0  # bits more than the file's mean that a byte of a damaged range brings, on average
_MOVES = (*range(1, 8), *range(-7, 0))


@dataclass(frozen=True)
class Candidate:
    """A range that may be damaged.

    Attributes:
        score: of its sign; see above.
        bits: of evidence: what would be saved if the range were as its surroundings.
    """

    begin: int
    end: int
    sign: Sign
    score: float
    bits: float
    kind: DamageKind
    text: str


@dataclass(frozen=True)
class Damage:
    """A damaged range.

    Attributes:
        begin, length: in bytes. Where it ends is an estimate.
        bits: of evidence: what would be saved if the range were as its surroundings.
        kind: what it looks like; `text`: the same in words.
        sign: by which it was found; `score`: of that sign, and the `limit` that it exceeds.
    """

    begin: int
    length: int
    bits: float
    kind: DamageKind
    sign: Sign
    score: float
    limit: float
    text: str


@dataclass(frozen=True)
class Limits:
    """Scores that clean data seldom exceeds.

    Attributes:
        of: by sign.
        false_alarms: ranges per megabyte that clean data has beyond them; NaN: not known.
        between: the 95 % interval of that, if ranges are independent and the file is as its reference; odd files have several.
        reference_bytes: clean bytes by which they were set.
        bpb: that 99 of 100 blocks of clean data do not exceed, read forwards; None without a reference.
    """

    of: dict[Sign, float]
    false_alarms: float
    between: tuple[float, float]
    reference_bytes: int
    bpb: float | None = None


def tried_of(size: int) -> float:
    """The fraction of a file of so many bytes in which alternatives are tried: more of a small one."""
    return min(1.0, max(TRIED, LEAST_TRIED / size))


def candidates(
    data: Bytes, costs: Costs, banks: tuple[ExpertBank, ExpertBank], tried: float, tell: Tell = ignore
) -> list[Candidate]:
    """Ranges that may be damaged, by all signs, the highest scores of each.

    Args:
        banks: about to read the data, as of `Reader.banks`.
        tried: the fraction of the bytes in which alternatives are tried: the dearest. Clean data is compared at the fraction of the file
            that is judged.
        tell: called with the bytes that were passed while alternatives were tried; each way counts.
    """
    made = [*_fills(data, costs), *_dear(costs.mean, BURST, "burst"), *_dear(costs.lower, PATCH, "patch")]
    made += _better(data, costs, banks, tried, tell)
    return made


def _kept(size: int) -> int:
    return max(50, size * PER_MEGABYTE // 1_000_000)


def _highest(begin: NDArray[np.int64], score: NDArray[np.float64], reach: int, most: int) -> NDArray[np.int64]:
    """Indices of the highest scores, by descending score, none within `reach` bytes of a higher one."""
    found, taken = list[int](), dict[int, int]()  # a cell of `reach` bytes has one at most
    for index in np.argsort(-score, kind="stable").tolist():
        at = int(begin[index])
        cell = at // reach
        if all(abs(taken.get(near, -reach) - at) >= reach for near in (cell - 1, cell, cell + 1)):
            taken[cell] = at
            found.append(index)
            if len(found) == most:
                break
    return np.array(found, dtype=np.int64)


def _dear(cost_N: NDArray[np.float32], width: int, sign: Sign) -> list[Candidate]:
    """Windows whose bytes cost most."""
    if len(cost_N) < width:
        return []
    total = np.concatenate(([0.0], np.cumsum(cost_N, dtype=np.float64)))
    begin = np.arange(0, len(cost_N) - width + 1, 4, dtype=np.int64)
    score = total[begin + width] - total[begin]
    base = float(total[-1] / len(cost_N))
    made = []
    for w in _highest(begin, score, width + GAP, _kept(len(cost_N))).tolist():
        low, high = max(0, int(begin[w]) - width), min(len(cost_N), int(begin[w]) + 2 * width)
        first, last, bits = _densest(cost_N[low:high].astype(np.float64) - base - _BACKGROUND)
        text = "fits neither what is before nor after it"
        if bits >= LEAST_EVIDENCE:
            made.append(Candidate(low + first, low + last, sign, float(score[w]), bits, "overwritten", text))
    return made


def _densest(excess_N: NDArray[np.float64]) -> tuple[int, int, float]:
    """The stretch with the largest sum (Kadane), and its sum."""
    total = np.concatenate(([0.0], np.cumsum(excess_N)))
    lowest = np.minimum.accumulate(total[:-1])
    end = int(np.argmax(total[1:] - lowest)) + 1
    begin = int(np.argmin(total[:end]))
    return begin, end, float(total[end] - total[begin])


def _fills(data: Bytes, costs: Costs) -> list[Candidate]:
    """Patterns of up to eight bytes that go on: how much it costs where they begin, read forwards, and where they end, read backwards."""
    before_N, after_N = (
        np.concatenate(([0.0], np.cumsum(cost, dtype=np.float64))) for cost in (costs.ahead, costs.back)
    )
    made, covered_N = list[Candidate](), np.zeros(len(data), dtype=bool)
    for period in range(1, min(MOST_PERIOD, len(data) - 1) + 1):
        edge = np.flatnonzero(np.diff(np.concatenate(([0], data[period:] == data[:-period], [0]))))
        begin, end = edge[::2], edge[1::2] + period
        long = end - begin >= max(BURST, 4 * period)
        begin, end = begin[long], end[long]
        seam = np.minimum(begin + SEAM, len(data)), np.maximum(end - SEAM, 0)
        ahead, back = before_N[seam[0]] - before_N[begin], after_N[end] - after_N[seam[1]]
        for i in np.flatnonzero(np.minimum(ahead, back) >= LEAST["fill"] / 2).tolist():
            first, last, score = int(begin[i]), int(end[i]), float(ahead[i] + back[i])
            if covered_N[first:last].all():
                continue  # a run of one byte is also one of two
            covered_N[first:last] = True
            pattern = data[first : first + period].tobytes()
            again = f"the bytes {pattern.hex(' ')} again and again"
            text = again if period > 1 else f"all bytes are 0x{pattern[0]:02x}" if pattern[0] else "all bytes are 0"
            kind: DamageKind = "zeros" if pattern == b"\0" else "filled"
            made.append(Candidate(first, last, "fill", score, score, kind, text))
    return sorted(made, key=lambda c: -c.score)[: _kept(len(data))]


def _better(
    data: Bytes, costs: Costs, banks: tuple[ExpertBank, ExpertBank], tried: float, tell: Tell
) -> list[Candidate]:
    """Bits that may have been flipped, and windows whose bits may have been moved."""
    cost_N = costs.mean
    count = min(len(data), max(1, math.ceil(len(data) * tried)))
    place_P = np.sort(np.argpartition(-cost_N, count - 1)[:count]).astype(np.int64)
    flips = Alternatives.flips(data, place_P)
    step = SHIFTED // 2
    begin = (
        np.arange(0, max(0, len(data) - SHIFTED) + 1, step, dtype=np.int64)
        if len(data) >= SHIFTED
        else np.empty(0, dtype=np.int64)
    )
    total = np.concatenate(([0.0], np.cumsum(cost_N, dtype=np.float64)))
    windows = np.empty(0, dtype=np.int64)
    if len(begin):
        wanted = min(len(begin), max(1, math.ceil(len(begin) * tried)))
        windows = np.sort(begin[np.argpartition(-(total[begin + SHIFTED] - total[begin]), wanted - 1)[:wanted]])
    moved = Alternatives.of(
        [(int(w), SHIFTED, _moved(data[w : w + SHIFTED], by)) for w in windows.tolist() for by in _MOVES]
    )
    both = Alternatives(
        np.concatenate((flips.begin, moved.begin)),
        np.concatenate((flips.length, moved.length)),
        np.concatenate((flips.start, moved.start[1:] + flips.start[-1])),
        np.concatenate((flips.new, moved.new)),
    )
    gain = gains(data, banks, both, tell=tell)
    flip_P8, move_WM = gain[: len(flips.begin)].reshape(-1, 8), gain[len(flips.begin) :].reshape(-1, len(_MOVES))
    made = list[Candidate]()
    best_P = flip_P8.max(1)
    good = np.flatnonzero(best_P > 0)
    for i in good[_highest(place_P[good], best_P[good], 4, _kept(len(data)))].tolist():
        at, bit = int(place_P[i]), int(flip_P8[i].argmax())
        was = int(data[at]) ^ (128 >> bit)
        text = f"bit {7 - bit} of 0x{int(data[at]):02x}{_shown(int(data[at]))}, was 0x{was:02x}{_shown(was)}"
        made.append(Candidate(at, at + 1, "flip", float(best_P[i]), float(best_P[i]) / math.log(2), "flips", text))
    for i in np.flatnonzero(move_WM.max(1, initial=-1.0) > 0).tolist():
        by, score = _MOVES[int(move_WM[i].argmax())], float(move_WM[i].max())
        text = f"{abs(by)} bit{'s' * (abs(by) > 1)} too {'late' if by > 0 else 'early'}"
        w = int(windows[i])
        made.append(Candidate(w, w + SHIFTED, "shift", score, score / math.log(2), "shifted", text))
    return made


def _moved(data: Bytes, by: int) -> bytes:
    return np.packbits(np.roll(np.unpackbits(data), -by)).tobytes()


def _shown(value: int) -> str:
    return f" '{chr(value)}'" if 32 < value < 127 else ""


def calibrated(
    clean: Sequence[tuple[Bytes, Costs, Sequence[Candidate]]], false_alarms: float, block: int = 512
) -> Limits:
    """Limits that clean data exceeds in at most so many ranges per megabyte. Each sign gets a part of the alarms.

    Args:
        clean: data like the file that is to be judged; its costs to the same reader, which had not read it before; its candidates.

    Raises:
        BitStreamError: too little data to know so low a rate.
    """
    size = sum(len(data) for data, _, _ in clean)
    allowed, megabytes = allowed_in(size, false_alarms), size / 1e6
    of, alarms = dict[Sign, float](), 0
    for sign, count in _shares(allowed).items():
        score = sorted((c.score for _, _, found in clean for c in found if c.sign == sign), reverse=True)
        # Above its limit a sign has so many ranges in the reference as it may.
        of[sign] = max(score[count] if count < len(score) else 0.0, LEAST[sign])
        alarms += sum(s > of[sign] for s in score)
    blocks = [
        float(c.ahead[b : b + block].mean()) for _, c, _ in clean for b in range(0, len(c.ahead) - block + 1, block)
    ]
    between = (_poisson(alarms, low=True) / megabytes, _poisson(alarms + 1, low=False) / megabytes)
    return Limits(of, alarms / megabytes, between, size, float(np.quantile(blocks, 0.99)) if blocks else None)


def allowed_in(size: int, false_alarms: float) -> int:
    """How many ranges of so much clean data may be beyond the limits.

    Raises:
        BitStreamError: none: it is too little data to know so low a rate.
    """
    allowed = math.floor(false_alarms * size / 1e6)
    if allowed < 1:
        least = math.ceil(1e6 / max(size, 1))
        raise BitStreamError(
            f"got false_alarms={false_alarms:g} per megabyte and {size:,} clean bytes, which can only show {least:,} per megabyte or more",
            field="false_alarms",
            tries=(Give("false_alarms", least), "more clean data"),
        )
    return allowed


def _shares(allowed: int) -> dict[Sign, int]:
    """How many alarms each sign may have: flips, of which most are looked for, what is left of the others' fifths."""
    each = allowed // len(SIGNS)
    made: dict[Sign, int] = dict.fromkeys(SIGNS, each)
    made["flip"] += allowed - each * len(SIGNS)
    return made


def _poisson(count: int, *, low: bool) -> float:
    """About an end of the exact 95 % interval of a Poisson mean: a quantile of the gamma distribution, by Wilson and Hilferty's cube."""
    if count == 0:
        return 0.0
    z = -1.959964 if low else 1.959964
    return count * max(0.0, 1 - 1 / (9 * count) + z / (3 * math.sqrt(count))) ** 3


def uncalibrated(costs: Costs) -> Limits:
    """Limits where there is nothing clean to compare with; how many false alarms they give is not known."""
    of = dict(_UNKNOWN)
    windows: tuple[tuple[Sign, int, NDArray[np.float32]], ...] = (
        ("burst", BURST, costs.mean),
        ("patch", PATCH, costs.lower),
    )
    for sign, width, cost_N in windows:
        whole = cost_N[: len(cost_N) // width * width].reshape(-1, width).sum(1, dtype=np.float64)
        middle = float(np.median(whole)) if len(whole) else 0.0
        spread = 1.4826 * float(np.median(np.abs(whole - middle))) if len(whole) else 0.0
        of[sign] = max(middle + 6 * spread, middle + 2.0 * width)
    return Limits(of, math.nan, (math.nan, math.nan), 0)


def damages(found: Sequence[Candidate], limits: Limits) -> list[Damage]:
    """Candidates beyond their limits, joined where they are of one damage, by descending evidence."""
    beyond = [c for c in found if c.score > limits.of[c.sign]]
    groups = list[list[Candidate]]()
    for c in sorted(beyond, key=lambda c: c.begin):
        if groups and c.begin < max(d.end for d in groups[-1]) + GAP:
            groups[-1].append(c)
        else:
            groups.append([c])
    made = [_damage(group, limits) for group in groups]
    return sorted(made, key=lambda d: -d.bits)


def _damage(group: Sequence[Candidate], limits: Limits) -> Damage:
    """One damage of candidates that lie together: the most particular explanation, if it explains half of what the best one does."""
    of = {sign: [c for c in group if c.sign == sign] for sign in SIGNS}
    # Flips add up; of the others, which overlap, one counts.
    bits = {sign: (sum if sign == "flip" else max)(c.bits for c in of[sign]) for sign in SIGNS if of[sign]}
    sign = next(sign for sign in SIGNS if bits.get(sign, -1.0) >= 0.5 * max(bits.values()))
    best = max(of[sign], key=lambda c: c.score)
    begin, end = min(c.begin for c in of[sign]), max(c.end for c in of[sign])
    text = best.text if sign != "flip" or len(of[sign]) == 1 else f"{len(of[sign])} bits; {best.text}"
    return Damage(begin, end - begin, bits[sign], best.kind, sign, best.score, limits.of[sign], text)
