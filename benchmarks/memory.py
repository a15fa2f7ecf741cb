"""What do reversible layers save, and what do they cost? Beside plain layers and activation checkpoints.

Bytes kept for the backward pass are counted through saved-tensor hooks. The total of a training is the peak resident memory
of a process of its own, beyond its libraries, with an allocator that gives back what is freed; the same with the allocator
as it comes is printed too. Times are of forward and backward, interleaved.
"""

from __future__ import annotations

import harness
import torch
from footprint import DEFAULT_ALLOCATOR, footprint, saved_for_backward
from torch import Tensor, nn

from bit_transformer.model import BitTransformerLM
from bit_transformer.nn import reversible

KINDS: dict[str, dict[str, bool]] = {
    "plain": {},
    "checkpoint": {"use_checkpoint": True},
    "reversible": {"reversible": True},
}
DEPTHS = (4, 8, 16, 32)


def model(kind: str, layers: int, width: int = 128, context: int = 256) -> BitTransformerLM:
    """Of one kind, in training mode."""
    heads = width // 32
    return BitTransformerLM(
        d_model=width, nhead=heads, num_layers=layers, max_seq_len=8 * context, **KINDS[kind]
    ).train()


def slope(saved: list[int]) -> float:
    """Bytes a layer, by least squares over the depths."""
    middle, mean = sum(DEPTHS) / len(DEPTHS), sum(saved) / len(saved)
    rise = sum((x - middle) * (y - mean) for x, y in zip(DEPTHS, saved, strict=True))
    return rise / sum((x - middle) ** 2 for x in DEPTHS)


def gradients(net: BitTransformerLM, bits_BT: Tensor, amp: bool) -> list[Tensor]:
    """Loss and all gradients."""
    net.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        loss = net.nll(bits_BT).mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def equal(layers: int, amp: bool, dropout: float) -> bool:
    """Whether a reversible trunk has the gradients of the same network with everything kept."""
    net = BitTransformerLM(d_model=64, nhead=2, num_layers=layers, max_seq_len=512, dropout=dropout, reversible=True)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    net.train()
    bits_BT = torch.randint(0, 2, (4, 512))
    rebuilt = gradients(net, bits_BT, amp)
    run = reversible.run
    reversible.run = lambda blocks, x, turn, *_: reversible.run_stored(blocks, x, turn)
    try:
        stored = gradients(net, bits_BT, amp)
    finally:
        reversible.run = run
    return len(rebuilt) == 1 + len(list(net.parameters())) and all(map(torch.equal, rebuilt, stored))


def main(quick: bool) -> int:
    """Measure."""
    rounds = 3 if quick else 12
    report = harness.Report(
        "memory",
        "saved: width 128, 4 heads, 8 windows of 256 patches; total: width 256, 24 layers, 16 windows of 512, two updates of Muon "
        f"and AdamW; time: width 256, 8 layers, 8 windows of 512, forward + backward, {rounds} interleaved rounds; float32, "
        f"{torch.get_num_threads()} threads",
        {
            "slope_ratio": "<= 0.01",
            "total_ratio_24": "<= 0.35",
            "time_ratio": "<= 1.4",
            "time_over_checkpoint": "<= 1",
            "gradients_equal": ">= 1",
        },
    )
    bits_BT = torch.randint(0, 2, (8, 8 * 256))
    slopes = {}
    for kind in KINDS:
        saved = [saved_for_backward(lambda: model(kind, layers).nll(bits_BT).mean()) for layers in DEPTHS]  # noqa: B023
        slopes[kind] = slope(saved)
        by_depth = ", ".join(f"{layers}: {size / 1e6:.1f}" for layers, size in zip(DEPTHS, saved, strict=True))
        report.row(f"{kind}: MB saved for backward, by depth", f"{by_depth}   {slopes[kind] / 1e6:.3f} a layer")

    layers, batch = 24, 2 if quick else 16
    peaks = {}
    for kind, fields in KINDS.items():
        shape = {"d_model": 256, "nhead": 8, "num_layers": layers, "max_seq_len": 8 * 512, **fields}
        order = {"steps": 1, "batch_size": batch, "amp": False}
        peaks[kind] = footprint(shape, order)["peak"]
        default = footprint(shape, order, environment=DEFAULT_ALLOCATOR)["peak"]
        report.row(
            f"{kind}: GB of a training at {layers} layers",
            f"{peaks[kind] / 1e9:.2f}   {peaks[kind] / peaks['plain']:.2f} of plain   (allocator as it comes: {default / 1e9:.2f})",
        )

    nets = {kind: model(kind, 8, width=256, context=512) for kind in KINDS}
    long_BT = torch.randint(0, 2, (8, 8 * 512))

    def step(kind: str) -> None:
        nets[kind].nll(long_BT).mean().backward()
        nets[kind].zero_grad(set_to_none=True)

    seconds = harness.interleaved({kind: lambda kind=kind: step(kind) for kind in KINDS}, rounds)
    ratios = {kind: harness.ratio(seconds[kind], seconds["plain"]) for kind in KINDS}
    for kind in ("checkpoint", "reversible"):
        middle, low, high = ratios[kind]
        report.row(
            f"{kind}: time of a step over plain", f"{middle:.2f}   (half of the rounds within {low:.2f} to {high:.2f})"
        )

    cases = [(n, amp, p) for n in (2, 12, 32) for amp in (False, True) for p in (0.0, 0.1)]
    found = [equal(*case) for case in cases]
    report.row("gradients equal the stored ones, bit for bit", f"{sum(found)} of {len(found)} networks")
    report.figures = {
        "slope_ratio": slopes["reversible"] / slopes["plain"],
        "total_ratio_24": peaks["reversible"] / peaks["plain"],
        "time_ratio": ratios["reversible"][0],
        "checkpoint_time_ratio": ratios["checkpoint"][0],
        "time_over_checkpoint": harness.ratio(seconds["reversible"], seconds["checkpoint"])[0],
        "gradients_equal": float(all(found)),
    }
    if quick:  # of so small a batch, weights and optimizer are most of the total
        report.leave_out("total_ratio_24")
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
