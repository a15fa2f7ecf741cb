"""Options of several commands, and `--set key=value`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bit_transformer.errors import ConfigError

if TYPE_CHECKING:
    from bit_transformer.config import ModelConfig, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Store = Annotated[Path, typer.Option("--store", envvar="BTLM_STORE", help="The SQLite file of run records.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, a checkpoint file, or the name of a run in the store.")
]
Overlap = Annotated[float, typer.Option("--overlap", help="Fraction of a window that is only context, in [0, 1).")]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="What learns from the file while it is scored: static (nothing), online (experts), online+mixer. Default: online if the model has experts.",
    ),
]

Recipe = Annotated[Path | None, typer.Option(help="TOML file with the tables model, train and data.")]
Preset = Annotated[str | None, typer.Option(help="tiny, small, medium, large, or a depth such as 6. Default: small.")]
PatchBits = Annotated[int | None, typer.Option(help="Bits per position of the trunk, 1 to 12. Default: 8.")]
Parity = Annotated[bool, typer.Option("--parity", help="Add a ninth bit to each byte, for even parity.")]
Experts = Annotated[
    bool | None,
    typer.Option("--experts/--no-experts", help="Adaptive bit predictors that the trunk mixes. Default: on."),
]
BatchSize = Annotated[int | None, typer.Option(help="Windows per update.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as model.d_model=256.")
]

SECTIONS = ("model", "train", "data")
SECONDS_DEFAULT = 60.0


def parse_size(text: str) -> int:
    """A number of bytes from `8GB`, `8G`, `500 MB` or `1.5GiB`.

    Raises:
        ConfigError: another format.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?\s*", text.lower())
    if not found:
        raise ConfigError(f"got size {text!r}; a number with kB, MB, GB, TB or KiB, MiB, GiB, TiB is needed. Try 8GB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (1 + "kmgt".index(found[2])))


def run_folder(text: str) -> Path:
    """The folder that `--out` names.

    Raises:
        ConfigError: an empty name, which would be the current folder.
    """
    if not text.strip():
        raise ConfigError(
            "--out got an empty name; the name of a folder is needed. Try --out runs/NAME, or --out . for this folder"
        )
    return Path(text)


def parse_range(text: str) -> tuple[int, int]:
    """Two numbers from `FROM:TO`.

    Raises:
        ConfigError: another format.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise ConfigError(f"got the range {text!r}; two numbers FROM:TO are needed. Try 10:20")
    return int(found[1]), int(found[2])


def set_diffusion(
    settings: dict[str, dict[str, Any]], diffusion: bool, noise: str | None, steps: int | None, curriculum: bool
) -> None:
    """Write the flags for diffusion models into settings.

    Raises:
        ConfigError: one of the flags for another model, without `--diffusion`.
    """
    if diffusion:
        settings["model"]["causal"] = False
    given = {"--noise": noise, "--diffusion-steps": steps, "--diffusion-curriculum": curriculum or None}
    flag = next((flag for flag, value in given.items() if value is not None), None)
    if flag and settings["model"].get("causal", True):
        raise ConfigError(f"{flag} goes with --diffusion; got it alone. Try --diffusion {flag}")
    settings["model"] |= {
        key: value for key, value in (("noise", noise), ("diffusion_steps", steps)) if value is not None
    }
    if curriculum:
        settings["train"]["curriculum"] = 0.5


def model_of(
    settings: dict[str, dict[str, Any]], preset: str | None, patch_bits: int | None, parity: bool, experts: bool | None
) -> ModelConfig:
    """The model from settings and flags; flags override settings."""
    from bit_transformer.presets import preset as model_preset

    if patch_bits is not None:
        settings["model"]["patch_bits"] = patch_bits
    if parity:
        settings["model"]["parity"] = True
    if experts is not None:
        settings["model"]["experts"] = (settings["model"].get("experts") or True) if experts else None
    return model_preset(preset or "small", **settings["model"])


def training_of(settings: dict[str, dict[str, Any]], model: ModelConfig, flags: dict[str, Any]) -> TrainConfig:
    """The training from settings and flags; flags override settings, and learning rates follow the model's width."""
    from bit_transformer.config import TrainConfig
    from bit_transformer.presets import optim_for

    train = with_budget(settings["train"], flags)
    if isinstance(optim := train.get("optim", {}), dict):  # else TrainConfig raises the error
        train["optim"] = optim_for(model).model_dump() | optim
    return TrainConfig.of(train)


def with_budget(train: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training, overridden by flags, with a default budget."""
    from bit_transformer.config import BUDGETS

    if any(name in flags for name in BUDGETS):  # a budget on the command line replaces the recipe's
        train = {key: value for key, value in train.items() if key not in BUDGETS}
    train = train | flags
    if not any(train.get(name) is not None for name in BUDGETS):
        train["seconds"] = SECONDS_DEFAULT
    return train


def parse_value(text: str) -> Any:
    """A TOML value; text that is not TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_settings(recipe: Path | None, assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings from a recipe file, overridden by assignments such as `model.d_model=256` or `train.optim.lr=0.001`.

    Raises:
        ConfigError: no such file, invalid TOML, or an invalid assignment.
    """
    settings: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if recipe:
        try:
            stored = tomllib.loads(recipe.read_text())
        except OSError as unreadable:
            raise ConfigError(f"{recipe}: cannot be read ({unreadable.strerror}). Try one of recipes/*.toml") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as invalid:
            raise ConfigError(
                f"{recipe}: is not valid TOML ({invalid}). Try recipes/tinyshakespeare-cpu.toml as an example"
            ) from None
        for section, values in stored.items():
            if not isinstance(values, dict):
                raise ConfigError(f"{recipe}: got {section}={values!r}; a table is needed. Try [{section}]")
            settings[_section(section)] |= values
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, _, key = path.strip().partition(".")
        if not equals or not key:
            raise ConfigError(f"got --set {assignment!r}; section.key=value is needed. Try --set model.d_model=256")
        place = settings[_section(section)]
        *groups, last = key.split(".")
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(
                    f"got --set {assignment!r}; {group} is not a group of settings. Try --set train.optim.lr=0.001"
                )
        place[last] = parse_value(text)
    return settings


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise ConfigError(f"got section {name!r}; one of {', '.join(SECTIONS)} is needed. Try --set model.d_model=256")
    return name
