"""How much degenerate output does the gate stop, at one false alarm in a hundred? Beside two baselines of one line each.

A model with experts is trained on the first third of a text. The rest, in blocks of 64 KiB, is reference by turns: for calibration, and
for the test. Degenerate windows are made from test text, from other files, and by the model itself; AUROC is that of
telling them from test windows of the same length. The gate has one score for all kinds, its margin; every other column may
choose for each row which direction is bad, which flatters it. Stopped: below the calibrated floors.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import harness
import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ModelConfig, Sampling
from bit_transformer.data.sources import Corpus, Span, bytes_corpus, named_file, split, stdlib_files
from bit_transformer.errors import BitTransformerError
from bit_transformer.generation import generate_bytes
from bit_transformer.model import BitTransformerLM
from bit_transformer.presets import preset
from bit_transformer.safety import Reference, SafetyGate, calibrate
from bit_transformer.safety.calibration import Calibration
from bit_transformer.safety.reference import Vitals
from bit_transformer.training import train_loop

LENGTHS = (32, 128, 512, 2048)
ALPHA, BLOCK, BETWEEN = 0.01, 1 << 16, 200
Windows = NDArray[np.uint8]  # (N, L) bytes, or (N, T) bits where parity is wrong


@dataclass
class Setting:
    """A gate and what it was made from."""

    config: ModelConfig
    reference: Reference
    calibration: Calibration


def text_parts() -> tuple[str, Corpus, Corpus, Corpus]:
    """Dickens where it can be had, else the standard library: for training, calibration, test."""
    try:
        path = named_file("dickens")
        size = path.stat().st_size
        first = size // 3 // BLOCK * BLOCK
        name, train, rest = "dickens", Corpus([Span(path, 0, first)]), Corpus([Span(path, first, size)])
    except BitTransformerError:
        name, (train, rest) = "stdlib", split(stdlib_files(), "file", 0.6)
    blocks = [rest.part(start, start + BLOCK) for start in range(0, len(rest) - BLOCK, BLOCK)]
    halves = [Corpus(span for block in blocks[turn::2] for span in block.spans) for turn in (0, 1)]
    return name, train, halves[0], halves[1]


def other_files() -> dict[str, Corpus]:
    """What is not English prose, as far as it can be had."""
    found: dict[str, Corpus] = {}
    for kind, name in {"an executable": "ooffice", "a medical image": "mr", "XML": "xml", "Polish": "reymont"}.items():
        try:
            path = named_file(name)
            found[kind] = Corpus([Span(path, 0, path.stat().st_size)])
        except BitTransformerError:
            continue
    if "Polish" not in found and (german := german_pages()) is not None:
        found["German"] = german
    return found


def german_pages() -> Corpus | None:
    """Manual pages in German, where the system has them."""
    pages = sorted(glob.glob("/usr/share/man/de/man*/*.gz"))
    text = b"".join(gzip.decompress(Path(page).read_bytes()) for page in pages)
    if len(text) < 1 << 18:
        return None
    return bytes_corpus(text)


def windows(corpus: Corpus, length: int, count: int, random: np.random.Generator) -> Windows:
    """Windows that do not overlap, at random places; fewer where there is no room."""
    places = random.permutation(len(corpus) // length)[:count]
    return np.stack([corpus.read(int(place) * length, length) for place in places])


def made_of_text(random: np.random.Generator) -> dict[str, Callable[[Windows], Windows]]:
    """Degenerations of windows of text."""

    def each(change: Callable[[Windows], Windows], text: Windows) -> Windows:
        return np.stack([change(row) for row in text])

    def phrase(row: Windows) -> Windows:
        begin, size = random.integers(0, max(1, len(row) - 20)), random.integers(4, 21)
        return np.resize(row[begin : begin + size], len(row))

    return {
        "one byte, again and again": lambda text: np.repeat(text[:, :1], text.shape[1], axis=1),
        "a phrase of 4 to 20 bytes, again and again": partial(each, phrase),
        "a constant bit": lambda text: np.repeat(random.choice([0, 255], (len(text), 1)), text.shape[1], 1).astype(
            np.uint8
        ),
        "noise": lambda text: random.integers(0, 256, text.shape, dtype=np.uint8),
        "text, bits shuffled": partial(each, lambda row: np.packbits(random.permutation(np.unpackbits(row)))),
        "text, bytes shuffled": partial(each, random.permutation),
    }


def own_output(model: BitTransformerLM, test: Corpus, count: int, random: np.random.Generator) -> dict[str, Windows]:
    """What the model itself says far too hot, and where it ends up with temperature 0."""
    prompts = [row.tobytes() for row in windows(test, 64, count, random)]
    longest = LENGTHS[-1]
    hot = generate_bytes(model, prompts, longest, Sampling(temperature=3, seed=1))
    cold = generate_bytes(model, prompts, longest + 512, Sampling(temperature=0))
    return {
        "own samples, temperature 3": np.stack([np.frombuffer(text[:longest], np.uint8) for text in hot]),
        "own loops, temperature 0": np.stack([np.frombuffer(text[-longest:], np.uint8) for text in cold]),
    }


def wrong_parity(text: Windows, random: np.random.Generator) -> NDArray[np.uint8]:
    """Bits of text with parity, of which one byte in twenty, one at least, has it wrong."""
    bits = bytes_to_bits(text, parity=True).reshape(len(text), -1, 9).copy()
    wrong = random.random(bits.shape[:2]) < 0.05
    wrong[np.arange(len(bits)), random.integers(0, bits.shape[1], len(bits))] = True
    bits[..., 8] ^= wrong
    return bits.reshape(len(text), -1)


def auroc(normal: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Chance that a bad window scores lower than a normal one; ties count half."""
    _, places, counts = np.unique(np.concatenate((normal, bad)), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[places]
    n, m = len(normal), len(bad)
    return float((rank[:n].sum() - n * (n + 1) / 2) / (n * m))


def either_way(normal: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """AUROC in the direction that is better in hindsight."""
    found = auroc(normal, bad)
    return max(found, 1 - found)


def scores(bits: NDArray[np.uint8], setting: Setting) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Every column of the table for some windows, and the share that the gate stops."""
    vitals: list[Vitals] = []
    for at in range(0, len(bits), 256):
        vitals += setting.reference.measure(bits[at : at + 256])
    gate = SafetyGate.calibrated(setting.calibration)
    decisions = [gate.update(v) for v in vitals]
    packed = [row.tobytes() for row in np.packbits(bits, axis=1)]
    columns = {name: np.array([getattr(v, name) for v in vitals]) for name in ("K", "C", "S")}
    columns["gate"] = np.array([d.margin for d in decisions])
    columns["zlib"] = np.array([len(zlib.compress(row, 9)) / len(row) for row in packed])
    columns["4-grams"] = np.array([repeated_4_grams(row) for row in packed])
    return columns, float(np.mean([not d.allow for d in decisions]))


def repeated_4_grams(data: bytes) -> float:
    """Share of 4-grams that occurred before."""
    grams = [data[i : i + 4] for i in range(len(data) - 3)]
    return 1 - len(set(grams)) / len(grams)


def main(quick: bool) -> int:
    """Print the table."""
    random = np.random.default_rng(0)
    seconds, each, own, most = (8, 40, 8, 800) if quick else (180, 200, 100, 8000)
    lengths = LENGTHS[:3] if quick else LENGTHS
    name, train, reference_part, test = text_parts()
    model = BitTransformerLM(preset("tiny"))
    if quick:
        train = train.part(0, 1 << 19)
    train_loop(model, train, seconds=seconds + len(train) / 5e5, batch_size=16)
    settings = {}
    for parity in (False, True):
        config = ModelConfig(patch_bits=9, parity=True, max_seq_len=1152) if parity else model.config
        reference = Reference.fit(train, config) if parity else Reference(model.bank, 8)
        found = calibrate(reference, reference_part, config, alpha=ALPHA, lengths=lengths, most=most)
        settings[parity] = Setting(config, reference, found)
    spoken = own_output(model, test, own, random)
    others = other_files()
    report = harness.Report(
        "gate",
        f"{name}: a model with experts trained for {seconds} s on {len(train) / 1e6:.1f} MB; calibrated on up to {most:,} windows a "
        f"length at alpha={ALPHA}; test windows that do not overlap, up to {2 * each:,} for AUROC and {most:,} for alarms, {each} of "
        f"each kind ({own} of the model's own); K, C, S, zlib and 4-grams in their better direction, row by row",
        {
            "auroc_512": ">= 0.99",
            "auroc_128": ">= 0.95",
            "worst_kind_512": ">= 0.95",
            "false_alarm_over_alpha": ">= 0.5 and <= 1.5",
        },
    )
    alarms, behind = {}, []
    report.row("AUROC of telling from reference text", "    K     C     S  gate  zlib  4-grams   stopped")
    for length in lengths:
        text = windows(test, length, 2 * each, random)
        rows: dict[str, tuple[NDArray[np.uint8], bool]] = {
            kind: (bytes_to_bits(change(text[:each])), False) for kind, change in made_of_text(random).items()
        }
        rows |= {kind: (bytes_to_bits(windows(c, length, each, random)), False) for kind, c in others.items()}
        rows |= {kind: (bytes_to_bits(data[:, -length:].copy()), False) for kind, data in spoken.items()}
        rows["text, parity wrong in one byte of 20"] = wrong_parity(text[:each], random), True
        normal = {p: scores(bytes_to_bits(text, parity=p), settings[p])[0] for p in (False, True)}
        everything = windows(test, length, most, random)
        alarms[length] = scores(bytes_to_bits(everything), settings[False])[1] / ALPHA
        report.row("", "")
        report.row(f"{length:,} bytes: reference text, {len(everything):,} windows", f"{alarms[length] * ALPHA:>49.2%}")
        found = {}
        for kind, (bits, parity) in rows.items():
            columns, stopped = scores(bits, settings[parity])
            values = {key: either_way(normal[parity][key], column) for key, column in columns.items()}
            values["gate"] = found[kind] = auroc(normal[parity]["gate"], columns["gate"])
            better = max(values["zlib"], values["4-grams"])
            note = "  a baseline is better" if better > found[kind] + 0.0005 else ""
            behind += [f"{kind}, {length}"] if note else []
            report.row(f"  {kind}", "".join(f" {values[key]:.3f}" for key in values) + f"   {stopped:>7.1%}{note}")
        report.figures[f"auroc_{length}"] = float(np.mean(list(found.values())))
        worst = min(found, key=lambda kind: found[kind])
        report.figures[f"worst_kind_{length}"] = found[worst]
        report.row(f"  worst kind at {length}", worst)
    report.row("rows in which a baseline is better", f"{len(behind)}: {'; '.join(behind)}" if behind else "none")
    between = windows(test, BETWEEN, most, random)
    alarms[BETWEEN] = scores(bytes_to_bits(between), settings[False])[1] / ALPHA
    report.figures["false_alarm_over_alpha"] = max(alarms.values(), key=lambda x: abs(np.log(max(x, 1e-9))))
    report.row(
        f"false alarms over alpha, by length ({BETWEEN} was not calibrated)",
        ", ".join(f"{n:,}: {x:.2f}" for n, x in alarms.items()),
    )
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
