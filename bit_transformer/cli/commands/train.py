"""`btlm train`: train a model on a corpus, into a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from bit_transformer.cli.options import Json, Store, read_settings
from bit_transformer.cli.output import (
    EXIT_INTERRUPTED,
    bpb,
    console,
    errors_in_one_line,
    progress_console,
    show_comparison,
    show_json,
)
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.service.observers import Update
    from bit_transformer.service.training import TrainRequest, TrainResult

SECONDS_DEFAULT = 60.0


def run(
    corpora: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CORPUS...", help="Names (stdlib, tinyshakespeare, ...), files, folders, globs, or '-'."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; made, must not hold a run. Default: runs/DATE-TIME.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file with [model], [train] and [data].")] = None,
    preset: Annotated[
        str | None, typer.Option(help="tiny, small, medium, large, or a depth such as 6. Default: small.")
    ] = None,
    patch_bits: Annotated[
        int | None, typer.Option(help="Bits the trunk sees as one position, 1 to 12. Default: 8.")
    ] = None,
    parity: Annotated[bool, typer.Option("--parity", help="Bytes carry an even-parity ninth bit.")] = False,
    seconds: Annotated[
        float | None, typer.Option(help=f"Budget in wall-clock seconds. Default: {SECONDS_DEFAULT:g}.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimizer updates.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in passes over the training part.")] = None,
    bytes_: Annotated[int | None, typer.Option("--bytes", help="Budget in data bytes.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows of an update.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, windows and dropout.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as model.d_model=256.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its own settings.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    eval_bytes: Annotated[int, typer.Option(help="Held-out bytes of the last evaluation, at most.")] = 1 << 18,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Train a model on any bytes; a run folder gets config, checkpoint, metrics and a loss curve."""
    with errors_in_one_line(as_json):
        given = {
            "steps": steps,
            "epochs": epochs,
            "bytes": bytes_,
            "seconds": seconds,
            "batch_size": batch_size,
            "seed": seed,
        }
        flags = {key: value for key, value in given.items() if value is not None}
        if resume:
            if out is None:
                raise ConfigError("--resume got no --out; it must name the run to go on with. Try --out runs/NAME")
            if corpora or recipe or preset or patch_bits or parity or flags or set_ or overwrite:
                raise ConfigError(
                    "--resume keeps the run's own settings; it must be given with --out alone. Try without the others"
                )
            from bit_transformer.service import training

            with _progress() as report:
                result = training.resume(out, store, report=report)
        else:
            settings = read_settings(recipe, set_ or [])
            request = _request(settings, corpora, out, preset, patch_bits, parity, flags, eval_bytes, store)
            from bit_transformer.service import training

            with _progress() as report:
                result = training.train(request, overwrite=overwrite, report=report)
        _show(result, as_json)
        if result.status == "stopped":
            raise typer.Exit(EXIT_INTERRUPTED)


def _request(
    settings: dict[str, dict[str, Any]],
    corpora: list[str] | None,
    out: Path | None,
    preset: str | None,
    patch_bits: int | None,
    parity: bool,
    flags: dict[str, Any],
    eval_bytes: int,
    store: Path,
) -> TrainRequest:
    from bit_transformer.config import BUDGETS, DataConfig, TrainConfig
    from bit_transformer.presets import optim_for
    from bit_transformer.presets import preset as model_preset
    from bit_transformer.service.training import TrainRequest

    if patch_bits is not None:
        settings["model"]["patch_bits"] = patch_bits
    if parity:
        settings["model"]["parity"] = True
    model = model_preset(preset or "small", **settings["model"])
    train = settings["train"]
    if any(name in flags for name in BUDGETS):  # a budget on the command line replaces the recipe's
        train = {key: value for key, value in train.items() if key not in BUDGETS}
    train = train | flags
    if not any(train.get(name) is not None for name in BUDGETS):
        train["seconds"] = SECONDS_DEFAULT
    train["optim"] = optim_for(model).model_dump() | train.get("optim", {})
    data = settings["data"] | ({"corpora": tuple(corpora)} if corpora else {})
    if not data.get("corpora"):
        raise ConfigError("got no corpus; at least one name, file or folder is needed. Try btlm train stdlib")
    folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    return TrainRequest(folder, store, model, TrainConfig.of(train), DataConfig.of(data), eval_bytes)


@contextmanager
def _progress() -> Iterator[Callable[[Update], None]]:
    """A live bar on a terminal; elsewhere a line every ten seconds."""
    if not progress_console.is_terminal:
        yield _plain_lines()
        return
    bar = Progress(
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        console=progress_console,
        transient=False,
    )
    with bar:
        task = bar.add_task("starting", total=1.0)

        def report(update: Update) -> None:
            bar.update(task, completed=update.share, description=_line(update))

        yield report


def _plain_lines(every: float = 10.0) -> Callable[[Update], None]:
    last = [time.monotonic() - every]

    def report(update: Update) -> None:
        if time.monotonic() - last[0] >= every or update.share >= 1:
            last[0] = time.monotonic()
            progress_console.print(f"{update.share:4.0%}  {_line(update)}", soft_wrap=True)

    return report


def _line(update: Update) -> str:
    validation = f" · val {bpb(update.val_bpb)}" if update.val_bpb is not None else ""
    return (
        f"step {update.step:,} · {update.bytes_per_s / 1000:,.1f} kB/s · train {bpb(update.bpb)} bpb{validation} · "
        f"eta {int(update.eta) // 60}:{int(update.eta) % 60:02d}"
    )


def _show(result: TrainResult, as_json: bool) -> None:
    if as_json:
        show_json(result)
        return
    pace = result.bytes_seen / max(result.seconds, 1e-9) / 1000
    console.print(
        f"\n{result.status} ({result.note}): {result.steps:,} updates, {result.bytes_seen / 1e6:.2f} MB "
        f"({result.bytes_seen / result.train_bytes:.2f} epochs) in {result.seconds:.0f} s, {pace:.1f} kB/s; "
        f"{result.parameters / 1e6:.2f} M parameters",
        soft_wrap=True,
    )
    if result.comparison:
        show_comparison(result.comparison, "held-out bytes")
    if result.status == "stopped":
        console.print(f"Go on with: btlm train --out {result.folder} --resume", soft_wrap=True)
    else:
        console.print(
            f"Run folder: {result.folder}  (config.json, model.safetensors, metrics.csv, loss.png)", soft_wrap=True
        )
