"""Reads the plan of a comparison from a file: YAML, TOML or JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from bit_transformer.config import BUDGETS, ComparisonConfig
from bit_transformer.errors import ConfigError
from bit_transformer.service.settings import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK: dict[str, Any] = {
    "title": "A quick look",
    "models": ("patches-8", "byte-softmax", "counts-3", "compressors"),
    "corpora": ({"corpora": ("stdlib",), "holdout": 0.02},),
    "seeds": 2,
    "train": {"seconds": 5, "batch_size": 16, "eval_bytes": 4096},
    "eval_bytes": 1 << 15,
}
QUICK_PRIMER = 1 << 20  # bytes that compressors read first


def read_plan(path: Path) -> ComparisonConfig:
    """The plan in a file, or a recipe of the package by its name.

    Raises:
        ConfigError: no such file, another format, or an invalid plan.
    """
    name = path.name if path.suffix else f"{path.name}.yaml"
    if not path.exists():
        path = next((folder / name for folder in RECIPES if (folder / name).is_file()), path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        why = getattr(unreadable, "strerror", None) or "it is not text"
        raise ConfigError(f"{path}: cannot be read ({why}). Try a file, or the recipe comparison") from None
    try:
        if path.suffix == ".toml":
            found = tomllib.loads(text)
        elif path.suffix == ".json":
            found = json.loads(text)
        else:
            found = yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, ValueError, yaml.YAMLError) as invalid:
        said = " ".join(str(invalid).split())
        raise ConfigError(
            f"{path}: is not valid {path.suffix[1:].upper() or 'YAML'} ({said}). Try the recipe comparison as an example"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: got {type(found).__name__}; a mapping with models is needed. Try the recipe comparison as an example"
        )
    return ComparisonConfig.of(found)


def quick_plan() -> ComparisonConfig:
    """A plan of less than a minute: two seeds of two models, beside counts and compressors, on Python's standard library."""
    models = [
        {"name": name, **({"primer_bytes": QUICK_PRIMER} if name == "compressors" else {})} for name in QUICK["models"]
    ]
    return ComparisonConfig.of({**QUICK, "models": models})


def with_changes(
    plan: ComparisonConfig, *, seeds: int | None = None, budget: dict[str, float] | None = None
) -> ComparisonConfig:
    """The plan with another number of seeds, or another budget.

    Raises:
        ConfigError: fewer than one seed, or no valid budget.
    """
    fields = plan.model_dump()
    if seeds is not None:
        if seeds < 1:
            raise ConfigError(f"got seeds={seeds}; at least 1 is needed. Try 6", field="seeds")
        fields["seeds"] = tuple(range(seeds))
    if budget:
        fields["train"] = {key: value for key, value in fields["train"].items() if key not in BUDGETS} | budget
    return ComparisonConfig.of(fields)
