"""Exactly reversible layers: the backward pass recomputes activations from the outputs, bit for bit, instead of storing them.

Two streams, each as wide as the model, start as the same embedding. Every block adds to one a function of the other, and the backward
pass subtracts it again:

    y1 = x1 + attend(x2)          x2 = y2 - feed_forward(y1)
    y2 = x2 + feed_forward(y1)    x1 = y1 - attend(x2)

In floating point x + u - u is not x, and the error grows with depth. So the streams are integers, multiples of 2^-18 in 32 bits
(2^-40 in 64 bits if the model is in float64), and every update is rounded to them; integer sums are undone exactly. The backward pass
then sees exactly the activations of the forward, and its gradients equal those of the same network with stored activations, bit for
bit. `run_stored` is that network, and a test compares them (with one forward per autocast block: several forwards share rounded copies
of weights, and add up their gradients in bfloat16). Rounding has the gradient of the identity.

Sources: Gomez et al. 2017, arXiv:1707.04585 (the coupling); Kitaev et al. 2020, arXiv:2001.04451 (for transformers);
MacKay et al. 2018, arXiv:1810.10999 (fixed point, so that no bits are lost).
"""

# Shapes: B batch, N positions, D model width. A stream is an integer tensor of shape BND.
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bit_transformer.errors import ConfigError, NotRebuilt, StreamOverflow
from bit_transformer.nn.cache import LayerCache

Branches = tuple[Callable[..., Tensor], Callable[..., Tensor]]  # attention and feed-forward of a block, as modules
FRACTION_BITS = 18  # of the 32 bits of a stream


class Coupling:
    """Adds updates to streams and subtracts them again.

    Args:
        like: a tensor in the dtype in which branches read the streams.

    Attributes:
        reach: the largest value of the streams and of updates so far, in size; NaN if one of them was.
        limit: below it no sum leaves the integers.
        lost: the integer that `pack` gives instead of values that are lost.
        waits: whether what went wrong is raised at once. In a training on an accelerator that would wait for the device at every pass: there
            the result is NaN instead, which the training notices.
    """

    def __init__(self, like: Tensor, *, waits: bool | None = None) -> None:
        double = like.dtype == torch.float64
        self.dtype, self.wide = like.dtype, torch.float64 if double else torch.float32
        self.integer = torch.int64 if double else torch.int32
        self.unit = 2.0**40 if double else 2.0**FRACTION_BITS
        self.reach = torch.zeros((), dtype=self.wide, device=like.device)
        self.waits = like.device.type == "cpu" if waits is None else waits
        self.limit = (torch.iinfo(self.integer).max + 1) / self.unit / 2
        self.lost = torch.iinfo(self.integer).min

    def enter(self, x_BND: Tensor) -> Tensor:
        """Convert numbers to a stream."""
        return self.add(torch.zeros((), dtype=self.integer, device=x_BND.device), x_BND)

    def add(self, stream: Tensor, update_BND: Tensor) -> Tensor:
        """Add an update to a stream."""
        after = self._rounded(update_BND).add_(stream)
        for low, high in (torch.aminmax(update_BND.detach()), (x * (1 / self.unit) for x in torch.aminmax(after))):
            self.reach = torch.maximum(self.reach, torch.maximum(-low, high))
        return after

    def take_off(self, stream: Tensor, update_BND: Tensor) -> Tensor:
        """Subtract an update from a stream."""
        return self._rounded(update_BND).neg_().add_(stream)

    def read(self, stream: Tensor) -> Tensor:
        """Convert a stream to numbers."""
        return stream.to(self.wide).mul_(1 / self.unit).to(self.dtype)

    def _rounded(self, update_BND: Tensor) -> Tensor:
        return update_BND.detach().to(self.wide).mul(self.unit).round_().to(self.integer)

    def leave(self, stream_1: Tensor, stream_2: Tensor) -> Tensor:
        """The trunk's output, the sum of both streams; all NaN if an update was not finite.

        Raises:
            StreamOverflow: a value may have overflowed the integers, so that it could not be recomputed.
        """
        return self.read(stream_1).add_(self.read(stream_2)).masked_fill_(self._is_lost(), math.nan)

    def pack(self, stream_1: Tensor, stream_2: Tensor) -> Tensor:
        """Both streams in one tensor, for a segment elsewhere: their bits as floating-point numbers, which can have a gradient. If an update
        was not finite, all bits say so.

        Raises:
            StreamOverflow: as in `leave`.
        """
        packed_2BND = torch.empty((2, *stream_1.shape), dtype=self.wide, device=stream_1.device)
        bits_2BND = packed_2BND.view(self.integer)
        torch.stack((stream_1, stream_2), out=bits_2BND).masked_fill_(self._is_lost(), self.lost)
        return packed_2BND

    def unpack(self, packed_2BND: Tensor) -> Tensor:
        """The streams of `pack`, exactly."""
        streams_2BND = packed_2BND.view(self.integer)
        self.reach = self.reach.masked_fill(streams_2BND.flatten()[0] == self.lost, math.nan)
        return streams_2BND

    def _is_lost(self) -> Tensor:
        """Whether a value was not finite; on an accelerator also whether one may have overflowed, which is an error elsewhere."""
        if self.waits and math.isfinite(reach := self.reach.item()) and reach >= self.limit:
            raise overflow(reach, self.limit)
        return ~(self.reach < self.limit)

    def check_begin(self, rebuilt: Tensor, begin: Tensor, grad: Tensor) -> Tensor:
        """Check, at the end of the backward pass, that streams are again what they were at the start. Returns the gradient.

        Raises:
            NotRebuilt: they are not.
        """
        if not self.waits:
            return grad.masked_fill((rebuilt != begin).any(), math.nan)
        if math.isfinite(self.reach.item()) and not torch.equal(rebuilt, begin):
            raise NotRebuilt(
                "got other activations in the backward pass than in the forward; weights, dropout and training mode must be the "
                "same in both. Try backward() before optimizer.step(), eval() and set_dropout"
            )
        return grad


