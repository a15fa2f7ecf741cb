"""What is known of a file after it was read for its surprise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["text", "code", "table", "markup", "binary", "compressed", "repeated", "zeros"]


@dataclass(frozen=True)
class Segment:
    """A stretch of a file whose bytes are of one kind.

    Attributes:
        begin, end: offsets in the file; the end is not included.
        kind: `compressed` is what no context predicts: compressed, encrypted or random. `repeated` is one short pattern over and over,
            `zeros` one byte, which need not be 0.
        bpb: bits per byte, on average.
        like: whether it is like the reference; None without a reference.
    """

    begin: int
    end: int
    kind: Kind
    bpb: float
    like: bool | None = None


@dataclass(frozen=True)
class SurpriseMap:
    """What each byte of a file costs, in bits.

    Attributes:
        name: of the file.
        data: (N,) uint8; it may be memory-mapped.
        costs: (N,) float16, bits of each byte, 0 to about 24.
        bit_costs: (N, 8) float16 of the same, most significant bit first; None where they were not kept.
        segments: all of the file, in order.
        reader: who read it, and how, in words.
        begin: offset in the file of the first byte; all other offsets here count from that byte.
    """

    name: str
    data: NDArray[np.uint8]
    costs: NDArray[np.float16]
    bit_costs: NDArray[np.float16] | None
    segments: tuple[Segment, ...]
    reader: str
    begin: int = 0

    @property
    def bpb(self) -> float:
        """Bits per byte of the whole file."""
        return float(self.costs.astype(np.float64).mean()) if len(self.costs) else 0.0
