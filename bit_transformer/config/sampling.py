"""How to draw."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bit_transformer.config.base import Config


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
