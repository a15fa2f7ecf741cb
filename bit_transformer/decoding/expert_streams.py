"""The experts' state for several streams that are decoded together and share one bank."""

# Shapes: B streams, T bits, P bits of a patch, V = 2^P nodes, F features.
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.experts.bank import ExpertBank, Features, check_memory, pack_units
from bit_transformer.experts.kernels import Stream


class ExpertStreams:
    """B streams at one position.

    The bank is shared and does not change, unless `learn` is called. Then every stream gets its own copy, so that streams do not affect
    one another.

    Attributes:
        learning: for each stream, whether `advance` trains its copy. A unit is learned when it is complete.
    """

    def __init__(self, bank: ExpertBank, batch: int, patch_bits: int) -> None:
        self.banks = [bank] * batch
        self.streams = [bank.stream() for _ in range(batch)]
        self.patch_bits, self.unit_bits = patch_bits, bank.unit_bits
        self.open_BR = np.empty((batch, 0), dtype=np.uint8)  # bits of the incomplete unit
        self.learning = [False] * batch

    def learn(self) -> None:
        """Give every stream its own copy of the bank, to learn in.

        Raises:
            ConfigError: the copies need more memory than there is.
        """
        bank = self.banks[0]
        check_memory(len(self.banks) * bank.memory, bank.config, bank.experts * len(self.banks))
        self.banks = [bank.copy() for bank in self.banks]
        self.learning = [True] * len(self.banks)

    def peek(self, bits_BT: NDArray[Any]) -> Features:
        """Features of bits that would follow, without advancing or learning: features_BTF."""
        begin = self.open_BR.shape[1]
        unit_BN = pack_units(np.concatenate((self.open_BR, bits_BT), axis=1), self.unit_bits)
        made = [
            bank.read(unit_N, _copy(stream), learn=False)
            for bank, stream, unit_N in zip(self.banks, self.streams, unit_BN, strict=True)
        ]
        features_BTF = np.stack(made).reshape(len(made), -1, self.banks[0].features)
        return features_BTF[:, begin : begin + bits_BT.shape[1]]

    def advance(self, patch_BN: NDArray[Any]) -> None:
        """Advance by N complete patches."""
        shift_P = np.arange(self.patch_bits - 1, -1, -1)
        bits_BT = (patch_BN[..., None] >> shift_P & 1).reshape(len(patch_BN), -1)
        open_BR = np.concatenate((self.open_BR, bits_BT.astype(np.uint8)), axis=1)
        whole = open_BR.shape[1] // self.unit_bits * self.unit_bits
        if whole:
            unit_BN = pack_units(open_BR[:, :whole], self.unit_bits)
            for bank, stream, unit_N, learn in zip(self.banks, self.streams, unit_BN, self.learning, strict=True):
                bank.read(unit_N, stream, learn=learn, wanted=False)
        self.open_BR = open_BR[:, whole:]

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`; only for streams that share a bank and do not learn."""
        assert not any(self.learning)
        taken: set[int] = set()
        streams = []
        for row in row_B.tolist():
            streams.append(_copy(self.streams[row]) if row in taken else self.streams[row])
            taken.add(row)
        self.streams, self.open_BR = streams, self.open_BR[row_B]

    def nodes(self) -> Features:
        """Features at all nodes of the next patch: features_BVF."""
        done = self.open_BR.shape[1]
        node_B = [(1 << done) | int(unit) >> (self.unit_bits - done) for unit in self._open_units()]
        made = [
            bank.nodes(stream, node, self.patch_bits)
            for bank, stream, node in zip(self.banks, self.streams, node_B, strict=True)
        ]
        return np.stack(made)

    def _open_units(self) -> list[int]:
        if not self.open_BR.shape[1]:
            return [0] * len(self.open_BR)
        return pack_units(self.open_BR, self.unit_bits)[:, 0].tolist()


def _copy(stream: Stream) -> Stream:
    return Stream(*(part.copy() for part in stream))
