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
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits
from bit_transformer.decoding.portable_engine import PortableEngine, can_run
from bit_transformer.decoding.session import NOT_FINITE, Session
from bit_transformer.errors import BitStreamError, Cancelled
from bit_transformer.experts.bank import curves
from bit_transformer.experts.kernels import STATE
from bit_transformer.model import BitTransformerLM, in_use
from bit_transformer.nn.patching import leaf_log_probs, pack_patches, patch_distances, unpack_patches
from bit_transformer.restoration.beam_kernel import best_patches

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

    @torch.inference_mode()  # it belongs to a thread
    def work(part: slice, tell: _Tell) -> _Searched:
        return _search(model, patch_GN[part], real_GN[part], rate, beam, tell)

    with in_use(model):
        threads = min(len(spans), torch.get_num_threads()) if can_run(model) else 1
        best_GN, doubt_GN = _in_threads(work, threads, on_patch)
    made_N, doubt = patch_N.copy(), np.zeros(total)
    for row, ((begin, end), (first, _)) in enumerate(zip(spans, reach, strict=True)):
        made_N[begin:end] = best_GN[row, begin - first : end - first]
        doubt[begin:end] = doubt_GN[row, begin - first : end - first]
    bits = unpack_patches(torch.from_numpy(made_N), P).flatten().to(torch.uint8).numpy()
    return Found(bits, doubt)


_Tell = Callable[[int, int], None]
_Searched = tuple[NDArray[np.int64], NDArray[np.float64]]


def _in_threads(work: Callable[[slice, _Tell], _Searched], threads: int, tell: _Tell) -> _Searched:
    """Share the segments among threads, which the portable engine's loops can use; segments do not depend on each other.

    Args:
        work: searches some of the segments.
        tell: called in this thread, for its own part; if it raises an error, the other threads end too.
    """
    stopped = Event()

    def check(done: int, total: int) -> None:
        if stopped.is_set():
            raise Cancelled("stopped")

    parts = [slice(index, None, threads) for index in range(threads)]
    with ThreadPoolExecutor(max(1, threads - 1)) as pool:
        others = [pool.submit(work, part, check) for part in parts[1:]]
        try:
            found = [work(parts[0], tell), *(other.result() for other in others)]
        finally:
            stopped.set()
    segments = sum(len(best_GN) for best_GN, _ in found)
    best_GN, doubt_GN = (np.empty((segments, array.shape[1]), array.dtype) for array in found[0])
    for part, (best, doubt) in zip(parts, found, strict=True):
        best_GN[part], doubt_GN[part] = best, doubt
    return best_GN, doubt_GN


