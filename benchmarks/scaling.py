"""Do bytes and seconds of an update follow the roofline, with 1, 2 and 4 processes? And what several processes cost beside one.

Processes with gloo on this machine, one thread each. Bytes are those of the loopback device, so they are what was really sent, with headers. Seconds are predicted
from two rates measured before: of one process's matrix products, and of sending between two. More processes than cores share the cores.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.distributed import DataParallel, World
from bit_transformer.machine import cores
from bit_transformer.memory import estimate_memory
from bit_transformer.model import BitTransformerLM
from bit_transformer.scaling import estimate_step
from bit_transformer.training import Trainer, build_windows

MODEL = ModelConfig(
    d_model=256, nhead=4, num_layers=4, max_seq_len=2048, ngram_orders=(2, 3), ngram_rows=4096, ngram_words=False
)
BATCH, WARM = 16, 2
DATA = (
    np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
)  # n-gram rows are rarely looked up twice
H100 = (
    4e14,
    5e10,
)  # what one GPU reaches in bfloat16 products, and sends to another machine, a second: 40 % of its peak, 400 Gbit/s
PLANS = {  # by size: width, layers, heads, windows an update, and ranks, with shards
    "100 M": (768, 12, 12, 256, ((8, False), (8, True))),
    "1 B": (2048, 20, 16, 512, ((16, False), (16, True), (64, True))),
    "10 B": (4096, 48, 32, 2048, ((64, True), (256, True))),
}
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def config(steps: int) -> TrainConfig:
    """Of all trainings here."""
    return TrainConfig(steps=steps, batch_size=BATCH, amp=False, keep_best=False)


def _rank(rank: int, ranks: int, shard: bool, steps: int, folder: str) -> None:
    """One process: trains, and measures bytes and seconds after a few updates."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = BitTransformerLM(MODEL)
    windows = build_windows(model, bytes_corpus(DATA), config(steps))
    world = World(rank, ranks)
    trainer = Trainer(model, windows, config(steps), parallel=DataParallel(world, shard=shard))
    began = [0.0, 0.0]

    def observe(_: Trainer, record: Any) -> None:
        if record["step"] == WARM:
            world.meet()
            began[:] = [time.perf_counter(), _sent()]

    trainer.observers = [observe]
    trainer.run()
    world.meet()
    seconds = (time.perf_counter() - began[0]) / (steps - WARM)
    sent = (_sent() - began[1]) / (steps - WARM) / ranks
    rate = _rate(rank) if ranks == 2 else 0.0
    if rank == 0:
        Path(folder, "found").write_text(json.dumps([seconds, sent, rate]))
    if ranks > 1:
        dist.destroy_process_group()


def _rate(rank: int) -> float:
    """Bytes a second that a rank sends in an all-reduce of 64 MB between two."""
    numbers = torch.zeros(1 << 24)
    for _ in range(2):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(numbers)
    return numbers.nbytes / (time.perf_counter() - began)  # 2 (N - 1) / N = 1 for two ranks


