"""How much degenerate output does the gate stop, at one false alarm in a hundred? Beside two baselines of one line each.

A model with experts is trained on the first third of a text, for a number of updates, so that it is the same model on any machine. The rest, in blocks of
64 KiB, is reference by turns: for calibration, and for the test. Degenerate windows are made from test text, from other files, and by the model itself; AUROC
is that of telling them from test windows of the same length. The gate has one score for all kinds, its margin; every other column may
choose for each row which direction is bad, which flatters it. Stopped: beyond a calibrated limit.

Then what the model says at temperatures in use, which should pass; loops of periods up to 16 KiB, which should not, and quotations, which should; and whether
the band that a calibration prints holds the false alarms of other stretches of the text. `alarm_band` was chosen on Tiny Shakespeare and on the
standard library's files, not on what it is proved on here.
"""

from __future__ import annotations

import glob
import gzip
import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import harness
import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ModelConfig, Sampling
from bit_transformer.data.sources import Corpus, Span, bytes_corpus, named_file, split, stdlib_files
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.errors import BitTransformerError
from bit_transformer.model import BitTransformerLM
from bit_transformer.presets import preset
from bit_transformer.safety import Guard, Reference, SafetyGate, calibrate
from bit_transformer.safety.calibration import (
    SHAPE_SHARE,
    Calibration,
    alarm_band,
    beyond,
    block_shares,
    conformal_limits,
)
from bit_transformer.safety.reference import Vitals, as_array
from bit_transformer.training import train_loop

LENGTHS = (32, 128, 512, 2048)
ALPHA, BLOCK, BETWEEN = 0.01, 1 << 16, 200
STEPS = 800  # updates of 16 windows: what three minutes gave on two cores
TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
PERIODS = (4, 8, 16, 32, 64, 257, 1024, 4096, 16384)
QUOTED = 32  # bytes that are a quotation; loops of shorter periods are the text's own ("ha! ha! ha!"), and false alarms
SLICES, BAND_LENGTHS, BAND_ALPHAS = 22, (64, 256, 512), (0.01, 0.05)
# Of 22 slices, pairs of which stand or fall together where they share one, 95 in 100 inside may come to 1.645 deviations of 22 draws less.
BAND_GOAL = 0.95 - 1.645 * math.sqrt(0.95 * 0.05 / SLICES)
GOALS = {
    "auroc_512": ">= 0.99",
    "auroc_128": ">= 0.95",
    "worst_kind_512": ">= 0.95",
    "false_alarm_over_alpha": ">= 0.5 and <= 1.5",
    "own_samples_over_alpha": "<= 2",
    "own_loops_stopped": ">= 0.95",
    "long_period_stopped": ">= 1",
    "band_coverage": f">= {BAND_GOAL:.3f}",
}
LOOPS = "own loops, temperature 0"
Windows = NDArray[np.uint8]  # (N, L) bytes, or (N, T) bits where parity is wrong


@dataclass
class Setting:
    """A gate and what it was made from."""

    config: ModelConfig
    reference: Reference
    calibration: Calibration


def text_parts() -> tuple[str, Corpus, Corpus, Corpus, Corpus]:
    """Dickens where it can be had, else the standard library: for training; the rest of it; halves of the rest, for calibration and test."""
    try:
        path = named_file("dickens")
        size = path.stat().st_size
        first = size // 3 // BLOCK * BLOCK
        name, train, rest = "dickens", Corpus([Span(path, 0, first)]), Corpus([Span(path, first, size)])
    except BitTransformerError:
        name, (train, rest) = "stdlib", split(stdlib_files(), "file", 0.6)
    blocks = [rest.part(start, start + BLOCK) for start in range(0, len(rest) - BLOCK, BLOCK)]
    halves = [Corpus(span for block in blocks[turn::2] for span in block.spans) for turn in (0, 1)]
    return name, train, rest, halves[0], halves[1]


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


