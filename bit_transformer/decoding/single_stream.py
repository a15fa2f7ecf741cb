"""The engine for one stream on a CPU: one patch at a time, without PyTorch's overhead.

A step of a small model is about a hundred operations of a few microseconds each; calling them through modules and tensors costs several
times as much. This is the trunk's step in NumPy, over views of the same weights and the same cache, for one stream in float32 on a
CPU. The result equals that of `Trunk` for one position, up to rounding; a test compares them.
"""

# Shapes: N positions so far, S slots, D model width, H heads, K head width, F feed-forward width.
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.decoding.torch_engine import TorchEngine
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.block import Block
from bit_transformer.nn.cache import LayerCache
from bit_transformer.nn.norm import EPS
from bit_transformer.nn.reversible import FRACTION_BITS, overflow

Floats = NDArray[np.float32]
_UNIT = np.float32(2**FRACTION_BITS)
_LIMIT = 2.0 ** (31 - FRACTION_BITS) / 2  # of a stream's values, as in `reversible.Coupling`
_SAFE = np.float32(_LIMIT**2)


class _Layer(NamedTuple):
    """Views of a block's weights and its cache."""

    query_key_value_ED: Floats  # E = 3 D
    attend_out_DD: Floats
    expand_FD: Floats
    feed_out_DF: Floats
    key_HSK: Floats
    value_HSK: Floats


def can_run(model: BitTransformerLM, batch: int) -> bool:
    """Whether this engine can run `batch` streams of a model."""
    weight = model.head.weight
    return batch == 1 and weight.device.type == "cpu" and weight.dtype == torch.float32


class SingleStreamEngine(TorchEngine):
    """Steps of one stream: single symbols in NumPy, longer input, such as prompts, through `TorchEngine`."""

    def __init__(self, model: BitTransformerLM, batch: int) -> None:
        super().__init__(model, batch)
        self.caches, self.reversible = self.cache.layers, model.config.reversible
        self.layers = [_views(block, cache) for block, cache in zip(model.trunk.layers(), self.caches, strict=True)]
        self.head_VD, self.head_bias_V = _array(model.head.weight), _array(model.head.bias)
        self.rotary_NK = _array(model.trunk.rotary_NK2).view(np.complex64)[..., 0]

    def extend(self, input_BN: Tensor) -> Tensor:
        """As in `TorchEngine`."""
        if input_BN.shape[1] != 1 or self.model.training:
            return super().extend(input_BN)
        x_BND = self.model.trunk.embedded(input_BN, self.cache)
        return torch.from_numpy(self.step(x_BND[0, 0].detach().numpy()))[None, None]

    def node_logits(self, state_BD: Tensor) -> NDArray[np.float32]:
        """As in `TorchEngine`."""
        logit_V: Floats = self.head_VD.dot(state_BD[0].numpy())
        logit_V += self.head_bias_V
        return logit_V[None]

    def step(self, x_D: Floats) -> Floats:
        """Compute the trunk's state from the embedding of the next position; the caches advance.

        Raises:
            StreamOverflow: a stream of a reversible trunk left the range of its integers.
        """
        rotary_K = self.rotary_NK[self.caches[0].length]
        if not self.reversible:
            for layer, cache in zip(self.layers, self.caches, strict=True):
                x_D = x_D + _attended(layer, cache, x_D, rotary_K)
                x_D = x_D + _fed_forward(layer, x_D)
            return _normalized(x_D)
        x1_D = x2_D = _on_grid(x_D)
        for layer, cache in zip(self.layers, self.caches, strict=True):
            x1_D = x1_D + _on_grid(_attended(layer, cache, x2_D, rotary_K))
            x2_D = x2_D + _on_grid(_fed_forward(layer, x1_D))
        # No value is larger than the root of the sum of squares, which is much cheaper to compute than the maximum.
        if not x1_D.dot(x1_D) + x2_D.dot(x2_D) < _SAFE:
            _check_reach(x1_D, x2_D)
        return _normalized(x1_D + x2_D)


def _attended(layer: _Layer, cache: LayerCache, x_D: Floats, rotary_K: NDArray[np.complex64]) -> Floats:
    H, _, K = layer.key_HSK.shape
    slot, used = cache.claim()
    projected_3HK = layer.query_key_value_ED.dot(_normalized(x_D)).reshape(3, H, K)
    query_HK, layer.key_HSK[:, slot] = (projected_3HK[:2].view(np.complex64) * rotary_K).view(np.float32)
    layer.value_HSK[:, slot] = projected_3HK[2]
    score_HN = (layer.key_HSK[:, :used] @ (query_HK * K**-0.5)[..., None])[..., 0]
    score_HN -= np.maximum.reduce(score_HN, axis=1, keepdims=True)
    weight_HN = np.exp(score_HN, out=score_HN)
    read_HK = (weight_HN[:, None] @ layer.value_HSK[:, :used])[:, 0]
    read_HK /= np.add.reduce(weight_HN, axis=1, keepdims=True)
    update_D: Floats = layer.attend_out_DD.dot(read_HK.ravel())
    return update_D


def _fed_forward(layer: _Layer, x_D: Floats) -> Floats:
    hidden_F = layer.expand_FD.dot(_normalized(x_D))
    np.maximum(hidden_F, 0, out=hidden_F)
    hidden_F *= hidden_F
    update_D: Floats = layer.feed_out_DF.dot(hidden_F)
    return update_D


def _check_reach(x1_D: Floats, x2_D: Floats) -> None:
    reach = float(max(np.abs(x1_D).max(), np.abs(x2_D).max()))
    if math.isfinite(reach) and reach >= _LIMIT:
        raise overflow(reach, _LIMIT)


def _on_grid(update_D: Floats) -> Floats:
    return np.rint(update_D * _UNIT) * (1 / _UNIT)


def _normalized(x_D: Floats) -> Floats:
    return x_D * math.sqrt(len(x_D) / (float(x_D.dot(x_D)) + EPS))


def _views(block: Block, cache: LayerCache) -> _Layer:
    return _Layer(
        _array(block.attend.query_key_value.weight),
        _array(block.attend.out.weight),
        _array(block.feed_forward.expand.weight),
        _array(block.feed_forward.out.weight),
        _array(cache.key_BHSK[0]),
        _array(cache.value_BHSK[0]),
    )


def _array(tensor: Tensor) -> Floats:
    """A view, not a copy, so that later changes of the weights take effect."""
    array: Floats = tensor.detach().numpy()
    return array