def plans(report: harness.Report) -> None:
    """Memory, bytes and seconds of large trainings, for `docs/scaling.md`."""
    flops_per_s, bytes_per_s = H100
    for size, (width, layers, heads, windows, ways) in PLANS.items():
        model = ModelConfig(
            d_model=width, num_layers=layers, nhead=heads, max_seq_len=16_384, ngram_rows=16_384, reversible=True
        )
        with torch.device("meta"):
            made = BitTransformerLM(model)
        for ranks, shard in ways:
            train = TrainConfig(steps=1, batch_size=windows, amp=True, accum_steps=max(1, windows // ranks // 8))
            told = estimate_step(
                model,
                train,
                made.flops_per_byte(),
                ranks=ranks,
                shard=shard,
                flops_per_s=flops_per_s,
                bytes_per_s=bytes_per_s,
            )
            one = train.model_copy(update={"batch_size": windows // ranks})
            memory = estimate_memory(model, train, world_size=ranks) if shard else estimate_memory(model, one)
            report.row(
                f"{size} ({made.num_parameters().total / 1e9:.2f} B with tables), {ranks} GPUs, {'FSDP' if shard else 'DDP'}",
                f"{memory.peak / 1e9:.1f} GB each; {told.bytes / 1e9:.2f} GB sent an update; {told.compute_s:.2f} s computing, {told.moving_s:.2f} s "
                f"sending; {windows * 2048 / told.high_s / 1e6:.1f} to {windows * 2048 / told.low_s / 1e6:.1f} MB/s of text",
            )


def _sent() -> float:
    return float(LOOPBACK.read_text()) if LOOPBACK.exists() else 0.0


def measured(ranks: int, shard: bool, steps: int) -> tuple[float, float, float]:
    """Seconds of an update, bytes that a rank sends in it, and the rate of sending."""
    with tempfile.TemporaryDirectory() as folder:
        args = (ranks, shard, steps, folder)
        multiprocessing.start_processes(_rank, args=args, nprocs=ranks, start_method="fork")
        found = json.loads(Path(folder, "found").read_text())
        return found[0], found[1], found[2]


def main(quick: bool) -> int:
    """Measure."""
    torch.set_num_threads(1)
    steps = WARM + (3 if quick else 12)
    report = harness.Report(
        "scaling",
        f"width {MODEL.d_model}, {MODEL.num_layers} layers, {BATCH} windows of {MODEL.max_seq_len // 8} bytes an update, float32, gloo on {cores()} cores, one thread a "
        f"process, {steps - WARM} updates",
        {"bytes_over_predicted": ">= 0.9 and <= 1.15", "seconds_over_predicted": ">= 0.7 and <= 1.4"},
    )
    flops = BitTransformerLM(MODEL).flops_per_byte()
    alone = measured(1, False, steps)[0]
    flops_per_s = flops * BATCH * MODEL.max_seq_len / 8 / alone
    rate = measured(2, False, steps)[2]
    report.row(
        "one process",
        f"{alone * 1e3:,.0f} ms an update, {flops_per_s / 1e9:.1f} Gflop/s; between two: {rate / 1e9:.2f} GB/s each",
    )
    bytes_over, seconds_over = [], []
    for ranks, shard in ((2, False), (4, False), (2, True), (4, True)):
        crowd = max(1.0, ranks / cores())  # processes that share a core
        told = estimate_step(
            MODEL,
            config(steps),
            flops,
            ranks=ranks,
            shard=shard,
            flops_per_s=flops_per_s / crowd,
            bytes_per_s=rate / crowd,
        )
        # In gloo a reduce-scatter is an all-reduce, of which each rank keeps its part.
        twice = told.sent.get("gradients, to their owners", 0)
        told = replace(told, sent={**told.sent, "the same again": twice}, moving_s=told.moving_s + twice * crowd / rate)
        seconds, sent, _ = measured(ranks, shard, steps)
        name = f"{ranks} processes, {'FSDP' if shard else 'DDP'}"
        report.row(
            name,
            f"{seconds * 1e3:,.0f} ms an update, predicted {told.low_s * 1e3:,.0f} to {told.high_s * 1e3:,.0f}; {sent / 1e6:.1f} MB sent by a rank, "
            f"predicted {told.bytes / 1e6:.1f}; {alone / seconds:.2f} times one process",
        )
        bytes_over.append(sent / told.bytes)
        seconds_over.append(seconds / told.high_s)
        report.figures[f"speed_{'fsdp' if shard else 'ddp'}_{ranks}"] = alone / seconds
    plans(report)
    report.figures["bytes_over_predicted"] = max(bytes_over, key=lambda ratio: abs(ratio - 1))
    report.figures["seconds_over_predicted"] = max(seconds_over, key=lambda ratio: abs(ratio - 1))
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
