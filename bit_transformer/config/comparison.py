"""What is compared with what: models, corpora, seeds, one budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from bit_transformer.config.base import Config
from bit_transformer.config.data import DataConfig
from bit_transformer.config.training import BUDGETS

Kind = Literal["bits", "byte-softmax", "gpt2-bytes", "gpt2-bpe", "counts", "compressor"]
Learning = Literal["static", "online", "online+mixer"]
TRAINED = ("bits", "byte-softmax", "gpt2-bytes", "gpt2-bpe")
NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"


class Contender(Config):
    """A model of a comparison. In a plan, its kind or a known name alone stands for one with all defaults."""

    name: str = Field("", pattern=rf"^({NAME})?$", description="Its row in the tables. Default: its kind.")
    kind: Kind = Field("bits", description="What it is.")
    preset: str | None = Field(
        None, description="Of bits: begin with this preset instead of the plan's bare shape: with n-grams and experts."
    )
    model: dict[str, Any] = Field(default_factory=dict, description="Of bits and byte-softmax: fields of the model.")
    train: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the training that differ; not the budget, which all share."
    )
    learning: tuple[Learning, ...] = Field(
        ("static",),
        min_length=1,
        description="Of bits: what learns from the data as it is scored; a row for each. More than static needs experts.",
    )
    vocabulary: int = Field(
        1024, ge=257, le=1 << 20, description="Of gpt2-bpe: tokens, learned from the training data."
    )
    order: int = Field(3, ge=0, le=6, description="Of counts: bytes of the longest context.")
    primed: bool = Field(True, description="Of compressor: whether it reads the training data first.")
    primer_bytes: PositiveInt = Field(1 << 24, description="Of compressor: most bytes that it reads first, the latest.")

    @model_validator(mode="after")
    def _fields_go_with_kinds(self) -> Self:
        if self.kind not in ("bits", "byte-softmax") and (self.model or self.preset):
            raise ValueError(f"got model or preset for kind {self.kind!r}, which has none. Try leaving them out")
        if self.kind != "bits" and (self.preset or self.learning != ("static",)):
            raise ValueError(f"got preset or learning for kind {self.kind!r}; both are of bits. Try leaving them out")
        of_kind = {"vocabulary": "gpt2-bpe", "order": "counts", "primed": "compressor", "primer_bytes": "compressor"}
        for name, kind in of_kind.items():
            if kind != self.kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"got {name} for kind {self.kind!r}; it is of {kind}. Try leaving it out")
        if self.kind not in TRAINED and self.train:
            raise ValueError(f"got train for kind {self.kind!r}, which is not trained by updates. Try leaving it out")
        if budget := next((name for name in BUDGETS if name in self.train), None):
            raise ValueError(
                f"got train.{budget}={self.train[budget]} for one model; all share one budget, or the comparison says nothing. Try it in the "
                "plan's train"
            )
        if "seed" in self.train:
            raise ValueError("got train.seed for one model; seeds are paired over all models. Try the plan's seeds")
        return self

    @property
    def trained(self) -> bool:
        """Whether it is trained by updates, so that it differs by seed."""
        return self.kind in TRAINED

    @property
    def label(self) -> str:
        """Its name, or its kind."""
        return self.name or self.kind


KNOWN: dict[str, dict[str, Any]] = {
    "btlm": {"kind": "bits", "preset": "tiny", "learning": ("static", "online")},
    "patches-8": {"kind": "bits", "model": {"patch_bits": 8}},
    "patches-9-parity": {"kind": "bits", "model": {"patch_bits": 9, "parity": True}},
    "flat-bits": {"kind": "bits", "model": {"patch_bits": 1}},
    "byte-softmax": {"kind": "byte-softmax"},
    "gpt2-bytes": {"kind": "gpt2-bytes"},
    "gpt2-bpe": {"kind": "gpt2-bpe"},
    **{f"counts-{order}": {"kind": "counts", "order": order} for order in range(7)},
    "compressors": {"kind": "compressor"},
    "compressors-empty": {"kind": "compressor", "primed": False},
}


class ShapeConfig(Config):
    """The size that all models share. Those with a preset have its own."""

    d_model: PositiveInt = Field(128, description="Width.")
    nhead: PositiveInt = Field(2, description="Attention heads.")
    num_layers: PositiveInt = Field(2, description="Blocks.")
    window_bytes: PositiveInt = Field(256, description="Bytes of a window; of byte pairs, about as many.")


class ComparisonConfig(Config):
    """A comparison: every model on every corpus with every seed, under one budget."""

    title: str = Field("Comparison", min_length=1, max_length=200, description="Heading of the report.")
    models: tuple[Contender, ...] = Field(min_length=1, description="What is compared.")
    reference: str | None = Field(
        None,
        description="The model that claims are about: it is tested against every other trained one. Default: the first.",
    )
    corpora: tuple[DataConfig, ...] = Field((DataConfig(),), min_length=1, description="Data to train on and hold out.")
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4, 5), min_length=1, description="Of the trainings; or how many.")
    train: dict[str, Any] = Field(
        default_factory=lambda: {"seconds": 60}, description="Fields of all trainings, with the budget."
    )
    shape: ShapeConfig = Field(ShapeConfig(), description="The size that all models share.")
    eval_bytes: PositiveInt = Field(
        1 << 17, description="Held-out bytes that are scored, at most: pieces, evenly spread."
    )
    threads: int = Field(0, ge=0, description="Of each training; 0: all cores, shared by those that run at once.")
    at_once: PositiveInt = Field(
        1, description="Trainings that run at once. More than one disturb each other's seconds."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _known_names(cls, value: Any) -> Any:
        return tuple(_contender(item) for item in value) if isinstance(value, list | tuple) else value

    @field_validator("corpora", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list | tuple):
            return tuple({"corpora": (item,)} if isinstance(item, str) else item for item in value)
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _how_many(cls, value: Any) -> Any:
        return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else value

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        corpora = [corpus_label(data) for data in self.corpora]
        models, seeds = [m.label for m in self.models], [str(seed) for seed in self.seeds]
        for what, names in (("model", models), ("corpus", corpora), ("seed", seeds)):
            if twice := next((name for name, count in Counter(names).items() if count > 1), None):
                raise ValueError(f"got {what} {twice!r} twice; each is needed once. Try another name")
        budgets = [name for name in BUDGETS if self.train.get(name) is not None]
        if len(budgets) != 1:
            got = " and ".join(budgets) or "no budget"
            raise ValueError(f"got {got} in train; exactly one of {', '.join(BUDGETS)} is needed. Try seconds: 60")
        if "seed" in self.train:
            raise ValueError("got train.seed; the plan's seeds are of all trainings. Try seeds: 6")
        if any(data.validation == "held-out" or not data.holdout for data in self.corpora):
            raise ValueError(
                "got a corpus with validation='held-out' or holdout=0; what is scored must select nothing, and there must be some. Try holdout: 0.1"
            )
        if any("-" in data.corpora for data in self.corpora):
            raise ValueError("got standard input as a corpus; each training reads it anew. Try a file")
        if min(self.seeds) < 0:
            raise ValueError(f"got seed {min(self.seeds)}; at least 0 is needed. Try seeds: 6")
        frozen = [m.label for m in self.models if m.trained and "static" in m.learning]
        if self.reference is not None and self.reference not in frozen:
            raise ValueError(
                f"got reference={self.reference!r}; a trained model of the plan that is scored frozen is needed: {', '.join(frozen) or 'there is none'}. Try leaving "
                "it out"
            )
        return self

    @property
    def budget(self) -> tuple[str, float]:
        """Name and size of the budget."""
        name = next(name for name in BUDGETS if self.train.get(name) is not None)
        return name, float(self.train[name])


def _contender(item: Any) -> Any:
    """A known name, or one with changes, as the fields of a contender."""
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, Mapping):
        return item
    name = item.get("name", "")
    if "kind" not in item and "preset" not in item:
        if name not in KNOWN:
            raise ValueError(
                f"got model {name!r}, which is not known; one of {', '.join(KNOWN)} is needed, or a mapping with a kind. Try patches-8"
            )
        known = dict(KNOWN.get(name, {}))
        if "model" in item:
            known["model"] = {**known.get("model", {}), **item["model"]}
        return {**known, **item, **({"model": known["model"]} if "model" in known else {})}
    return item


def corpus_label(data: DataConfig) -> str:
    """A corpus in a table: its names, without folders; of many, the first and how many more."""
    first, *more = [name.rstrip("/").rpartition("/")[2] or name for name in data.corpora]
    return first if not more else f"{first}+{more[0]}" if len(more) == 1 else f"{first}+{len(more)}"
