"""Repair by checksums: files of 64 KiB with one to four flipped bits, and only the CRC-32 or the SHA-256 of what they were.

Experts alone read each file, without having seen anything before; the checksum decides. A file counts as solved if the likeliest change that passes is
the right one. It counts as written if the command would write it: with CRC-32 alone only if it is right with a probability of 99 %, by its own account.
Wrong is what was written and is not the original: with CRC-32 alone, and with a SHA-256 as well.

Blind enumeration tries sets of flips in any order: its rank is half of all sets of that size.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import math
import os
import statistics
import sys
import sysconfig
import time
import unicodedata
import zlib
from pathlib import Path

import harness
import numpy as np
from numpy.typing import NDArray

from bit_transformer.data.sources import stdlib_files, whole_files
from bit_transformer.proof.checks import Check, parse_proof
from bit_transformer.proof.edits import flips
from bit_transformer.proof.solve import Outcome, Priors, solve
from bit_transformer.surprisal.opinion import Opinion
from bit_transformer.surprisal.proved import JUDGED
from bit_transformer.surprisal.reading import BankReader, Bytes

SIZE, FILES, BY_HASH = 1 << 16, 200, 40
MINUTE = 60.0
GOALS = {
    "solved_2_flips": ">= 0.99",
    "solved_4_flips": ">= 0.95",
    "seconds_median": "<= 5",
    "wrong": "<= 0",
    "solved_by_hash": ">= 0.9",
}


def main(quick: bool) -> int:
    """Measure."""
    kinds = sources()
    count = 4 if quick else FILES
    report = harness.Report(
        "proof",
        f"{count} files of {SIZE:,} bytes ({', '.join(kinds)}), one to four flips; experts alone; {os.cpu_count()} cores",
        dict(GOALS),
    )
    solved: dict[int, list[bool]] = {k: [] for k in (1, 2, 3, 4)}
    written: dict[int, list[bool]] = {k: [] for k in (1, 2, 3, 4)}
    seconds, wrong, wrong_alone = list[float](), 0, 0
    by_kind: dict[str, list[bool]] = {kind: [] for kind in kinds}
    hashed = list[tuple[bool, float, float, float]]()
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        many = number // len(kinds) % 4 + 1
        draw = np.random.default_rng(number)
        start = int(draw.integers(0, len(kinds[kind]) - SIZE))
        whole = kinds[kind][start : start + SIZE]
        bits = draw.choice(8 * SIZE, many, replace=False)
        damaged = whole.copy()
        np.bitwise_xor.at(damaged, bits // 8, (128 >> (bits % 8)).astype(np.uint8))
        right = whole.tobytes()
        crc = parse_proof(f"crc32:{zlib.crc32(right):08x}", SIZE)
        digest = parse_proof(f"sha256:{hashlib.sha256(right).hexdigest()}", SIZE)
        began = time.perf_counter()
        opinion = Opinion(damaged, BankReader())
        read = time.perf_counter() - began
        found = _solve(damaged, [crc], opinion)
        seconds.append(time.perf_counter() - began)
        first = found.solutions[0].edits if found.solutions else ()
        truth = flips(damaged.tobytes(), bits.tolist())
        solved[many].append(first == truth)
        by_kind[kind].append(first == truth)
        written[many].append(found.proved is not None)
        wrong_alone += found.proved is not None and found.proved != right
        both = _solve(damaged, [crc, digest], opinion)
        wrong += both.proved is not None and both.proved != right
        if many == 2 and len(hashed) < BY_HASH:
            began = time.perf_counter()
            alone = _solve(damaged, [digest], opinion)
            took = read + time.perf_counter() - began
            hashed.append((alone.proved == right and took <= MINUTE, took, _rank(opinion, bits), alone.tried))
        print(f"\r{number + 1} of {count}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for many, rows in solved.items():
        if rows:
            report.figures[f"solved_{many}_flip{'s' * (many > 1)}"] = float(np.mean(rows))
            report.row(
                f"{many} flip{'s' * (many > 1)}, CRC-32",
                f"the likeliest is right: {np.mean(rows):.1%} of {len(rows)}; written by its own account: {np.mean(written[many]):.1%}",
            )
    for kind, rows in by_kind.items():
        report.row(f"of {kind}", f"{np.mean(rows):.1%} of {len(rows)}" if rows else "-")
    sets = math.comb(8 * SIZE, 2)
    ranks = [max(1.0, rank) for _, _, rank, _ in hashed]
    report.figures |= {
        "seconds_median": statistics.median(seconds),
        "wrong": float(wrong),
        "wrong_crc32_alone": float(wrong_alone),
    }
    report.row("seconds", f"median {statistics.median(seconds):.1f}, most {max(seconds):.1f}")
    if hashed:
        report.figures |= {
            "solved_by_hash": float(np.mean([good for good, *_ in hashed])),
            "rank_of_truth_median": statistics.median(ranks),
            "speedup_over_blind": sets / 2 / statistics.median(ranks),
        }
        report.row(
            "2 flips, SHA-256 alone",
            f"{np.mean([good for good, *_ in hashed]):.1%} of {len(hashed)} within a minute; median {statistics.median(t for _, t, _, _ in hashed):.1f} s; "
            f"rank of the truth: median {statistics.median(ranks):,.0f}, most {max(ranks):,.0f}; blind: {sets / 2:,.0f}",
        )
    if quick:
        report.leave_out(
            *(key for key in ("solved_4_flips", "solved_2_flips", "solved_by_hash") if key in report.goals)
        )
    return report.finish()


def _solve(damaged: Bytes, checks: list[Check], opinion: Opinion) -> Outcome:
    return solve(
        damaged.tobytes(),
        checks,
        opinion.odds_N8,
        opinion.judge,
        surprise_N=opinion.surprise_N,
        priors=Priors(flip=opinion.prior),
        judged=JUDGED,
        seconds=MINUTE,
        threads=os.cpu_count() or 1,
    )


def _rank(opinion: Opinion, bits: NDArray[np.int64]) -> float:
    """How many pairs of flips are at least as likely as these."""
    odds = np.sort(opinion.odds_N8.ravel().astype(np.float64))[::-1]
    total = float(opinion.odds_N8.ravel()[bits].astype(np.float64).sum())
    partners = np.searchsorted(-odds, -(total - odds), side="right")  # for each first flip, how many second ones
    return float(np.maximum(0, partners - np.arange(len(odds)) - 1).sum())


def sources() -> dict[str, Bytes]:
    """Data of four kinds, as far as it is here."""
    text = b"\n\n".join(
        Path(p).read_bytes() for p in sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/pydoc_data/*.py"))
    )
    code = whole_files(stdlib_files())
    found = {
        "text": np.frombuffer(text, dtype=np.uint8),
        "code": code.read(0, len(code)),
        "csv": np.frombuffer(_table(), dtype=np.uint8),
    }
    folder = os.environ.get("BTLM_DATA_DIR")
    for name, file in (("text", "dickens"), ("xml", "xml")):
        if folder and (Path(folder) / file).is_file():
            found[name] = np.fromfile(Path(folder) / file, dtype=np.uint8)
    return found


def _table() -> bytes:
    """The characters of Unicode as Python knows them, as CSV."""
    out = io.StringIO()
    rows = csv.writer(out)
    for code in range(32, 0x20000):
        letter = chr(code)
        name = unicodedata.name(letter, "")
        if name:
            about = unicodedata.category(letter), unicodedata.bidirectional(letter), unicodedata.combining(letter)
            rows.writerow(
                [f"{code:04X}", name, *about, unicodedata.decomposition(letter), unicodedata.numeric(letter, "")]
            )
    return out.getvalue().encode()


if __name__ == "__main__":
    harness.run(main, __doc__)
