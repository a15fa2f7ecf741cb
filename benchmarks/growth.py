"""Does growing pay? Progressive training against the final size from the start: the same operations, paired seeds.

Both see the same corpus in the same order of windows; a pair has its seed in common. How many operations the final size would have
needed for what the progressive training came to is read off the line through its own two budgets, in the logarithm of operations.
"""

from __future__ import annotations

import math
import statistics

import harness
import torch

from bit_transformer.config import GrowthConfig, ModelConfig, TrainConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol
from bit_transformer.growth import stages
from bit_transformer.model import BitTransformerLM
from bit_transformer.training import Trainer, build_windows

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 128, 4, 4, 128, 16
LESS = 0.6  # of the operations: the other budget of the final size


def bpb(
    train: Corpus, held: Corpus, seed: int, flops: float, progressive: GrowthConfig | None
) -> tuple[float, float, int]:
    """Bits per byte on held-out bytes, seconds, and updates, of one training."""
    target = ModelConfig(d_model=WIDTH, nhead=HEADS, num_layers=LAYERS, max_seq_len=8 * CONTEXT)
    config = TrainConfig(
        flops=flops, batch_size=BATCH, seed=seed, amp=False, eval_every=0.05, telemetry=0.0, progressive=progressive
    )
    torch.manual_seed(seed)
    model = BitTransformerLM(stages(target)[0] if progressive else target)
    validation = held.thinned(1 << 12, 1 << 10)
    trainer = Trainer(model, build_windows(model, train, config), config, validation, target=target)
    trainer.run()
    score = bits_per_byte(trainer.model, held.thinned(1 << 15, 1 << 12), default_protocol(trainer.model))
    return score.bpb, trainer.progress.seconds, trainer.progress.step


def main(quick: bool) -> int:
    """Measure."""
    corpus, train, held = harness.text_corpus()
    seeds, steps = (2, 8) if quick else (6, 300)
    full = BitTransformerLM(d_model=WIDTH, nhead=HEADS, num_layers=LAYERS, max_seq_len=8 * CONTEXT)
    flops = steps * BATCH * CONTEXT * full.flops_per_byte()
    report = harness.Report(
        "growth",
        f"{corpus}, final size {LAYERS} x {WIDTH}, {CONTEXT} bytes, no experts, no n-grams; {flops:.2g} operations, {steps} updates of {BATCH} "
        f"windows at the final size; {seeds} paired seeds; static, 32 KiB of held-out bytes, windows that overlap by half",
        {"flops_ratio_at_equal_bpb": "<= 0.6"},
    )
    differences, slopes = [], []
    for seed in range(seeds):
        grown, grown_seconds, updates = bpb(train, held, seed, flops, GrowthConfig())
        whole, whole_seconds, _ = bpb(train, held, seed, flops, None)
        less, _, _ = bpb(train, held, seed, LESS * flops, None)
        differences.append(grown - whole)
        slopes.append((whole - less) / math.log(1 / LESS))
        report.row(
            f"seed {seed}: from the start, progressive",
            f"{whole:.4f}, {grown:.4f}   {grown - whole:+.4f}   ({whole_seconds:.0f}, {grown_seconds:.0f} s; {updates} updates); "
            f"with {LESS:.0%} of the operations {less:.4f}",
        )
    if quick:  # after so few updates nothing has grown for a reason, and two seeds have no interval
        report.leave_out("flops_ratio_at_equal_bpb")
        return report.finish()
    found = harness.paired(differences)
    report.figures = {
        # What the final size would have needed for the same is exp(difference / slope) of the operations.
        "flops_ratio_at_equal_bpb": math.exp(-found["difference"] / statistics.mean(slopes)),
        "bpb_difference": found.pop("difference"),
        **found,
    }
    report.row("difference", "95 % interval by Student's t; p by flipping signs, all of them")
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
