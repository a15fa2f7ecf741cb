"""How good with experts? Text after a training on it, beside compressors that were given the same training bytes.

Every row scores the same held-out bytes after the same training bytes. A compressor's row is what the held-out part adds:
C(training + held out) - C(training). zpaq sizes its tables by its input, in steps of powers of two; where the two inputs would
fall on either side of a step, both begin with random bytes that bring them past it, or the difference reads a false gain.

The last rows say what bits cost on Tiny Shakespeare: bits per byte against speed, on one thread: of predicting for experts alone, of coding for models, of
whole processes for other programs. paq8px takes part where it is installed.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import torch

from bit_transformer.checkpoint import load_checkpoint
from bit_transformer.compression.codec import ModelCoder
from bit_transformer.compression.files import compress_stream
from bit_transformer.compression.profiles import RICH_TEXT, TEXT, bank_of, sizes_for
from bit_transformer.config import ExpertConfig, ModelConfig, TrainConfig
from bit_transformer.data.sources import Corpus, find_files, named_file, split
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.errors import BitTransformerError
from bit_transformer.evaluation.baselines import Program, installed, ppmd
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol
from bit_transformer.evaluation.scorer import Scorer, cost_of
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.experts.feature_cache import CACHE_VARIABLE
from bit_transformer.model import BitTransformerLM
from bit_transformer.presets import preset
from bit_transformer.service.operations import call
from bit_transformer.service.settings import read_settings
from bit_transformer.service.workspace import Workspace
from bit_transformer.training import Trainer, build_windows

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = ("ooffice", "mr", "xml")
ZPAQ = "zpaq -m5"
CODED = 100_000  # bytes that say how fast a model codes
# What is known of a file's form: mr is images of 512 pixels a row, two bytes each.
FORM: dict[str, dict[str, Any]] = {
    "mr": {
        "orders": (1, 2, 3, 4),
        "words": False,
        "sparse": ((2,), (2, 4), (1, 2, 1024), (1024, 2), (1024,), (2, 1024, 1022), (1024, 2048)),
    }
}


class Paid(NamedTuple):
    """What bits cost."""

    what: str
    bpb: float
    bytes_per_s: float


def main(quick: bool) -> int:
    """Measure."""
    paid: list[Paid] = []
    report = harness.Report(
        "experts",
        f"recipes/*-experts-cpu.toml on {harness.machine()['threads']} threads, the experts' pass over the data included; first 90 % of "
        "a file to train, last 10 % to score" + (", a sample of it; short trainings" if quick else ""),
        {
            "tinyshakespeare_bpb": "<= 1.88",
            "dickens_bpb": "<= 1.65",
            "tinyshakespeare_rich_bpb": "<= 1.70",
            "dickens_rich_bpb": "<= 1.45",
            "rich_alone_bpb": "<= 1.76",
            "rich_bytes_per_s": ">= 60000",
            "feature_bytes_per_s": ">= 500000",
            "step_overhead": "<= 1.176",
            "worse_with_more": "<= 0.005",
            "generation_ratio": ">= 0.6",
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = str(Path(folder) / "cache")  # nothing from an earlier run
        figures = report.figures
        figures["feature_bytes_per_s"] = feature_speed(report)
        figures |= alone(report, quick, paid)
        for key in ("rich_alone_bpb", "rich_bytes_per_s"):
            if quick or key not in figures:
                report.goals.pop(key)
        figures["step_overhead"] = step_overhead(report, quick)
        figures["generation_ratio"] = generation_ratio(report, quick)
        for name in ("tinyshakespeare", "dickens")[: 1 if quick else None]:
            if (found := on_corpus(report, name, Path(folder), quick, paid)) is None:
                for key in (
                    f"{name}_bpb",
                    f"{name}_rich_bpb",
                    *(["worse_with_more"] if name == "tinyshakespeare" else []),
                ):
                    del report.goals[key]
                continue
            if quick:  # a few seconds of training: another quantity
                continue
            figures[f"{name}_bpb"] = found["online"]
            figures[f"{name}_rich_bpb"] = with_rich_experts(report, name, Path(folder), paid)
            if name == "tinyshakespeare":
                figures["static_bpb"] = found["static"]
                figures["worse_with_more"] = worse_with_more(report, Path(folder), found["online"])
        if quick:
            for key in (
                "dickens_bpb",
                "tinyshakespeare_bpb",
                "tinyshakespeare_rich_bpb",
                "dickens_rich_bpb",
                "worse_with_more",
            ):
                report.goals.pop(key, None)
        for name in () if quick else FILES:
            found = on_corpus(report, name, Path(folder), quick, paid, trunk_alone=True)
            if found is not None:
                figures |= {f"{name}_bpb": found["online"], f"{name}_trunk_bpb": found["trunk alone"]}
    for what, bpb, rate in sorted(paid, key=lambda one: -one.bytes_per_s):
        report.row(f"what bits cost: {what}", f"{bpb:.3f} bpb at {rate / 1e3:,.1f} kB/s")
    return report.finish()


def feature_speed(report: harness.Report) -> float:
    """Bytes a second of the pass that makes features, on one core: the median of five."""
    _, training, _ = harness.text_corpus()
    units = training.read(0, 500_000)
    rates = []
    for _ in range(6):
        bank = ExpertBank.of(ModelConfig(patch_bits=8, experts=ExpertConfig()))
        began = time.perf_counter()
        bank.read(units, bank.stream(), learn=True)
        rates.append(len(units) / (time.perf_counter() - began))
    rates = sorted(rates[1:])  # the first compiles
    report.row(
        "feature pass", f"{rates[2] / 1e3:.0f} kB/s, from {rates[0] / 1e3:.0f} to {rates[-1] / 1e3:.0f}; one core"
    )
    return rates[2]


def alone(report: harness.Report, quick: bool, paid: list[Paid]) -> dict[str, float]:
    """Bits per byte of the experts' own mixture, light and rich, and the speed of one core. They read the first 90 %, then learn on."""
    figures: dict[str, float] = {}
    for name in ("tinyshakespeare", "dickens"):
        try:
            training, held_out = training_and_held_out(name)
        except BitTransformerError as missing:
            report.row(f"{name}: experts alone", f"left out: {missing}")
            continue
        data = np.frombuffer(training + held_out, np.uint8)[: 100_000 if quick else None]
        scored = len(data) * len(held_out) // len(training + held_out)
        bits = np.unpackbits(data[-scored:]).reshape(-1, 8)
        for kind, profile in (("light", TEXT), ("rich", RICH_TEXT)):
            ExpertBank.probabilities(
                small := bank_of(profile, 0, 10, 10), data[:99], small.stream(), learn=True
            )  # compiles
            bank = bank_of(profile, 0, *sizes_for(len(data), rich=kind == "rich"))
            began = time.perf_counter()
            one = bank.probabilities(data, bank.stream(), learn=True)[-scored:] / 65536
            rate = len(data) / (time.perf_counter() - began)
            bpb = float(-np.log2(np.where(bits, one, 1 - one)).sum() / scored)
            report.row(
                f"{name}: experts alone, {kind}",
                f"{bpb:.3f} bpb, {rate / 1e3:.0f} kB/s, {bank.experts} contexts, {bank.memory / 1e6:,.0f} MB",
            )
            if name == "tinyshakespeare" and not quick:
                figures |= {f"{kind}_alone_bpb": bpb, f"{kind}_bytes_per_s": rate}
                paid.append(Paid(f"{kind} experts alone", bpb, rate))
    return figures


