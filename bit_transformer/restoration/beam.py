"""Repair of flipped bits with an autoregressive model: a beam search for the original data, given what was received.

The search maximises P(original) P(received | original). The first is the model's probability; the second follows from the flip rate,
the same for each bit. The model reads only the past, but the beam keeps several pasts, and later data decides between them. With
experts such a model is much better than a diffusion model of the same training time.

Source: Shannon 1948 (the noisy channel); Lowerre 1976 (beam search).
"""

# Shapes: G segments, K hypotheses of each, N patches, P bits of a patch, V = 2^P symbols.
from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits
from bit_transformer.decoding.session import Session
from bit_transformer.model import BitTransformerLM, in_use
from bit_transformer.nn.patching import leaf_log_probs, pack_patches, patch_distances, unpack_patches

BEAM, SEGMENTS = 8, 8
BEFORE, AFTER = 64, 16  # patches around a segment: as context, and to decide between the last hypotheses


class Found(NamedTuple):
    """The most probable original.

    Attributes:
        bits: (T,).
        doubt: (N,), by patch: the probability that another patch is right, given what was received up to it.
    """

    bits: Bits
    doubt: NDArray[np.float64]


@torch.inference_mode()
def search(
    model: BitTransformerLM,
    received: Bits,
    rate: float,
    *,
    beam: int = BEAM,
    on_patch: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Find the most probable original.

    Args:
        received: (T,), whole patches. Long streams are cut into overlapping segments that are searched in parallel.
        rate: probability of a flip, in (0, 0.5).
        beam: number of hypotheses kept.
        on_patch: called with the patches done in all segments, and the patches of the longest segment.

    Raises:
        BitStreamError: the model predicts NaN.
    """
    P = model.config.patch_bits
    patch_N = pack_patches(torch.from_numpy(received)[None], P)[0].numpy()
    total = len(patch_N)
    unit = model.config.align_bytes * model.config.byte_bits // P
    count = max(1, min(SEGMENTS, total // (4 * BEFORE)))
    each = -(-total // count // unit) * unit
    spans = [(begin, min(total, begin + each)) for begin in range(0, total, each)]
    around = -(-BEFORE // unit) * unit
    reach = [(max(0, begin - around), min(total, end + AFTER)) for begin, end in spans]
    longest = max(end - begin for begin, end in reach)
    # Shorter segments are padded with patches for which nothing was received.
    patch_GN = np.stack([np.pad(patch_N[begin:end], (0, longest - end + begin)) for begin, end in reach])
    real_GN = np.stack([np.arange(longest) < end - begin for begin, end in reach])
    with in_use(model):
        best_GN, doubt_GN = _search(model, patch_GN, real_GN, rate, beam, on_patch)
    made_N, doubt = patch_N.copy(), np.zeros(total)
    for row, ((begin, end), (first, _)) in enumerate(zip(spans, reach, strict=True)):
        made_N[begin:end] = best_GN[row, begin - first : end - first]
        doubt[begin:end] = doubt_GN[row, begin - first : end - first]
    bits = unpack_patches(torch.from_numpy(made_N), P).flatten().to(torch.uint8).numpy()
    return Found(bits, doubt)


def _search(
    model: BitTransformerLM,
    patch_GN: NDArray[np.int64],
    real_GN: NDArray[np.bool_],
    rate: float,
    beam: int,
    on_patch: Callable[[int, int], None],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    c = model.config
    G, N = patch_GN.shape
    V = 1 << c.patch_bits
    per_flip = math.log(rate / (1 - rate))
    odd_V = patch_distances(torch.zeros(1, 1), c.patch_bits)[0, 0] % 2 == 1
    last_G, at_last_G = real_GN.sum(1) - 1, np.zeros(G, dtype=np.int64)
    session = Session(model, G * beam)
    score_GK = np.where(np.arange(beam) == 0, 0.0, -np.inf) * np.ones((G, 1))
    first_G1 = np.arange(G)[:, None] * beam
    parent_NGK, sent_NGK = (np.empty((N, G, beam), dtype=np.int16) for _ in range(2))
    doubt_NGK = np.empty((N, G, beam), dtype=np.float32)
    for n in range(N):
        ahead_GKV = leaf_log_probs(session.node_logits()).reshape(G, beam, V)
        distance_G1V = patch_distances(torch.from_numpy(patch_GN[:, n : n + 1]), c.patch_bits)
        ahead_GKV = ahead_GKV + distance_G1V * per_flip * real_GN[:, n, None, None]
        if c.parity and c.patch_bits == 9:
            ahead_GKV[..., odd_V] = -np.inf
        probability_GKV = np.exp(ahead_GKV - np.logaddexp.reduce(ahead_GKV, axis=-1, keepdims=True))
        all_GA = (score_GK[:, :, None] + ahead_GKV).reshape(G, -1)
        best_GK = np.argpartition(-all_GA, beam - 1, axis=1)[:, :beam]
        best_GK = _in_place(best_GK, V)
        score_GK = np.take_along_axis(all_GA, best_GK, axis=1)
        parent_GK, sent_GK = np.divmod(best_GK, V)
        parent_NGK[n], sent_NGK[n] = parent_GK, sent_GK
        at_last_G = np.where(last_G == n, score_GK.argmax(1), at_last_G)
        doubt_NGK[n] = 1 - np.take_along_axis(probability_GKV.reshape(G, -1), best_GK, axis=1)
        session.select((first_G1 + parent_GK).ravel())
        session.feed(torch.from_numpy(sent_GK.reshape(-1, 1)).to(session.state_BD.device), long=True)
        on_patch(n + 1, N)
    row_G, at_G = np.arange(G), at_last_G
    best_GN, doubt_GN = np.empty((G, N), dtype=np.int64), np.empty((G, N))
    for n in reversed(range(N)):
        at_G = np.where(n >= last_G, at_last_G, at_G)  # ignored beyond the end of a segment
        best_GN[:, n], doubt_GN[:, n] = sent_NGK[n, row_G, at_G], doubt_NGK[n, row_G, at_G]
        at_G = parent_NGK[n, row_G, at_G]
    return best_GN, doubt_GN


def _in_place(best_GK: NDArray[np.int64], V: int) -> NDArray[np.int64]:
    """Reorder the choices so that most hypotheses stay in their slot: the first child of each takes its parent's slot."""
    placed_GK = np.empty_like(best_GK)
    for row, best_K in enumerate(best_GK):
        order: list[int | None] = [None] * len(best_K)
        others = []
        for choice in best_K.tolist():
            if order[choice // V] is None:
                order[choice // V] = choice
            else:
                others.append(choice)
        placed_GK[row] = [choice if choice is not None else others.pop() for choice in order]
    return placed_GK
