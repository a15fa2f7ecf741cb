"""`btlm score`: where a file is surprising."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.cli.options import Json, Overlap, Protocol, RunArgument, Store
from bit_transformer.cli.output import bpb, console, errors_in_one_line, show_json, table
from bit_transformer.service import DEFAULT_STORE

SPARK = "▁▂▃▄▅▆▇█"


def run(
    model: RunArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to score, or '-'.")],
    window: Annotated[int, typer.Option(help="Bytes of a stretch.")] = 256,
    top: Annotated[int, typer.Option(help="How many of the most surprising stretches to list.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Also draw bits per byte by offset, as a PNG.")] = None,
    overlap: Overlap = 0.5,
    protocol: Protocol = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Bits per byte by stretch of a file: high where the model is surprised."""
    with errors_in_one_line(as_json):
        from bit_transformer.service import evaluation

        found = evaluation.score(model, file, window=window, overlap=overlap, learning=protocol, store=store, plot=plot)
        if as_json:
            show_json(found)
            return
        costs = [w.bpb for w in found.windows]
        console.print(
            f"{found.file}: {bpb(found.bpb)} bits per byte, from {bpb(min(costs))} to {bpb(max(costs))} a stretch"
        )
        console.print(_spark(costs), soft_wrap=True)
        made = table("\nmost surprising", "offset", "bytes", "bits per byte")
        for stretch in sorted(found.windows, key=lambda w: -w.bpb)[:top]:
            made.add_row(f"{stretch.offset:,}", str(stretch.bytes), bpb(stretch.bpb))
        console.print(made)
        console.print(f"model: {found.protocol}", style="dim", soft_wrap=True)


def _spark(costs: list[float], width: int = 72) -> str:
    """The costs as a line of bars, the mean of neighbours where there are more than fit."""
    count = min(width, len(costs))
    edges = [round(i * len(costs) / count) for i in range(count + 1)]
    means = [sum(costs[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top = max(means) or 1.0
    return "".join(SPARK[min(len(SPARK) - 1, int(value / top * len(SPARK)))] for value in means)
