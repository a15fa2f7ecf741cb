"""What a filter counted. Tallies of pieces add up to that of the whole, in order; as plain JSON, they outlive an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bit_transformer.quality.model import MENTIONED, TextScore
from bit_transformer.quality.normal import Normal

BPB_STEP, BPB_BINS = 0.1, 100  # bits per byte; the last bin has what is above
PERCENTILE_BINS = 50
PICKED = (1, 25, 50, 75, 99)  # percentiles of which an example is kept
SHOWN = 300  # characters of an example
MOST_ODD, EACH = 5, 3  # examples kept

Example = dict[str, Any]


@dataclass
class Tally:
    """Counts.

    Attributes:
        documents: that could be read, empty ones included; `size`: bytes of their texts.
        kept, dropped: `empty`: without any text; `blocked`: by the gate; `odd`: from a percentile of 95 on, by kind.
        blank: lines without anything; they are not counted as unreadable.
        unreadable: by why; `reasons`: kinds of what was dropped.
        bits: of all texts together, as far as they were read; `measured`: bytes of that.
        bpb, percentile: documents by bin; `lengths`: by the nearest length of the reference.
        picked: for each of `PICKED`, the nearest document; `most_odd`: the oddest first; `dropped_texts`, `unreadable_texts`: the first of each
            kind.
    """

    documents: int = 0
    size: int = 0
    kept: int = 0
    dropped: int = 0
    empty: int = 0
    blocked: int = 0
    blank: int = 0
    bits: float = 0.0
    measured: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    odd: dict[str, int] = field(default_factory=dict)
    bpb: list[int] = field(default_factory=lambda: [0] * BPB_BINS)
    percentile: list[int] = field(default_factory=lambda: [0] * PERCENTILE_BINS)
    lengths: dict[str, int] = field(default_factory=dict)
    picked: dict[str, Example] = field(default_factory=dict)
    most_odd: list[Example] = field(default_factory=list)
    dropped_texts: dict[str, list[Example]] = field(default_factory=dict)
    unreadable_texts: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Documents that could not be read."""
        return sum(self.unreadable.values())

    def count(
        self, text: str, score: TextScore, normal: Normal, keep: bool, place: dict[str, Any], columns: Any
    ) -> None:
        """Count a document that was scored."""
        self.documents += 1
        self.size += score.size
        self.kept += keep
        self.dropped += not keep
        self.empty += not score.size
        self.blocked += score.gate == "block"
        example = {**place, **columns, "begins": text[:SHOWN]}
        if score.bpb is not None:
            self.bits += score.bpb * score.size
            self.measured += score.size
            self.bpb[min(BPB_BINS - 1, int(score.bpb / BPB_STEP))] += 1
            length = str(normal.lengths[normal.near(score.size)])
            self.lengths[length] = self.lengths.get(length, 0) + 1
        if not keep:
            self.reasons[score.kind] = self.reasons.get(score.kind, 0) + 1
            kept = self.dropped_texts.setdefault(score.kind, [])
            if len(kept) < EACH:
                kept.append(example)
        if score.percentile is None:
            return
        self.percentile[min(PERCENTILE_BINS - 1, int(score.percentile * PERCENTILE_BINS / 100))] += 1
        if score.percentile >= MENTIONED or score.gate == "block":
            self.odd[score.kind] = self.odd.get(score.kind, 0) + 1
        for wanted in PICKED:
            self._pick(str(wanted), example)
        self._most_odd([{**example, "oddness": score.oddness}])

    def refuse(self, why: str, raw: bytes, place: dict[str, Any]) -> None:
        """Count a document that cannot be read."""
        self.unreadable[why] = self.unreadable.get(why, 0) + 1
        kept = self.unreadable_texts.setdefault(why, [])
        if len(kept) < EACH:
            kept.append({**place, "begins": raw[:SHOWN].decode(errors="replace")})

    def add(self, other: Tally) -> None:
        """Add what was counted in the next piece."""
        for name in ("documents", "size", "kept", "dropped", "empty", "blocked", "blank", "bits", "measured"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("unreadable", "reasons", "odd", "lengths"):
            mine = getattr(self, name)
            for key, count in getattr(other, name).items():
                mine[key] = mine.get(key, 0) + count
        self.bpb = [a + b for a, b in zip(self.bpb, other.bpb, strict=True)]
        self.percentile = [a + b for a, b in zip(self.percentile, other.percentile, strict=True)]
        for wanted, example in other.picked.items():
            self._pick(wanted, example)
        self._most_odd(other.most_odd)
        for name in ("dropped_texts", "unreadable_texts"):
            mine = getattr(self, name)
            for key, examples in getattr(other, name).items():
                mine[key] = [*mine.get(key, ()), *examples][:EACH]

    def _pick(self, wanted: str, example: Example) -> None:
        there = self.picked.get(wanted)
        if there is None or abs(example["percentile"] - int(wanted)) < abs(there["percentile"] - int(wanted)):
            self.picked[wanted] = example

    def _most_odd(self, examples: Sequence[Example]) -> None:
        if len(self.most_odd) == MOST_ODD and all(e["oddness"] <= self.most_odd[-1]["oddness"] for e in examples):
            return
        merged = sorted([*self.most_odd, *examples], key=lambda e: -e["oddness"])  # the earlier of equal ones first
        self.most_odd = merged[:MOST_ODD]

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)
