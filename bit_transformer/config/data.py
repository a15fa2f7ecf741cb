"""Which data to train on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bit_transformer.config.base import Config


class DataConfig(Config):
    """Which data to train on and which to hold out."""

    corpora: tuple[str, ...] = Field(
        ("stdlib",), description="Names, files, folders, globs, hf:NAME of the hub, or '-' for standard input."
    )
    split: Literal["auto", "position", "file", "blocks", "standard"] = Field(
        "auto",
        description="Hold out the end of each file (position), whole files (file), or blocks spread over each file (blocks: for binaries); auto: whole files if there are ten or more; standard: "
        "train, validate and hold out the parts that results on a named corpus are published for.",
    )
    holdout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Fraction held out, for the last evaluation; with standard parts only 0 counts: nothing.",
    )
    validation: Literal["own", "held-out"] = Field(
        "own",
        description="Data for validations, which select the best weights. own: bytes set aside from the training part (or the standard "
        "validation part), so the held-out part selects nothing; held-out: a sample of the held-out part.",
    )
