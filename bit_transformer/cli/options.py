"""Options of several commands, and `--set key=value`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.errors import ConfigError
from bit_transformer.service import SECONDS_DEFAULT

Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Device = Annotated[
    str,
    typer.Option("--device", envvar="BTLM_DEVICE", help="auto, cpu, cuda, cuda:N or mps. auto: a GPU if there is one."),
]
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
Seconds = Annotated[float | None, typer.Option(help=f"Budget in wall-clock seconds. Default: {SECONDS_DEFAULT:g}.")]
Steps = Annotated[int | None, typer.Option(help="Budget in optimizer updates.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, windows and dropout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
EvalBytes = Annotated[int, typer.Option(help="Most held-out bytes that the last evaluation scores.")]
BatchSize = Annotated[int | None, typer.Option(help="Windows per update.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as model.d_model=256.")
]


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
    found = re.fullmatch(r"(\d+|0x[0-9a-f]+):(\d+|0x[0-9a-f]+)", text.lower())
    if not found:
        raise ConfigError(f"got the range {text!r}; two numbers FROM:TO are needed. Try 10:20, or 0x100:0x200")
    first, last = (int(number, 16 if number.startswith("0x") else 10) for number in found.groups())
    return first, last
