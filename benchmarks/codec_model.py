"""How small and how fast is `btlm compress` with a model? dickens: trained on its first 90 %, its last 10 % compressed.

The recipe's training takes ten minutes. `BTLM_BENCH_RUN` names a run of that recipe that is there already.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from pathlib import Path

import experts
import harness
import torch

from bit_transformer.checkpoint import load_checkpoint
from bit_transformer.compression.codec import ModelCoder
from bit_transformer.compression.files import compress_stream, decompress_stream
from bit_transformer.errors import BitTransformerError
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.machine import cores
from bit_transformer.model import BitTransformerLM
from bit_transformer.service.settings import read_settings

RUN_VARIABLE = "BTLM_BENCH_RUN"


def through(
    model: BitTransformerLM, data: bytes, *, jobs: int = 1, rate: int = 0, frame_bytes: int | None = None
) -> tuple[int, float, float]:
    """Compressed size, and seconds there and back."""
    coder = ModelCoder(model, rate)
    packed, plain = io.BytesIO(), io.BytesIO()
    began = time.perf_counter()
    compress_stream(io.BytesIO(data), packed, coder, size=len(data), jobs=jobs, frame_bytes=frame_bytes, verify=False)
    middle = time.perf_counter()
    decompress_stream(io.BytesIO(packed.getvalue()), plain, lambda header: coder, jobs=jobs)
    assert plain.getvalue() == data
    return len(packed.getvalue()), middle - began, time.perf_counter() - middle


def main(quick: bool) -> int:
    """Measure."""
    report = harness.Report(
        "codec-model",
        "recipes/dickens-experts-cpu.toml, trained on the first 90 % of dickens; the last 10 % evaluated (online) and compressed, one thread",
        {
            "coding_excess": "<= 0.005",
            "model_over_zpaq_primed": "<= 0.95",
            "encode_bytes_per_s": ">= 30000",
            "decode_bytes_per_s": ">= 30000",
        },
    )
    try:
        _, held_out = experts.training_and_held_out("dickens")
    except BitTransformerError as missing:
        report.row("dickens", f"left out: {missing}")
        report.goals.clear()
        return report.finish()
    with tempfile.TemporaryDirectory() as folder:
        run = os.environ.get(RUN_VARIABLE)
        if run is None:
            settings = read_settings(experts.RECIPES / "dickens-experts-cpu.toml", [])
            if quick:
                settings["train"]["seconds"] = 10
            experts._train(settings, Path(folder) / "run", quick)
            run = str(Path(folder) / "run")
        model = load_checkpoint(Path(run))
    torch.set_num_threads(1)
    data = held_out[: 1 << 17] if quick else held_out
    through(model, data[:2000])  # compiles
    evaluated = bits_per_byte(model, data).bpb
    size, there, back = through(model, data)
    whole, *_ = through(model, data, frame_bytes=len(data))
    adapted, *_ = through(model, data[: 1 << 17], rate=131)
    unadapted, *_ = through(model, data[: 1 << 17], frame_bytes=1 << 17)
    _, there_all, back_all = through(model, data, jobs=cores())
    bpb = 8 * size / len(data)
    report.row("evaluated, online", f"{evaluated:.4f} bpb")
    report.row("one frame", f"{8 * whole / len(data):.4f} bpb")
    report.row(
        "frames of 512 KiB",
        f"{bpb:.4f} bpb, {len(data) / there / 1e3:.1f} kB/s in, {len(data) / back / 1e3:.1f} kB/s back",
    )
    report.row(
        f"{cores()} threads", f"{len(data) / there_all / 1e3:.1f} kB/s in, {len(data) / back_all / 1e3:.1f} kB/s back"
    )
    report.row("--adapt 0.002, size over without, first 128 KiB", f"{adapted / unadapted:.4f}")
    report.figures = {
        "coding_excess": bpb / evaluated - 1,
        "coding_excess_one_frame": 8 * whole / len(data) / evaluated - 1,
        "encode_bytes_per_s": len(data) / there,
        "decode_bytes_per_s": len(data) / back,
    }
    if quick:
        report.leave_out("model_over_zpaq_primed", "coding_excess")
        return report.finish()
    for name, value in experts.primed("dickens").items():
        report.row(name, f"{value:.4f} bpb")
        if name.startswith(experts.ZPAQ):
            report.figures["model_over_zpaq_primed"] = bpb / value
    if "model_over_zpaq_primed" not in report.figures:
        report.goals.pop("model_over_zpaq_primed")
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
