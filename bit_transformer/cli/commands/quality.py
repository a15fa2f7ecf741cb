"""`btlm fit`: what clean text is like. `btlm filter`: which texts are not like it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, Store
from bit_transformer.cli.output import bpb, console, errors_in_one_line, gigabytes, progress_console, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.errors import ConfigError, Give
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from rich.console import Console

    from bit_transformer.service.filtering import Filtered
    from bit_transformer.service.fitting import Fitted

PIPE = "-"

TextField = Annotated[str, typer.Option("--field", help="Of JSON lines and parquet: the field with the text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]


def fit(
    clean: Annotated[
        list[str],
        typer.Argument(metavar="CLEAN...", help="Clean text: files, folders, JSON lines, parquet, corpora, or '-'."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of the quality model.")] = Path("quality.btlm"),
    field: TextField = "text",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn what clean text is like, to filter other texts by it: one small file, in seconds."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {"names": tuple(clean), "out": out, "field": field, "overwrite": overwrite}
        with live_progress() as job:
            found = call("fit", asked, Workspace(device="cpu"), job)
        if as_json:
            show_json(found)
        else:
            _show_fitted(found)


def run(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="JSON lines (also .gz, .zst, or '-' for standard input), parquet, folders of text."
        ),
    ],
    model: Annotated[
        str, typer.Option("--run", "--model", metavar="QUALITY", help="A file that `btlm fit` wrote, or a run.")
    ],
    field: TextField = "text",
    keep_below: Annotated[
        float | None,
        typer.Option(
            "--keep-below",
            metavar="P",
            help="Keep texts of a lower percentile; 95 leaves out what is odder than 95 % of clean texts. Default: keep all.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Default: the input's name with .filtered; '-' is standard output."),
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="Also write what is left out or cannot be read, and why: JSON lines.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write an HTML page of what was found.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Threads. Default: one per core. The result does not depend on it.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Score texts by how much they are like clean ones, and leave out the odd ones. An interrupted run goes on."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        to_pipe = (out is None and inputs == [PIPE]) or out == Path(PIPE)
        if to_pipe and as_json:
            raise ConfigError(
                "got --json with standard output as the result; both go there", tries=(Give("out", "kept.jsonl"),)
            )
        asked = {
            "names": tuple(inputs),
            "run": model,
            "field": field,
            "keep_below": keep_below,
            "out": out,
            "rejects": rejects,
            "report": report,
            "jobs": jobs,
            "overwrite": overwrite,
        }
        with live_progress() as job:
            found = call("filter", asked, Workspace(store, device), job)
        if as_json:
            show_json(found)
        else:
            _show_filtered(found, progress_console if to_pipe else console)


def _show_fitted(found: Fitted) -> None:
    made = table("\nwhat is normal", "length", "texts", "bits per byte", "95 % of texts")
    for row in found.lengths[::2]:
        made.add_row(f"{row.bytes:,}", f"{row.texts:,}", bpb(row.middle), f"{row.low:.2f} to {row.high:.2f}")
    console.print(made)
    _show_unreadable(found.unreadable, console)
    console.print(
        f"\n{found.documents:,} documents, {gigabytes(found.bytes)}, in {found.seconds:.0f} s; written: {found.out}, "
        f"{gigabytes(found.file_bytes)}",
        soft_wrap=True,
    )


def _show_filtered(found: Filtered, to: Console) -> None:
    rate = found.scored_bytes / max(found.seconds, 1e-9) / 1e6
    to.print(
        f"{found.documents:,} documents, {gigabytes(found.bytes)}, {bpb(found.bpb)} bits per byte; scored at {rate:.2f} MB/s",
        soft_wrap=True,
    )
    if found.dropped:
        to.print(f"kept {found.kept:,}, left out {found.dropped:,}: {_kinds(found.reasons)}", soft_wrap=True)
    if found.odd:
        to.print(
            f"odd (percentile 95 or more, or blocked): {_kinds(found.odd)}; the gate blocks {found.blocked:,}",
            soft_wrap=True,
        )
    if found.empty or found.blank:
        to.print(f"without any text: {found.empty:,} documents, {found.blank:,} lines", soft_wrap=True)
    _show_unreadable(found.unreadable, to)
    to.print(f"written: {', '.join(path for path in (found.out, found.rejects, found.report) if path)}", soft_wrap=True)


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def _show_unreadable(counts: dict[str, int], to: Console) -> None:
    if counts:
        to.print(f"could not be read: {_kinds(counts)}", style="yellow", soft_wrap=True)
