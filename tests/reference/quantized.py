"""Rounding and integer products with explicit loops, in float64 and Python integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rounded(weight_OI: NDArray[np.float32], bits: int, group: int) -> NDArray[np.float64]:
    """Each group's weights as integers times one scale in float16."""
    made = np.zeros(weight_OI.shape)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    for o in range(weight_OI.shape[0]):
        for g in range(0, weight_OI.shape[1], group):
            values = [np.float32(v) for v in weight_OI[o, g : g + group]]
            largest = max(values) if max(values) >= -min(values) else min(values)
            scale = np.float16(abs(largest) / np.float32(127)) if bits == 8 else np.float16(largest / np.float32(-8))
            for i, value in enumerate(values):
                code = 0.0 if scale == 0 else float(np.rint(value * (np.float32(1) / np.float32(scale))))
                made[o, g + i] = min(max(code, low), high) * float(scale)
    return made


def product(
    x_I: NDArray[np.float32], codes_OI: NDArray[np.int8], scales_OG: NDArray[np.float32], levels: int
) -> NDArray[np.float32]:
    """The order of operations of `integer_kernels.product`: integers for 32 inputs, then float32 sums."""
    top = np.float32(max(abs(v) for v in x_I))
    factor = np.float32(levels) / top
    codes_I = [int(np.rint(v * factor)) for v in x_I]
    group = codes_OI.shape[1] // scales_OG.shape[1]
    y = np.zeros(len(codes_OI), dtype=np.float32)
    for o in range(len(codes_OI)):
        for tile in range(0, len(x_I), 32):
            total = 0
            for i in range(tile, tile + 32):
                total += codes_I[i] * int(codes_OI[o, i])
            y[o] += np.float32(total) * scales_OG[o, tile // group]
        y[o] *= top / np.float32(levels)
    return y
