"""How fast is batch-1 cached generation beside `GPT2LMHeadModel.generate` of the same shape, and with everything that preset tiny has?"""

from __future__ import annotations

import harness
import torch
from peers import gpt2_over_bytes

from bit_transformer.config import Sampling
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.model import BitTransformerLM

WIDTH, HEADS, LAYERS, CONTEXT = 128, 4, 4, 512
EXPERT_BYTES = 2048


def main(quick: bool) -> int:
    """Measure."""
    count, rounds = (64, 3) if quick else (384, 9)
    report = harness.Report(
        "decode",
        f"width {WIDTH}, {LAYERS} layers, {HEADS} heads, window {CONTEXT} bytes, batch 1, {count} bytes sampled at temperature 1 "
        f"after a prompt of 32, cached, float32, {torch.get_num_threads()} threads, {rounds} interleaved rounds",
        {"speed_ratio": ">= 40", "bytes_per_s_experts": ">= 10000"},
    )
    ours = BitTransformerLM(d_model=WIDTH, nhead=HEADS, num_layers=LAYERS, max_seq_len=8 * CONTEXT).eval()
    peer = gpt2_over_bytes(WIDTH, HEADS, LAYERS, CONTEXT).eval()
    full = BitTransformerLM.of_preset("tiny").eval()
    prompt = bytes(range(32, 64))
    prompt_1L = torch.tensor([list(prompt)])
    seen = torch.ones_like(prompt_1L)

    def theirs() -> None:
        with torch.inference_mode():
            out = peer.generate(
                prompt_1L,
                attention_mask=seen,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=True,
                top_k=0,
                use_cache=True,
            )
        assert out.shape[1] == len(prompt) + count

    def mine() -> None:
        (out,) = generate_bytes(ours, [prompt], count, Sampling(seed=0))
        assert len(out) == count

    def with_experts() -> None:
        (out,) = generate_bytes(full, [prompt], EXPERT_BYTES, Sampling(seed=0))
        assert len(out) == EXPERT_BYTES

    seconds = harness.interleaved({"ours": mine, "gpt2": theirs, "preset tiny, with experts": with_experts}, rounds)
    middle, low, high = harness.ratio(seconds["gpt2"], seconds["ours"])
    speed = {}
    for name, times in seconds.items():
        made = EXPERT_BYTES if "experts" in name else count
        speed[name] = made / sorted(times)[len(times) // 2]
        report.row(f"{name} bytes/s (median)", f"{speed[name]:,.0f}   {1e3 / speed[name]:.3f} ms a byte")
    report.row("speed ratio, half of the rounds within", f"{low:.2f} to {high:.2f}")
    report.figures = {"speed_ratio": middle, "bytes_per_s_experts": speed["preset tiny, with experts"]}
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
