"""Builds requests from settings: recipes, assignments such as `model.d_model=256`, and the few settings with their own flags."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bit_transformer.config import BUDGETS, DataConfig, ModelConfig, TrainConfig
from bit_transformer.config.base import Config
from bit_transformer.errors import Ask, ConfigError, Give
from bit_transformer.presets import optim_for, preset
from bit_transformer.service import SECONDS_DEFAULT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECTIONS = ("model", "train", "data")
# In an installed package; in a source checkout.
RECIPES = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")

Settings = dict[str, dict[str, Any]]


def read_settings(recipe: Path | None, assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings from a recipe file, overridden by assignments such as `model.d_model=256` or `train.optim.lr=0.001`.

    Raises:
        ConfigError: no such file, invalid TOML, or an invalid assignment.
    """
    settings: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if recipe:
        recipe = recipe_file(recipe)
        try:
            stored = tomllib.loads(recipe.read_text())
        except OSError as unreadable:
            there = sorted({path.stem for folder in RECIPES for path in folder.glob("*.toml")})
            raise ConfigError(
                f"{recipe}: cannot be read ({unreadable.strerror})",
                field="recipe",
                tries=(f"a file, or one of {', '.join(there)}",),
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as invalid:
            raise ConfigError(
                f"{recipe}: is not valid TOML ({invalid}). Try the recipe tinyshakespeare-cpu as an example",
                field="recipe",
            ) from None
        for section, values in stored.items():
            if not isinstance(values, dict):
                raise ConfigError(f"{recipe}: got {section}={values!r}; a table is needed. Try [{section}]")
            settings[_section(section)] |= values
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, _, key = path.strip().partition(".")
        if not equals or not key:
            raise ConfigError(
                f"got the setting {assignment!r}; section.key=value is needed", tries=(Give("model.d_model", 256),)
            )
        place = settings[_section(section)]
        *groups, last = key.split(".")
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(
                    f"got the setting {assignment!r}; {group} is not a group of settings",
                    tries=(Give("train.optim.lr", 0.001),),
                )
        place[last] = parse_value(text)
    return settings


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise ConfigError(
            f"got section {name!r}; one of {', '.join(SECTIONS)} is needed", tries=(Give("model.d_model", 256),)
        )
    return name


def parse_value(text: str) -> Any:
    """A TOML value; text that is not TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def model_of(
    settings: Settings, name: str | None, patch_bits: int | None, parity: bool, experts: bool | None
) -> ModelConfig:
    """The model from settings and flags; flags override settings."""
    if patch_bits is not None:
        settings["model"]["patch_bits"] = patch_bits
    if parity:
        settings["model"]["parity"] = True
    if experts is not None:
        settings["model"]["experts"] = (settings["model"].get("experts") or True) if experts else None
    with _fields_of("model", ModelConfig):
        return preset(name or "small", **settings["model"])


def training_of(settings: Settings, model: ModelConfig, flags: dict[str, Any]) -> TrainConfig:
    """The training config from settings and flags. Flags override settings; learning rates follow the model's width."""
    return train_config(model, with_budget(settings["train"], flags))


def train_config(model: ModelConfig, fields: Mapping[str, Any]) -> TrainConfig:
    """The training config from its fields, with default learning rates for the model's width."""
    optim = fields.get("optim", {})
    if isinstance(optim, Mapping):  # else TrainConfig raises the error
        optim = optim_for(model).model_dump() | dict(optim)
    with _fields_of("train", TrainConfig):
        return TrainConfig.of({**fields, "optim": optim})


def data_of(settings: Settings) -> DataConfig:
    """The data from settings.

    Raises:
        ConfigError: no corpus, or invalid fields.
    """
    if not settings["data"].get("corpora"):
        raise ConfigError(
            "got no corpus; at least one name, file or folder is needed",
            field="data.corpora",
            tries=(Ask("train", more=(Give("data.corpora", ("stdlib",)),)),),
        )
    with _fields_of("data", DataConfig):
        return DataConfig.of(settings["data"])


@contextmanager
def _fields_of(section: str, config: type[Config]) -> Iterator[None]:
    """What is wrong in a config is named as a setting of a section."""
    try:
        yield
    except ConfigError as error:
        raise error.within(section, config.model_fields) from None


def recipe_file(recipe: Path) -> Path:
    """A recipe's file: the given path, or a recipe of the package by its name."""
    if recipe.exists():
        return recipe
    name = recipe.name if recipe.suffix == ".toml" else f"{recipe.name}.toml"
    return next((folder / name for folder in RECIPES if (folder / name).is_file()), recipe)


def with_budget(train: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Training settings, overridden by flags, with a default budget."""
    if any(name in flags for name in BUDGETS):  # a budget on the command line replaces the recipe's
        train = {key: value for key, value in train.items() if key not in BUDGETS}
    train = train | flags
    if not any(train.get(name) is not None for name in BUDGETS):
        train["seconds"] = SECONDS_DEFAULT
    return train


def set_diffusion(settings: Settings, diffusion: bool, noise: str | None, steps: int | None, curriculum: bool) -> None:
    """Add the flags for diffusion models to settings.

    Raises:
        ConfigError: one of the flags without `diffusion`.
    """
    if diffusion:
        settings["model"]["causal"] = False
    given = {"noise": noise, "diffusion_steps": steps, "diffusion_curriculum": curriculum or None}
    name = next((name for name, value in given.items() if value is not None), None)
    if name and settings["model"].get("causal", True):
        raise ConfigError(
            f"got {name}={given[name]!r} without diffusion, which it needs",
            field=name,
            tries=(Give("model.causal", False),),
        )
    settings["model"] |= {
        key: value for key, value in (("noise", noise), ("diffusion_steps", steps)) if value is not None
    }
    if curriculum:
        settings["train"]["curriculum"] = 0.5
