"""`btlm bench`: run a benchmark of the source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.cli.output import EXIT_GOAL_MISSED, console, errors_in_one_line
from bit_transformer.errors import ConfigError

SHARED = ("footprint", "harness", "peers", "pictures", "seeded_store", "servers")
FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


def run(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A benchmark, such as bit-tax. Without a name, lists them.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Take at most 45 seconds; less precise.")] = False,
) -> None:
    """Run a benchmark: prints a table and then one line of JSON with figures and goals."""
    with errors_in_one_line():
        if not FOLDER.is_dir():
            raise ConfigError(f"{FOLDER}: there is no such folder; benchmarks need a source checkout. Try git clone")
        known = {path.stem.replace("_", "-"): path for path in sorted(FOLDER.glob("*.py")) if path.stem not in SHARED}
        if not name:
            console.print("\n".join(known))
            return
        if name not in known:
            raise ConfigError(f"got benchmark {name!r}; one of {', '.join(known)} is needed. Try btlm bench startup")
        code = subprocess.run([sys.executable, str(known[name]), *(["--quick"] if quick else [])]).returncode
        raise typer.Exit(code if code in (0, 2, EXIT_GOAL_MISSED) else 1)
