"""What do lambda_K, lambda_C and lambda_S do, and what do they cost? One short training for each value, paired seeds.

K and S are of predictions on held-out windows, C of free samples; bits per byte on held-out bytes with static weights.
"""

from __future__ import annotations

import statistics

import harness
import torch

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import Sampling, TrainConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.data.windows import CorpusWindows
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol
from bit_transformer.model import BitTransformerLM, as_pair
from bit_transformer.telemetry import lz_complexity, negentropy, symbiosis
from bit_transformer.training import train_loop

WIDTH, LAYERS, CONTEXT, SAMPLES, SAMPLE = 128, 2, 128, 24, 256
METRICS = ("K", "C", "S")


def measured(train: Corpus, held: Corpus, seed: int, steps: int, **lambdas: float) -> dict[str, float]:
    """K, C, S and bits per byte of one training."""
    torch.manual_seed(seed)
    model = BitTransformerLM(
        d_model=WIDTH, nhead=4, num_layers=LAYERS, max_seq_len=8 * CONTEXT, experts={"buckets": 1 << 16}, **lambdas
    )
    train_loop(model, train, TrainConfig(steps=steps, batch_size=16, seed=seed))
    windows = CorpusWindows(held, CONTEXT, seed=0).draw(64).bits_BT
    with torch.inference_mode():
        z_BNP, _, said_BTF = model.window_logits(windows)
    assert said_BTF is not None
    z_BT = z_BNP.flatten(1)
    samples = generate_bytes(model, [b""] * SAMPLES, SAMPLE, Sampling(seed=seed))
    bits = torch.stack([torch.from_numpy(bytes_to_bits(sample)) for sample in samples])
    return {
        "K": negentropy(as_pair(z_BT)).mean().item(),
        "C": lz_complexity(bits).mean().item(),
        "S": symbiosis(torch.sigmoid(z_BT.double()), model.experts_probability(said_BTF).double()).mean().item(),
        "bpb": bits_per_byte(model, held.thinned(1 << 15, 1 << 12), default_protocol(model, learning="static")).bpb,
    }


def main(quick: bool) -> int:
    """Print the table."""
    name, train, held = harness.text_corpus()
    train = train.part(0, 1 << 19) if quick else train
    seeds, steps, values = ((0,), 10, (1.0,)) if quick else ((0, 1), 80, (0.1, 1.0))
    report = harness.Report(
        "lambdas",
        f"{name}, width {WIDTH}, {LAYERS} layers, {CONTEXT} bytes, experts, {steps} updates of 16 windows, {len(seeds)} seeds; C of {SAMPLES} "
        f"samples of {SAMPLE} bytes at temperature 1",
        {f"{metric}_rises": ">= 0" for metric in METRICS},
    )
    plain = [measured(train, held, seed, steps) for seed in seeds]
    report.row("", "     K      C      S    bits per byte")
    report.row("none", _row(plain))
    for metric in METRICS:
        for value in values:
            found = [measured(train, held, seed, steps, **{f"lambda_{metric}": value}) for seed in seeds]
            report.row(f"lambda_{metric} = {value:g}", _row(found))
        rises = [after[metric] - before[metric] for before, after in zip(plain, found, strict=True)]
        costs = [after["bpb"] - before["bpb"] for before, after in zip(plain, found, strict=True)]
        report.figures[f"{metric}_rises"] = min(rises)
        report.figures[f"{metric}_costs_bpb"] = statistics.mean(costs)
    if quick:  # ten updates with a penalty that is ten times as large say little of the course of a training
        report.leave_out(*report.figures)
    return report.finish()


def _row(found: list[dict[str, float]]) -> str:
    means = {key: statistics.mean(values[key] for values in found) for key in (*METRICS, "bpb")}
    return "".join(f" {means[metric]:6.3f}" for metric in METRICS) + f"   {means['bpb']:.3f}"


if __name__ == "__main__":
    harness.run(main, __doc__)
