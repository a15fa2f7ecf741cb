"""All phases in one command: train, validate, evaluate beside compressors, calibrate a gate, generate behind it.

Run: python unified_workflow.py --epochs 1 --dataset-size 2000000

A thin door to `bit_transformer.service`, for those who know the workflow by its flags; `btlm` has every setting.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bit_transformer.cli.options import set_diffusion
from bit_transformer.cli.output import EXIT_INTERRUPTED, console, errors_in_one_line
from bit_transformer.cli.training_output import live_progress, show_training
from bit_transformer.config import DataConfig, Sampling, TrainConfig
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.presets import optim_for, preset

# Flags of phases that this version does not have: asking for one is an error, not a silent no-op.
LATER = {
    "dashboard": "the dashboard",
    "distributed": "distributed training",
    "qat": "quantization-aware training",
}


PROMPT = b"def "


def parse() -> argparse.Namespace:
    """The documented flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="stdlib", help="name, file, folder or glob")
    parser.add_argument("--out", type=Path, default=Path("runs/workflow"), help="run folder; a run in it is replaced")
    parser.add_argument("--preset", default="tiny", help="tiny, small, medium, large, or a depth")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the training part")
    parser.add_argument("--dataset-size", type=int, help="train on about so many bytes an epoch")
    parser.add_argument("--batch-size", type=int, default=16, help="windows of an update")
    parser.add_argument("--amp", action="store_true", default=None, help="bfloat16 autocast, also where it is slow")
    parser.add_argument("--diffusion", action="store_true", help="a model that reads both sides")
    parser.add_argument("--diffusion-steps", type=int, help="of --diffusion: network calls of a sample, at most")
    parser.add_argument("--diffusion-curriculum", action="store_true", help="of --diffusion: noise widens over time")
    parser.add_argument("--progressive", action="store_true", help="begin with a smaller model, and grow it")
    for flag, what in LATER.items():
        parser.add_argument(f"--{flag}", help=f"{what}: not in this version", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Run every phase."""
    flags = parse()
    with errors_in_one_line():
        for flag, what in LATER.items():
            if getattr(flags, flag):
                raise ConfigError(f"--{flag} was given; {what} is not in this version. Try without --{flag}")
        from bit_transformer.service import training

        settings: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
        set_diffusion(settings, flags.diffusion, None, flags.diffusion_steps, flags.diffusion_curriculum)
        model = preset(flags.preset, **settings["model"])
        budget = {"bytes": round(flags.epochs * flags.dataset_size)} if flags.dataset_size else {"epochs": flags.epochs}
        config = TrainConfig.of(
            {
                **budget,
                **settings["train"],
                "batch_size": flags.batch_size,
                "amp": flags.amp,
                "progressive": flags.progressive,
                "optim": optim_for(model).model_dump(),
            }
        )
        store = flags.out.parent / "runs.sqlite"
        request = training.TrainRequest(flags.out, store, model, config, DataConfig(corpora=(flags.corpus,)))
        with live_progress() as report:
            result = training.train(request, overwrite=True, report=report)
        show_training(result)
        if result.status == "stopped":
            return EXIT_INTERRUPTED
        show_sample(result.folder, store, flags.diffusion)
    return 0


def show_sample(run: str, store: Path, diffusion: bool) -> None:
    """A sample, behind a gate that is calibrated on what was held out, where that is enough."""
    from bit_transformer.service import inference, restoration, safety

    sampling = Sampling(temperature=0.7, seed=1)
    try:
        with live_progress() as report:
            floors = safety.calibrate_run(run, [], store=store, report=report)
        console.print(f"\nsample, gated at {floors.alpha:.0%} of false alarms:")
        windows = inference.stream_gated(run, PROMPT, 256, sampling, window=128, retries=3, store=store)
        pieces = (window.data if window.allow else f"\n{window.why}".encode() for window in windows)
    except BitStreamError as too_small:
        console.print(f"\nsample, not gated: {too_small}", soft_wrap=True)
        if diffusion:
            open_end = PROMPT + bytes(256)
            filled = restoration.infill(run, open_end, holes=[(len(PROMPT), len(open_end))], seed=1, store=store)
            pieces = iter([filled.data[0][len(PROMPT) :]])
        else:
            pieces = inference.stream(run, PROMPT, 256, sampling, store=store)
    sys.stdout.flush()
    sys.stdout.buffer.write(PROMPT)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    print()


if __name__ == "__main__":
    sys.exit(main())
