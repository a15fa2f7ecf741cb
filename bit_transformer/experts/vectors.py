"""Two loops over float32 vectors, in one order of operations: what every processor adds in the same order gives the same bits.

A dot product has 16 partial sums, of every 16th product, in order; then halves are added: 16, 8, 4, 2, 1. Nothing is fused or reassociated. Written
for LLVM, because numba does not turn a loop with 16 sums into vectors; the processor's vectors may be of any width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_ALIGN = 4  # bytes: rows may begin anywhere


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """A pointer to 16 elements of a flat array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _shuffled(builder: Any, vector: Any, lanes: range) -> Any:
    order = ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), order)


def _loop(builder: Any, count: Any, begin: dict[str, Any], body: Any) -> dict[str, Any]:
    """A loop over 0, 16, 32 ... up to a count that is at least 1, which carries values."""
    before = builder.block
    inside, after = builder.append_basic_block("lanes"), builder.append_basic_block("done")
    builder.branch(inside)
    builder.position_at_end(inside)
    index = builder.phi(_I64)
    index.add_incoming(_I64(0), before)
    carried = {name: builder.phi(value.type) for name, value in begin.items()}
    for name, value in begin.items():
        carried[name].add_incoming(value, before)
    made = body(index, carried)
    following = builder.add(index, _I64(LANES))
    index.add_incoming(following, inside)
    for name, value in made.items():
        carried[name].add_incoming(value, inside)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)
    return made


@intrinsic
def dot(_context, weights, begin, inputs, count):
    """The sum of `weights[begin + i] * inputs[i]` for i below `count`, a multiple of 16. Arrays are flat, of float32."""

    def generate(context, builder, signature, arguments):
        w, first, x, n = arguments

        def body(index, carried):
            a = builder.load(_at(context, builder, signature.args[0], w, builder.add(first, index)), align=_ALIGN)
            b = builder.load(_at(context, builder, signature.args[2], x, index), align=_ALIGN)
            return {"sums": builder.fadd(carried["sums"], builder.fmul(a, b))}

        vector = _loop(builder, n, {"sums": ir.Constant(_VECTOR, [0.0] * LANES)}, body)["sums"]
        half = LANES // 2
        while half:
            low, high = _shuffled(builder, vector, range(half)), _shuffled(builder, vector, range(half, 2 * half))
            vector = builder.fadd(low, high)
            half //= 2
        return builder.extract_element(vector, _I32(0))

    return types.float32(weights, types.intp, inputs, types.intp), generate


@intrinsic
def add_scaled(_context, weights, begin, inputs, count, scale):
    """Add `inputs[i] * scale` to `weights[begin + i]` for i below `count`, a multiple of 16. Arrays are flat, of float32."""

    def generate(context, builder, signature, arguments):
        w, first, x, n, factor = arguments
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), factor, _I32(0))
        order = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        every = builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), order)

        def body(index, _carried):
            place = _at(context, builder, signature.args[0], w, builder.add(first, index))
            b = builder.load(_at(context, builder, signature.args[2], x, index), align=_ALIGN)
            builder.store(builder.fadd(builder.load(place, align=_ALIGN), builder.fmul(b, every)), place, align=_ALIGN)
            return {}

        _loop(builder, n, {}, body)
        return context.get_dummy_value()

    return types.void(weights, types.intp, inputs, types.intp, types.float32), generate