def starts(corpus: Corpus, length: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Where windows begin that do not overlap, at random places, in order; fewer where there is no room."""
    return np.sort(random.permutation(len(corpus) // length)[:count]) * length


def windows(corpus: Corpus, length: int, count: int, random: np.random.Generator) -> Windows:
    """Windows that do not overlap, at random places, in any order."""
    rows = [corpus.read(int(start), length) for start in starts(corpus, length, count, random)]
    return random.permutation(np.stack(rows))


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


def own_output(
    model: BitTransformerLM, test: Corpus, count: int, longest: int, random: np.random.Generator
) -> dict[float, Windows]:
    """What the model itself says by temperature, far too hot and too cold ones among them."""
    prompts = [row.tobytes() for row in windows(test, 64, count, random)]
    said = {}
    for temperature in (3.0, 0.0, *TEMPERATURES):
        size = longest + 512 if temperature == 0 else longest  # until it comes round
        drawn = generate_bytes(model, prompts, size, Sampling(temperature=temperature, seed=1))
        said[temperature] = np.stack([np.frombuffer(text, np.uint8) for text in drawn])
    return said


def comes_round(text: Windows) -> int:
    """The period with which a text ends three times over, by comparing all that fit; 0: none."""
    for period in range(1, len(text) // 3 + 1):
        if np.array_equal(text[-2 * period :], text[-3 * period : -period]):
            return period
    return 0


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


@dataclass
class Judged:
    """Windows, and what the gate says of them.

    Attributes:
        columns: scores by name.
        stopped: share that the gate stops; `reasons`: share by reason.
    """

    columns: dict[str, NDArray[np.float64]]
    stopped: float
    reasons: dict[str, float]


def judge(
    bits: NDArray[np.uint8],
    setting: Setting,
    before: NDArray[np.uint8] | None = None,
    copied: NDArray[np.float64] | None = None,
) -> Judged:
    """Every column of the table for some windows.

    Args:
        before: bits that each stream said before; or `copied`: bytes of the longest loops, where they are known.
    """
    vitals: list[Vitals] = []
    for at in range(0, len(bits), 256):
        vitals += setting.reference.measure(bits[at : at + 256], None if before is None else before[at : at + 256])
    if copied is not None:
        vitals = [replace(v, copied=float(loop)) for v, loop in zip(vitals, copied, strict=True)]
    gate = SafetyGate.calibrated(setting.calibration)
    decisions = [gate.update(v) for v in vitals]
    packed = [row.tobytes() for row in np.packbits(bits, axis=1)]
    columns = {name: np.array([getattr(v, name) for v in vitals]) for name in ("K", "C", "S")}
    columns["gate"] = np.array([d.margin for d in decisions])
    columns["zlib"] = np.array([len(zlib.compress(row, 9)) / len(row) for row in packed])
    columns["4-grams"] = np.array([repeated_4_grams(row) for row in packed])
    reasons = Counter(reason.kind for d in decisions for reason in d.reasons)
    shares = {kind: count / len(decisions) for kind, count in sorted(reasons.items())}
    return Judged(columns, float(np.mean([not d.allow for d in decisions])), shares)


def of_test(test: Corpus, length: int, count: int, setting: Setting, random: np.random.Generator) -> Judged:
    """Windows of the test text, which follows on as one stream."""
    begins = starts(test, length, count, random)
    rows = np.stack([test.read(int(begin), length) for begin in begins])
    (copied,) = setting.reference.repetition.of_windows(test, [(begins, length)])
    return judge(bytes_to_bits(rows, parity=setting.config.parity), setting, copied=copied)


def repeated_4_grams(data: bytes) -> float:
    """Share of 4-grams that occurred before."""
    grams = [data[i : i + 4] for i in range(len(data) - 3)]
    return 1 - len(set(grams)) / len(grams)


def nonsense(test: Corpus, length: int, count: int, random: np.random.Generator) -> dict[str, Windows]:
    """What is right from word to word and says nothing."""
    text = test.read(0, 1 << 20).tobytes()
    sentences = [s.strip() + b". " for s in text.replace(b"\r", b"").split(b".") if 20 < len(s) < 300]
    commonest = [word for word, _ in Counter(text.lower().split()).most_common(100)]

    def rows(pieces: list[bytes], glue: bytes, pool: int) -> Windows:
        made = []
        for _ in range(count):
            few = [pieces[i] for i in random.choice(len(pieces), pool, replace=False)]
            most = length // min(map(len, few)) + 1
            made.append(glue.join(few[i] for i in random.integers(0, pool, most))[:length])
        return np.stack([np.frombuffer(row, np.uint8) for row in made])

    return {
        "sentences at random": rows(sentences, b"", len(sentences)),
        "six sentences at random, again and again": rows(sentences, b"", 6),
        "the hundred commonest words": rows(commonest, b" ", 100),
    }


def own_samples(report: harness.Report, said: dict[float, Windows], lengths: Sequence[int], setting: Setting) -> float:
    """Rows of false alarms on what the model says at temperatures in use; the most of them over alpha."""
    worst = 0.0
    for temperature in TEMPERATURES:
        bits, cells = bytes_to_bits(said[temperature]), []
        for length in lengths:
            size = 8 * length
            parts = range(0, bits.shape[1] - size + 1, size)
            found = [judge(bits[:, at : at + size], setting, bits[:, :at]) for at in parts]
            stopped = float(np.mean([each.stopped for each in found]))
            reasons = {kind for each in found for kind in each.reasons}
            cells.append(f"{length:,}: {stopped:.2%}" + (f" ({', '.join(sorted(reasons))})" if reasons else ""))
            worst = max(worst, stopped / ALPHA)
        report.row(f"own samples, temperature {temperature}, stopped", "; ".join(cells))
    return worst


def long_periods(
    report: harness.Report,
    setting: Setting,
    test: Corpus,
    periods: Sequence[int],
    trials: int,
    random: np.random.Generator,
) -> float:
    """Rows of loops by their period; the share of loops that are stopped in time and of quotations that are not stopped.

    In time: fewer than three rounds went out, or 32 bytes, the shortest that the gate judges.
    """
    guard = Guard(SafetyGate.calibrated(setting.calibration), setting.reference, 256)
    right = []
    for period in periods:
        stopped, quoted = [], []
        for _ in range(trials):
            lead = int(random.integers(0, 1024))
            at = int(random.integers(0, len(test) - lead - period - 2048))
            said, told, fresh = (
                p.tobytes() for p in np.split(test.read(at, lead + period + 2048), [lead, lead + period])
            )
            rounds = max(3, 512 // period)
            stopped.append(first_stop(guard, said + told * rounds, lead, period) <= max(3 * period, 32))
            if period >= QUOTED:
                quoted.append(first_stop(guard, said + told * 2 + fresh, lead, period) == math.inf)
        note = f"; of {trials} quotations {sum(quoted)} pass" if quoted else ""
        report.row(f"loop of {period:,} bytes", f"{sum(stopped)} of {trials} stopped in time{note}")
        right += stopped + quoted
    return float(np.mean(right))


def first_stop(guard: Guard, stream: bytes, lead: int, period: int) -> float:
    """How many bytes after the lead went out when the first window was stopped for going round; infinite: none was.

    Where the period is that of a quotation, shorter loops are the text's own, and C that is low for other reasons does not count.
    """
    for begin, end in guard.spans(len(stream)):
        if end > lead:
            window, before = (torch.from_numpy(bytes_to_bits(p).copy()) for p in (stream[begin:end], stream[:begin]))
            decision = guard.check(window, before_T=before)
            kinds = {reason.kind for reason in decision.reasons}
            found = decision.vitals.period if decision.vitals else 0.0
            if ("repeats" in kinds and found >= min(period, QUOTED)) or ("C below" in kinds and period < QUOTED):
                return begin - lead
    return math.inf


def band_coverage(
    report: harness.Report, name: str, corpus: Corpus, reference: Reference, random: np.random.Generator
) -> float:
    """Calibrate on each slice of a text, judge all others: the share of their false alarms that lie inside the band it prints."""
    inside, before = [], []
    for length in BAND_LENGTHS:
        begins = np.arange(len(corpus) // length) * length
        (copied,) = reference.repetition.of_windows(corpus, [(begins, length)])
        vitals = []
        for at in range(0, len(begins), 256):
            rows = corpus.read(at * length, min(256, len(begins) - at) * length).reshape(-1, length)
            vitals.append(as_array(reference.measure(bytes_to_bits(rows))))
        slices = np.array_split(np.column_stack((np.concatenate(vitals)[:, 1:], copied)), SLICES)
        for alpha in BAND_ALPHAS:
            for i, ours in enumerate(slices):
                limits, _ = conformal_limits(random.permutation(ours), alpha)
                low, high = alarm_band(alpha, block_shares(ours, alpha, random))
                shares = np.array([beyond(others, limits).mean() for j, others in enumerate(slices) if j != i])
                inside += ((low <= shares) & (shares <= high)).tolist()
                spread = 2 * math.sqrt(alpha * (1 - alpha) / (len(ours) * (1 - SHAPE_SHARE)))
                before += (abs(shares - alpha) <= spread).tolist()
    report.row(
        f"band of false alarms, {name}",
        f"holds {np.mean(inside):.1%} of {len(inside):,}; two deviations {np.mean(before):.1%}",
    )
    return float(np.mean(inside))


def dealt(corpus: Corpus, random: np.random.Generator) -> Corpus:
    """A corpus in blocks of 64 KiB in an order of chance."""
    blocks = [corpus.part(start, start + BLOCK) for start in range(0, len(corpus) - BLOCK, BLOCK)]
    return Corpus(span for i in random.permutation(len(blocks)) for span in blocks[i].spans)


def settings_of(
    model: BitTransformerLM, train: Corpus, part: Corpus, lengths: Sequence[int], most: int
) -> dict[bool, Setting]:
    """A gate for bytes, and one for bytes with parity."""
    made = {}
    for parity in (False, True):
        config = ModelConfig(patch_bits=9, parity=True, max_seq_len=1152) if parity else model.config
        reference = Reference.fit(train, config) if parity else Reference(model.bank, 8)
        found = calibrate(reference, part, config, alpha=ALPHA, lengths=lengths, most=most)
        made[parity] = Setting(config, reference, found)
    return made


def kinds_of_length(
    report: harness.Report,
    length: int,
    settings: dict[bool, Setting],
    test: Corpus,
    others: dict[str, Corpus],
    spoken: dict[str, Windows],
    each: int,
    random: np.random.Generator,
) -> tuple[dict[str, float], float]:
    """Rows of all kinds of degenerate windows of one length; the gate's AUROC by kind, and the share of its loops that is stopped."""
    text, looping = windows(test, length, each, random), 1.0
    rows: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8] | None, bool]] = {
        kind: (bytes_to_bits(change(text)), None, False) for kind, change in made_of_text(random).items()
    }
    rows |= {kind: (bytes_to_bits(windows(c, length, each, random)), None, False) for kind, c in others.items()}
    for kind, data in spoken.items():
        rows[kind] = bytes_to_bits(data[:, -length:].copy()), bytes_to_bits(data[:, :-length].copy()), False
    rows["text, parity wrong in one byte of 20"] = wrong_parity(text, random), None, True
    normal = {p: of_test(test, length, 2 * each, settings[p], random).columns for p in (False, True)}
    aurocs = {}
    for kind, (bits, before, parity) in rows.items():
        judged = judge(bits, settings[parity], before)
        values = {key: either_way(normal[parity][key], column) for key, column in judged.columns.items()}
        values["gate"] = aurocs[kind] = auroc(normal[parity]["gate"], judged.columns["gate"])
        better = max(values["zlib"], values["4-grams"]) > aurocs[kind] + 0.0005
        note = "  a baseline is better" if better else ""
        report.row(f"  {kind}", "".join(f" {values[key]:.3f}" for key in values) + f"   {judged.stopped:>7.1%}{note}")
        if kind == LOOPS:
            looping = judged.stopped
            report.row("    by reason", ", ".join(f"{reason} {share:.0%}" for reason, share in judged.reasons.items()))
    for kind, data in nonsense(test, length, each, random).items():
        judged = judge(bytes_to_bits(data), settings[False])
        value = auroc(normal[False]["gate"], judged.columns["gate"])
        report.row(f"  not counted: {kind}", f"{value:>24.3f}{judged.stopped:>25.1%}")
    return aurocs, looping


