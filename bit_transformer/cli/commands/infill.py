"""`btlm infill`: fill in missing bytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.cli.options import Device, Json, RunArgument, Store, parse_range
from bit_transformer.cli.output import console, errors_in_one_line, show_json
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE


def run(
    model: RunArgument,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The file to complete.")] = None,
    text: Annotated[str | None, typer.Option(help="Text to complete, instead of a file; its gaps are '_'.")] = None,
    gap: Annotated[
        str | None,
        typer.Option(
            help="Marker of missing bytes; each one stands for as many bytes as it has. Default with --text: '_'."
        ),
    ] = None,
    hide: Annotated[
        list[str] | None, typer.Option(metavar="FROM:TO", help="Range of missing bytes; can be repeated.")
    ] = None,
    hide_bits: Annotated[
        list[str] | None, typer.Option(metavar="FROM:TO", help="Range of missing bits, as the model reads them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the result. Default: standard output.")] = None,
    samples: Annotated[int, typer.Option(help="Number of different completions.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Most network calls per window. Default: the model's, or one per patch.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="first-hitting, ancestral or confidence. Default: first-hitting; with --steps ancestral."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely patch; 1 samples from the model's distribution.")
    ] = 0.8,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling. Default: a different one each time.")] = None,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Fill in missing bytes from those before and after them. Needs a run of `btlm train --diffusion`."""
    with errors_in_one_line(as_json):
        from bit_transformer.errors import ConfigError
        from bit_transformer.service.files import check_out, read_file, write_file
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        if (file is None) == (text is None):
            raise ConfigError("got neither or both of FILE and --text; one of them is needed. Try --text 'def ____():'")
        if out and samples > 1:
            raise ConfigError(f"got --out with samples={samples}; a file takes one. Try --samples 1, or --json")
        if out:
            check_out(out)
        mark = gap if gap is not None else "_" if text is not None else ""
        asked = {
            "run": model,
            "data": os.fsencode(text) if text is not None else read_file(file or Path()),
            "gap": os.fsencode(mark),
            "holes": [parse_range(one) for one in hide or []],
            "bit_holes": [parse_range(one) for one in hide_bits or []],
            "samples": samples,
            "steps": steps,
            "order": order,
            "temperature": temperature,
            "seed": seed,
        }
        with live_progress() as job:
            found = call("infill", asked, Workspace(store, device), job)
        if out:
            write_file(out, found.data[0])
        if as_json:
            show_json(
                {
                    "run": found.run,
                    "hidden_bits": found.hidden_bits,
                    "holes": found.holes,
                    "texts": [data.decode("utf-8", errors="replace") for data in found.data],
                    "hex": [data.hex() for data in found.data],
                }
            )
        elif out:
            console.print(f"{found.hidden_bits:,} bits filled in, written to {out}", soft_wrap=True)
        else:
            end = b"\n---\n" if samples > 1 else b"\n" if sys.stdout.isatty() else b""
            for data in found.data:
                sys.stdout.buffer.write(data + end)