def step_overhead(report: harness.Report, quick: bool) -> float:
    """Time of an update with experts over one without."""
    _, training, _ = harness.text_corpus()
    recipe = read_settings(RECIPES / "tinyshakespeare-experts-cpu.toml", [])
    trainers: dict[str, Trainer] = {}
    for name, experts in (("without", None), ("with", recipe["model"].get("experts", {}))):
        model = BitTransformerLM(preset("small", **{**recipe["model"], "experts": experts}))
        config = TrainConfig.of({**recipe["train"], "seconds": None, "steps": 1000})
        trainers[name] = Trainer(model, build_windows(model, training, config), config)
        model.train()
    seconds = harness.interleaved({name: t.update for name, t in trainers.items()}, 10 if quick else 40)
    middle, low, high = harness.ratio(seconds["with"], seconds["without"])
    report.row(
        "an update with experts", f"{middle:.2f} times one without, half of the rounds within {low:.2f} to {high:.2f}"
    )
    return middle


def generation_ratio(report: harness.Report, quick: bool) -> float:
    """Bytes a second of cached generation, one stream, with experts over without."""
    _, training, _ = harness.text_corpus()
    recipe = read_settings(RECIPES / "tinyshakespeare-experts-cpu.toml", [])["model"]
    models = {
        "without": BitTransformerLM(preset("small", **{**recipe, "experts": None})).eval(),
        "with": BitTransformerLM(preset("small", **recipe)).eval(),
    }
    bank = models["with"].bank
    bank.read(training.read(0, 1 << 20), bank.stream(), learn=True, wanted=False)
    prompt = training.read(0, 64).tobytes()
    seconds = harness.interleaved(
        {name: lambda m=m: generate_bytes(m, [prompt], 256) for name, m in models.items()}, 5 if quick else 20
    )
    middle, low, high = harness.ratio(seconds["without"], seconds["with"])
    report.row("generation with experts", f"{middle:.2f} of the speed without, half within {low:.2f} to {high:.2f}")
    return middle


