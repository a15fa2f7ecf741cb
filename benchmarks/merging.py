"""How good is what several readers have learned, merged? And how fast do they read?

A corpus is cut into shards, each read by a thread with a bank of its own, which are merged: in order, or by pairs, and pairs of pairs. Every
row scores the same held-out bytes with a bank alone, its own mixture, learning on. The features of the pass itself are scored too: they
are what a model is trained on, and know only their shard.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness
import numpy as np

from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.data.sources import Corpus, find_files, split
from bit_transformer.errors import BitTransformerError
from bit_transformer.experts.bank import FEATURE_ONE, ExpertBank
from bit_transformer.experts.feature_cache import CorpusFeatures, corpus_features
from bit_transformer.experts.shards import sharded_features
from bit_transformer.machine import cores
from bit_transformer.service.settings import read_settings

RECIPE = Path(__file__).parents[1] / "recipes" / "dickens-experts-cpu.toml"
SHARDS = (1, 2, 4, 8)
PIECE = 1 << 19  # bytes scored at once
IN_MEMORY = 1 << 60


def main(quick: bool) -> int:
    """Measure."""
    name, training, held_out = corpus()
    shards = SHARDS
    if quick:
        training, held_out, shards = training.part(0, 1_500_000), held_out.part(0, 150_000), SHARDS[:3]
    report = harness.Report(
        "merging",
        f"{name}: first 90 % of each file read, last 10 % scored by a bank alone, online; {cores()} cores"
        + ("; the first 1.5 MB and 0.15 MB of them" if quick else ""),
        {f"{kind}_loss_{count}": "<= 0.005" for kind in ("default",) for count in shards[1:]},
    )
    banks = {"default": ExpertConfig()}
    if not quick:
        banks["recipe"] = ExpertConfig.of(read_settings(RECIPE, [])["model"]["experts"])
        report.goals |= {f"recipe_loss_{count}": "<= 0.005" for count in shards[1:]}
    for kind, experts in banks.items():
        model = ModelConfig(experts=experts)
        one = quality(report, kind, model, training, held_out, shards)
        for count, found in one.items():
            if count > 1:
                report.figures[f"{kind}_loss_{count}"] = found - one[1]
        speed(report, kind, model, training, shards, 1 if quick else 3)
    return report.finish()


def corpus() -> tuple[str, Corpus, Corpus]:
    """Dickens where it can be had, else Python's standard library: name, training part, held-out part."""
    try:
        name, files = "dickens", find_files(["dickens"])
    except BitTransformerError:
        name, files = "stdlib", find_files(["stdlib"])
    return (name, *split(files, "position", 0.1))


def quality(
    report: harness.Report,
    kind: str,
    model: ModelConfig,
    training: Corpus,
    held_out: Corpus,
    shards: tuple[int, ...],
) -> dict[int, float]:
    """Bits per held-out byte, merged in order, by number of shards."""
    merged = {}
    for count in shards:
        cuts = [len(training) * index // count for index in range(count + 1)]
        parts = [training.part(begin, stop) for begin, stop in itertools.pairwise(cuts)]
        with ThreadPoolExecutor(cores()) as threads:
            read = list(threads.map(lambda part: _features(part, model), parts))
        nats = sum(_nats(found, part) for found, part in zip(read, parts, strict=True))
        report.row(f"{kind}: features of the pass, {count} shards", f"{_bpb(nats, training):.4f} bpb")
        banks = [found.bank for found in read]
        del read
        began = time.perf_counter()
        bank = banks[0].copy()
        copied = time.perf_counter()
        for other in banks[1:]:
            bank.merge(other)
        seconds = time.perf_counter() - copied
        merged[count] = _bpb(_online(bank, held_out), held_out)
        took = f"merged in {seconds:.2f} s, {copied - began:.2f} s to copy one" if count > 1 else "one reader"
        report.row(f"{kind}: held-out, {count} shards in order", f"{merged[count]:.4f} bpb; {took}")
        if count > 2:
            del bank
            began = time.perf_counter()
            bank = _tree(banks)
            seconds = time.perf_counter() - began
            by_pairs = _bpb(_online(bank, held_out), held_out)
            report.row(f"{kind}: held-out, {count} shards by pairs", f"{by_pairs:.4f} bpb; merged in {seconds:.2f} s")
    return merged


def speed(
    report: harness.Report, kind: str, model: ModelConfig, training: Corpus, shards: tuple[int, ...], rounds: int
) -> None:
    """Seconds of the whole pass, merging included."""
    seconds = harness.interleaved(
        {
            str(count): lambda n=count: sharded_features(training, model, n, limit=0, memory=IN_MEMORY)
            for count in shards
        },
        rounds,
    )
    for count in shards:
        middle, low, high = harness.ratio(seconds["1"], seconds[str(count)])
        taken = sorted(seconds[str(count)])[rounds // 2]
        report.row(
            f"{kind}: pass, {count} readers",
            f"{taken:.1f} s, {len(training) / taken / 1e6:.2f} MB/s; {middle:.2f} times one reader's speed, {low:.2f} to {high:.2f}",
        )
        if count > 1:
            report.figures[f"{kind}_speed_{count}"] = middle


def _features(part: Corpus, model: ModelConfig) -> CorpusFeatures:
    return corpus_features(part, model, limit=0, memory=IN_MEMORY)


def _tree(banks: list[ExpertBank]) -> ExpertBank:
    """Banks merged by pairs, and pairs of pairs."""
    while len(banks) > 1:
        for left, right in zip(banks[::2], banks[1::2], strict=False):
            left.merge(right)
        banks = banks[::2]
    return banks[0]


def _nats(features: CorpusFeatures, part: Corpus) -> float:
    total = 0.0
    for offset in range(0, len(part), PIECE):
        data = part.read(offset, PIECE)
        total += _of_bits(features.read(offset * 8, len(data) * 8)[:, -1], data)
    return total


def _online(bank: ExpertBank, held_out: Corpus) -> float:
    stream, total = bank.stream(), 0.0
    for offset in range(0, len(held_out), PIECE):
        data = held_out.read(offset, PIECE)
        total += _of_bits(bank.read(data, stream, learn=True)[..., -1].reshape(-1), data)
    return total


def _of_bits(logits: np.ndarray, data: np.ndarray) -> float:
    """Nats of bits under the bank's own mixture, as a model's mixer reads it."""
    logits = logits.astype(np.float32) / FEATURE_ONE
    return float(np.logaddexp(0, np.where(np.unpackbits(data), -logits, logits)).sum(dtype=np.float64))


def _bpb(nats: float, data: Corpus) -> float:
    return nats / np.log(2) / len(data)


if __name__ == "__main__":
    harness.run(main, __doc__)
