"""Weights of 8 or 4 bits: rounding, a tensor that holds them, and layers that can round their weights in training.

Weights are rounded in groups along a matrix's inputs. Each group has a scale in float16, and a weight is an integer times its scale:

    8 bits    scale = largest size / 127                  integers -127 .. 127
    4 bits    scale = value of the largest size / -8      integers -8 .. 7

With 4 bits the largest value has the integer -8, and so all sixteen are used (as in llama.cpp's Q4_0). In training the forward pass sees the
rounded weights, and the gradient passes through the rounding unchanged (Bengio et al. 2013, arXiv:1308.3432).
"""

# Shapes: weights are (..., I), codes (..., I), scales (..., G); I inputs in G groups.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = {8: 127, 4: -8}  # the integer of a group's largest value
_PIECE = 1 << 22  # weights rounded at a time
_FACTORS = [1 - 0.04 * k for k in range(10)]  # of the scale, tried by `closest`

_READ_ONLY = "got a quantized weight to change; quantized models cannot be trained or edited"
aten = torch.ops.aten


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded. Called with weights, it rounds them; the gradient passes through.

    Attributes:
        bits: 8 or 4.
        group: weights that share a scale.
        activations: bits of a linear map's inputs, 8; None: they are not rounded.
    """

    bits: int
    group: int
    activations: int | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """The rounded weights, in the same dtype."""
        return _Through.apply(weight, self)  # type: ignore[no-untyped-call]

    def integers(self, weight: Tensor, *, closest: bool = False) -> tuple[Tensor, Tensor]:
        """Codes (int8) and scales (float16) of weights.

        Args:
            closest: try several scales for each group of 4-bit weights, and take the one with the least squared error.
        """
        if weight.numel() > _PIECE and weight.ndim > 1:
            parts = [
                self.integers(rows, closest=closest)
                for rows in torch.split(weight, max(1, _PIECE // weight[0].numel()))
            ]
            return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        grouped = torch.unflatten(weight.detach().float(), -1, (-1, self.group))
        high, low = grouped.amax(-1, keepdim=True), grouped.amin(-1, keepdim=True)
        largest = torch.maximum(high, -low) if self.bits == 8 else torch.where(high >= -low, high, low)
        full = largest / LARGEST[self.bits]
        codes, scales = self._rounded(grouped, full)
        if closest and self.bits == 4:
            error = (codes * scales.float() - grouped).square_().sum(-1, keepdim=True)
            for factor in _FACTORS[1:]:
                other = self._rounded(grouped, full * factor)
                less = (other[0] * other[1].float() - grouped).square_().sum(-1, keepdim=True)
                better = less < error
                codes, scales = torch.where(better, other[0], codes), torch.where(better, other[1], scales)
                error = torch.minimum(error, less)
        return codes.flatten(-2).to(torch.int8), scales.squeeze(-1)

    def _rounded(self, grouped: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        top = torch.finfo(torch.float16).max
        half = scale.clamp(-top, top).half()
        inverse = torch.where(half == 0, 0.0, 1 / half.float())
        limit = LARGEST[self.bits]
        return (grouped * inverse).round_().clamp_(min(limit, -limit), 127 if self.bits == 8 else 7), half

    def of_inputs(self, x: Tensor) -> Tensor:
        """Inputs of a linear map, rounded to 8 bits with one scale for each position; without gradient of the scale."""
        if self.activations is None:
            return x
        return _InputsThrough.apply(x)  # type: ignore[no-untyped-call]


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounding: Rounding) -> Tensor:
        codes, scales = rounding.integers(weight)
        return restored(codes, scales).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _InputsThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).float().div_(127)
        return (x / scale.clamp_min(1e-30)).round_().mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def restored(codes: Tensor, scales: Tensor) -> Tensor:
    """Weights from their integers and scales, in float32."""
    grouped = torch.unflatten(codes.float(), -1, (scales.shape[-1], -1))
    return (grouped * scales.float()[..., None]).flatten(-2)


def packed(codes: Tensor) -> Tensor:
    """Two 4-bit integers a byte, each plus 8; the first in the lower half: (..., I / 2), uint8."""
    shifted = (codes + 8).to(torch.uint8)
    return shifted[..., 0::2] | shifted[..., 1::2] << 4


def unpacked(pairs: Tensor) -> Tensor:
    """The inverse of `packed`."""
    both = torch.stack((pairs & 15, pairs >> 4), dim=-1)
    return both.flatten(-2).to(torch.int8) - 8


class QuantizedTensor(torch.Tensor):
    """Weights that are held as integers and scales. Operations see the restored values; looking up rows restores only these. Writing is refused,
    except to views such as `weight.T`, which are copies.

    Args:
        stored: int8 (rows, I), or with 4 bits uint8 (rows, I / 2), see `packed`.
        scales: float16, (rows, groups).
        dtype: of the restored values.
    """

    stored: Tensor
    scales: Tensor
    bits: int

    @staticmethod
    def __new__(  # noqa: D102
        cls, stored: Tensor, scales: Tensor, bits: int, dtype: torch.dtype = torch.float32
    ) -> QuantizedTensor:
        shape = (*stored.shape[:-1], stored.shape[-1] * 8 // bits)
        made: QuantizedTensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=stored.device, requires_grad=False
        )
        return made

    def __init__(self, stored: Tensor, scales: Tensor, bits: int, dtype: torch.dtype = torch.float32) -> None:
        self.stored, self.scales, self.bits = stored, scales, bits

    @classmethod
    def of(cls, weight: Tensor, rounding: Rounding, *, closest: bool = False) -> QuantizedTensor:
        """Round weights."""
        codes, scales = rounding.integers(weight, closest=closest)
        return cls(packed(codes) if rounding.bits == 4 else codes, scales, rounding.bits)

    def codes(self) -> Tensor:
        """The integers, int8."""
        return self.stored if self.bits == 8 else unpacked(self.stored)

    def restored(self) -> Tensor:
        """The weights, as a plain tensor."""
        return restored(self.codes(), self.scales).to(self.dtype)

    def _alike(self, call: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> QuantizedTensor:
        return QuantizedTensor(call(self.stored), call(self.scales), self.bits, dtype or self.dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"QuantizedTensor(shape={tuple(self.shape)}, bits={self.bits}, groups={self.scales.shape[-1]})"

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(_READ_ONLY)  # it would write to a copy

    def requires_grad_(self, requires_grad: bool = True) -> QuantizedTensor:
        """Refuse a gradient.

        Raises:
            TypeError: one is asked for.
        """
        if requires_grad:
            raise TypeError(_READ_ONLY)
        return self

    def share_memory_(self) -> QuantizedTensor:
        """Move what is inside to shared memory."""
        self.stored.share_memory_()  # type: ignore[no-untyped-call]
        self.scales.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def __tensor_flatten__(self) -> tuple[list[str], tuple[int, torch.dtype]]:
        """For PyTorch: the tensors inside."""
        return ["stored", "scales"], (self.bits, self.dtype)

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], about: tuple[int, torch.dtype], size: Any, stride: Any
    ) -> QuantizedTensor:
        """For PyTorch: the inverse."""
        return cls(inner["stored"], inner["scales"], *about)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Copies stay quantized; rows are restored where they are looked up; any other operation sees plain weights."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, QuantizedTensor):
            if func in (aten.detach.default, aten.alias.default):
                return first._alike(lambda inner: inner)
            other = args[1] if func is aten.copy_.default else None
            if isinstance(other, QuantizedTensor) and (other.bits, other.scales.shape) == (
                first.bits,
                first.scales.shape,
            ):
                first.stored.copy_(other.stored)
                first.scales.copy_(other.scales)
                return first
            if func is aten.clone.default:
                return first._alike(torch.clone)
            if func is aten._to_copy.default:
                device = kwargs.get("device")
                return first._alike(lambda inner: inner.to(device, copy=True), kwargs.get("dtype"))
            if func is aten.embedding.default:
                rows = first.stored[args[1]]
                return restored(rows if first.bits == 8 else unpacked(rows), first.scales[args[1]]).to(first.dtype)
        if func._schema.is_mutable and _writes_to_one(func, args, kwargs):
            raise TypeError(_READ_ONLY)
        plain = torch.utils._pytree.tree_map_only(QuantizedTensor, lambda held: held.restored(), (args, kwargs))
        return func(*plain[0], **plain[1])


def _writes_to_one(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation would write to a quantized tensor, where it gets restored values instead."""
    given = [*zip(func._schema.arguments, args, strict=False)]
    given += [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
    return any(
        isinstance(part, QuantizedTensor)
        for argument, value in given
        if argument.alias_info is not None and argument.alias_info.is_write
        for part in (value if isinstance(value, list | tuple) else (value,))
    )


# ---- layers that can round their weights ----


class Linear(nn.Linear):
    """A linear map without bias.

    Attributes:
        rounding: how its weights are rounded in the forward pass; None: not at all.
    """

    rounding: Rounding | None = None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if self.rounding is None:
            return F.linear(input, self.weight)
        return F.linear(self.rounding.of_inputs(input), rounded(self.weight, self.rounding))


class Embedding(nn.Embedding):
    """An embedding.

    Attributes:
        rounding: how the rows that are looked up are rounded; None: not at all.
    """

    rounding: Rounding | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Embedding`."""
        return rounded(super().forward(input), self.rounding)


def rounded(weight: Tensor, rounding: Rounding | None) -> Tensor:
    """Weights as the forward pass sees them. Those that are quantized already stay as they are."""
    return weight if rounding is None or isinstance(weight, QuantizedTensor) else rounding(weight)


def plain(weight: Tensor, rounding: Rounding | None = None) -> Tensor:
    """The same, as a tensor that is not quantized and has no gradient."""
    return weight.restored() if isinstance(weight, QuantizedTensor) else rounded(weight.detach(), rounding)