def _search(
    model: BitTransformerLM,
    patch_GN: NDArray[np.int64],
    real_GN: NDArray[np.bool_],
    rate: float,
    beam: int,
    on_patch: _Tell,
) -> _Searched:
    c = model.config
    G, N = patch_GN.shape
    V = 1 << c.patch_bits
    per_flip = math.log(rate / (1 - rate))
    odd_V = patch_distances(torch.zeros(1, 1), c.patch_bits)[0, 0] % 2 == 1
    last_G, at_last_G = real_GN.sum(1) - 1, np.zeros(G, dtype=np.int64)
    session = Session(model, G * beam)
    session.node_logits()  # raises for weights that are not finite
    fast = _Compiled(session, G, beam) if isinstance(session.engine, PortableEngine) else None
    even = c.parity and c.patch_bits == 9
    score_GK = np.where(np.arange(beam) == 0, 0.0, -np.inf) * np.ones((G, 1))
    first_G1 = np.arange(G)[:, None] * beam
    parent_NGK, sent_NGK = (np.empty((N, G, beam), dtype=np.int16) for _ in range(2))
    doubt_NGK = np.empty((N, G, beam), dtype=np.float32)
    for n in range(N):
        penalty_G = np.where(real_GN[:, n], per_flip, 0.0)
        if fast is not None:
            score_GK, parent_GK, sent_GK, doubt_GK = fast(patch_GN[:, n], penalty_G, even, score_GK)
        else:
            ahead_GKV = leaf_log_probs(session.node_logits()).reshape(G, beam, V)
            distance_G1V = patch_distances(torch.from_numpy(patch_GN[:, n : n + 1]), c.patch_bits)
            ahead_GKV = ahead_GKV + distance_G1V * penalty_G[:, None, None]
            if even:
                ahead_GKV[..., odd_V] = -np.inf
            probability_GKV = np.exp(ahead_GKV - np.logaddexp.reduce(ahead_GKV, axis=-1, keepdims=True))
            all_GA = (score_GK[:, :, None] + ahead_GKV).reshape(G, -1)
            best_GK = np.argpartition(-all_GA, beam - 1, axis=1)[:, :beam]
            score_GK = np.take_along_axis(all_GA, best_GK, axis=1)
            parent_GK, sent_GK = np.divmod(best_GK, V)
            doubt_GK = 1 - np.take_along_axis(probability_GKV.reshape(G, -1), best_GK, axis=1)
        order_GK = _in_place(parent_GK)
        score_GK, doubt_GK = (np.take_along_axis(array, order_GK, axis=1) for array in (score_GK, doubt_GK))
        parent_GK, sent_GK = (np.take_along_axis(array, order_GK, axis=1) for array in (parent_GK, sent_GK))
        parent_NGK[n], sent_NGK[n] = parent_GK, sent_GK
        at_last_G = np.where(last_G == n, score_GK.argmax(1), at_last_G)
        doubt_NGK[n] = doubt_GK
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


class _Compiled:
    """The choice of the best patches by `beam_kernel`, for the portable engine."""

    def __init__(self, session: Session, segments: int, beam: int) -> None:
        assert isinstance(session.engine, PortableEngine)
        self.session, self.engine = session, session.engine
        experts, P = session.experts, session.model.config.patch_bits
        features = 1 if experts is None else experts.banks[0].features
        B = segments * beam
        self.opened = np.zeros((B, STATE), dtype=np.int64)
        self.features = np.zeros((1, 1, features), dtype=np.int8)
        self.room = (
            np.empty(P + 2, dtype=np.int64),
            np.empty(P + 2),
            np.empty(1 << P, dtype=np.int64),
            np.empty(1 << P),
        )

    def __call__(
        self, patch_G: NDArray[np.int64], penalty_G: NDArray[np.float64], even: bool, score_GK: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Scores, parents, patches and doubts of the best continuations: (G, K) each.

        Raises:
            BitStreamError: a logit is NaN.
        """
        experts, engine = self.session.experts, self.engine
        found_score_GK, doubt_GK = np.empty_like(score_GK), np.empty_like(score_GK)
        parent_GK, sent_GK = np.empty(score_GK.shape, dtype=np.int64), np.empty(score_GK.shape, dtype=np.int64)
        best_patches(
            *self.session.bank_parts(),
            curves(),
            engine.plan,
            engine.weights,
            engine.state,
            self.opened,
            self.features,
            np.ones(score_GK.size, dtype=np.int64) if experts is None else experts.starts(),
            np.ascontiguousarray(patch_G),
            penalty_G,
            even,
            np.ascontiguousarray(score_GK),
            found_score_GK,
            parent_GK,
            sent_GK,
            doubt_GK,
            *self.room,
        )
        if not np.isfinite(found_score_GK[:, 0]).all():
            raise BitStreamError(NOT_FINITE)
        return found_score_GK, parent_GK, sent_GK, doubt_GK


def _in_place(parent_GK: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of the choices in which most hypotheses stay in their slot: the first child of each takes its parent's slot."""
    order_GK = np.empty_like(parent_GK)
    for row, parent_K in enumerate(parent_GK.tolist()):
        order: list[int | None] = [None] * len(parent_K)
        others = []
        for index, parent in enumerate(parent_K):
            if order[parent] is None:
                order[parent] = index
            else:
                others.append(index)
        order_GK[row] = [index if index is not None else others.pop() for index in order]
    return order_GK
