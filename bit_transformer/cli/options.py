"""Options that several verbs share, and `--set key=value`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bit_transformer.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Store = Annotated[Path, typer.Option("--store", envvar="BTLM_STORE", help="The SQLite file of run records.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, a checkpoint file, or a run's name in the store.")
]
Overlap = Annotated[float, typer.Option("--overlap", help="Share of a window that is only context, in [0, 1).")]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="What learns from the file while it is scored: static, online (experts), online+mixer. Default: online where there are experts.",
    ),
]

SECTIONS = ("model", "train", "data")


def parse_value(text: str) -> Any:
    """A value as TOML writes it; what is no TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_settings(recipe: Path | None, assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A recipe file, overlaid by assignments such as `model.d_model=256` or `train.optim.lr=0.001`.

    Raises:
        ConfigError: no such file, no TOML, or an assignment of another form.
    """
    settings: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if recipe:
        try:
            stored = tomllib.loads(recipe.read_text())
        except OSError as unreadable:
            raise ConfigError(f"{recipe}: cannot be read ({unreadable.strerror}). Try one of recipes/*.toml") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as invalid:
            raise ConfigError(
                f"{recipe}: is not TOML ({invalid}). Try recipes/tinyshakespeare-cpu.toml as a model"
            ) from None
        for section, values in stored.items():
            if not isinstance(values, dict):
                raise ConfigError(f"{recipe}: {section}={values!r}; it must be a table. Try [{section}]")
            settings[_section(section)] |= values
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, _, key = path.strip().partition(".")
        if not equals or not key:
            raise ConfigError(f"--set {assignment!r}; it must be section.key=value. Try --set model.d_model=256")
        place = settings[_section(section)]
        *groups, last = key.split(".")
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(
                    f"--set {assignment!r}; {group} is no group of settings. Try --set train.optim.lr=0.001"
                )
        place[last] = parse_value(text)
    return settings


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise ConfigError(f"got section {name!r}; it must be one of {', '.join(SECTIONS)}. Try --set model.d_model=256")
    return name
