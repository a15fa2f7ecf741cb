"""All phases in one command: train, validate, evaluate against compressors, calibrate a gate, and generate behind it.

Run: python unified_workflow.py --epochs 1 --dataset-size 2000000

A thin interface to `bit_transformer.service` with the flags of the original workflow; `btlm` has every setting.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bit_transformer.config import Sampling
from bit_transformer.errors import BitStreamError, BitTransformerError, ConfigError
from bit_transformer.presets import preset
from bit_transformer.service import inference
from bit_transformer.service.home import Home, home_folder
from bit_transformer.service.jobs import Job, Message, Reading, Update
from bit_transformer.service.launch import is_launched, is_main, leave
from bit_transformer.service.operations import call
from bit_transformer.service.requests import GateRequest, GenerateRequest
from bit_transformer.service.settings import set_diffusion, training_of
from bit_transformer.service.workspace import Workspace

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130

PROMPT = b"def "


def parse() -> argparse.Namespace:
    """Parse the documented flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="stdlib", help="name, file, folder or glob")
    parser.add_argument(
        "--out", type=Path, help="run folder; an earlier run in it is replaced (default: runs/workflow)"
    )
    parser.add_argument("--preset", default="tiny", help="tiny, small, medium, large, or a depth")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the training part")
    parser.add_argument("--dataset-size", type=int, help="bytes to train on per epoch, about")
    parser.add_argument("--batch-size", type=int, default=16, help="windows per update")
    parser.add_argument("--amp", action="store_true", default=None, help="bfloat16 autocast, also where it is slow")
    parser.add_argument("--diffusion", action="store_true", help="a model that reads both sides")
    parser.add_argument("--diffusion-steps", type=int, help="with --diffusion: most network calls per sample")
    parser.add_argument(
        "--diffusion-curriculum", action="store_true", help="with --diffusion: start with little noise and widen it"
    )
    parser.add_argument("--progressive", action="store_true", help="start with a smaller model and grow it")
    parser.add_argument("--qat", type=int, choices=(8, 4), help="train for weights of so many bits")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes: torchrun --nproc-per-node 2 unified_workflow.py ...",
    )
    parser.add_argument("--fsdp", action="store_true", help="with --distributed: weights and moments are sharded")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--dashboard", action="store_true", help="watch and steer it in a browser; server and pages stay until Ctrl-C"
    )
    return parser.parse_args()


def main() -> int:
    """Run all phases."""
    flags = parse()
    try:
        if not flags.dashboard:
            return run(flags, flags.out or Path("runs/workflow"), None)
        home = Home(home_folder())
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # server and dashboard end with this process
        with pages(home):
            code = run(flags, flags.out or home.runs / "workflow", home)
            print("\nserver and dashboard stay until Ctrl-C", file=sys.stderr)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            return code
    except BitTransformerError as error:
        print(f"unified_workflow: {error}", file=sys.stderr)
        return EXIT_INPUT


@contextlib.contextmanager
def pages(home: Home) -> Iterator[None]:
    """Within: the management server of a home, and its dashboard, as processes.

    Raises:
        ConfigError: one of them cannot be started; the reason.
    """
    with contextlib.ExitStack() as stack:
        options = ("--home", str(home.folder), "--port", port(7000))
        address = stack.enter_context(started("bit_transformer.server", home.folder / "server.log", *options))
        options = ("--server", address, "--port", port(8080))
        stack.enter_context(started("bit_transformer.dashboard_app", home.folder / "dashboard.log", *options))
        yield


def port(usual: int) -> str:
    """The usual port, or 0 (any free one) where it is in use."""
    with socket.socket() as probe:
        return "0" if probe.connect_ex(("127.0.0.1", usual)) == 0 else str(usual)


@contextlib.contextmanager
def started(module: str, log: Path, *options: str) -> Iterator[str]:
    """Within: a module as a process that serves pages and writes to a log; gives its address."""
    command = [sys.executable, "-m", module, *options]
    with log.open("w+") as written:
        # In a session of its own: Ctrl-C first stops the training.
        process = subprocess.Popen(command, stdout=written, stderr=written, start_new_session=True)
        try:
            while not (found := re.search(r"https?://[^\s)]+(?=.*\n)", log.read_text())):
                if process.poll() is not None:
                    said = log.read_text().strip().partition(": ")[2]
                    raise ConfigError(said or f"{module} could not be started. Try without --dashboard")
                time.sleep(0.1)
            print(log.read_text(), end="", file=sys.stderr)
            yield found[0]
        finally:
            process.terminate()
            process.wait()