def table(
    report: harness.Report,
    lengths: Sequence[int],
    settings: dict[bool, Setting],
    test: Corpus,
    spoken: dict[str, Windows],
    each: int,
    most: int,
    random: np.random.Generator,
) -> None:
    """Rows and figures of degenerate windows by length, and of false alarms on the test text."""
    others, alarms, looping = other_files(), {}, []
    report.row("AUROC of telling from reference text", "    K     C     S  gate  zlib  4-grams   stopped")
    for length in (*lengths, BETWEEN):
        everything = of_test(test, length, most, settings[False], random)
        alarms[length] = everything.stopped / ALPHA
        if length == BETWEEN:
            break
        report.row("", "")
        count = len(everything.columns["gate"])
        report.row(f"{length:,} bytes: reference text, {count:,} windows", f"{everything.stopped:>49.2%}")
        aurocs, stopped = kinds_of_length(report, length, settings, test, others, spoken, each, random)
        looping.append(stopped)
        report.figures[f"auroc_{length}"] = float(np.mean(list(aurocs.values())))
        worst = min(aurocs, key=lambda kind: aurocs[kind])
        report.figures[f"worst_kind_{length}"] = aurocs[worst]
        report.row(f"  worst kind at {length}", worst)
    report.row("", "")
    report.figures["own_loops_stopped"] = min(looping)
    report.figures["false_alarm_over_alpha"] = max(alarms.values(), key=lambda x: abs(np.log(max(x, 1e-9))))
    by_length = ", ".join(f"{n:,}: {x:.2f}" for n, x in alarms.items())
    report.row(f"false alarms over alpha, by length ({BETWEEN} was not calibrated)", by_length)


