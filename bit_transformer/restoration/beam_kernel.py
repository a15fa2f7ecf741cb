"""One step of the beam search in a compiled loop: of all patches that may follow, only those are looked at that are probable enough."""

# Shapes: G segments, K hypotheses of each, B = G K streams, P bits of a patch, V = 2^P symbols.
from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compiled import compiled, inline
from bit_transformer.decoding.bit_loop import stream_of, tables_of
from bit_transformer.decoding.portable_kernels import node_logit
from bit_transformer.experts.kernels import DEPTH, NODE, begin_unit, predict_bit
from bit_transformer.experts.layout import NO

Array = NDArray[Any]

REACH = 14.0  # nats below the best patch of a hypothesis beyond which patches are left out


@inline
def _odd(value):
    odd = 0
    while value:
        odd ^= value & 1
        value >>= 1
    return odd


@compiled
def best_patches(
    shape,
    tables,
    streams,
    curves,
    plan,
    weights,
    state,
    opened,
    features,
    starts,
    received,
    per_flip,
    even,
    scores,
    found_scores,
    found_parents,
    found_patches,
    found_doubts,
    stack_nodes,
    stack_scores,
    leaf_patches,
    leaf_scores,
):
    """The K best continuations of each segment's hypotheses by one patch.

    Args:
        opened: (B, STATE), room for the experts' open units. `features`: (1, 1, F), room.
        starts: (B): the node of the experts' unit where the patch begins.
        received: (G). `per_flip`: (G), what a flipped bit adds to a score, in nats; 0 where nothing was received.
        even: whether patches must have even parity.
        scores: (G, K), of the hypotheses; -inf: none.
        found_scores, found_parents, found_patches, found_doubts: (G, K), best first. The doubt is 1 minus the probability of the patch among those
            that may follow its hypothesis.
        stack_nodes, stack_scores: room for P + 2. `leaf_patches`, `leaf_scores`: for V.
    """
    G, K = scores.shape
    P = plan.patch_bits
    V = 1 << P
    for g in range(G):
        for k in range(K):
            found_scores[g, k] = -np.inf
            found_parents[g, k] = 0
            found_patches[g, k] = 0
            found_doubts[g, k] = 1.0
        for k in range(K):
            parent = scores[g, k]
            if parent == -np.inf:
                continue
            b = g * K + k
            if plan.features:
                begin_unit(shape, tables_of(tables, b), stream_of(streams, b), opened[b], NO)
            count, depth_of_stack, best = 0, 1, -np.inf
            stack_nodes[0], stack_scores[0] = 1, 0.0
            while depth_of_stack:
                depth_of_stack -= 1
                node, score = stack_nodes[depth_of_stack], stack_scores[depth_of_stack]
                if score < best - REACH:
                    continue
                if node >= V:
                    if even and _odd(node - V):
                        continue
                    leaf_patches[count], leaf_scores[count] = node - V, score
                    count += 1
                    best = max(best, score)
                    continue
                depth = 0
                while node >> (depth + 1):
                    depth += 1
                if plan.features:
                    level = 0
                    while starts[b] >> (level + 1):
                        level += 1
                    opened[b, NODE] = starts[b] << depth | (node - (1 << depth))
                    opened[b, DEPTH] = level + depth
                    predict_bit(shape, tables_of(tables, b), stream_of(streams, b), curves, opened[b], NO, features)
                z = np.float64(node_logit(plan, weights, state, b, node, depth, features[0, 0]))
                one = -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))
                zero = one - z
                if (received[g] >> (P - 1 - depth)) & 1:
                    zero += per_flip[g]
                else:
                    one += per_flip[g]
                first, second = (2 * node + 1, 2 * node) if one > zero else (2 * node, 2 * node + 1)
                stack_nodes[depth_of_stack], stack_scores[depth_of_stack] = second, score + min(one, zero)
                stack_nodes[depth_of_stack + 1], stack_scores[depth_of_stack + 1] = first, score + max(one, zero)
                depth_of_stack += 2
            total = 0.0
            for i in range(count):
                total += math.exp(leaf_scores[i] - best)
            for i in range(count):
                score = parent + leaf_scores[i]
                if score <= found_scores[g, K - 1]:
                    continue
                at = K - 1
                while at > 0 and found_scores[g, at - 1] < score:
                    found_scores[g, at] = found_scores[g, at - 1]
                    found_parents[g, at] = found_parents[g, at - 1]
                    found_patches[g, at] = found_patches[g, at - 1]
                    found_doubts[g, at] = found_doubts[g, at - 1]
                    at -= 1
                found_scores[g, at] = score
                found_parents[g, at] = k
                found_patches[g, at] = leaf_patches[i]
                found_doubts[g, at] = 1.0 - math.exp(leaf_scores[i] - best) / total
