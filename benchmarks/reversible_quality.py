"""What do reversible layers cost in quality? The same bytes, rates and six seeds, plain against reversible.

A reversible trunk is another function of the same parameters: attention reads a stream that attention has not written to. Each
pair of trainings has its seed in common: the same initial weights, the same windows in the same order.
"""

from __future__ import annotations

import harness
import torch

from bit_transformer.config import TrainConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol
from bit_transformer.model import BitTransformerLM
from bit_transformer.training import train_loop

WIDTH, LAYERS, CONTEXT, BATCH = 64, 4, 128, 16


def bpb(reversible: bool, seed: int, train: Corpus, held: Corpus, steps: int) -> tuple[float, float]:
    """Bits per byte on held-out bytes, and seconds of training."""
    torch.manual_seed(seed)
    model = BitTransformerLM(d_model=WIDTH, nhead=2, num_layers=LAYERS, max_seq_len=8 * CONTEXT, reversible=reversible)
    config = TrainConfig(steps=steps, batch_size=BATCH, seed=seed, amp=False)
    history = train_loop(model, train, config)
    return bits_per_byte(model, held.thinned(1 << 14, 1 << 11, 1), default_protocol(model)).bpb, history[-1]["seconds"]


def main(quick: bool) -> int:
    """Measure."""
    corpus, train, held = harness.text_corpus()
    seeds, steps = (2, 5) if quick else (6, 600)
    report = harness.Report(
        "reversible-quality",
        f"width {WIDTH}, {LAYERS} layers, 2 heads, {steps} updates of {BATCH} windows of {CONTEXT} bytes of {corpus}, no experts, no "
        f"n-grams, {seeds} seeds; static, 16 KiB of held-out bytes, windows that overlap by half",
        {},
    )
    differences = []
    for seed in range(seeds):
        (plain, slow), (other, slower) = (bpb(kind, seed, train, held, steps) for kind in (False, True))
        differences.append(other - plain)
        report.row(
            f"seed {seed}: plain, reversible",
            f"{plain:.4f}, {other:.4f}   {other - plain:+.4f}   ({slow:.0f}, {slower:.0f} s)",
        )
    if quick:  # after five updates, of two seeds
        report.leave_out("difference_bpb")
        return report.finish()
    found = harness.paired(differences)
    report.figures = {"difference_bpb": found.pop("difference"), **found}
    report.row("difference", "95 % interval by Student's t; p by flipping signs, all of them")
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
