"""The trunk maps symbols to states: embedding (+ n-grams, + phase, + noise level), blocks, a last norm.

Always call it as a module, so that hooks for sharding, pipelining and compilation run. It reads patches as symbols, and does not
depend on bits, heads or objectives.
"""

# Shapes: B batch, N positions, C symbols of a context, D model width, K head width.
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bit_transformer.config import FLIP_LEVELS, ModelConfig
from bit_transformer.nn import reversible
from bit_transformer.nn.block import Block
from bit_transformer.nn.cache import LayerCache, RollingCache, TrunkCache
from bit_transformer.nn.ngram import NgramEmbedding
from bit_transformer.nn.norm import RMSNorm
from bit_transformer.nn.position import rotary_table
from bit_transformer.nn.quantized import Embedding


class Trunk(nn.Module):
    """Input symbols to the states that predict what follows each.

    Args:
        config: the model's shape.

    Attributes:
        start: the symbol after the 2^P patches. It stands before the first patch of a window or, in a diffusion model, for a masked one.
        rotary_NK2: cosine and sine of every position; at least float32, for weights of any dtype.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = c = config
        self.start = 1 << c.patch_bits
        self.embed = Embedding((1 << c.patch_bits) + 1, c.d_model)
        self.phase = Embedding(c.phases, c.d_model) if c.phases > 1 else None
        self.level = Embedding(FLIP_LEVELS, c.d_model) if c.noise == "flips" else None
        word_shift = c.patch_bits - 8 if c.ngram_words else None
        self.ngrams = (
            NgramEmbedding(
                c.d_model, c.ngram_orders, c.ngram_rows, c.ngram_dropout, word_shift, both_sides=not c.causal
            )
            if c.ngram_orders or c.ngram_words
            else None
        )
        self.blocks = nn.ModuleList(
            Block(c.d_model, c.nhead, c.feedforward_width, c.dropout, causal=c.causal, window=c.attention_window)
            for _ in range(c.num_layers)
        )
        self.final_norm = RMSNorm()
        self.register_buffer("rotary_NK2", self._rotary(), persistent=False)
        self.rotary_NK2: Tensor
        self._compiled: _Compiled | None = None

    def _rotary(self) -> Tensor:
        # One position more than a window has patches: the start symbol stands before the first.
        table_NK2 = rotary_table(self.config.max_patches + 1, self.config.d_model // self.config.nhead)
        return table_NK2.to(torch.promote_types(torch.get_default_dtype(), torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Trunk:
        """Move or cast everything. Rotary positions stay at least float32: in bfloat16 distant positions would be equal."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rotary_NK2.dtype.itemsize < 4:
            self.rotary_NK2 = self._rotary().to(self.rotary_NK2.device, torch.float32)
        return self

    def materialize(self) -> None:
        """After building on the meta device: compute what no file holds."""
        self.rotary_NK2 = self._rotary()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what is compiled belongs to this trunk alone."""
        return {**self.__dict__, "_compiled": None}

    def init_weights(self) -> None:
        """Draw weights from torch's generator. Last projections are zero, so blocks start as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.layers():
            nn.init.zeros_(block.attend.out.weight)
            nn.init.zeros_(block.feed_forward.out.weight)
        for embedding in (self.embed, self.phase, self.level):
            if embedding is not None:
                nn.init.normal_(embedding.weight)

    def layers(self) -> list[Block]:
        """The blocks, typed."""
        return list(self.blocks)  # type: ignore[arg-type]

    def forward(
        self,
        input_BN: Tensor,
        cache: TrunkCache | None = None,
        maps: list[Tensor] | None = None,
        level_B: Tensor | None = None,
    ) -> Tensor:
        """The state after each symbol: h_BND.

        Args:
            input_BN: symbols, 0 .. 2^P.
            cache: the streams that the symbols continue; it advances by N symbols.
            maps: if given, the attention map of every layer is appended to it.
            level_B: noise level of each window, for a model of flipped bits.
        """
        begin, N = (cache.length if cache else 0), input_BN.shape[1]
        x_BND = self.embedded(input_BN, cache, level_B)
        rotary_NK2 = self.rotary_NK2[begin : begin + N]
        if cache is not None:
            return self._through_blocks(x_BND, rotary_NK2, cache.layers)
        run = self._compiled.run if self._compiled else self._through_blocks
        return run(x_BND, rotary_NK2, None, maps)

    def embedded(self, input_BN: Tensor, cache: TrunkCache | None = None, level_B: Tensor | None = None) -> Tensor:
        """The input of the first block: x_BND. Arguments as in `forward`; of the cache only the symbols advance."""
        N, seen = input_BN.shape[1], cache.symbols_seen if cache else 0
        x_BND = self.embed(input_BN)
        if self.phase is not None:
            step_N = torch.arange(seen, seen + N, device=input_BN.device)
            x_BND = x_BND + self.phase(step_N % self.config.phases)
        if self.level is not None:
            assert level_B is not None
            x_BND = x_BND + self.level(level_B)[:, None]
        if self.ngrams is not None:
            recent_BN = cache.recent_BN if cache else self._no_history(input_BN)
            beyond = () if self.config.causal else (recent_BN,)
            context_BC = torch.cat((recent_BN, input_BN, *beyond), dim=1)
            x_BND = x_BND + self.ngrams(context_BC)
            if cache:
                cache.recent_BN = context_BC[:, N:]
        if cache:
            cache.symbols_seen += N
        return x_BND

    def new_cache(self, batch: int) -> TrunkCache:
        """The state of `batch` streams before their first symbol."""
        c, like = self.config, self.embed.weight
        capacity = c.max_patches + 1
        kind, slots = (RollingCache, c.attention_window) if c.attention_window else (LayerCache, capacity)
        shape = (batch, c.nhead, slots, c.d_model // c.nhead)
        layers = [kind(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.blocks]
        start_B1 = torch.full((batch, 1), self.start, device=like.device)
        return TrunkCache(layers, capacity, self._no_history(start_B1))

    def turn_back(self, count: int) -> Tensor:
        """The rotation that moves a key `count` positions back: (K / 2, 2)."""
        return torch.stack((self.rotary_NK2[count, :, 0], -self.rotary_NK2[count, :, 1]), dim=-1)

    def _no_history(self, input_BN: Tensor) -> Tensor:
        history = self.ngrams.history if self.ngrams else 0
        return input_BN.new_full((len(input_BN), history), self.start)

    def _through_blocks(
        self,
        x_BND: Tensor,
        rotary_NK2: Tensor,
        layers: list[LayerCache] | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """The trunk after its embeddings, whose sparse gradients torch.compile does not support."""
        if self.config.reversible:
            branches = self._compiled.branches if self._compiled else self.branches()
            return self.final_norm(reversible.run(branches, x_BND, rotary_NK2, layers, maps))
        return self.final_norm(self._plain_blocks(x_BND, rotary_NK2, range(len(self.blocks)), layers, maps))

    def _plain_blocks(
        self,
        x_BND: Tensor,
        rotary_NK2: Tensor,
        which: range,
        layers: list[LayerCache] | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        c = self.config
        again = c.use_checkpoint and torch.is_grad_enabled() and layers is None and maps is None
        for i in which:
            if again and i % c.checkpoint_every == 0:
                x_BND = checkpoint(self.blocks[i], x_BND, rotary_NK2, use_reentrant=False)
            else:
                x_BND = self.blocks[i](x_BND, rotary_NK2, layers[i] if layers else None, maps)
        return x_BND

    def segment(self, x: Tensor, which: range) -> Tensor:
        """Some blocks of whole windows, and after the last block the last norm. Segments one after another are exactly the trunk, not compiled.

        Args:
            x: x_BND from `embedded`, or what the segment before gave, which looks like `between`.
        """
        begins, ends = which.start == 0, which.stop == len(self.blocks)
        rotary_NK2 = self.rotary_NK2[: x.shape[-2]].to(x.device)
        if self.config.reversible:
            branches, dtype = self.branches()[which.start : which.stop], self.embed.weight.dtype
            x = reversible.run_segment(branches, x, rotary_NK2, dtype, begins=begins, ends=ends)
        else:
            x = self._plain_blocks(x, rotary_NK2, which)
        return self.final_norm(x) if ends else x

    def between(self, batch: int, positions: int) -> Tensor:
        """What one segment gives to the next, without values: of shape (B, N, D), in a reversible trunk (2, B, N, D)."""
        shape, like = (batch, positions, self.config.d_model), self.embed.weight
        if not self.config.reversible:
            return torch.empty(shape, dtype=like.dtype, device="meta")
        return torch.empty((2, *shape), dtype=reversible.Coupling(like).wide, device="meta")

    def branches(self) -> list[reversible.Branches]:
        """The two branches of every block: attention, then feed-forward."""
        return [(block.attend, block.feed_forward) for block in self.layers()]

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Within: everything between embeddings and states is compiled with torch.compile. In a reversible trunk each branch is compiled, as
        branches run in the forward pass and again in the backward pass."""
        self._compiled = _Compiled(self)
        try:
            yield
        finally:
            self._compiled = None

    @property
    def is_compiled(self) -> bool:
        """Whether it is within `compiled`."""
        return self._compiled is not None


class _Compiled:
    """Compiled functions of a trunk; not a module, so that its names stay out of state dicts."""

    def __init__(self, trunk: Trunk) -> None:
        self.branches: Sequence[reversible.Branches] = ()
        self.run: Callable[..., Any] = trunk._through_blocks
        if trunk.config.reversible:
            self.branches = [(_compile(attend), _compile(feed)) for attend, feed in trunk.branches()]
        else:
            self.run = _compile(trunk._through_blocks)


def _compile(call: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(call)
    return compiled
