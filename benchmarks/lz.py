"""How fast are Lempel-Ziv phrases counted, beside antropy, and does the time grow with the length alone?

Fair coins, the hardest case for the memory: 10^5 bits beside `antropy.lziv_complexity`, interleaved, the same counts; then
10^4 to 10^7 bits, the exponent by least squares of log time on log length. Text beside it.
"""

from __future__ import annotations

import math
import statistics
import time

import harness
import numpy as np

from bit_transformer.extras import require
from bit_transformer.telemetry.lempel_ziv import count_phrases

SHORT = 100_000


def seconds(bits_1T: np.ndarray, rounds: int) -> float:
    """The best of some rounds: what disturbs only adds."""
    best = math.inf
    for _ in range(rounds):
        began = time.perf_counter()
        count_phrases(bits_1T)
        best = min(best, time.perf_counter() - began)
    return best


def exponent(times: dict[int, float]) -> float:
    """Slope of log time on log length."""
    slope, _ = statistics.linear_regression([math.log(n) for n in times], [math.log(t) for t in times.values()])
    return slope


def main(quick: bool) -> int:
    """Print the table."""
    antropy = require("antropy", extra="bench", purpose="the benchmark of Lempel-Ziv phrases")
    lengths = [10**p for p in range(4, 7 if quick else 8)]
    coins = np.random.default_rng(0).integers(0, 2, (1, lengths[-1]), dtype=np.uint8)
    _, text, _ = harness.text_corpus()
    enough = text.read(0, lengths[-1] // 8)
    words = np.unpackbits(enough)[None]
    report = harness.Report(
        "lz",
        f"fair coins; {SHORT:,} bits beside antropy, {2 if quick else 5} interleaved rounds; growth from {lengths[0]:,} to "
        f"{lengths[-1]:,} bits, best of three; one thread",
        {"speed_ratio_antropy": ">= 10"},
    )
    short = coins[:, :SHORT]
    assert count_phrases(short)[0] == antropy.lziv_complexity(short[0]), "the counts must agree"
    spent = harness.interleaved(
        {"ours": lambda: count_phrases(short), "antropy": lambda: antropy.lziv_complexity(short[0])}, 2 if quick else 5
    )
    report.figures["speed_ratio_antropy"] = harness.ratio(spent["antropy"], spent["ours"])[0]
    for name, times in spent.items():
        report.row(f"{name}, {SHORT:,} bits", f"{statistics.median(times) * 1e3:,.2f} ms")
    for name, bits in (("fair coins", coins), ("text", words)):
        times = {n: seconds(bits[:, :n], 3) for n in lengths if n <= bits.shape[1]}
        for n, best in times.items():
            report.row(f"{name}, {n:,} bits", f"{best / n * 1e9:.0f} ns a bit")
        report.figures["growth_exponent" if name == "fair coins" else "growth_exponent_text"] = exponent(times)
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
