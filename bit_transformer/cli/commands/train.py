"""`btlm train`: train a model on a corpus, into a run folder."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bit_transformer.cli.options import (
    BatchSize,
    Device,
    EvalBytes,
    Experts,
    Json,
    Overwrite,
    Parity,
    PatchBits,
    Preset,
    Recipe,
    Seconds,
    Seed,
    Set,
    Steps,
    Store,
    run_folder,
)
from bit_transformer.cli.output import EXIT_INTERRUPTED, errors_in_one_line, show_json
from bit_transformer.cli.training_output import live_progress, show_training
from bit_transformer.errors import ConfigError
from bit_transformer.service import DEFAULT_STORE
from bit_transformer.service.jobs import Job


def run(
    corpora: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CORPUS...", help="Names (stdlib, tinyshakespeare, ...), files, folders, globs, or '-'."
        ),
    ] = None,
    out_: Annotated[
        str | None, typer.Option("--out", help="Run folder; must not contain a run. Default: runs/DATE-TIME.")
    ] = None,
    recipe: Recipe = None,
    preset: Preset = None,
    patch_bits: PatchBits = None,
    parity: Parity = False,
    experts: Experts = None,
    seconds: Seconds = None,
    steps: Steps = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in passes over the training part.")] = None,
    bytes_: Annotated[int | None, typer.Option("--bytes", help="Budget in data bytes.")] = None,
    batch_size: BatchSize = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Parallel readers of the experts' first pass; each takes a part of the data. Default: 1."),
    ] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="If memory runs out, use more and smaller micro-batches.")
    ] = False,
    seed: Seed = None,
    set_: Set = None,
    diffusion: Annotated[
        bool,
        typer.Option("--diffusion", help="Train a diffusion model, which reads both sides, for infill and repair."),
    ] = False,
    noise: Annotated[
        str | None,
        typer.Option(help="With --diffusion: hidden (masked patches) or flips (flipped bits). Default: hidden."),
    ] = None,
    diffusion_steps: Annotated[
        int | None, typer.Option(help="With --diffusion: most network calls per sample. Default: one per patch.")
    ] = None,
    diffusion_curriculum: Annotated[
        bool,
        typer.Option(
            "--diffusion-curriculum", help="With --diffusion: the noise range widens over half of the training."
        ),
    ] = False,
    qat: Annotated[
        int | None, typer.Option(help="Train for weights of 8 or 4 bits: forward passes see rounded weights.")
    ] = None,
    progressive: Annotated[
        bool,
        typer.Option("--progressive", help="Begin with a smaller model and grow it when validation stops improving."),
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(help="Begin with the model, experts and optimizers of this run. Default data: that run's."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out with its own settings, or with a larger budget."),
    ] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="This is one of the processes that torchrun started.")
    ] = False,
    nproc: Annotated[int | None, typer.Option(help="Train in so many processes on this machine.")] = None,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="With several processes: each keeps a part of weights and moments.")
    ] = False,
    restarts: Annotated[
        int | None,
        typer.Option(help="With --nproc: how often to start again if a process fails. Default: 3."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that processes wait for each other. Default: 600.")
    ] = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            "--log-to",
            help="Also log to tensorboard, trackio or wandb (offline), one each time. metrics.jsonl is always written.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    eval_bytes: EvalBytes = 1 << 18,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Train a model on any bytes. Writes config, checkpoint, metrics and a loss curve into a run folder."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.launch import is_main, leave
        from bit_transformer.service.operations import call
        from bit_transformer.service.settings import (
            data_of,
            model_of,
            read_settings,
            set_diffusion,
            training_of,
            with_budget,
        )
        from bit_transformer.service.workspace import Workspace

        out = None if out_ is None else run_folder(out_)
        given = {
            "steps": steps,
            "epochs": epochs,
            "bytes": bytes_,
            "seconds": seconds,
            "batch_size": batch_size,
            "workers": workers,
            "seed": seed,
            "qat": qat,
        }
        flags = {key: value for key, value in given.items() if value is not None}
        shape = {
            "--preset": preset,
            "--patch-bits": patch_bits,
            "--parity": parity or None,
            "--experts": experts,
            "--diffusion": diffusion or None,
            "--noise": noise,
            "--diffusion-steps": diffusion_steps,
            "--diffusion-curriculum": diffusion_curriculum or None,
            "--progressive": progressive or None,
        }
        spread = None
        limits = {name: value for name, value in (("restarts", restarts), ("timeout", timeout)) if value is not None}
        if distributed or nproc is not None or fsdp or limits:
            if distributed == (nproc is not None):
                alone = "--fsdp" if fsdp else f"--{next(iter(limits), 'distributed')}"
                got = "both --distributed and --nproc" if distributed else f"{alone} alone"
                raise ConfigError(
                    f"got {got}; --nproc N starts processes, and --distributed is for those that torchrun started. Try --nproc 2"
                )
            spread = {"nproc": nproc, "shard": fsdp, **limits}
        shaped = [flag for flag, value in shape.items() if value is not None]
        if resume:
            if out is None:
                raise ConfigError("got --resume without --out; the run to continue is needed. Try --out runs/NAME")
            budget = {name: value for name, value in flags.items() if name in ("steps", "epochs", "bytes", "seconds")}
            others = corpora or recipe or init or shaped or set_ or overwrite or log_to
            if others or len(budget) < len(flags) or len(budget) > 1:
                raise ConfigError(
                    "--resume keeps the run's own settings; it must be given with --out alone, or a larger budget, or --auto-batch. Try "
                    "without the others"
                )
            resumed = {"out": out, "budget": budget, "auto_batch": auto_batch, "distributed": spread}
            asked: tuple[str, dict[str, Any]] = ("resume", resumed)
        else:
            settings = read_settings(recipe, set_ or [])
            if auto_batch:
                settings["train"]["auto_batch"] = True
            if corpora:
                settings["data"]["corpora"] = tuple(corpora)
            common = {
                "out": _folder(out),
                "eval_bytes": eval_bytes,
                "overwrite": overwrite,
                "distributed": spread,
                "log_to": tuple(dict.fromkeys(("jsonl", *(log_to or [])))),
            }
            if init is not None:
                if shaped or settings["model"]:
                    setting = shaped[0] if shaped else f"model.{next(iter(settings['model']))}"
                    raise ConfigError(f"got --init with {setting}; the model keeps its shape. Try without {setting}")
                train = with_budget(settings["train"], flags)
                asked = ("train_further", {**common, "run": init, "train": train, "data": settings["data"]})
            else:
                if progressive:
                    settings["train"].setdefault("progressive", True)
                set_diffusion(settings, diffusion, noise, diffusion_steps, diffusion_curriculum)
                model = model_of(settings, preset, patch_bits, parity, experts)
                train_config = training_of(settings, model, flags)
                asked = ("train", {**common, "model": model, "train": train_config, "data": data_of(settings)})
        with live_progress() if is_main() else nullcontext(Job(listens=False)) as job:
            result = call(*asked, Workspace(store, device), job)
        if not is_main():
            leave()
        if as_json:
            show_json(result)
        else:
            show_training(result)
        if distributed:
            leave(EXIT_INTERRUPTED if result.status == "stopped" else 0)
        if result.status == "stopped":
            raise typer.Exit(EXIT_INTERRUPTED)


def _folder(out: Path | None) -> Path:
    return out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
