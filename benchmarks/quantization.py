"""What do weights of 8 and 4 bits cost in bits per byte, and save in bytes and time?

Quality and size: the recipe on Tiny Shakespeare, trained for a fixed number of updates, once as it is and once for 4-bit weights. Speed: sampling
with a model of width 512. `BTLM_BENCH_RUNS` names a folder where the trained models are kept and found again.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
from bit_transformer.config import ModelConfig, Sampling, TrainConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.experts.passes import corpus_units
from bit_transformer.model import BitTransformerLM
from bit_transformer.quantization import convert_qat, quantize_dynamic, quantize_weights
from bit_transformer.service.settings import read_settings
from bit_transformer.training import train_loop

RECIPES = Path(__file__).parents[1] / "recipes"
WIDTH, LAYERS, STEPS = 512, 4, 700
BANK_BYTES = 1 << 20


def trained(
    config: ModelConfig, settings: dict[str, Any], corpus: Corpus, qat: int | None, steps: int
) -> BitTransformerLM:
    """The recipe's model after so many updates; found again, if a folder for that is named."""
    keep = os.environ.get("BTLM_BENCH_RUNS")
    path = Path(keep or tempfile.gettempdir()) / f"quantization-{qat or 32}-{steps}.safetensors"
    if keep and path.exists():
        return load_checkpoint(path)
    torch.manual_seed(0)
    model = BitTransformerLM(config)
    fields = {name: value for name, value in settings.items() if name != "seconds"} | {
        "steps": steps,
        "amp": False,
        "qat": qat,
    }
    validation = corpus.thinned(settings["eval_bytes"], 4096)  # as `btlm train` does: no scored byte chooses weights
    train_loop(model, corpus.without(validation), TrainConfig.of(fields), validation=validation)
    if keep:
        save_checkpoint(path, model)
    return model.eval()


def quality(report: harness.Report, quick: bool) -> None:
    """Bits per byte of the same model in float32, 8 and 4 bits; and of one that was trained for 4 bits."""
    settings = read_settings(RECIPES / "tinyshakespeare-cpu.toml", [])
    name, corpus, held_out = harness.text_corpus()
    config, steps = ModelConfig.of(settings["model"]), 60 if quick else STEPS
    if quick:
        held_out = held_out.part(0, 16_384)
    plain = trained(config, settings["train"], corpus, None, steps)
    for_four = trained(config, settings["train"], corpus, 4, steps)
    models = {
        "float32": plain,
        "int8": quantize_weights(plain),
        "int8, 8-bit inputs": quantize_dynamic(plain),
        "int4": quantize_weights(plain, bits=4),
        "int4, trained for it": convert_qat(for_four),
    }
    bpb, size = {}, {}
    for which, model in models.items():
        bpb[which] = bits_per_byte(model, held_out).bpb
        with tempfile.TemporaryDirectory() as folder:
            size[which] = save_checkpoint(Path(folder), model).stat().st_size
        report.row(
            f"{name}: {which}",
            f"{bpb[which]:.4f} bpb   {bpb[which] - bpb['float32']:+.4f}   {size[which] / 1e6:.2f} MB, {size[which] / size['float32']:.1%}",
        )
    report.figures |= {
        "int8_bpb_loss": bpb["int8"] - bpb["float32"],
        "int8_dynamic_bpb_loss": bpb["int8, 8-bit inputs"] - bpb["float32"],
        "int4_bpb_loss": bpb["int4"] - bpb["float32"],
        "int4_qat_bpb_loss": bpb["int4, trained for it"] - bpb["float32"],
        "int8_size_ratio": size["int8"] / size["float32"],
        "int4_size_ratio": size["int4"] / size["float32"],
    }


