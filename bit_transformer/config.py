"""Every knob, validated once: frozen pydantic models whose unknown keys are answered with the nearest known one.

`ModelConfig` is the shape of a model and is stored verbatim beside its weights; `TrainConfig` says how to train it;
`DataConfig` which bytes are trained on. The command line (`--set model.d_model=256`), recipes (TOML) and keyword
arguments all end here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from bit_transformer.errors import ConfigError

_Decay = Annotated[float, Field(ge=0, lt=1)]
_Config = TypeVar("_Config", bound="Config")
Schedule = Literal["linear", "cosine", "exponential", "log-linear"]  # see `nn/noise.py`
Noise = Literal["hidden", "flips"]
FLIP_LEVELS = 32  # that a model of flips tells apart


class Config(BaseModel):
    """Base of all configs: frozen, closed to unknown keys, with errors of one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def of(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
        """Validate a mapping.

        Raises:
            ConfigError: one line that names the key, what was got, what must hold and what to try.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as invalid:
            raise ConfigError(_one_line(invalid, cls)) from None


def _one_line(invalid: ValidationError, cls: type[Config]) -> str:
    first = invalid.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        cls = _holder(cls, first["loc"][:-1])
        known = {name: name for name in cls.model_fields}
        if cls is TrainConfig:
            known |= {name: f"optim.{name}" for name in OptimConfig.model_fields}
        near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.5)
        hint = f"Did you mean {known[near[0]]!r}?" if near else f"Known: {', '.join(cls.model_fields)}."
        return f"unknown key {key!r} in {cls.__name__}. {hint}"
    message = first["msg"].removeprefix("Value error, ")
    bounds = first.get("ctx", {})
    bound = bounds.get("ge", bounds.get("le"))
    hint = f" Try {bound}" if bound is not None else " Try leaving it out, for the default"
    return f"{key}={first['input']!r}: {message}.{hint}" if key else message


def _holder(cls: type[Config], path: tuple[int | str, ...]) -> type[Config]:
    """The config that a path into another leads to."""
    for name in path:
        if name in cls.model_fields:
            choices = get_args(cls.model_fields[str(name)].annotation) or (cls.model_fields[str(name)].annotation,)
            cls = next((c for c in choices if isinstance(c, type) and issubclass(c, Config)), cls)
    return cls


def _switch(value: Any) -> Any:
    """A group of settings as a plain yes or no too, for command lines and TOML, which has no null."""
    return {} if value is True else None if value is False else value


class ExpertConfig(Config):
    """Which adaptive bit predictors stand beside the trunk, and how much they may remember.

    Every context below is an expert. Before the start of a stream there are zeros, so a stream may be shorter than the
    longest context.
    """

    orders: tuple[PositiveInt, ...] = Field(
        (1, 2, 3, 4, 5, 6, 8), description="Contexts of the last n units (bytes, or words of unit_bits); ascending."
    )
    words: bool | None = Field(
        None, description="Three contexts of words of a text; not given: where a unit is a byte."
    )
    bit_orders: tuple[PositiveInt, ...] = Field(
        (), description="Contexts of the last n bits before the unit; up to 63."
    )
    sparse: tuple[tuple[PositiveInt, ...], ...] = Field(
        (), description="Contexts of up to four single units, by their distances back: ((2,), (2, 3))."
    )
    columns: tuple[PositiveInt, ...] = Field(
        (), description="Row widths of tables and images, in units: the unit above, alone and with the one before."
    )
    match_order: PositiveInt = Field(7, description="Shortest repeat that is followed, in units; up to 31.")
    buckets: PositiveInt = Field(1 << 18, description="Buckets of 16 bytes for each context's memory; a power of two.")
    history: PositiveInt = Field(1 << 22, description="Units back in which repeats are looked for; a power of two.")
    unit_bits: int | None = Field(
        None, ge=1, le=12, description="Bits of a unit; not given: a byte where patches divide it, else a patch."
    )

    @model_validator(mode="after")
    def _contexts_fit(self) -> Self:
        for name in ("buckets", "history"):
            size = getattr(self, name)
            if size & (size - 1) or size < 1024:
                near = max(1024, 1 << (size.bit_length() - 1))
                raise ValueError(f"{name}={size} must be a power of two, 1,024 or more. Try {near}")
        if list(self.orders) != sorted(set(self.orders)) or max(self.orders, default=1) > 32:
            tidy = tuple(sorted({order for order in self.orders if order <= 32}))
            raise ValueError(f"orders={self.orders} must ascend without repeats, up to 32. Try {tidy}")
        if max(self.bit_orders, default=1) > 63:
            raise ValueError(f"bit_orders={self.bit_orders} must not exceed 63. Try (12, 16, 24)")
        if any(not 1 <= len(ages) <= 4 or max(ages) > 65_536 for ages in self.sparse):
            raise ValueError(
                f"sparse={self.sparse} must be groups of one to four distances up to 65536. Try ((2,), (2, 3))"
            )
        if max(self.columns, default=1) > 65_536:
            raise ValueError(f"columns={self.columns} must not exceed 65536. Try (512,)")
        if self.match_order > 31:
            raise ValueError(f"match_order={self.match_order} must not exceed 31. Try 7")
        if not (self.orders or self.bit_orders or self.sparse or self.columns):
            raise ValueError("got no contexts; at least one is needed. Try orders=(1, 2, 3), or experts=None")
        return self


class ModelConfig(Config):
    """Shape of a `BitTransformerLM`."""

    d_model: PositiveInt = Field(128, description="Width D of the residual stream.")
    nhead: PositiveInt = Field(4, description="Attention heads; d_model / nhead must be even.")
    num_layers: PositiveInt = Field(4, description="Blocks of the trunk.")
    dim_feedforward: PositiveInt | None = Field(
        None, description="Inner width of the feed-forward; 4 x d_model if not given."
    )
    max_seq_len: PositiveInt = Field(1024, description="Longest window, in bits; a multiple of patch_bits.")
    patch_bits: int = Field(8, ge=1, le=12, description="Bits the trunk sees as one position; 1 is the flat model.")
    parity: bool = Field(False, description="Bytes carry an even-parity ninth bit.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on both branches of every block.")
    reversible: bool = Field(
        False, description="Blocks whose activations are rebuilt exactly in the backward pass instead of kept."
    )
    use_checkpoint: bool = Field(
        False, description="Blocks whose activations are computed again in the backward pass instead of kept."
    )
    checkpoint_every: PositiveInt = Field(
        1, description="With use_checkpoint: only every n-th block is computed again."
    )
    chunk_size: PositiveInt | None = Field(
        None, description="Bits that attention reaches back; its cost is then linear. Not given: the whole window."
    )
    full_attn_logging: bool = Field(
        False, description="Also give attention maps: nhead x (patches + 1)^2 x 4 bytes for each layer and window."
    )
    lambda_K: NonNegativeFloat = Field(
        0.0,
        description="Weight in training of 1 - K, the entropy of predictions in bits: higher makes them more certain.",
    )
    lambda_C: NonNegativeFloat = Field(
        0.0,
        description="Weight in training of the probability given to repetitions: higher makes what is generated more complex.",
    )
    lambda_S: NonNegativeFloat = Field(
        0.0,
        description="Weight in training of the divergence from the experts' own mixture: higher stays closer to them.",
    )
    ngram_orders: tuple[PositiveInt, ...] = Field(
        (), description="Context lengths, in patches, of the hashed n-gram embeddings."
    )
    ngram_words: bool = Field(False, description="Also the word so far, alone and after the word before; byte patches.")
    ngram_rows: PositiveInt = Field(1 << 16, description="Rows of one context's table; a power of two.")
    ngram_dropout: tuple[float, ...] = Field(
        (), description="Row dropout by context: orders, then two for words; none if empty."
    )
    causal: bool = Field(
        True, description="False: a diffusion model, which reads both sides and predicts the patches that are hidden."
    )
    noise: Noise = Field(
        "hidden",
        description="Of a diffusion model: it fills in patches that are hidden, or corrects bits that were flipped.",
    )
    schedule: Schedule = Field("cosine", description="Of a diffusion model: what share of a window is lost by time.")
    diffusion_steps: PositiveInt | None = Field(
        None,
        description="Of a diffusion model: network calls of a sample, at most. Not given: one a patch; of flips 64.",
    )
    experts: ExpertConfig | None = Field(
        None, description="Adaptive bit predictors that the trunk mixes; true or {} for the usual ones."
    )

    @field_validator("experts", mode="before")
    @classmethod
    def _experts(cls, value: Any) -> Any:
        return _switch(value)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.d_model % (2 * self.nhead):
            above = -(-self.d_model // (2 * self.nhead)) * 2 * self.nhead
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of 2 x nhead={2 * self.nhead}, so that heads have an even width. "
                f"Try d_model={above}"
            )
        if self.max_seq_len % self.patch_bits:
            near = max(1, round(self.max_seq_len / self.patch_bits)) * self.patch_bits
            raise ValueError(
                f"max_seq_len={self.max_seq_len} must be a multiple of patch_bits={self.patch_bits}. Try max_seq_len={near}"
            )
        if self.ngram_rows & (self.ngram_rows - 1):
            raise ValueError(
                f"ngram_rows={self.ngram_rows} must be a power of two. Try {1 << self.ngram_rows.bit_length()}"
            )
        if list(self.ngram_orders) != sorted(set(self.ngram_orders)):
            raise ValueError(
                f"ngram_orders={self.ngram_orders} must ascend without repeats. Try {tuple(sorted(set(self.ngram_orders)))}"
            )
        if self.ngram_words and self.patch_bits != self.byte_bits:
            raise ValueError(
                f"ngram_words=True goes with patches of one byte, patch_bits={self.byte_bits}; got patch_bits="
                f"{self.patch_bits}. Try ngram_words=False"
            )
        if self.reversible and self.use_checkpoint:
            raise ValueError(
                "got reversible=True and use_checkpoint=True; one of them is enough. Try use_checkpoint=False: reversible "
                "keeps less, whatever the depth"
            )
        if self.checkpoint_every > 1 and not self.use_checkpoint:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} goes with use_checkpoint=True; got use_checkpoint=False. Try "
                f"use_checkpoint=True"
            )
        if self.checkpoint_every > self.num_layers:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} must not exceed num_layers={self.num_layers}. Try "
                f"checkpoint_every={self.num_layers}"
            )
        if self.chunk_size is not None and (self.chunk_size % self.patch_bits or self.chunk_size > self.max_seq_len):
            near = max(1, round(min(self.chunk_size, self.max_seq_len) / self.patch_bits)) * self.patch_bits
            raise ValueError(
                f"chunk_size={self.chunk_size} must be a multiple of patch_bits={self.patch_bits}, up to "
                f"max_seq_len={self.max_seq_len}. Try chunk_size={near}"
            )
        if not self.causal:
            self._diffusion_fits()
        elif self.noise != "hidden" or self.diffusion_steps:
            name = "diffusion_steps" if self.diffusion_steps else "noise"
            raise ValueError(
                f"{name}={getattr(self, name)!r} goes with causal=False; got causal=True. Try causal=False"
            )
        if self.lambda_S and self.experts is None:
            raise ValueError(
                f"lambda_S={self.lambda_S} needs experts, whose mixture is the reference; got experts=None. Try experts=True"
            )
        contexts = self.ngram_contexts
        if self.ngram_dropout and len(self.ngram_dropout) != contexts:
            raise ValueError(
                f"ngram_dropout has {len(self.ngram_dropout)} values; it must have one for each of {contexts} contexts "
                f"(orders, then two for words). Try ngram_dropout={(0.3,) * contexts}"
            )
        if any(not 0 <= p < 1 for p in self.ngram_dropout):
            raise ValueError(f"ngram_dropout={self.ngram_dropout} must lie in [0, 1). Try (0.3, ...)")
        if self.experts is not None:
            if self.unit_bits % self.patch_bits or self.unit_bits > 12:
                raise ValueError(
                    f"experts.unit_bits={self.unit_bits} must be a multiple of patch_bits={self.patch_bits}, up to 12. "
                    f"Try experts.unit_bits={self.patch_bits}"
                )
            if self.experts.words and self.unit_bits != self.byte_bits:
                raise ValueError(
                    f"experts.words=True goes with units of one byte, {self.byte_bits} bits; got {self.unit_bits}. "
                    f"Try experts.words=false"
                )
        return self

    def _diffusion_fits(self) -> None:
        """What reads only the past does not go with reading both sides."""
        for name, off in (
            ("experts", None),
            ("ngram_words", False),
            ("chunk_size", None),
            ("lambda_C", 0.0),
        ):
            if getattr(self, name) != off:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} goes with causal=True; got causal=False. Try {name}={off!r}"
                )

    @property
    def ngram_contexts(self) -> int:
        """Contexts of the hashed n-gram embeddings; of a diffusion model three an order: before, after, both."""
        return len(self.ngram_orders) * (1 if self.causal else 3) + 2 * self.ngram_words

    @property
    def unit_bits(self) -> int:
        """Bits that the experts read as one: a byte where patches divide it, else a patch, unless told otherwise."""
        if self.experts is not None and self.experts.unit_bits is not None:
            return self.experts.unit_bits
        return self.byte_bits if self.byte_bits % self.patch_bits == 0 else self.patch_bits

    @property
    def text_bits(self) -> int | None:
        """Bits after the byte in a unit, where words are among the experts' contexts."""
        return self.unit_bits - 8 if self.expert_words else None

    @property
    def expert_words(self) -> bool:
        """Whether words are among the experts' contexts."""
        if self.experts is None:
            return False
        return self.unit_bits == self.byte_bits if self.experts.words is None else self.experts.words

    @property
    def byte_bits(self) -> int:
        """Bits a data byte takes: 9 with parity, else 8."""
        return 9 if self.parity else 8

    @property
    def max_patches(self) -> int:
        """Longest window, in patches."""
        return self.max_seq_len // self.patch_bits

    @property
    def attention_window(self) -> int | None:
        """Patches that a position attends to, itself included; none: the whole window."""
        return self.chunk_size // self.patch_bits if self.chunk_size else None

    @property
    def phases(self) -> int:
        """After how many patches patch and byte boundaries meet again; 1 where a patch is a whole number of bytes."""
        return self.byte_bits // math.gcd(self.patch_bits, self.byte_bits)

    @property
    def align_bytes(self) -> int:
        """Windows start at multiples of this many bytes, where boundaries of bytes, patches and experts' units meet."""
        whole = self.unit_bits if self.experts is not None else self.patch_bits
        return whole // math.gcd(whole, self.byte_bits)

    @property
    def feedforward_width(self) -> int:
        """Inner width of the feed-forward."""
        return self.dim_feedforward or 4 * self.d_model


class OptimConfig(Config):
    """Learning rates and their companions, one set a parameter group."""

    matrix_lr: NonNegativeFloat = Field(0.02, description="Peak rate of Muon, for the matrices of the blocks.")
    lr: NonNegativeFloat = Field(0.003, description="Peak rate of AdamW, for embeddings and head.")
    table_lr: PositiveFloat = Field(0.005, description="Peak rate of sparse Adam, for n-gram tables.")
    muon: bool = Field(True, description="False trains the matrices with AdamW too.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of Muon.")
    betas: tuple[_Decay, _Decay] = Field((0.9, 0.95), description="Decay of Adam's two moments.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled decay of all but the tables.")
    warmup: float = Field(0.02, ge=0, lt=1, description="Share of the budget over which rates rise.")
    decay: float = Field(0.7, ge=0, le=1, description="Share of the budget, at its end, over which rates fall.")
    final_lr: float = Field(0.0, ge=0, le=1, description="Rates at the end, as a share of the peak.")


class GrowthConfig(Config):
    """When a training grows its model, and how it goes on after that."""

    patience: PositiveInt = Field(1, description="Grow after so many validations in a row that gained too little.")
    threshold: float = Field(0.01, ge=0, lt=1, description="Share of the bits per byte that is no longer too little.")
    latest: float = Field(
        0.5, gt=0, le=1, description="Share of the budget by which all growth is done, evenly spread."
    )
    rate: float = Field(1.0, gt=0, le=1, description="Rates after a growth, as a share of those before.")
    warmup_steps: int = Field(20, ge=0, description="Updates over which they rise again.")


class TrainConfig(Config):
    """How to train: a budget, a batch, an optimizer, and what to do along the way."""

    steps: PositiveInt | None = Field(None, description="Budget in optimizer updates.")
    epochs: PositiveFloat | None = Field(None, description="Budget in passes over the training part.")
    bytes: PositiveInt | None = Field(None, description="Budget in data bytes seen.")
    seconds: PositiveFloat | None = Field(None, description="Budget in wall-clock seconds of training.")
    flops: PositiveFloat | None = Field(
        None, description="Budget in floating-point operations, as `flops_per_byte` counts them."
    )
    batch_size: PositiveInt = Field(16, description="Windows an optimizer update sees, accumulation included.")
    accum_steps: PositiveInt = Field(1, description="Micro-batches a batch is split into.")
    window: PositiveInt | None = Field(
        None, description="Bits of a training window; the model's max_seq_len if not given."
    )
    amp: bool | None = Field(None, description="bfloat16 autocast; not given: where the processor has it.")
    compile_model: bool = Field(False, description="Run the trunk through torch.compile.")
    auto_batch: bool = Field(
        False, description="Out of memory: go on with micro-batches of half the size, twice as many an update."
    )
    clip_norm: NonNegativeFloat = Field(1.0, description="Largest gradient norm; 0: not clipped.")
    seed: int = Field(0, ge=0, lt=1 << 31, description="Of initial weights, windows and dropout.")
    eval_every: float = Field(0.1, gt=0, le=1, description="Validate after each such share of the budget.")
    eval_bytes: PositiveInt = Field(16_384, description="Held-out bytes scored by each validation.")
    feature_cache: int = Field(
        4 << 30,
        ge=0,
        description="Bytes of experts' features kept on disk; for larger corpora they are made while training.",
    )
    keep_best: bool = Field(
        True, description="Keep the weights of the best validation, instead of the last, as what was learned."
    )
    average: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Fraction of the budget over which weights are averaged; where the average validates better, it is kept. 0: none.",
    )
    patience: PositiveInt | None = Field(None, description="Stop after so many validations without a better one.")
    telemetry: float = Field(
        0.005, ge=0, le=1, description="Share of the time that measuring K, C and S of predictions may take; 0: none."
    )
    curriculum: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Of a diffusion model: share of the budget over which noise widens from a fifth of its range to all.",
    )
    progressive: GrowthConfig | None = Field(
        None, description="Begin with a smaller model and grow it to the one described; true or {} for the usual way."
    )
    distillation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="With a teacher: what its predictions count for, beside the data, in what is learned.",
    )
    checkpoint_seconds: PositiveFloat = Field(60.0, description="Longest time between checkpoints.")
    optim: OptimConfig = OptimConfig()

    @field_validator("progressive", mode="before")
    @classmethod
    def _progressive(cls, value: Any) -> Any:
        return _switch(value)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "no budget"
            raise ValueError(f"got {got}; exactly one of {', '.join(BUDGETS)} must be given. Try seconds=60")
        if self.progressive and self.compile_model:
            raise ValueError(
                "got progressive and compile_model; a model that grows is not compiled. Try compile_model=false"
            )
        if self.batch_size % self.accum_steps:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of accum_steps={self.accum_steps}. "
                f"Try batch_size={-(-self.batch_size // self.accum_steps) * self.accum_steps}"
            )
        return self

    @property
    def budget(self) -> tuple[str, float]:
        """Which budget, and how much of it."""
        name = next(name for name in BUDGETS if getattr(self, name) is not None)
        return name, float(getattr(self, name))


