"""What to train on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bit_transformer.config.base import Config


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
