"""How to train: budget, batch, optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from bit_transformer.config.base import Config, Unfit, switch

_Decay = Annotated[float, Field(ge=0, lt=1)]
BUDGETS = ("steps", "epochs", "bytes", "seconds", "flops")


class OptimConfig(Config):
    """Learning rates and related settings, per group of parameters."""

    aliases: ClassVar[Mapping[str, str]] = {"learning_rate": "lr"}

    matrix_lr: NonNegativeFloat = Field(0.02, description="Peak learning rate of Muon, for the matrices of the blocks.")
    lr: NonNegativeFloat = Field(0.003, description="Peak learning rate of AdamW, for embeddings and head.")
    table_lr: PositiveFloat = Field(0.005, description="Peak learning rate of sparse Adam, for n-gram tables.")
    muon: bool = Field(True, description="False: train the matrices with AdamW too.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of Muon.")
    betas: tuple[_Decay, _Decay] = Field((0.9, 0.95), description="Decay rates of Adam's two moments.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled weight decay, on all parameters but the tables.")
    warmup: float = Field(0.02, ge=0, lt=1, description="Fraction of the budget over which learning rates rise.")
    decay: float = Field(
        0.7, ge=0, le=1, description="Fraction of the budget, at its end, over which learning rates fall."
    )
    final_lr: float = Field(0.0, ge=0, le=1, description="Learning rates at the end, as a fraction of the peak.")


class GrowthConfig(Config):
    """When a training grows its model, and how it continues after that."""

    patience: PositiveInt = Field(
        1, description="Grow after this many validations in a row with too little improvement."
    )
    threshold: float = Field(
        0.01, ge=0, lt=1, description="Improvement that is enough, as a fraction of the bits per byte."
    )
    latest: float = Field(
        0.5, gt=0, le=1, description="Fraction of the budget by which all growth is done, spread evenly."
    )
    rate: float = Field(1.0, gt=0, le=1, description="Learning rates after growth, as a fraction of those before.")
    warmup_steps: int = Field(20, ge=0, description="Updates over which learning rates rise again.")


class TrainConfig(Config):
    """How to train: budget, batch, optimizer, validation and checkpoints."""

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
            raise Unfit(f"got {got}; exactly one of {', '.join(BUDGETS)} is needed", seconds=60)
        return self

    batch_size: PositiveInt = Field(16, description="Windows per optimizer update, including accumulation.")
    accum_steps: PositiveInt = Field(1, description="Micro-batches per batch.")

    @model_validator(mode="after")
    def _a_batch_is_whole_micro_batches(self) -> Self:
        if self.batch_size % self.accum_steps:
            raise Unfit(
                f"batch_size={self.batch_size} must be a multiple of accum_steps={self.accum_steps}",
                batch_size=-(-self.batch_size // self.accum_steps) * self.accum_steps,
            )
        return self

    window: PositiveInt | None = Field(None, description="Bits of a training window. Default: the model's max_seq_len.")
    amp: bool | None = Field(None, description="bfloat16 autocast. Default: if the processor supports it.")
    compile_model: bool = Field(False, description="Run the trunk through torch.compile.")
    qat: Literal[8, 4] | None = Field(
        None,
        description="Train for weights of so many bits: forward passes see rounded weights. Default: no rounding.",
    )
    qat_after: float = Field(
        0.8, ge=0, lt=1, description="With qat: fraction of the budget after which weights are rounded."
    )
    auto_batch: bool = Field(
        False, description="If memory runs out, continue with twice as many micro-batches of half the size."
    )
    clip_norm: NonNegativeFloat = Field(1.0, description="Largest gradient norm; 0: no clipping.")
    seed: int = Field(0, ge=0, lt=1 << 31, description="Seed of initial weights, windows and dropout.")
    eval_every: float = Field(0.1, gt=0, le=1, description="Validate each time this fraction of the budget is spent.")
    eval_bytes: PositiveInt = Field(16_384, description="Bytes scored by each validation.")
    feature_cache: int = Field(
        4 << 30,
        ge=0,
        description="Bytes of experts' features cached on disk; for larger corpora they are computed during training.",
    )
    workers: PositiveInt = Field(
        1,
        description="Parallel readers of the experts' first pass over the data: each reads a part with experts of its own, which are merged.",
    )
    keep_best: bool = Field(True, description="Keep the weights of the best validation instead of the last.")
    average: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Fraction of the budget over which weights are averaged; the average is kept if it validates better. 0: no average.",
    )
    patience: PositiveInt | None = Field(None, description="Stop after this many validations without improvement.")
    telemetry: float = Field(
        0.005, ge=0, le=1, description="Fraction of the time that measuring K, C and S of predictions may take; 0: off."
    )
    sample_bytes: int = Field(
        0, ge=0, description="Bytes of a sample that is drawn and recorded at each validation; 0: none."
    )
    curriculum: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Of a diffusion model: fraction of the budget over which the noise range widens from a fifth to all of it.",
    )
    compress_prob: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that a window is replaced by its run-length code, so that the model learns both.",
    )
    progressive: GrowthConfig | None = Field(
        None,
        description="Begin with a smaller model and grow it to the configured one; True or {} for the default settings.",
    )

    @field_validator("progressive", mode="before")
    @classmethod
    def _progressive(cls, value: Any) -> Any:
        return switch(value)

    @model_validator(mode="after")
    def _growth_goes_alone(self) -> Self:
        if self.progressive and self.compile_model:
            raise Unfit("got progressive and compile_model; a growing model cannot be compiled", compile_model=False)
        if self.progressive and self.qat:
            raise ValueError(
                "got progressive and qat; a growing model cannot be trained for few bits. Try qat in a second training, with init"
            )
        return self

    distillation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="With a teacher: weight of its predictions in the loss; the data has the rest.",
    )
    checkpoint_seconds: PositiveFloat = Field(60.0, description="Longest time between checkpoints, in seconds.")
    optim: OptimConfig = Field(OptimConfig(), description="Learning rates and related settings.")

    @property
    def budget(self) -> tuple[str, float]:
        """Name and size of the budget."""
        name = next(name for name in BUDGETS if getattr(self, name) is not None)
        return name, float(getattr(self, name))