def on_corpus(
    report: harness.Report, name: str, folder: Path, quick: bool, paid: list[Paid], *, trunk_alone: bool = False
) -> dict[str, float] | None:
    """Bits per byte of the recipe and of primed compressors; none where the corpus is not to be had."""
    try:
        named_file(name)
    except BitTransformerError as missing:
        report.row(name, f"left out: {missing}")
        return None
    text = name in ("tinyshakespeare", "dickens")
    recipe = RECIPES / (f"{name}-experts-cpu.toml" if text else "binary-experts-cpu.toml")
    settings = read_settings(recipe, [])
    settings["data"]["corpora"] = [name]
    settings["model"]["experts"] |= FORM.get(name, {})
    if quick:
        settings["train"]["seconds"] = 5
    bpb: dict[str, float] = {}
    result = _train(settings, folder / name, quick)
    model = load_checkpoint(folder / name)
    _, held_out = split(find_files([name]), "position", settings["data"]["holdout"])
    scored = held_out.thinned(4096, 4096) if quick else held_out
    assert result.comparison is not None
    bpb["online"] = result.comparison.bpb
    for learning in ("static", "online+mixer"):
        bpb[learning] = bits_per_byte(model, scored, default_protocol(model, learning=learning)).bpb
    if trunk_alone:
        alone = {**settings, "model": {**settings["model"], "experts": False}}
        comparison = _train(alone, folder / f"{name}-alone", quick).comparison
        assert comparison is not None
        bpb["trunk alone"] = comparison.bpb
    if not quick:
        bpb |= primed(name, paid if name == "tinyshakespeare" else None)
        if name == "tinyshakespeare":
            paid.append(Paid("model with light experts", bpb["online"], coding_speed(model, held_out)))
    trained = f"{result.seconds:.0f} s, {result.bytes_seen / result.train_bytes:.2f} epochs"
    for row, value in bpb.items():
        what = f"model, {row} ({trained})" if row in ("online", "static", "online+mixer") else row
        report.row(f"{name}: {what}", f"{value:.3f} bpb")
    return bpb


def with_rich_experts(report: harness.Report, name: str, folder: Path, paid: list[Paid]) -> float:
    """Bits per byte of the recipe with rich experts, `online`."""
    result = _train(read_settings(RECIPES / f"{name}-rich-cpu.toml", []), folder / f"{name}-rich", False)
    trained = f"{result.seconds:.0f} s, {result.bytes_seen / result.train_bytes:.2f} epochs"
    report.row(f"{name}: model with rich experts, online ({trained})", f"{result.comparison.bpb:.3f} bpb")
    if name == "tinyshakespeare":
        _, held_out = split(find_files([name]), "position", 0.1)
        rate = coding_speed(load_checkpoint(folder / f"{name}-rich"), held_out)
        paid.append(Paid("model with rich experts", result.comparison.bpb, rate))
    return result.comparison.bpb