def run(flags: argparse.Namespace, out: Path, home: Home | None) -> int:
    """Train, evaluate, calibrate, generate.

    Args:
        home: whose store records the run; None: a store beside the run folder.
    """
    settings: dict[str, dict[str, Any]] = {"model": {}, "train": {}, "data": {}}
    set_diffusion(settings, flags.diffusion, None, flags.diffusion_steps, flags.diffusion_curriculum)
    model = preset(flags.preset, **settings["model"])
    budget = {"bytes": round(flags.epochs * flags.dataset_size)} if flags.dataset_size else {"epochs": flags.epochs}
    rest = {"batch_size": flags.batch_size, "amp": flags.amp, "progressive": flags.progressive, "qat": flags.qat}
    train = training_of(settings, model, budget | rest)
    workspace = home.workspace(flags.device) if home else Workspace(out.parent / "runs.sqlite", flags.device)
    job = Job(Lines() if is_main() else None)
    asked = {"out": out, "model": model, "train": train, "data": {"corpora": (flags.corpus,)}, "overwrite": True}
    if flags.distributed:
        asked["distributed"] = {"shard": flags.fsdp}
    result = call("train", asked, workspace, job)
    if not is_main():
        leave()
    print(
        f"\n{result.status} ({result.note}): {result.steps:,} updates, {result.bytes_seen / 1e6:.2f} MB in {result.seconds:.0f} s; "
        f"run folder: {result.folder}"
    )
    if result.status == "stopped":
        return EXIT_INTERRUPTED
    if result.comparison:
        coders = {"this model": result.comparison.bpb, **result.comparison.compressors}
        print(f"\nbits per byte of {result.comparison.bytes:,} held-out bytes ({result.comparison.protocol}):")
        for name, bpb in sorted(coders.items(), key=lambda row: row[1]):
            print(f"  {bpb:.3f}  {name}")
    show_sample(result.folder, workspace, job, flags.diffusion)
    return 0


class Lines:
    """Prints progress as lines on standard error, one every ten seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.every, self.last = every, 0.0

    def __call__(self, message: Message) -> None:
        """Print a message, if it is time."""
        if isinstance(message, Update | Reading):
            now = time.monotonic()
            if now - self.last < self.every:
                return
            self.last = now
        if isinstance(message, Update):
            val = "" if message.val_bpb is None else f", val {message.val_bpb:.3f}"
            text = f"{message.share:4.0%}  step {message.step:,}, train {message.bpb:.3f} bpb{val}, {message.eta:.0f} s left"
        elif isinstance(message, Reading):
            text = f"{message.doing} {message.done:,} of {message.total:,} {message.unit}"
        else:
            text = f"note: {message.text}"
        print(text, file=sys.stderr)


def show_sample(run: str, workspace: Workspace, job: Job, diffusion: bool) -> None:
    """Print a sample, behind a gate calibrated on held-out data if there is enough of it."""
    sampling = Sampling(temperature=0.7, seed=1)
    try:
        floors = call("calibrate", {"run": run}, workspace, job)
        print(f"\nsample, behind a gate with {floors.alpha:.0%} false alarms:")
        gated = GateRequest(run=run, prompt=PROMPT, max_bytes=256, sampling=sampling, window=128, retries=3)
        windows = inference.stream_gated(gated, workspace)
        pieces = (window.data if window.allow else f"\n{window.why}".encode() for window in windows)
    except BitStreamError as too_small:
        print(f"\nsample, without a gate: {too_small}")
        if diffusion:
            open_end = PROMPT + bytes(256)
            asked = {"run": run, "data": open_end, "holes": [(len(PROMPT), len(open_end))], "seed": 1}
            pieces = iter([call("infill", asked, workspace, job).data[0][len(PROMPT) :]])
        else:
            pieces = inference.stream(
                GenerateRequest(run=run, prompts=(PROMPT,), max_bytes=256, sampling=sampling), workspace
            )
    sys.stdout.flush()
    sys.stdout.buffer.write(PROMPT)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    print()


if __name__ == "__main__":
    code = main()
    if is_launched():
        leave(code)
    sys.exit(code)
