"""The shape of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from bit_transformer.config.base import Config, Unfit, switch
from bit_transformer.config.experts import ExpertConfig

Schedule = Literal["linear", "cosine", "exponential", "log-linear"]  # see `diffusion/noise.py`
Noise = Literal["hidden", "flips"]
FLIP_LEVELS = 32  # noise levels that a model of flips distinguishes


class ModelConfig(Config):
    """Shape of a `BitTransformerLM`."""

    aliases: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "n_embd": "d_model",
        "n_heads": "nhead",
        "num_heads": "nhead",
        "num_attention_heads": "nhead",
        "n_layer": "num_layers",
        "num_hidden_layers": "num_layers",
        "block_size": "max_seq_len",
        "context_length": "max_seq_len",
    }

    d_model: PositiveInt = Field(128, description="Width D of the residual stream.")
    nhead: PositiveInt = Field(4, description="Attention heads; d_model / nhead must be even.")

    @model_validator(mode="after")
    def _heads_have_an_even_width(self) -> Self:
        if self.d_model % (2 * self.nhead):
            above = -(-self.d_model // (2 * self.nhead)) * 2 * self.nhead
            raise Unfit(
                f"d_model={self.d_model} must be a multiple of {2 * self.nhead} (2 * nhead), so that each head has an even width",
                d_model=above,
            )
        return self

    num_layers: PositiveInt = Field(4, description="Blocks of the trunk.")
    dim_feedforward: PositiveInt | None = Field(
        None, description="Inner width of the feed-forward. Default: 4 x d_model."
    )
    max_seq_len: PositiveInt = Field(1024, description="Longest window, in bits; a multiple of patch_bits.")
    patch_bits: int = Field(8, ge=1, le=12, description="Bits per position of the trunk; 1: no patches.")

    @model_validator(mode="after")
    def _a_window_is_whole_patches(self) -> Self:
        if self.max_seq_len % self.patch_bits:
            near = max(1, round(self.max_seq_len / self.patch_bits)) * self.patch_bits
            raise Unfit(
                f"max_seq_len={self.max_seq_len} must be a multiple of patch_bits={self.patch_bits}", max_seq_len=near
            )
        return self

    parity: bool = Field(False, description="Each byte has a ninth bit, for even parity.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on both branches of each block.")
    reversible: bool = Field(
        False,
        description="Recompute activations exactly in the backward pass instead of storing them, by reversible blocks.",
    )
    use_checkpoint: bool = Field(
        False,
        description="Recompute activations of blocks in the backward pass instead of storing them (gradient checkpointing).",
    )
    checkpoint_every: PositiveInt = Field(1, description="With use_checkpoint: recompute only every n-th block.")

    @model_validator(mode="after")
    def _activations_are_saved_in_one_way(self) -> Self:
        if self.reversible and self.use_checkpoint:
            raise Unfit(
                "got reversible=True and use_checkpoint=True; only one of them is needed, and reversible stores less",
                use_checkpoint=False,
            )
        if self.checkpoint_every > 1 and not self.use_checkpoint:
            raise Unfit(
                f"checkpoint_every={self.checkpoint_every} goes with use_checkpoint=True; got use_checkpoint=False",
                use_checkpoint=True,
            )
        if self.checkpoint_every > self.num_layers:
            raise Unfit(
                f"checkpoint_every={self.checkpoint_every} must not exceed num_layers={self.num_layers}",
                checkpoint_every=self.num_layers,
            )
        return self

    chunk_size: PositiveInt | None = Field(
        None, description="How many bits back a position attends; the cost is then linear. Default: the whole window."
    )

    @model_validator(mode="after")
    def _attention_reaches_whole_patches(self) -> Self:
        if self.chunk_size is not None and (self.chunk_size % self.patch_bits or self.chunk_size > self.max_seq_len):
            near = max(1, round(min(self.chunk_size, self.max_seq_len) / self.patch_bits)) * self.patch_bits
            raise Unfit(
                f"chunk_size={self.chunk_size} must be a multiple of patch_bits={self.patch_bits}, up to "
                f"max_seq_len={self.max_seq_len}",
                chunk_size=near,
            )
        return self

    full_attn_logging: bool = Field(
        False, description="Also return attention maps: nhead x (patches + 1)^2 x 4 bytes per layer and window."
    )
    lambda_K: NonNegativeFloat = Field(
        0.0,
        description="Weight in training of 1 - K, the entropy of predictions in bits. Higher: more certain predictions.",
    )
    lambda_C: NonNegativeFloat = Field(
        0.0,
        description="Weight in training of the probability of repetitions. Higher: more complex generated text.",
    )
    lambda_S: NonNegativeFloat = Field(
        0.0,
        description="Weight in training of the divergence from the experts' own mixture. Higher: closer to the experts.",
    )

    @model_validator(mode="after")
    def _penalties_have_a_reference(self) -> Self:
        if self.lambda_S and self.experts is None:
            raise Unfit(
                f"lambda_S={self.lambda_S} needs experts, whose mixture is the reference; got experts=None",
                experts=True,
            )
        return self

    ngram_orders: tuple[PositiveInt, ...] = Field(
        (), description="Context lengths of the hashed n-gram embeddings, in patches."
    )
    ngram_words: bool = Field(
        False, description="Also embed the current word, alone and with the previous word; patches must be bytes."
    )
    ngram_rows: PositiveInt = Field(1 << 16, description="Rows of each context's table; a power of two.")
    ngram_dropout: tuple[float, ...] = Field(
        (), description="Row dropout of each context: orders, then two for words. Empty: none."
    )

    @model_validator(mode="after")
    def _ngrams_fit(self) -> Self:
        if self.ngram_rows & (self.ngram_rows - 1):
            raise Unfit(
                f"ngram_rows={self.ngram_rows} must be a power of two", ngram_rows=1 << self.ngram_rows.bit_length()
            )
        if list(self.ngram_orders) != sorted(set(self.ngram_orders)):
            raise Unfit(
                f"ngram_orders={self.ngram_orders} must ascend without repeats",
                ngram_orders=tuple(sorted(set(self.ngram_orders))),
            )
        if self.ngram_words and self.patch_bits != self.byte_bits:
            raise Unfit(
                f"ngram_words=True goes with patches of one byte, patch_bits={self.byte_bits}; got patch_bits="
                f"{self.patch_bits}",
                ngram_words=False,
            )
        contexts = self.ngram_contexts
        if self.ngram_dropout and len(self.ngram_dropout) != contexts:
            raise Unfit(
                f"ngram_dropout has {len(self.ngram_dropout)} values; it must have one for each of the {contexts} contexts "
                f"(orders, then two for words)",
                ngram_dropout=(0.3,) * contexts,
            )
        if any(not 0 <= p < 1 for p in self.ngram_dropout):
            raise Unfit(f"ngram_dropout={self.ngram_dropout} must be in [0, 1)", ngram_dropout=(0.3,) * contexts)
        return self

    causal: bool = Field(
        True, description="False: a diffusion model, which reads both sides and predicts the masked patches."
    )
    noise: Noise = Field(
        "hidden",
        description="Of a diffusion model: hidden masks patches, which the model fills in; flips flips bits, which it corrects.",
    )
    schedule: Schedule = Field("cosine", description="Of a diffusion model: the noise level as a function of time.")
    diffusion_steps: PositiveInt | None = Field(
        None,
        description="Of a diffusion model: most network calls per sample. Default: one per patch; 64 for flips.",
    )

    @model_validator(mode="after")
    def _one_direction_or_both(self) -> Self:
        if self.causal:
            for name in ("diffusion_steps", "noise"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise Unfit(f"{name}={getattr(self, name)!r} goes with causal=False; got causal=True", causal=False)
            return self
        for name in ("experts", "ngram_words", "chunk_size", "lambda_C"):  # these read only the past
            off = type(self).model_fields[name].default
            if getattr(self, name) != off:
                raise Unfit(
                    f"{name}={getattr(self, name)!r} goes with causal=True; got causal=False",
                    **{name: off if name != "experts" else False},
                )
        return self

    experts: ExpertConfig | None = Field(
        None, description="Adaptive bit predictors that the trunk mixes; True or {} for the default ones."
    )

    @field_validator("experts", mode="before")
    @classmethod
    def _experts(cls, value: Any) -> Any:
        return switch(value)

    @model_validator(mode="after")
    def _units_fit(self) -> Self:
        if self.experts is None:
            return self
        if self.unit_bits % self.patch_bits or self.unit_bits > 12:
            raise Unfit(
                f"experts.unit_bits={self.unit_bits} must be a multiple of patch_bits={self.patch_bits}, up to 12",
                **{"experts.unit_bits": self.patch_bits},
            )
        if self.experts.rich and self.unit_bits != self.byte_bits:
            raise Unfit(
                f"got experts.rich=True for units of {self.unit_bits} bits; units of one byte, {self.byte_bits} bits, are needed",
                **{"patch_bits": self.byte_bits, "experts.rich": False},
            )
        if self.experts.words and self.unit_bits != self.byte_bits:
            raise Unfit(
                f"experts.words=True goes with units of one byte, {self.byte_bits} bits; got {self.unit_bits}",
                **{"experts.words": False},
            )
        return self

    @property
    def ngram_contexts(self) -> int:
        """Number of contexts of the hashed n-gram embeddings. A diffusion model has three per order: before, after, both."""
        return len(self.ngram_orders) * (1 if self.causal else 3) + 2 * self.ngram_words

    @property
    def unit_bits(self) -> int:
        """Bits of the unit that experts read: `experts.unit_bits`, or a byte if patches divide it, else a patch."""
        if self.experts is not None and self.experts.unit_bits is not None:
            return self.experts.unit_bits
        return self.byte_bits if self.byte_bits % self.patch_bits == 0 else self.patch_bits

    @property
    def text_bits(self) -> int | None:
        """Bits of a unit beyond the byte, if the experts have word contexts; else None."""
        return self.unit_bits - 8 if self.expert_words else None

    @property
    def expert_words(self) -> bool:
        """Whether the experts have word contexts."""
        if self.experts is None:
            return False
        return self.unit_bits == self.byte_bits if self.experts.words is None else self.experts.words

    @property
    def byte_bits(self) -> int:
        """Bits per data byte: 9 with parity, else 8."""
        return 9 if self.parity else 8

    @property
    def max_patches(self) -> int:
        """Longest window, in patches."""
        return self.max_seq_len // self.patch_bits

    @property
    def attention_window(self) -> int | None:
        """Patches that a position attends to, including itself; None: the whole window."""
        return self.chunk_size // self.patch_bits if self.chunk_size else None

    @property
    def phases(self) -> int:
        """Patches after which patch and byte boundaries coincide again; 1 if a patch is a whole number of bytes."""
        return self.byte_bits // math.gcd(self.patch_bits, self.byte_bits)

    @property
    def align_bytes(self) -> int:
        """Windows start at multiples of this many bytes, where boundaries of bytes, patches, experts' units and their numbers coincide."""
        whole = self.unit_bits if self.experts is not None else self.patch_bits
        numbers = self.experts.group_bytes if self.experts is not None else 1
        return math.lcm(whole // math.gcd(whole, self.byte_bits), numbers)

    @property
    def feedforward_width(self) -> int:
        """Inner width of the feed-forward."""
        return self.dim_feedforward or 4 * self.d_model