def overflow(reach: float, limit: float) -> StreamOverflow:
    """The error for values that may have overflowed the integers."""
    return StreamOverflow(
        f"got values of {reach:.4g} in the reversible trunk; they must stay below {limit:.0f}, to be recomputed "
        f"exactly. Try a lower train.optim.matrix_lr, or use_checkpoint=True instead of reversible=True"
    )


def run(
    branches: Sequence[Branches],
    x_BND: Tensor,
    rotary_NK2: Tensor,
    layers: list[LayerCache] | None = None,
    maps: list[Tensor] | None = None,
) -> Tensor:
    """A trunk of reversible blocks. Activations are not stored, with or without gradients.

    Any backward pass through the trunk accumulates the gradients of the blocks' parameters into `.grad`; so does
    `torch.autograd.grad`, which does not return them.

    Args:
        rotary_NK2: rotary positions of the N symbols.
        layers: keys and values of earlier positions, for decoding.
        maps: if given, attention maps are appended to it.

    Raises:
        ConfigError: dropout on a device whose random generator state cannot be saved.
        StreamOverflow: values too large to be recomputed exactly.
        NotRebuilt: in the backward pass, if weights, dropout or training mode changed.
    """
    if layers is None and torch.is_grad_enabled():
        return run_segment(branches, x_BND, rotary_NK2, x_BND.dtype, maps)
    coupling = Coupling(x_BND, waits=True)
    stream_1 = stream_2 = coupling.enter(x_BND)
    for index, (attend, feed_forward) in enumerate(branches):
        cache = layers[index] if layers else None
        stream_1 = coupling.add(stream_1, attend(coupling.read(stream_2), rotary_NK2, cache, maps))
        stream_2 = coupling.add(stream_2, feed_forward(coupling.read(stream_1)))
    return coupling.leave(stream_1, stream_2)


