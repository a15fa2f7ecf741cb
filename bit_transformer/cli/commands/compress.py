"""`btlm compress` and `btlm decompress`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from bit_transformer.cli.options import Json, Store
from bit_transformer.cli.output import EXIT_INPUT, console, errors_in_one_line, progress_console, show_json
from bit_transformer.cli.training_output import live_progress
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.compression import Compressed, Decompressed

PIPE = "-"
Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Files; - is standard input.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="RUN", help="A run whose model predicts the data. Default: none is needed."),
]
Jobs = Annotated[int | None, typer.Option(help="Threads. Default: one per core, as far as memory allows.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]


def run(
    files: Files,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Where to write the result of one file; - is standard output. Default: FILE.btlm."
        ),
    ] = None,
    model: Model = None,
    adapt: Annotated[
        float,
        typer.Option(help="Step size by which the model's head and mixer learn while coding, such as 0.002; 0: none."),
    ] = 0.0,
    experts: Annotated[
        str,
        typer.Option(
            metavar="light|rich|auto",
            help="Without a model. rich: 6 to 20 % smaller, at an eighth of the speed, with up to 2 GB of memory a thread; auto: rich where it saves 3 %.",
        ),
    ] = "light",
    frame_bytes: Annotated[
        int | None,
        typer.Option(help="Data per frame; frames are independent. Default: 16 MiB, with a model 512 KiB."),
    ] = None,
    jobs: Jobs = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Decode everything again and compare.")] = True,
    overwrite: Overwrite = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Compress files: with adaptive predictors alone, which need nothing, or with a model."""
    with errors_in_one_line(as_json):
        asked = {
            "run": model,
            "adapt": adapt,
            "experts": experts,
            "frame_bytes": frame_bytes,
            "jobs": jobs,
            "verify": verify,
            "overwrite": overwrite,
        }
        if _target(files[0], out) == PIPE and sys.stdout.isatty():
            raise ConfigError("got a terminal for compressed data, which is not text. Try --out FILE, or > FILE")
        files = _checked(files, out, as_json)
    _each(files, lambda file: _compress(file, _target(file, out), asked, store, as_json), as_json)


def decompress(
    files: Files,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="Where to write the result of one file; - is standard output. Default: FILE without .btlm.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="RUN", help="The run that the files were compressed with, if they were."),
    ] = None,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Write zeros where a file is damaged, list these ranges, and exit with code 2."
        ),
    ] = False,
    jobs: Jobs = None,
    overwrite: Overwrite = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Read compressed files back."""
    with errors_in_one_line(as_json):
        asked = {"run": model, "keep_going": keep_going, "jobs": jobs, "overwrite": overwrite}
        files = _checked(files, out, as_json)
    _each(files, lambda file: _decompress(file, _target(file, out), asked, store, as_json), as_json)


def _each(files: list[str], work: Callable[[str], bool | None], as_json: bool) -> None:
    """Work on each file, also after one that failed or was damaged; then the exit code is 2."""
    failed = False
    for file in files:
        try:
            with errors_in_one_line(as_json):
                failed = bool(work(file)) or failed
        except SystemExit as refused:
            if refused.code != EXIT_INPUT:
                raise
            failed = True
    if failed:
        raise typer.Exit(EXIT_INPUT)


def _checked(files: list[str], out: str | None, as_json: bool) -> list[str]:
    if len(files) > 1 and (out is not None or PIPE in files):
        raise ConfigError(f"got {len(files)} files for one result; one is needed with --out or -. Try each alone")
    if as_json and (out == PIPE or (out is None and PIPE in files)):
        raise ConfigError("got --json with standard output as the result; both go there. Try --out FILE")
    return files


def _target(file: str, out: str | None) -> str | None:
    return PIPE if file == PIPE and out is None else out


def _compress(file: str, out: str | None, asked: dict[str, Any], store: Path, as_json: bool) -> None:
    from bit_transformer.service.compression import coder_of, compress_pipe
    from bit_transformer.service.operations import call
    from bit_transformer.service.requests import CompressRequest
    from bit_transformer.service.workspace import Workspace

    workspace = Workspace(store, "cpu")
    with live_progress() as job:
        if PIPE not in (file, out):
            made: Compressed = call("compress", {**asked, "path": file, "out": out}, workspace, job)
        else:
            request = CompressRequest.of({**asked, "path": file})
            with _piped(file, out, overwrite=request.overwrite) as (source, target):
                made = compress_pipe(request, source, target, coder_of(request, workspace), job, out=out or PIPE)
    if as_json:
        show_json(made)
        return
    ratio = f", {made.bytes / made.compressed:.2f} times smaller" if made.bytes > made.compressed else ""
    bits = f", {made.bpb:.3f} bits per byte" if made.bpb is not None else ""
    kinds = " and ".join(made.coded_by)
    line = f"{made.file}: {made.bytes:,} to {made.compressed:,} bytes{ratio}{bits}{kinds and f', by {kinds}'}; written to {made.out}"
    if made.frames > 1 and made.compressed > made.bytes:
        line += f"\nThe {made.frames:,} frames take more room than they save. Try larger --frame-bytes"
    (progress_console if out == PIPE else console).print(line, soft_wrap=True)


def _decompress(file: str, out: str | None, asked: dict[str, Any], store: Path, as_json: bool) -> bool:
    """Whether something was lost."""
    from bit_transformer.service.compression import decompress_pipe
    from bit_transformer.service.operations import call
    from bit_transformer.service.requests import DecompressRequest
    from bit_transformer.service.workspace import Workspace

    workspace = Workspace(store, "cpu")
    with live_progress() as job:
        if PIPE not in (file, out):
            made: Decompressed = call("decompress", {**asked, "path": file, "out": out}, workspace, job)
        else:
            request = DecompressRequest.of({**asked, "path": file})
            into = None if out in (PIPE, None) else Path(out)
            with _piped(file, out, overwrite=request.overwrite) as (source, target):
                made = decompress_pipe(request, source, target, workspace, job, out=into)
    if as_json:
        show_json(made)
    elif out != PIPE:
        console.print(f"{made.file}: {made.bytes:,} bytes, written to {made.out}", soft_wrap=True)
    _show_lost(file, made.lost, made.cut)
    return bool(made.lost) or made.cut


def _piped(file: str, out: str | None, *, overwrite: bool) -> AbstractContextManager[tuple[BinaryIO, BinaryIO]]:
    """Source and target, where at least one is a pipe."""
    from bit_transformer.service.compression import opened_pair

    source = sys.stdin.buffer if file == PIPE else Path(file)
    target = sys.stdout.buffer if out in (PIPE, None) else Path(out)
    return opened_pair(source, target, overwrite=overwrite)


def _show_lost(file: str, lost: list[tuple[int, int]], cut: bool) -> None:
    for begin, end in lost:
        progress_console.print(
            f"{file}: bytes {begin:,} to {end:,} are lost; they are zeros in the result", soft_wrap=True
        )
    if cut:
        progress_console.print(f"{file}: the end is damaged or missing; there may have been more bytes", soft_wrap=True)
