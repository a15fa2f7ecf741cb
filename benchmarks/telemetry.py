"""What does telemetry cost a training? Updates with the probe that `btlm train` hangs on the loop, and without, interleaved.

Two equal trainings take turns, a few updates each; the probe measures when it is due, as it does in use, so most turns have none and
some have one. The overhead is the ratio of the sums, with a bootstrap interval over turns.
"""

from __future__ import annotations

import random
import time

import harness
import torch

from bit_transformer.config import TrainConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.model import BitTransformerLM
from bit_transformer.presets import preset
from bit_transformer.service.observers import Probe
from bit_transformer.training import Trainer, build_windows

TURN = 5  # updates


def trainer(corpus: Corpus) -> Trainer:
    """A training of the demo's kind."""
    torch.manual_seed(0)
    model = BitTransformerLM(preset("tiny"))
    config = TrainConfig(steps=1_000_000, batch_size=16)
    made = Trainer(model, build_windows(model, corpus, config), config)
    model.train()
    return made


def turn(training: Trainer, probe: Probe | None) -> float:
    """Seconds of some updates."""
    began = time.perf_counter()
    for _ in range(TURN):
        before = time.perf_counter()
        record = training.update()
        training.progress.seconds += time.perf_counter() - before
        if probe:
            probe(training, record)
    return time.perf_counter() - began


def main(quick: bool) -> int:
    """Print the table."""
    _, corpus, _ = harness.text_corpus()
    corpus = corpus.part(0, 1 << 19)
    rounds = 8 if quick else 150
    probe = Probe()
    watched, plain = trainer(corpus), trainer(corpus)
    turn(watched, probe), turn(plain, None)
    pairs = [(turn(watched, probe), turn(plain, None)) for _ in range(rounds)]
    ratio = sum(on for on, _ in pairs) / sum(off for _, off in pairs)
    random.seed(0)
    again = [random.choices(pairs, k=len(pairs)) for _ in range(2000)]
    spread = sorted(sum(on for on, _ in p) / sum(off for _, off in p) for p in again)
    report = harness.Report(
        "telemetry",
        f"preset tiny with experts, batch of 16 windows, train.telemetry at its default, {rounds} turns of {TURN} updates each",
        {"overhead": "<= 0.01"},
    )
    report.row("95 % interval of the overhead", f"{spread[50] - 1:+.2%} to {spread[-51] - 1:+.2%}")
    report.row("seconds in the probe, over all of its training's", f"{probe.spent / watched.progress.seconds:.2%}")
    report.figures = {"overhead": ratio - 1, "share_measured": probe.spent / watched.progress.seconds}
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