def speed(report: harness.Report, quick: bool) -> None:
    """Sampling of one stream and of four by the portable engine; and the matrix products alone, beside PyTorch's own."""
    torch.manual_seed(0)
    plain = BitTransformerLM(d_model=WIDTH, nhead=8, num_layers=LAYERS, max_seq_len=4096, ngram_rows=4096).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    models = {"float32": plain, "int8": quantize_weights(plain), "int4": quantize_weights(plain, bits=4)}
    rounds = 3 if quick else 9
    for streams, count in ((1, 64 if quick else 192), (4, 32 if quick else 96)):
        prompts = [b"bits"] * streams
        calls = {
            which: functools.partial(generate_bytes, model, prompts, count, Sampling(seed=0))
            for which, model in models.items()
        }
        seconds = harness.interleaved(calls, rounds)
        for which in ("int8", "int4"):
            middle, low, high = harness.ratio(seconds["float32"], seconds[which])
            rate = streams * count / sorted(seconds[which])[rounds // 2]
            report.row(
                f"sampling at width {WIDTH}, {streams} stream{'s' * (streams > 1)}: {which}",
                f"{rate:,.0f} bytes/s   {middle:.2f} times float32, half of the rounds within {low:.2f} to {high:.2f}",
            )
            if streams == 1:
                report.figures[f"{which}_speed_ratio"] = middle
    peers(report, rounds)


def peers(report: harness.Report, rounds: int) -> None:
    """The matrix products of one position: our kernels, PyTorch's packed ones, torchao's."""
    import numpy as np

    from bit_transformer.decoding import integer_kernels as kernels
    from bit_transformer.nn.quantized import Rounding

    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * LAYERS
    weights = [torch.randn(shape) / WIDTH**0.5 for shape in shapes]
    inputs = {width: torch.randn(1, width) for width in (WIDTH, 4 * WIDTH)}

    def run_all(call: Any, held: list[Any]) -> Any:
        return lambda: [call(one, inputs[weight.shape[1]]) for one, weight in zip(held, weights, strict=True)]

    def ours(bits: int) -> Any:
        rounding, held = Rounding(bits, 32), []
        for weight in weights:
            codes, scales = rounding.integers(weight)
            tiles = kernels.tiles_of(codes[None].numpy(), scales[None].float().numpy(), bits)
            width = weight.shape[1]
            room = (np.zeros(width, np.int16), np.zeros(width // 32, np.int32), np.zeros(1, np.float32))
            held.append((tiles, np.zeros((1, len(weight)), np.float32), room))
        return run_all(lambda one, x: kernels.product(x.numpy(), one[0], 0, one[1], *one[2]), held)

    calls: dict[str, Any] = {"float32, PyTorch": run_all(lambda w, x: torch.nn.functional.linear(x, w), weights)}
    calls |= {"int8, ours": ours(8), "int4, ours": ours(4)}
    if hasattr(torch, "_weight_int8pack_mm"):
        scale = [w.abs().amax(1).div(127) for w in weights]
        held8 = [((w / s[:, None]).round().to(torch.int8), s.bfloat16()) for w, s in zip(weights, scale, strict=True)]
        calls["int8, PyTorch packed"] = run_all(lambda one, x: torch._weight_int8pack_mm(x.bfloat16(), *one), held8)
    if hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        held4 = [_packed_int4(w) for w in weights]
        calls["int4, PyTorch packed"] = run_all(
            lambda one, x: torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), one[0], 32, one[1]), held4
        )
    try:
        import logging

        logging.getLogger("torchao").setLevel(logging.ERROR)
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        report.row("torchao", "left out: not installed (make bench)")
    else:
        layers = [torch.nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights]
        for layer in layers:
            quantize_(layer, Int8WeightOnlyConfig(version=2))
        calls["int8, torchao"] = run_all(lambda layer, x: layer(x), layers)
    with torch.inference_mode():
        seconds = harness.interleaved({name: _repeated(call, 20) for name, call in calls.items()}, rounds)
    for which, times in seconds.items():
        middle = harness.ratio(seconds["float32, PyTorch"], times)[0]
        report.row(
            f"products of one position: {which}", f"{sorted(times)[rounds // 2] / 20 * 1e3:.2f} ms   {middle:.2f} times"
        )


def _repeated(call: Any, count: int) -> Any:
    return lambda: [call() for _ in range(count)]


def _packed_int4(weight: Tensor, group: int = 32) -> tuple[Tensor, Tensor]:
    rows, width = weight.shape
    grouped = weight.view(rows, width // group, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-8)
    codes = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15).int().view(rows, width)
    both = torch.stack([scale, low + scale * 8], -1).transpose(0, 1).contiguous().bfloat16()
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), both


def banks(report: harness.Report) -> None:
    """How much smaller a bank is in a file than in memory."""
    settings = read_settings(RECIPES / "tinyshakespeare-experts-cpu.toml", [])
    config = ModelConfig.of(settings["model"])
    name, corpus, _ = harness.text_corpus()
    bank = ExpertBank.of(config)
    bank.read(corpus_units(corpus, 0, BANK_BYTES, config), bank.stream(), learn=True, wanted=False)
    raw = sum(table.nbytes for table in bank.state_dict().values())
    began = time.perf_counter()
    stored = sum(table.nbytes for table in bank.packed().values())
    report.row(
        f"bank after {min(len(corpus), BANK_BYTES) / 1e6:.1f} MB of {name}",
        f"{raw / 1e6:.1f} MB, in a file {stored / 1e6:.1f} MB, packed in {time.perf_counter() - began:.2f} s",
    )
    report.figures["bank_size_ratio"] = stored / raw


def main(quick: bool) -> int:
    """Measure."""
    report = harness.Report(
        "quantization",
        f"quality: recipes/tinyshakespeare-cpu.toml, {60 if quick else STEPS} updates in float32, scored on the last 10 %; speed: width {WIDTH}, "
        f"{LAYERS} layers, portable engine, one thread",
        {
            "int8_bpb_loss": "<= 0.005",
            "int4_bpb_loss": "<= 0.05",
            "int4_qat_bpb_loss": "<= 0.02",
            "int8_size_ratio": "<= 0.27",
            "int4_size_ratio": "<= 0.16",
            "int8_speed_ratio": ">= 1.5",
            "int4_speed_ratio": ">= 2",
            "bank_size_ratio": "<= 0.25",
        },
    )
    quality(report, quick)
    speed(report, quick)
    banks(report)
    if quick:
        report.leave_out("int8_bpb_loss", "int4_bpb_loss", "int4_qat_bpb_loss")
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
