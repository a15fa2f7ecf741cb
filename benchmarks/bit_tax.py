"""Do bits cost anything? Training speed and loss of bit patches beside a byte model of the same shape.

Width 128, 4 layers, 4 heads, 256 bytes of context for both; forward and backward over the same batch, interleaved; then
both trained on the same bytes in the same order by the same optimizer at the same rates, and scored on held-out bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import harness
import numpy as np
import torch
from peers import gpt2_over_bytes
from torch import Tensor, nn

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import Corpus
from bit_transformer.data.windows import CorpusWindows
from bit_transformer.model import BitTransformerLM

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 128, 4, 4, 256, 16
LEARNING_RATES = (1e-3, 3e-3)


def ours() -> BitTransformerLM:
    """Bare bit patches: no n-gram embeddings, which the peer has not."""
    return BitTransformerLM(d_model=WIDTH, nhead=HEADS, num_layers=LAYERS, max_seq_len=8 * CONTEXT, patch_bits=8)


def our_nats(model: nn.Module, byte_BL: Tensor) -> Tensor:
    """Mean nats of a byte; the first byte of a window, which GPT-2 cannot predict, is left out."""
    assert isinstance(model, BitTransformerLM)
    bits_BT = torch.from_numpy(bytes_to_bits(byte_BL.numpy()))
    return model.nll(bits_BT)[:, 8:].sum() / byte_BL[:, 1:].numel()


def peer_nats(model: nn.Module, byte_BL: Tensor) -> Tensor:
    """Mean nats of a byte after the first."""
    return model(byte_BL.long(), labels=byte_BL.long()).loss


def backward(model: nn.Module, nats: Callable[[nn.Module, Tensor], Tensor], byte_BL: Tensor) -> None:
    """One forward and backward."""
    nats(model, byte_BL).backward()
    model.zero_grad(set_to_none=True)


def batch(corpus: Corpus, place: int) -> Tensor:
    """The same windows for both."""
    windows = CorpusWindows(corpus, CONTEXT, seed=1)
    windows.load_state_dict({"epoch": place * BATCH // len(windows), "drawn": place * BATCH % len(windows)}, {})
    return torch.from_numpy(np.packbits(windows.draw(BATCH).bits_BT.numpy(), axis=1))


def trained_bpb(
    model: nn.Module, nats: Callable[..., Tensor], rate: float, train: Corpus, held: Corpus, steps: int
) -> float:
    """Bits per byte on held-out windows after `steps` updates."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    for step in range(steps):
        nats(model, batch(train, step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        plan.step()
    model.eval()
    with torch.no_grad():
        costs = [nats(model, batch(held, place)).item() for place in range(min(16, len(held) // (BATCH * CONTEXT)))]
    return sum(costs) / len(costs) / math.log(2)


def main(quick: bool) -> int:
    """Measure."""
    corpus, train, held = harness.text_corpus()
    rounds, steps = 8 if quick else 40, 250
    report = harness.Report(
        "bit-tax",
        f"width {WIDTH}, {LAYERS} layers, {HEADS} heads, context {CONTEXT} bytes, batch {BATCH}, forward + backward, "
        f"{torch.get_num_threads()} threads, {rounds} interleaved rounds"
        + ("" if quick else f"; then {steps} updates of AdamW on {corpus}, best of rates {LEARNING_RATES} for each"),
        {"throughput_ratio": ">= 1.3", "loss_difference_bpb": "<= 0"},
    )
    byte_BL = batch(train, 0)
    mine, theirs = ours(), gpt2_over_bytes(WIDTH, HEADS, LAYERS, CONTEXT)
    seconds = harness.interleaved(
        {"ours": lambda: backward(mine, our_nats, byte_BL), "gpt2": lambda: backward(theirs, peer_nats, byte_BL)},
        rounds,
    )
    middle, low, high = harness.ratio(seconds["gpt2"], seconds["ours"])
    for name, times in seconds.items():
        report.row(f"{name} bytes/s (median)", f"{byte_BL.numel() / sorted(times)[len(times) // 2]:,.0f}")
    report.row("throughput ratio, half of the rounds within", f"{low:.2f} to {high:.2f}")
    report.figures = {"throughput_ratio": middle}
    if quick:  # a dozen updates say which model starts better, not which learns better
        report.leave_out("loss_difference_bpb")
        return report.finish()
    found: dict[str, float] = {}
    for name, build, nats in (
        ("ours", ours, our_nats),
        ("gpt2", lambda: gpt2_over_bytes(WIDTH, HEADS, LAYERS, CONTEXT), peer_nats),
    ):
        each: list[float] = []
        for rate in LEARNING_RATES:
            torch.manual_seed(0)
            each.append(trained_bpb(build(), nats, rate, train, held, steps))
            report.row(f"{name} held-out bpb after {steps * BATCH * CONTEXT:,} bytes, rate {rate:g}", f"{each[-1]:.3f}")
        found[name] = min(each)
    report.figures["loss_difference_bpb"] = found["ours"] - found["gpt2"]
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
