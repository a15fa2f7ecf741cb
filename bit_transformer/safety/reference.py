"""The reference: a bank of experts that has read text of a domain. It measures how similar other text is, and no longer learns.

A model with experts uses its own bank. For other models a small one is fitted, with contexts of one to four units.
"""

# Shapes: B windows, T bits.
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import find_parity_errors
from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.decoding.expert_streams import ExpertStreams
from bit_transformer.errors import BitStreamError
from bit_transformer.experts.bank import FEATURE_ONE, ExpertBank
from bit_transformer.experts.passes import corpus_units
from bit_transformer.safety.repetition import MEMORY, Repetition
from bit_transformer.telemetry.measures import bit_negentropy, lz_complexity, symbiosis

SMALL = ExpertConfig(orders=(1, 2, 3, 4), words=False, buckets=1 << 16, history=1 << 16)
PIECE = 1 << 22  # bytes read at a time
ROWS = 256  # windows measured at a time


@dataclass(frozen=True)
class Vitals:
    """Measurements of a window.

    Attributes:
        K, C, S: see `telemetry/measures.py`; S compares the bits with the reference.
        size: length of the window, in bytes.
        odd_bytes: bytes with wrong parity; 0 without parity.
        copied, period: in bytes, of the longest loop that ends in the window: see `repetition.py`; 0 if there is none.
    """

    K: float
    C: float
    S: float
    size: float
    odd_bytes: int = 0
    copied: float = 0.0
    period: float = 0.0


class Reference:
    """Measures windows against a bank of experts.

    Args:
        bank: has read text of the domain; it is not changed.
        byte_bits: 9 with parity, else 8.
    """

    def __init__(self, bank: ExpertBank, byte_bits: int) -> None:
        self.bank, self.byte_bits = bank, byte_bits
        self.repetition = Repetition(byte_bits, bank.unit_bits)

    def __repr__(self) -> str:
        read = f"{self.bank.count:,} units of {self.bank.unit_bits} bits read"
        return f"Reference({read}, {self.bank.experts} contexts, byte_bits={self.byte_bits})"

    @property
    def align_bytes(self) -> int:
        """Windows must start at multiples of this many bytes, where units and their numbers start."""
        whole = self.bank.unit_bits // math.gcd(self.bank.unit_bits, self.byte_bits)
        return math.lcm(whole, self.bank.config.group_bytes)

    @classmethod
    def fit(cls, corpus: Corpus, model: ModelConfig) -> Reference:
        """Let a small bank read a corpus, for models without experts."""
        small = model.experts or SMALL.model_copy(update={"unit_bits": model.unit_bits})
        config = model.model_copy(update={"experts": small})
        bank = ExpertBank.of(config)
        stream = bank.stream()
        piece = PIECE // config.align_bytes * config.align_bytes
        for offset in range(0, len(corpus), piece):
            bank.read(corpus_units(corpus, offset, piece, config), stream, learn=True, wanted=False)
        return cls(bank, model.byte_bits)

    def probabilities(self, bits_BT: NDArray[np.uint8]) -> Tensor:
        """P(bit = 1) of each bit, for windows read independently from an empty context: (B, T), float64."""
        said_BTF = ExpertStreams(self.bank, len(bits_BT), self.bank.unit_bits).peek(bits_BT)
        return torch.sigmoid(torch.from_numpy(said_BTF[..., -1]).double() / FEATURE_ONE)

    def measure(
        self, bits: Tensor | NDArray[np.uint8], before: Tensor | NDArray[np.uint8] | None = None
    ) -> list[Vitals]:
        """Measure K, C and S of windows of one length, and the longest loop that ends in each.

        Args:
            bits: (B, T) zeros and ones; each row starts where a unit starts.
            before: (B, any number of units) the earlier bits of each stream; the last 64 KiB are searched for loops.

        Raises:
            BitStreamError: not bits, or fewer than eight.
        """
        bits_BT, before_BT = (_as_numpy(x) for x in (bits, bits[:, :0] if before is None else before))
        K_B, C_B = bit_negentropy(bits_BT), lz_complexity(bits_BT)
        if not len(bits_BT):
            raise BitStreamError("got no window; at least one is needed. Try bits[None]")
        bits_BT = bits_BT.astype(np.uint8, copy=False)
        S_B = symbiosis(torch.from_numpy(bits_BT), self.probabilities(bits_BT))
        whole = bits_BT.shape[1] // 9 * 9
        odd = [len(find_parity_errors(row[:whole])) if self.byte_bits == 9 else 0 for row in bits_BT]
        before_BT = before_BT[:, max(0, before_BT.shape[1] - MEMORY * self.byte_bits) :]
        streams = np.concatenate((before_BT.astype(np.uint8, copy=False), bits_BT), axis=1)
        loops = [self.repetition.longest(row, bits_BT.shape[1]) for row in streams]
        rows = zip(K_B.tolist(), C_B.tolist(), S_B.tolist(), odd, loops, strict=True)
        size = bits_BT.shape[1] / self.byte_bits
        return [Vitals(k, c, s, size, wrong, *loop) for k, c, s, wrong, loop in rows]


def _as_numpy(bits: Tensor | NDArray[np.uint8]) -> NDArray[np.uint8]:
    return bits.detach().cpu().numpy() if isinstance(bits, Tensor) else bits


def as_array(vitals: Sequence[Vitals]) -> NDArray[np.float64]:
    """K, C and S as an array: (N, 3)."""
    return np.array([(v.K, v.C, v.S) for v in vitals], dtype=np.float64).reshape(-1, 3)