BUDGETS = ("steps", "epochs", "bytes", "seconds", "flops")


class DataConfig(Config):
    """Which bytes are trained on and which are held out."""

    corpora: tuple[str, ...] = Field(
        ("stdlib",), description="Names, files, folders, globs, or '-' for standard input."
    )
    split: Literal["auto", "position", "file"] = Field(
        "auto",
        description="Hold out the last bytes of each file, or whole files; auto: files where there are ten or more.",
    )
    holdout: float = Field(0.1, ge=0, lt=1, description="Fraction held out, for the last evaluation.")
    validation: Literal["own", "held-out"] = Field(
        "own",
        description="What validations score, and choose the best weights by: bytes kept from the training part, so that what is held out "
        "chooses nothing; or a sample of what is held out.",
    )


class Sampling(Config):
    """How the next patch is drawn."""

    temperature: float = Field(1.0, ge=0, description="0 takes the likeliest patch; 1 samples as the model believes.")
    top_p: float = Field(1.0, gt=0, le=1, description="Keep the likeliest patches that make up this much probability.")
    repetition_penalty: float = Field(1.0, ge=1, description="Divides the probability of patches seen recently.")
    repetition_window: int = Field(64, ge=1, description="How many patches back 'recently' reaches.")
    no_repeat_ngram: int = Field(0, ge=0, description="Complete no n-gram of this many patches twice; 0 is off.")
    force_parity: bool = Field(True, description="Of models with parity: only bytes whose parity is even.")
    learn: Literal["nothing", "prompt", "all"] = Field(
        "nothing", description="What experts learn from: the prompt, and with all also what is generated."
    )
    seed: int | None = Field(None, ge=0, description="Of the draws; none: another each time.")
