"""Bytes to bits and back, on one core."""

from __future__ import annotations

import harness
import numpy as np

from bit_transformer.bit_io import bits_to_bytes, bytes_to_bits


def main(quick: bool) -> int:
    """Measure."""
    megabytes, rounds = (8, 3) if quick else (32, 9)
    data = np.random.default_rng(0).bytes(megabytes * 1_000_000)
    report = harness.Report(
        "bit-io",
        f"{megabytes} MB of noise, {rounds} interleaved rounds, median",
        {f"{way}_mb_per_s": ">= 100" for way in ("to_bits", "to_bytes", "to_bits_parity", "to_bytes_parity")},
    )
    plain, parity = bytes_to_bits(data), bytes_to_bits(data, parity=True)
    times = harness.interleaved(
        {
            "to_bits": lambda: bytes_to_bits(data),
            "to_bytes": lambda: bits_to_bytes(plain),
            "to_bits_parity": lambda: bytes_to_bits(data, parity=True),
            "to_bytes_parity": lambda: bits_to_bytes(parity, parity=True),
        },
        rounds,
    )
    report.figures = {f"{name}_mb_per_s": megabytes / sorted(each)[len(each) // 2] for name, each in times.items()}
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
