"""Does local attention stay linear? Time and memory of a training step from 8 Ki to 64 Ki bits, and of generation.

Beside it stands attention over the whole window, with the same kernels.
"""

from __future__ import annotations

import time

import harness
import torch
from footprint import saved_for_backward

from bit_transformer.decoding.session import Session
from bit_transformer.model import BitTransformerLM

LENGTHS = (8192, 16_384, 32_768, 65_536)
WIDTH, LAYERS, PATCH = 128, 2, 8
CHUNKS = (1024, 4096)


def model(length: int, chunk: int | None) -> BitTransformerLM:
    """Of a window, and how far attention reaches back."""
    return BitTransformerLM(
        d_model=WIDTH, nhead=4, num_layers=LAYERS, patch_bits=PATCH, max_seq_len=length, chunk_size=chunk
    ).train()


def main(quick: bool) -> int:
    """Measure."""
    rounds = 3 if quick else 9
    report = harness.Report(
        "long-context",
        f"width {WIDTH}, {LAYERS} layers, patches of {PATCH} bits, one window, forward + backward, float32, "
        f"{torch.get_num_threads()} threads, medians of {rounds} interleaved rounds; growth is from {LENGTHS[0]:,} to {LENGTHS[-1]:,} "
        f"bits, the worst of the chunk sizes",
        {"time_growth_8x": "<= 9", "memory_growth_8x": "<= 9", "cache_growth_8x": "<= 1"},
    )
    growth: dict[str, list[float]] = {"time": [], "memory": [], "cache": []}
    for chunk in (*CHUNKS, None):
        nets = {length: model(length, chunk) for length in LENGTHS}
        bits = {length: torch.randint(0, 2, (1, length)) for length in LENGTHS}

        def step(length: int) -> None:
            nets[length].nll(bits[length]).mean().backward()  # noqa: B023
            nets[length].zero_grad(set_to_none=True)  # noqa: B023

        seconds = harness.interleaved({str(n): lambda n=n: step(n) for n in LENGTHS}, rounds)
        saved = [saved_for_backward(lambda n=n: nets[n].nll(bits[n]).mean()) for n in LENGTHS]  # noqa: B023
        caches = [sum(layer.key_BHSK.nbytes * 2 for layer in nets[n].trunk.new_cache(1).layers) for n in LENGTHS]
        name = "whole window" if chunk is None else f"chunks of {chunk // PATCH} patches"
        times = [sorted(seconds[str(n)])[rounds // 2] for n in LENGTHS]
        for length, took, size, cache in zip(LENGTHS, times, saved, caches, strict=True):
            report.row(
                f"{name}, {length // PATCH:,} patches ({length:,} bits)",
                f"{took * 1e3:8.0f} ms {length / 8 / took / 1e3:7.1f} kB/s {size / 1e6:8.1f} MB saved {cache / 1e6:6.2f} MB cache",
            )
        grown = harness.ratio(seconds[str(LENGTHS[-1])], seconds[str(LENGTHS[0])])[0]
        report.row(f"{name}, growth", f"{grown:.1f} x time, {saved[-1] / saved[0]:.2f} x memory")
        if chunk is not None:
            growth["time"].append(grown)
            growth["memory"].append(saved[-1] / saved[0])
            growth["cache"].append(caches[-1] / caches[0])
    length = LENGTHS[0] if quick else LENGTHS[-1]
    for chunk in CHUNKS:
        net = model(length, chunk).eval()
        session = Session(net)
        with torch.inference_mode():
            session.advance(torch.randint(0, 256, (1, length // PATCH - 300)))
            began = time.perf_counter()
            for _ in range(200):
                session.advance(torch.randint(0, 256, (1, 1)))
        spent = (time.perf_counter() - began) / 200
        report.row(
            f"a cached step {length - 2400:,} bits in, chunks of {chunk // PATCH} patches", f"{spent * 1e3:.2f} ms"
        )
    report.figures = {f"{what}_growth_8x": max(values) for what, values in growth.items()}
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
