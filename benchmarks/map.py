"""Whether surprise marks damage: windows of files that are damaged in known places, by surprise and by entropy.

Experts alone read one megabyte of each file, forwards and backwards, without having seen anything before. A window of 32 bytes is scored by its peak
and twice its mean, of the mean of both costs; beside it, Shannon's entropy of its bytes, which `binwalk -E` and hex editors draw. The area under the
curve (AUC) is the probability that a damaged window scores higher than an intact one. Damage:

- flips: of 1 bit in 10,000;
- overwritten: 64 bytes by bytes drawn from the same file, so that the histogram stays;
- shifted: 256 bytes whose bits come one bit late, as from a serial line that lost one;
- swapped: two pages of 512 bytes change places (what is in them is intact: only the seams can be seen).

Then damage is looked for as `locate` does, at a known rate of false alarms: blocks of a larger file are clean and damaged in turn.
"""

from __future__ import annotations

import glob
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from numpy.typing import NDArray

from bit_transformer.data.sources import stdlib_files, whole_files
from bit_transformer.surprisal.mapping import judged as judge
from bit_transformer.surprisal.reading import BankReader, Bytes, Costs

SIZE, WINDOW = 1 << 20, 32
FLIP_RATE, PLACES = 1e-4, 16
GOALS = {("flips", "text"), *((kind, file) for kind in ("overwritten", "shifted") for file in ("xml", "text", "code"))}
LEAST_AUC, LEAST_RATE = 0.95, 0.5
FALSE_ALARMS = 4.0
BLOCK, NEAR = (
    1 << 16,
    16,
)  # bytes of the blocks that are clean and damaged in turn; between what was damaged and what is reported
LOCATED = 3 << 20  # bytes of each file
Damaged = tuple[Bytes, NDArray[np.bool_]]


