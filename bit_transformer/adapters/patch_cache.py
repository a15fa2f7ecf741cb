"""What transformers calls `past_key_values`: decoding sessions of the rows of a batch."""

# Shapes: B rows, L ids of a row, N new ids, V = 2^P patches.
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.decoding.session import Session
from bit_transformer.errors import BitStreamError
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.patching import leaf_log_probs


@dataclass
class Group:
    """Rows with equally long prompts, which are decoded together.

    Attributes:
        row_G: their numbers in the batch.
    """

    row_G: NDArray[np.int64]
    session: Session


class PatchCache:
    """The state of all rows between steps. A full window slides, as in `btlm generate`.

    A session has all its streams at one position. Rows of different lengths, which transformers fills up on the left, are in different
    sessions.

    Attributes:
        groups: the sessions, with their rows.
        length: ids that were read, those before the rows' begin included.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many ids were read; transformers asks."""
        return self.length

    def begin(self, model: BitTransformerLM, begins: list[int]) -> None:
        """Make sessions for rows that begin at the given columns."""
        for begin in sorted(set(begins)):
            row_G = np.flatnonzero(np.array(begins) == begin)
            self.groups.append(Group(row_G, Session(model, len(row_G))))
        self.length = 0

    def advance(self, begins: list[int], ids_BN: Tensor, keep: int) -> Tensor:
        """Read N ids more.

        Args:
            begins: the column in `ids_BN` where each row begins; 0 where it began earlier.
            keep: for how many of the last ids what follows is wanted.

        Returns:
            (B, keep, V): log-probabilities of the patches that follow, in float32, in the same order as in float64.
        """
        B, N = ids_BN.shape
        V = 1 << self.groups[0].session.model.config.patch_bits
        score_BKV = torch.empty(B, keep, V)
        for group in self.groups:
            begin = begins[group.row_G[0]]
            id_GN = ids_BN[group.row_G, begin:]
            score_BKV[group.row_G] = self._read(group.session, id_GN, keep, V)
        self.length += N
        return score_BKV

    @staticmethod
    def _read(session: Session, id_GN: Tensor, keep: int, symbols: int) -> Tensor:
        score_GKV = np.zeros((len(id_GN), keep, symbols), dtype=np.float32)
        done = max(0, id_GN.shape[1] - keep + 1)  # after these ids the first wanted prediction is made
        session.feed(id_GN[:, :done], long=True)
        first = keep - 1 - (id_GN.shape[1] - done)
        for column in range(max(0, first), keep):
            score_GKV[:, column] = in_order(leaf_log_probs(session.node_logits()))
            session.feed(id_GN[:, done : done + 1], long=True)
            done += 1
        return torch.from_numpy(score_GKV)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace each row's state by that of row `beam_idx[b]`, which must have an equally long prompt; for a search with beams."""
        row_B = beam_idx.cpu().numpy()
        for group in self.groups:
            place = {row: at for at, row in enumerate(group.row_G.tolist())}
            group.session.select(np.array([place[row] for row in row_B[group.row_G].tolist()]))

    def crop(self, max_length: int) -> None:
        """Refuse to forget the latest ids.

        Raises:
            BitStreamError: always.
        """
        raise BitStreamError(
            f"got crop({max_length}); what a model has read cannot be taken back. Try a new generation from fewer ids"
        )


def in_order(score_BV: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to float32, and keep the order: what differs stays different, and the largest stays the largest.

    `btlm generate` takes the largest in float64, and transformers in float32.
    """
    order_BV = np.argsort(score_BV, axis=1, kind="stable")
    sorted_BV = np.take_along_axis(score_BV, order_BV, axis=1)
    rounded_BV = sorted_BV.astype(np.float32)
    rises_BV = np.diff(sorted_BV, axis=1, prepend=sorted_BV[:, :1]) > 0
    if (np.diff(rounded_BV, axis=1, prepend=rounded_BV[:, :1]) > 0)[rises_BV].all():
        return score_BV.astype(np.float32)
    # Read as integers, floats of one sign are in order, and neighbours differ by 1. Log-probabilities are never positive.
    step_BV = -(rounded_BV.view(np.int32).astype(np.int64) & 0x7FFFFFFF) - rises_BV.cumsum(axis=1)
    step_BV = np.minimum.accumulate(step_BV[:, ::-1], axis=1)[:, ::-1] + rises_BV.cumsum(axis=1)
    ordered_BV = -(-step_BV).astype(np.int32).view(np.float32)
    made_BV = np.empty_like(ordered_BV)
    np.put_along_axis(made_BV, order_BV, ordered_BV, axis=1)
    return made_BV
