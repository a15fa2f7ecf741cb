"""Products of quantized matrices with activations, in exact integer sums.

Activations are rounded to 16-bit integers with one scale for each vector, weights have 8 or 4 bits with a scale for 32 inputs or a multiple. The
sum over 32 inputs is an integer, so its order does not matter, and each processor may compute it with its own instructions (`vpmaddwd`
where it has AVX2). Sums of different scales are then added as float32, one after the other. So the result is the same on every machine.

A matrix is stored as *tiles* of 32 inputs and 8 outputs, input tiles outermost. A tile is 16 bytes for each pair of inputs (for two pairs, if
weights have 4 bits): for each output the weights of both inputs.
"""

# Shapes: B streams, I inputs, O outputs, C = I / 32 tiles of inputs, R = O / 8 tiles of outputs.
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from bit_transformer.compiled import compiled, inline

TILE_INPUTS, TILE_OUTPUTS = 32, 8
OFFSET = 8  # 4-bit weights are stored plus this
ALL_LEVELS, INPUT_LEVELS = 32767, 127  # activations are rounded to -levels .. levels
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to an integer, ties to even
_ZERO, _INFINITE, _NOT_A_NUMBER = np.float32(0), np.float32(np.inf), np.float32(np.nan)


class Tiles(NamedTuple):
    """A quantized matrix, or the same matrix of all layers.

    Attributes:
        bits: 8 or 4; 0: there is none.
        codes: uint8, (L, C, R, bytes): see above.
        scales: float32, (L, C, O): of each output of each tile.
        levels: activations are rounded to -levels .. levels.
    """

    bits: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    levels: np.float32


def no_tiles() -> Tiles:
    """Of a matrix that is not quantized."""
    return Tiles(0, np.zeros((1, 1, 1, 1), dtype=np.uint8), np.zeros((1, 1, 1), dtype=np.float32), np.float32(0))