def main(quick: bool) -> int:
    """Measure."""
    files = sources()
    measured = list(files)[:1] if quick else list(files)
    goals = {f"auc_model {kind} {name}": f">= {LEAST_AUC}" for kind, name in sorted(GOALS) if name in measured}
    report = harness.Report(
        "map",
        f"experts alone, both ways, {SIZE:,} bytes of each file; windows of {WINDOW} bytes; {os.cpu_count()} cores",
        goals | {"mb_per_s": f">= {LEAST_RATE}"},
    )
    report.row("files", f"{', '.join(files)} (xml, mr, ooffice: where BTLM_DATA_DIR has the Silesia corpus)")
    seconds, read = 0.0, 0
    ours, entropies = list[float](), list[float]()
    for name in measured:
        data = files[name]
        for kind, damage in DAMAGE.items():
            draw = np.random.default_rng(1)
            damaged, wrong_N = damage(data, draw)
            began = time.perf_counter()
            costs = BankReader().costs(damaged)
            seconds, read = seconds + time.perf_counter() - began, read + len(damaged)
            wrong_W = np.logical_or.reduce(wrong_N[: len(wrong_N) // WINDOW * WINDOW].reshape(-1, WINDOW), axis=1)
            model, entropy = auc(misfit(costs), wrong_W), auc(entropy_of(damaged), wrong_W)
            ours, entropies = [*ours, model], [*entropies, entropy]
            report.figures |= {f"auc_model {kind} {name}": model, f"auc_entropy {kind} {name}": entropy}
            report.row(f"{kind:12} {name:8}", f"AUC {model:.3f}, entropy {entropy:.3f}")
    report.figures |= {
        "auc_model": float(np.mean(ours)),
        "auc_entropy": float(np.mean(entropies)),
        "mb_per_s": read / seconds / 1e6,
    }
    if not quick:
        located(report, sources(("text", "code", "xml", "elf"), LOCATED))
    return report.finish()


def located(report: harness.Report, files: dict[str, Bytes]) -> None:
    """How much damage is found at a known rate of false alarms, and how many there really are."""
    for name, data in files.items():
        blocks = [data[b : b + BLOCK] for b in range(0, len(data), BLOCK)]
        judged = np.concatenate(blocks[3::4])
        halves = [np.concatenate(blocks[0::4]), np.concatenate([*blocks[1::4], *blocks[2::4]])]
        damaged, places = _all_kinds(judged)
        folds = [(halves[0], BankReader([halves[1]])), (halves[1], BankReader([halves[0]]))]
        reader = BankReader(halves)
        found, limits = judge(damaged, reader.costs(damaged), reader, folds, FALSE_ALARMS)
        shown, hit = [], 0
        for kind in sorted({kind for _, _, kind in places}):
            of_kind = [(b, e) for b, e, k in places if k == kind]
            there = [any(d.begin < e + NEAR and b < d.begin + d.length + NEAR for d in found) for b, e in of_kind]
            named = [
                any(d.begin < e + NEAR and b < d.begin + d.length + NEAR and d.kind == kind for d in found)
                for b, e in of_kind
            ]
            hit += sum(there)
            report.figures |= {
                f"found {kind} {name}": float(np.mean(there)),
                f"named {kind} {name}": float(np.mean(named)),
            }
            shown.append(f"{kind} {np.mean(there):.0%} (so named {np.mean(named):.0%})")
        false = sum(not any(d.begin < e + NEAR and b < d.begin + d.length + NEAR for b, e, _ in places) for d in found)
        alarms = false / (len(damaged) / 1e6)
        report.figures[f"false {name}"] = alarms
        low, high = limits.between
        report.row(
            f"locate in {name}",
            f"found: {', '.join(shown)}; false alarms per MB {alarms:.1f}, expected {limits.false_alarms:.1f} ({low:.1f} to {high:.1f})",
        )


def _all_kinds(data: Bytes) -> tuple[Bytes, list[tuple[int, int, str]]]:
    """Single flips, 64 overwritten bytes, 256 shifted ones, 64 zeros: a hundred places, a quarter of each."""
    draw = np.random.default_rng(2)
    made, places = data.copy(), list[tuple[int, int, str]]()
    for index, start in enumerate(draw.choice(len(data) // 2048 - 1, 100, replace=False).tolist()):
        begin = start * 2048 + int(draw.integers(0, 1024))
        kind = ("flips", "overwritten", "shifted", "zeros")[index % 4]
        if kind == "flips":
            made[begin] ^= 1 << int(draw.integers(8))
        elif kind == "zeros":
            made[begin : begin + 64] = 0
        else:
            (_overwrite if kind == "overwritten" else _shift)(made, data, begin, draw)
        places.append((begin, begin + {"flips": 1, "overwritten": 64, "shifted": 256, "zeros": 64}[kind], kind))
    return made, places


def sources(
    names: tuple[str, ...] = ("text", "code", "elf", "xml", "ooffice", "mr"), size: int = SIZE
) -> dict[str, Bytes]:
    """The middle of each file that is here."""
    text = b"\n\n".join(
        Path(p).read_bytes() for p in sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/pydoc_data/*.py"))
    )
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(sysconfig.get_config_var("LDLIBRARY"))
    python = Path(sys.executable).resolve()
    elf = library if library.is_file() and library.stat().st_size > python.stat().st_size else python
    code = whole_files(stdlib_files())
    found = {
        "text": np.frombuffer(text, dtype=np.uint8),
        "code": code.read(0, len(code)),
        "elf": np.fromfile(elf, dtype=np.uint8),
    }
    folder = os.environ.get("BTLM_DATA_DIR")
    for name, file in (("text", "dickens"), ("xml", "xml"), ("ooffice", "ooffice"), ("mr", "mr")):
        if folder and (Path(folder) / file).is_file():
            found[name] = np.fromfile(Path(folder) / file, dtype=np.uint8)
    return {name: _middle(found[name], size) for name in names if name in found}


def _middle(data: Bytes, size: int) -> Bytes:
    begin = max(0, (len(data) - size) // 2)
    return data[begin : begin + size].copy()


def flips(data: Bytes, draw: np.random.Generator) -> Damaged:
    """1 bit in 10,000."""
    made, wrong = data.copy(), np.zeros(len(data), dtype=bool)
    at = draw.choice(8 * len(data), round(8 * len(data) * FLIP_RATE), replace=False)
    np.bitwise_xor.at(made, at // 8, (128 >> (at % 8)).astype(np.uint8))
    wrong[at // 8] = True
    return made, wrong


def _in_places(size: int, change: Callable[[Bytes, Bytes, int, np.random.Generator], None]) -> Callable[..., Damaged]:
    def damage(data: Bytes, draw: np.random.Generator) -> Damaged:
        made, wrong = data.copy(), np.zeros(len(data), dtype=bool)
        for start in draw.choice(len(data) // 2048 - 1, PLACES, replace=False).tolist():
            begin = start * 2048 + int(draw.integers(0, 1024))
            change(made, data, begin, draw)
            wrong[begin : begin + size] = True
        return made, wrong

    return damage


def _overwrite(made: Bytes, data: Bytes, begin: int, draw: np.random.Generator) -> None:
    made[begin : begin + 64] = draw.choice(data, 64)


def _shift(made: Bytes, data: Bytes, begin: int, draw: np.random.Generator) -> None:
    made[begin : begin + 256] = np.packbits(np.roll(np.unpackbits(data[begin : begin + 256]), 1))


def swapped(data: Bytes, draw: np.random.Generator) -> Damaged:
    """Pairs of pages change places."""
    made, wrong = data.copy(), np.zeros(len(data), dtype=bool)
    start = draw.choice(len(data) // 512 - 1, PLACES, replace=False) * 512
    for a, b in start.reshape(-1, 2).tolist():
        made[a : a + 512], made[b : b + 512] = data[b : b + 512], data[a : a + 512]
        wrong[a : a + 512] = wrong[b : b + 512] = True
    return made, wrong


DAMAGE: dict[str, Callable[..., Damaged]] = {
    "flips": flips,
    "overwritten": _in_places(64, _overwrite),
    "shifted": _in_places(256, _shift),
    "swapped": swapped,
}


def misfit(costs: Costs) -> NDArray[np.float64]:
    """A score of each window of 32 bytes."""
    cost_WK = costs.mean[: len(costs.mean) // WINDOW * WINDOW].reshape(-1, WINDOW).astype(np.float64)
    made: NDArray[np.float64] = cost_WK.max(1) + 2 * cost_WK.mean(1)
    return made


def entropy_of(data: Bytes) -> NDArray[np.float64]:
    """Shannon's entropy of the bytes of each window, in bits per byte."""
    made = []
    for row in data[: len(data) // WINDOW * WINDOW].reshape(-1, WINDOW):
        count = np.unique(row, return_counts=True)[1] / WINDOW
        made.append(-(count * np.log2(count)).sum())
    return np.array(made)


def auc(score_W: NDArray[np.float64], wrong_W: NDArray[Any]) -> float:
    """The probability that a damaged window scores higher than an intact one; ties count half."""
    _, place, count = np.unique(score_W, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    bad, good = int(wrong_W.sum()), int((~wrong_W).sum())
    return float((rank[wrong_W].sum() - bad * (bad + 1) / 2) / (bad * good))


if __name__ == "__main__":
    harness.run(main, __doc__)