def main(quick: bool) -> int:
    """Print the table."""
    random = np.random.default_rng(0)
    steps, each, own, most = (12, 40, 8, 800) if quick else (STEPS, 200, 100, 8000)
    lengths = LENGTHS[:3] if quick else LENGTHS
    name, train, rest, reference_part, test = text_parts()
    model = BitTransformerLM(preset("tiny"))
    if quick:
        train = train.part(0, 1 << 18)
    history = train_loop(model, train, steps=steps, batch_size=16, amp=False)
    settings = settings_of(model, train, reference_part, lengths, most)
    plain = settings[False]
    said = own_output(model, test, own, lengths[-1], random)
    periods = np.array([comes_round(text) for text in said[0.0]])
    spoken = {"own samples, temperature 3": said[3.0]} | ({LOOPS: said[0.0][periods > 0]} if periods.any() else {})
    seen = history[-1]["bytes"] / 1e6
    report = harness.Report(
        "gate",
        f"{name}: preset tiny, {steps} updates of 16 windows in float32 ({seen:.1f} MB of {len(train) / 1e6:.1f}); calibrated on up to "
        f"{most:,} windows a length at alpha={ALPHA}; test windows that do not overlap, up to {2 * each:,} for AUROC and {most:,} for "
        f"alarms, {each} of each kind ({own} of the model's own); K, C, S, zlib and 4-grams in their better direction, row by row",
        {key: goal for key, goal in GOALS.items() if not quick or key == "long_period_stopped"},
    )  # a quick look has too few windows, and too little of a model, to judge the others
    table(report, lengths, settings, test, spoken, each, most, random)
    round_ = periods[periods > 0]
    spread = f", with periods of {round_.min()} to {round_.max()} bytes" if len(round_) else ""
    report.row(f"of {own} texts at temperature 0 end in three equal rounds", f"{len(round_)}{spread}")
    report.figures["own_samples_over_alpha"] = own_samples(report, said, lengths, plain)
    chosen = [period for period in PERIODS if not quick or period <= 1024]
    report.figures["long_period_stopped"] = long_periods(report, plain, test, chosen, 2 if quick else 10, random)
    if not quick:
        about = f"{name}, {SLICES} slices in order"
        report.figures["band_coverage"] = band_coverage(report, about, rest, plain.reference, random)
        if (xml := other_files().get("XML")) is not None:
            reference = Reference.fit(xml.part(0, 1 << 20), ModelConfig(patch_bits=8))
            xml = xml.part(1 << 20, len(xml))
            band_coverage(report, "XML, blocks of 64 KiB dealt by chance", dealt(xml, random), reference, random)
            band_coverage(report, "XML, in order", xml, reference, random)
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
