"""The experts' state for several streams that are decoded together."""

# Shapes: B streams, T bits, P bits of a patch, R bits of the open unit, V = 2^P nodes, F features.
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.experts.bank import ExpertBank, Features, check_memory, pack_units, unpack_units
from bit_transformer.experts.layout import Stream, Tables


class ExpertStreams:
    """B streams at one position.

    The bank is shared and does not change, unless `learn` is called. Then every stream gets its own copy, so that streams do not affect
    one another.

    Attributes:
        tables: those of each stream's bank, with a leading axis: of 1 as long as they share it, then of B.
        stream: the states of all streams, with a leading axis of B.
        learning: for each stream, whether its copy learns. `advance` learns a unit when it is complete.
        open_BR: the bits of the incomplete unit.
    """

    def __init__(self, bank: ExpertBank, batch: int, patch_bits: int) -> None:
        self.banks = [bank] * batch
        self.tables = Tables(*(table[None] for table in bank.tables))
        self.stream = Stream(*(np.stack([part] * batch) for part in bank.stream()))
        self.patch_bits, self.unit_bits = patch_bits, bank.unit_bits
        self.open_BR = np.empty((batch, 0), dtype=np.uint8)
        self.learning = [False] * batch

    def learn(self) -> None:
        """Give every stream its own copy of the bank, to learn in.

        Raises:
            ConfigError: the copies need more memory than there is.
        """
        bank = self.banks[0]
        check_memory(len(self.banks) * bank.memory, bank.config, bank.experts * len(self.banks))
        self.banks, self.tables = bank.copies(len(self.banks))
        self.learning = [True] * len(self.banks)

    def peek(self, bits_BT: NDArray[Any]) -> Features:
        """Features of bits that would follow, without advancing or learning: features_BTF."""
        begin = self.open_BR.shape[1]
        unit_BN = pack_units(np.concatenate((self.open_BR, bits_BT), axis=1), self.unit_bits)
        made = [
            bank.read(unit_N, Stream(*(part[b].copy() for part in self.stream)), learn=False)
            for b, (bank, unit_N) in enumerate(zip(self.banks, unit_BN, strict=True))
        ]
        features_BTF = np.stack(made).reshape(len(made), -1, self.banks[0].features)
        return features_BTF[:, begin : begin + bits_BT.shape[1]]

    def advance(self, patch_BN: NDArray[Any]) -> None:
        """Advance by N complete patches."""
        open_BR = np.concatenate((self.open_BR, unpack_units(patch_BN, self.patch_bits)), axis=1)
        whole = open_BR.shape[1] // self.unit_bits * self.unit_bits
        if whole:
            unit_BN = pack_units(open_BR[:, :whole], self.unit_bits)
            for b, (bank, unit_N) in enumerate(zip(self.banks, unit_BN, strict=True)):
                bank.read(unit_N, self._of(b), learn=self.learning[b], wanted=False)
        self.open_BR = open_BR[:, whole:]

    def select(self, row_B: NDArray[np.int64]) -> None:
        """Replace each stream's state by that of stream `row_B[b]`; only for streams that share a bank and do not learn."""
        assert not any(self.learning)
        self.stream = Stream(*(part[row_B] for part in self.stream))
        self.open_BR = self.open_BR[row_B]

    def nodes(self) -> Features:
        """Features at all nodes of the next patch: features_BVF."""
        made = [
            bank.nodes(self._of(b), int(node), self.patch_bits)
            for b, (bank, node) in enumerate(zip(self.banks, self.starts(), strict=True))
        ]
        return np.stack(made)

    def starts(self) -> NDArray[np.int64]:
        """The node of each stream's unit where the next patch begins: (B,)."""
        done = self.open_BR.shape[1]
        if not done:
            return np.ones(len(self.open_BR), dtype=np.int64)
        unit_B = pack_units(self.open_BR, self.unit_bits)[:, 0].astype(np.int64)
        return (1 << done) | unit_B >> (self.unit_bits - done)

    def _of(self, b: int) -> Stream:
        """One stream's state, as views."""
        return Stream(*(part[b] for part in self.stream))