def worse_with_more(report: harness.Report, folder: Path, bpb: float) -> float:
    """How much more seconds cost on Tiny Shakespeare, at worst, from half to the recipe's to twice; negative where they pay."""
    found = []
    for factor in (0.5, 2.0):
        settings = read_settings(RECIPES / "tinyshakespeare-experts-cpu.toml", [])
        settings["train"]["seconds"] *= factor
        result = _train(settings, folder / f"tinyshakespeare-{factor}", False)
        found.append(result.comparison.bpb)
        report.row(
            f"tinyshakespeare: model, online ({result.seconds:.0f} s, {result.bytes_seen / result.train_bytes:.2f} epochs)",
            f"{found[-1]:.3f} bpb, best after update {result.best_step:,} of {result.steps:,}",
        )
    return max(bpb - found[0], found[1] - bpb)


def _train(settings: dict[str, dict[str, Any]], out: Path, quick: bool) -> Any:
    torch.manual_seed(0)
    asked = {
        "out": out,
        "model": preset("small", **settings["model"]),
        "train": settings["train"],
        "data": settings["data"],
        "eval_bytes": 4096 if quick else 1 << 30,
        "overwrite": True,
    }
    return call("train", asked, Workspace(out.parent / "runs.sqlite"))


# ---- compressors, primed ----


def compressors(primer: Corpus | None = None) -> list[Scorer]:
    """The compressors that are installed. For PPMd: pip install '.[bench]'; zpaq and zstd are programs."""
    found = installed(primer)
    return [ppmd(6, primer), *found] if any(one.name.startswith("PPMd") for one in found) else found


def primed(name: str, paid: list[Paid] | None = None) -> dict[str, float]:
    """Bits per held-out byte of compressors that were given the training bytes first. paq8px would take hours on all but the smallest file.

    Args:
        paid: gets what bits cost with those that are programs of their own.
    """
    training, held_out = split(find_files([name]), "position", 0.1)
    scorers = compressors(training)
    if name == "tinyshakespeare" and shutil.which("paq8px"):
        scorers.append(Program("paq8px -7", ("paq8px", "-7", "FILE", "OUT"), training))
    found = {}
    for scorer in scorers:
        began, what = time.perf_counter(), f"{scorer.name}, primed"
        found[what] = cost_of(scorer, held_out).bpb
        if paid is not None and isinstance(scorer, Program):
            # The training bytes before the others, then by themselves; padding both times.
            coded = 2 * (len(training) + len(scorer.padding(len(training), len(held_out)))) + len(held_out)
            paid.append(Paid(what, found[what], coded / (time.perf_counter() - began)))
    return found


def coding_speed(model: BitTransformerLM, held_out: Corpus) -> float:
    """Bytes a second of `btlm compress --model` on one thread, without what it takes to begin: of the second half of some bytes."""
    data, coder = held_out.read(0, CODED).tobytes(), ModelCoder(model, 0)

    def seconds(size: int) -> float:
        began = time.perf_counter()
        compress_stream(io.BytesIO(data[:size]), io.BytesIO(), coder, size=size, jobs=1, verify=False)
        return time.perf_counter() - began

    seconds(99)  # compiles
    half = len(data) // 2
    return (len(data) - half) / (seconds(len(data)) - seconds(half))


def training_and_held_out(name: str) -> tuple[bytes, bytes]:
    """The first 90 % of a corpus, and the rest."""
    training, held_out = split(find_files([name]), "position", 0.1)
    return _all(training), _all(held_out)


def _all(corpus: Corpus) -> bytes:
    return np.ascontiguousarray(corpus.read(0, len(corpus))).tobytes()


if __name__ == "__main__":
    harness.run(main, __doc__)
