"""How to train: the budget, the batch, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from bit_transformer.config.base import Config, switch

_Decay = Annotated[float, Field(ge=0, lt=1)]
BUDGETS = ("steps", "epochs", "bytes", "seconds", "flops")


class OptimConfig(Config):
    """Learning rates and their companions, one set a parameter group."""

    aliases: ClassVar[Mapping[str, str]] = {"learning_rate": "lr"}

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

    aliases: ClassVar[Mapping[str, str]] = {
        **{name: f"optim.{name}" for name in OptimConfig.model_fields},
        "learning_rate": "optim.lr",
    }

    steps: PositiveInt | None = Field(None, description="Budget in optimizer updates.")
    epochs: PositiveFloat | None = Field(None, description="Budget in passes over the training part.")
    bytes: PositiveInt | None = Field(None, description="Budget in data bytes seen.")
    seconds: PositiveFloat | None = Field(None, description="Budget in wall-clock seconds of training.")
    flops: PositiveFloat | None = Field(
        None, description="Budget in floating-point operations, as `flops_per_byte` counts them."
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "no budget"
            raise ValueError(f"got {got}; exactly one of {', '.join(BUDGETS)} must be given. Try seconds=60")
        return self

    batch_size: PositiveInt = Field(16, description="Windows an optimizer update sees, accumulation included.")
    accum_steps: PositiveInt = Field(1, description="Micro-batches a batch is split into.")

    @model_validator(mode="after")
    def _a_batch_is_whole_micro_batches(self) -> Self:
        if self.batch_size % self.accum_steps:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of accum_steps={self.accum_steps}. "
                f"Try batch_size={-(-self.batch_size // self.accum_steps) * self.accum_steps}"
            )
        return self

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

    @field_validator("progressive", mode="before")
    @classmethod
    def _progressive(cls, value: Any) -> Any:
        return switch(value)

    @model_validator(mode="after")
    def _growth_is_not_compiled(self) -> Self:
        if self.progressive and self.compile_model:
            raise ValueError(
                "got progressive and compile_model; a model that grows is not compiled. Try compile_model=false"
            )
        return self

    distillation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="With a teacher: what its predictions count for, beside the data, in what is learned.",
    )
    checkpoint_seconds: PositiveFloat = Field(60.0, description="Longest time between checkpoints.")
    optim: OptimConfig = Field(OptimConfig(), description="Learning rates and what goes with them.")

    @property
    def budget(self) -> tuple[str, float]:
        """Which budget, and how much of it."""
        name = next(name for name in BUDGETS if getattr(self, name) is not None)
        return name, float(getattr(self, name))