def tiles_of(
    codes_LOI: NDArray[np.int8], scales_LOG: NDArray[np.float32], bits: int, levels: int = ALL_LEVELS
) -> Tiles:
    """Lay matrices out in tiles.

    Args:
        codes_LOI: integer weights, I a multiple of 32 and O of 8.
        scales_LOG: of groups of inputs; a group is one or more tiles.
    """
    L, O, I = codes_LOI.shape  # noqa: E741
    C, R = I // TILE_INPUTS, O // TILE_OUTPUTS
    scales_LCO = np.repeat(scales_LOG, C // scales_LOG.shape[2], axis=2).transpose(0, 2, 1)
    # (L, R, 8, C, 16, 2) to (L, C, R, 16, 8, 2): pairs of inputs, then outputs
    tiled = codes_LOI.reshape(L, R, TILE_OUTPUTS, C, TILE_INPUTS // 2, 2).transpose(0, 3, 1, 4, 2, 5)
    tiled = np.ascontiguousarray(tiled).reshape(L, C, R, TILE_INPUTS // 2, 16)
    if bits == 4:
        shifted = (tiled + OFFSET).astype(np.uint8)
        packed = shifted[..., 0::2, :] | shifted[..., 1::2, :] << 4
    else:
        packed = tiled.view(np.uint8)
    flat = np.ascontiguousarray(packed).reshape(L, C, R, -1)
    return Tiles(bits, flat, np.ascontiguousarray(scales_LCO, dtype=np.float32), np.float32(levels))


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _load(builder: Any, address: Any, element: ir.Type, count: int, align: int = 1) -> Any:
    vector = ir.VectorType(element, count)
    value = builder.load(builder.bitcast(address, vector.as_pointer()))
    value.align = align
    return value


def _make_tile(bits: int) -> Any:
    @intrinsic
    def tile(_context, codes, at, inputs, first, scales, scale_at, bias, sums, sum_at):
        """sums[sum_at + o] += scales[scale_at + o] * (sum of codes * inputs - bias), for the 8 outputs of a tile; flat arrays."""

        def generate(context, builder, signature, arguments):
            kinds = signature.args
            i8, i16, i32, f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
            code = _address(context, builder, kinds[0], arguments[0], arguments[1])
            x = _address(context, builder, kinds[2], arguments[2], arguments[3])
            even = ir.Constant(ir.VectorType(i32, 8), [i32(2 * k) for k in range(8)])
            odd = ir.Constant(ir.VectorType(i32, 8), [i32(2 * k + 1) for k in range(8)])
            zeros = ir.Constant(ir.VectorType(i32, 8), [i32(0)] * 8)
            total = zeros
            wide16, wide32 = ir.VectorType(i16, 16), ir.VectorType(i32, 16)

            def add_pair(total, weights16, pair):
                address = builder.gep(x, [context.get_constant(types.intp, 2 * pair)])
                both = builder.load(builder.bitcast(address, i32.as_pointer()))
                both.align = 2
                one = builder.insert_element(ir.Constant(ir.VectorType(i32, 8), ir.Undefined), both, i32(0))
                splat = builder.bitcast(builder.shuffle_vector(one, one, zeros), wide16)
                product = builder.mul(builder.sext(weights16, wide32), builder.sext(splat, wide32))
                undefined = ir.Constant(wide32, ir.Undefined)
                halves = [builder.shuffle_vector(product, undefined, which) for which in (even, odd)]
                return builder.add(total, builder.add(*halves))

            for line in range(16 if bits == 8 else 8):
                address = builder.gep(code, [context.get_constant(types.intp, 16 * line)])
                loaded = _load(builder, address, i8, 16)
                if bits == 8:
                    total = add_pair(total, builder.sext(loaded, wide16), line)
                else:
                    wide = builder.zext(loaded, wide16)
                    low = builder.and_(wide, ir.Constant(wide16, [i16(15)] * 16))
                    high = builder.lshr(wide, ir.Constant(wide16, [i16(4)] * 16))
                    total = add_pair(total, low, 2 * line)
                    total = add_pair(total, high, 2 * line + 1)
            if bits == 4:
                one = builder.insert_element(ir.Constant(ir.VectorType(i32, 8), ir.Undefined), arguments[6], i32(0))
                total = builder.sub(total, builder.shuffle_vector(one, one, zeros))
            number = builder.sitofp(total, ir.VectorType(f32, 8))
            scale = _load(builder, _address(context, builder, kinds[4], arguments[4], arguments[5]), f32, 8, 4)
            place = _address(context, builder, kinds[7], arguments[7], arguments[8])
            before = _load(builder, place, f32, 8, 4)
            after = builder.fadd(before, builder.fmul(number, scale))
            store = builder.store(after, builder.bitcast(place, ir.VectorType(f32, 8).as_pointer()))
            store.align = 4
            return context.get_dummy_value()

        intp = types.intp
        return types.void(codes, intp, inputs, intp, scales, intp, types.int32, sums, intp), generate

    return tile


_tile_8, _tile_4 = _make_tile(8), _make_tile(4)


@inline
def _round_to_integers(x, levels, codes, begin, bias, tile):
    """Round a vector to integers, to `codes` from `begin`; and of each tile the sum times OFFSET. Returns the scale."""
    top = _ZERO
    for i in range(len(x)):
        size = abs(x[i])
        top = size if size > top or size != size else top
    factor = levels / top
    if not (_ZERO < factor < _INFINITE) or top == _INFINITE:  # all zero or nearly; not finite
        for i in range(len(x)):
            codes[begin + i] = 0
        for c in range(len(x) // TILE_INPUTS):
            bias[tile + c] = 0
        return top if top != top else (_NOT_A_NUMBER if top == _INFINITE else _ZERO)
    for i in range(len(x)):
        codes[begin + i] = np.int16((x[i] * factor + _ROUND) - _ROUND)
    for c in range(len(x) // TILE_INPUTS):
        total = np.int32(0)
        for i in range(TILE_INPUTS):
            total += np.int32(codes[begin + c * TILE_INPUTS + i])
        bias[tile + c] = total * OFFSET
    return top / levels


@compiled
def product(x, tiles, layer, y, codes, bias, scale_of):
    """y = x W for B streams: x (B, I), y (B, O).

    Args:
        codes: int16, room for the B I integers. `bias`: int32, room for B C. `scale_of`: float32, room for B.
    """
    B, I = x.shape  # noqa: E741
    outputs = y.shape[1]
    C, R, width = tiles.codes.shape[1:]
    weights, scales = tiles.codes[layer].reshape(-1), tiles.scales[layer].reshape(-1)
    for b in range(B):
        scale_of[b] = _round_to_integers(x[b], tiles.levels, codes, b * I, bias, b * C)
        for o in range(outputs):
            y[b, o] = _ZERO
    flat = y.reshape(-1)
    for c in range(C):
        for r in range(R):
            at = (c * R + r) * width
            for b in range(B):
                place = b * outputs + r * TILE_OUTPUTS
                first = b * I + c * TILE_INPUTS
                scale_at = (c * R + r) * TILE_OUTPUTS
                if tiles.bits == 4:
                    _tile_4(weights, at, codes, first, scales, scale_at, bias[b * C + c], flat, place)
                else:
                    _tile_8(weights, at, codes, first, scales, scale_at, np.int32(0), flat, place)
    for b in range(B):
        for o in range(outputs):
            y[b, o] *= scale_of[b]


@inline
def add_row(x, tiles, row):
    """Add a row of a table to a vector. The table is stored row by row: codes (1, 1, rows, bytes), scales (1, rows, groups)."""
    codes, scales = tiles.codes[0, 0, row], tiles.scales[0, row]
    group = len(x) // len(scales)
    for g in range(len(scales)):
        scale = scales[g]
        if tiles.bits == 8:
            for d in range(g * group, (g + 1) * group):
                x[d] += np.float32(np.int8(codes[d])) * scale
        else:
            for d in range(g * group // 2, (g + 1) * group // 2):
                x[2 * d] += np.float32(np.int32(codes[d] & 15) - OFFSET) * scale
                x[2 * d + 1] += np.float32(np.int32(codes[d] >> 4) - OFFSET) * scale
