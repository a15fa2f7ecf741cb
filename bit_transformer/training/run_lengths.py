"""Training on windows and on run-length codes of windows, mixed: the model learns to read both."""

# Shapes: B windows, T bits, F features of a bit.
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.coding.run_lengths import compress_row
from bit_transformer.model import BitTransformerLM, nats_of
from bit_transformer.objectives import Objective, Prediction


@dataclass(frozen=True)
class RunLengths:
    """Replaces some windows by their codes, as `compress_bits` makes them. The first window always stays as it is.

    Attributes:
        of: the objective for the other windows.
        probability: of a window being replaced; drawn from torch's generator.
    """

    of: Objective
    probability: float

    def __call__(
        self, model: BitTransformerLM, bits_BT: Tensor, features_BTF: Tensor | None = None, *, reach: float = 1.0
    ) -> Prediction:
        """As in `Objective`. The nats are those of the windows that were not replaced; `coded` are those of the codes."""
        coded_B = torch.rand(len(bits_BT)) < self.probability
        coded_B[0] = False
        if not coded_B.any():
            return self.of(model, bits_BT, features_BTF, reach=reach)
        raw_B = (~coded_B).to(bits_BT.device)
        made = self.of(model, bits_BT[raw_B], None if features_BTF is None else features_BTF[raw_B], reach=reach)
        code_BT, real_BT = coded(bits_BT[~raw_B], model)
        z_BNP, _, _ = model.window_logits(code_BT)
        nats_BT = nats_of(z_BNP, code_BT)
        # Each window counts alike, however short its code is.
        nats = (nats_BT.masked_fill(~real_BT, 0.0).sum(1) / real_BT.sum(1)).mean()
        fraction = int(coded_B.sum()) / len(coded_B)
        return replace(made, loss=made.loss * (1 - fraction) + nats * fraction, coded=(nats.detach(), fraction))


def coded(bits_BT: Tensor, model: BitTransformerLM) -> tuple[Tensor, Tensor]:
    """The codes of windows as bits, cut at T or filled with zeros; and which bits are real: (B, T) each."""
    c = model.config
    T = bits_BT.shape[1]
    code_BT, real_BT = np.zeros((len(bits_BT), T), dtype=np.uint8), np.zeros((len(bits_BT), T), dtype=bool)
    for row, bits in enumerate(bits_BT.cpu().numpy().astype(np.uint8)):
        code_T = bytes_to_bits(compress_row(bits), parity=c.parity)[:T]
        code_BT[row, : len(code_T)], real_BT[row, : len(code_T)] = code_T, True
    return torch.from_numpy(code_BT).to(bits_BT.device), torch.from_numpy(real_BT).to(bits_BT.device)
