"""How fast are run lengths of bits coded and read back, at a mean run of 32 bits?"""

from __future__ import annotations

import harness
import numpy as np

from bit_transformer.compression import compress_bits, decompress_bits


def main(quick: bool) -> int:
    """Measure."""
    rows, bits, rounds = 16, (1 << 18 if quick else 1 << 21), (3 if quick else 9)
    report = harness.Report(
        "rle",
        f"{rows} rows of {bits:,} bits, one byte each, runs of a geometric distribution of mean 32; {rounds} rounds",
        {"bytes_per_s": ">= 1e8"},
    )
    random = np.random.default_rng(0)
    made = []
    for _ in range(rows):
        lengths = random.geometric(1 / 32, bits // 16)
        made.append(np.repeat(np.arange(len(lengths)) & 1, lengths)[:bits].astype(np.uint8))
    bits_BT = np.stack(made)
    codes = compress_bits(bits_BT)
    assert np.array_equal(decompress_bits(codes), bits_BT)
    seconds = harness.interleaved(
        {"code": lambda: compress_bits(bits_BT), "back": lambda: decompress_bits(codes)}, rounds
    )
    speed = {name: bits_BT.size / sorted(times)[len(times) // 2] for name, times in seconds.items()}
    for name, value in speed.items():
        report.row(name, f"{value / 1e6:,.0f} million bits a second")
    report.row("size over packed bits", f"{8 * sum(map(len, codes)) / bits_BT.size:.3f}")
    report.figures = {"bytes_per_s": min(speed.values()), "size_over_packed": 8 * sum(map(len, codes)) / bits_BT.size}
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