def run_segment(
    branches: Sequence[Branches],
    x: Tensor,
    rotary_NK2: Tensor,
    dtype: torch.dtype,
    maps: list[Tensor] | None = None,
    *,
    begins: bool = True,
    ends: bool = True,
) -> Tensor:
    """Some blocks of a trunk, as `run` computes them: a segment after another has exactly the output and gradients of both in one.

    Args:
        x: x_BND, or unless `begins` the streams that the segment before gave, (2, B, N, D).
        dtype: in which branches read the streams.
        begins: whether the trunk's first block is in it.
        ends: whether its last block is; else it returns streams, to be given to the next segment.
        rotary_NK2, maps: as in `run`; errors too.
    """
    # If no input needs a gradient, autograd records nothing, and parameters silently get no gradients.
    x = x if x.requires_grad else x.detach().requires_grad_()
    return _Segment.apply(x, rotary_NK2, branches, maps, dtype, begins, ends)  # type: ignore[no-untyped-call]


class _Segment(torch.autograd.Function):
    """Blocks as one function: stores both streams after the last block, and with dropout the random state before each branch.

    Branches are called as modules, so that their hooks (sharding, compilation) run both times. Gradients are enabled both times,
    because kernels are chosen by that.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rotary_NK2: Tensor,
        branches: Sequence[Branches],
        maps: list[Tensor] | None,
        dtype: torch.dtype,
        begins: bool,
        ends: bool,
    ) -> Tensor:
        random = _RandomStates(branches, x.device)
        ctx.autocast = _same_autocast(x.device.type)
        ctx.coupling = coupling = Coupling(x.new_empty((), dtype=dtype))
        stream_1, stream_2 = (coupling.enter(x),) * 2 if begins else coupling.unpack(x)
        with ctx.autocast(), torch.enable_grad():
            for attend, feed_forward in branches:
                random.keep()
                update_BND = attend(coupling.read(stream_2).requires_grad_(), rotary_NK2, None, maps)
                stream_1 = coupling.add(stream_1, update_BND)
                random.keep()
                update_BND = feed_forward(coupling.read(stream_1).requires_grad_())
                stream_2 = coupling.add(stream_2, update_BND)
        ctx.branches, ctx.rotary_NK2, ctx.random, ctx.begins, ctx.ends = branches, rotary_NK2, random, begins, ends
        ctx.save_for_backward(stream_1, stream_2, *(() if begins else (x,)))
        return coupling.leave(stream_1, stream_2) if ends else coupling.pack(stream_1, stream_2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coupling, random = ctx.coupling, ctx.random
        stream_1, stream_2, *begin = ctx.saved_tensors
        grad_1, grad_2 = (grad, grad) if ctx.ends else grad.to(coupling.dtype)
        with random.replayed(), ctx.autocast(), torch.enable_grad():
            for index in reversed(range(len(ctx.branches))):
                attend, feed_forward = ctx.branches[index]
                read_BND = coupling.read(stream_1).requires_grad_()
                random.back_to(2 * index + 1)
                update_BND = feed_forward(read_BND)
                stream_2 = coupling.take_off(stream_2, update_BND)
                torch.autograd.backward(update_BND, grad_2.to(update_BND.dtype))
                grad_1 = grad_1 + read_BND.grad
                read_BND = coupling.read(stream_2).requires_grad_()
                random.back_to(2 * index)
                update_BND = attend(read_BND, ctx.rotary_NK2)
                stream_1 = coupling.take_off(stream_1, update_BND)
                torch.autograd.backward(update_BND, grad_1.to(update_BND.dtype))
                grad_2 = grad_2 + read_BND.grad
        if ctx.begins:
            grad = coupling.check_begin(stream_1, stream_2, grad_1 + grad_2)
        else:
            streams_2BND = torch.stack((stream_1, stream_2))
            grad = coupling.check_begin(streams_2BND, coupling.unpack(*begin), torch.stack((grad_1, grad_2)))
        return grad, None, None, None, None, None, None


class _RandomStates:
    """The state of a device's random generator before each branch, so that dropout repeats in the backward pass."""

    def __init__(self, branches: Sequence[Branches], device: torch.device) -> None:
        modules = (m for pair in branches for branch in pair if isinstance(branch, nn.Module) for m in branch.modules())
        drops = [m.p for m in modules if isinstance(m, nn.Dropout) and m.training and m.p]
        self.generator = _generator_of(device, drops[0]) if drops else None
        self.device = () if device.type == "cpu" else (device,)
        self.states: list[Tensor] = []

    def keep(self) -> None:
        """Save the state before the next branch."""
        if self.generator is not None:
            self.states.append(self.generator.get_rng_state(*self.device))

    def back_to(self, branch: int) -> None:
        """Restore the state from before that branch."""
        if self.generator is not None:
            self.generator.set_rng_state(self.states[branch], *self.device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Around the backward pass: afterwards the generator has its state from before."""
        now = self.generator.get_rng_state(*self.device) if self.generator is not None else None
        try:
            yield
        finally:
            if self.generator is not None:
                self.generator.set_rng_state(now, *self.device)


def _generator_of(device: torch.device, dropout: float) -> Any:
    """The module with `get_rng_state` and `set_rng_state` of a device."""
    if device.type == "cpu":
        return torch
    try:
        module = torch.get_device_module(device)
    except RuntimeError:
        module = None
    if not hasattr(module, "get_rng_state"):
        raise ConfigError(
            f"got reversible=True with dropout={dropout:g}, which needs the same random numbers twice; the generator of device "
            f"{device.type!r} cannot be reset. Try dropout=0, or use_checkpoint=True instead of reversible=True"
        )
    return module


def _same_autocast(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """The current autocast settings, to apply later too; without cached weight copies, which one pass would leave to the other."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False)


# ---- the same network with stored activations, to test against ----


def run_stored(branches: Sequence[Branches], x_BND: Tensor, rotary_NK2: Tensor) -> Tensor:
    """The output and gradients of `run`, computed by PyTorch's own backward pass with stored activations."""
    coupling = Coupling(x_BND)
    x1_BND, x2_BND, stream_1 = _Enter.apply(x_BND, coupling)  # type: ignore[no-untyped-call]
    stream_2 = stream_1
    for attend, feed_forward in branches:
        # A view, so that gradients inside the branch are summed before they are added to the stream's, as in `run`.
        update_BND = attend(x2_BND.view_as(x2_BND), rotary_NK2)
        x1_BND, stream_1 = _Add.apply(x1_BND, update_BND, stream_1, coupling)  # type: ignore[no-untyped-call]
        update_BND = feed_forward(x1_BND.view_as(x1_BND))
        x2_BND, stream_2 = _Add.apply(x2_BND, update_BND, stream_2, coupling)  # type: ignore[no-untyped-call]
    return x1_BND + x2_BND


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, coupling: Coupling) -> tuple[Tensor, Tensor, Tensor]:
        stream = coupling.enter(x_BND)
        ctx.mark_non_differentiable(stream)
        return coupling.read(stream), coupling.read(stream), stream

    @staticmethod
    def backward(ctx: Any, grad_1: Tensor, grad_2: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return grad_1 + grad_2, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BND: Tensor, update_BND: Tensor, stream: Tensor, coupling: Coupling
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype = update_BND.dtype
        after = coupling.add(stream, update_BND)
        ctx.mark_non_differentiable(after)
        return coupling.read(after), after

    @staticmethod
    def backward(ctx: Any, grad_BND: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return grad_BND, grad_BND.to(ctx.dtype), None, None
