"""How fast is training on a GPU? Bytes a second, use of the arithmetic and memory, beside GPT-2 over bytes, eager and compiled.

Forward and backward of one batch in bfloat16 autocast, interleaved. The use of the arithmetic is what the model's matrix products need
(three forward passes' worth), over what the same GPU reaches in one large bfloat16 product, measured in the same run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import harness
import torch
from peers import gpt2_over_bytes
from torch import Tensor, nn

from bit_transformer.errors import ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.objectives import NextBit

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 768, 12, 12, 1024, 16


def product_rate(device: torch.device, size: int) -> float:
    """Floating-point operations a second of one square product in bfloat16: the best of ten."""
    a_NN = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = [timed(lambda: a_NN @ a_NN, device) for _ in range(12)]
    return 2 * size**3 / min(seconds[2:])


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done a call."""
    finish(device)
    began = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - began


def finish(device: torch.device) -> None:
    """Wait for what was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step(model: nn.Module, nats: Callable[[nn.Module], Tensor], device: torch.device) -> None:
    """Forward and backward."""
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = nats(model)
    loss.backward()
    model.zero_grad(set_to_none=True)


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """Most bytes that a call needs on a GPU, with what is there already; 0 elsewhere."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    timed(call, device)
    return float(torch.cuda.max_memory_allocated(device))


def measure(device: torch.device, quick: bool, shape: tuple[int, int, int, int, int]) -> harness.Report:
    """All rows."""
    width, heads, layers, context, batch = shape
    rounds = 3 if quick else 12
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    report = harness.Report(
        "gpu",
        f"{name}; width {width}, {layers} layers, {heads} heads, {context} bytes of context, {batch} windows, forward + backward in "
        f"bfloat16 autocast, {rounds} interleaved rounds",
        {"throughput_ratio": ">= 1", "compiled_throughput_ratio": ">= 1"},
    )
    generator = torch.Generator().manual_seed(0)
    byte_BL = torch.randint(0, 256, (batch, context), generator=generator)
    bits_BT = ((byte_BL[..., None] >> torch.arange(7, -1, -1)) & 1).flatten(1).to(device)
    byte_BL = byte_BL.to(device)
    fields = {"d_model": width, "nhead": heads, "num_layers": layers, "max_seq_len": 8 * context}

    def our_nats(model: nn.Module) -> Tensor:
        assert isinstance(model, BitTransformerLM)
        return NextBit()(model, bits_BT).loss

    def their_nats(model: nn.Module) -> Tensor:
        return model(byte_BL, labels=byte_BL).loss

    ours = BitTransformerLM(**fields).to(device).train()
    contenders: dict[str, tuple[nn.Module, Callable[[nn.Module], Tensor]]] = {
        "ours": (ours, our_nats),
        "ours, reversible": (BitTransformerLM(**fields, reversible=True).to(device).train(), our_nats),
        "gpt2": (gpt2_over_bytes(width, heads, layers, context).to(device).train(), their_nats),
    }
    peak = product_rate(device, 256 if device.type == "cpu" else 8192)
    need = ours.flops_per_byte() * byte_BL.numel()
    seconds: dict[str, list[float]] = {}
    kept_open = contextlib.ExitStack()  # for the rest of this process
    for how in ("eager", "compiled"):
        calls: dict[str, Callable[[], object]] = {}
        for kind, (model, nats) in contenders.items():
            run = model
            if how == "compiled" and isinstance(model, BitTransformerLM):
                kept_open.enter_context(model.trunk.compiled())
            elif how == "compiled":
                run = torch.compile(model)
            calls[f"{kind}, {how}"] = lambda run=run, nats=nats: step(run, nats, device)  # type: ignore[misc]
        memory = {kind: peak_memory(call, device) for kind, call in calls.items()}
        waiting = {kind: lambda call=call: timed(call, device) for kind, call in calls.items()}
        seconds |= harness.interleaved(waiting, rounds)
        for kind in calls:
            middle = sorted(seconds[kind])[rounds // 2]
            report.row(
                kind,
                f"{byte_BL.numel() / middle:>12,.0f} bytes/s   {need / middle / peak:6.1%} of {peak / 1e12:.0f} TFLOP/s   "
                f"{memory[kind] / 1e9:.2f} GB at most",
            )
    for key, how in (("throughput_ratio", "eager"), ("compiled_throughput_ratio", "compiled")):
        report.figures[key] = harness.ratio(seconds[f"gpt2, {how}"], seconds[f"ours, {how}"])[0]
    best = min(sorted(times)[rounds // 2] for kind, times in seconds.items() if kind.startswith("ours"))
    report.figures["flop_utilisation"] = need / best / peak
    return report


def main(quick: bool) -> int:
    """Measure."""
    if not torch.cuda.is_available():
        raise ConfigError("got no GPU; this benchmark needs one. Try btlm bench bit-tax, which needs none")
    shape = (WIDTH, HEADS, 4, CONTEXT, BATCH) if quick else (WIDTH, HEADS, LAYERS, CONTEXT, BATCH)
    return measure(torch.device("cuda:0"), quick, shape).finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
