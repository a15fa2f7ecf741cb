"""The first pass over data by several readers at once. Each reads a part, in order, with a bank of its own; then the banks are merged.

A pass by one reader is a chain: every bit is predicted by what was learned from all before. Here the features of a part are of a bank that knows
what was known before the data, and the part so far. So they are weaker than one reader's, the more so the more readers there are. What the
merged bank knows in the end is about the same. The result depends on the number of readers, and on nothing else.
"""

# Shapes: N windows, T bits, F features.
from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
from torch import Tensor

from bit_transformer.config import ModelConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import ConfigError, Give
from bit_transformer.experts import feature_cache
from bit_transformer.experts.bank import ExpertBank, Features, memory_bytes
from bit_transformer.experts.feature_cache import CorpusFeatures, corpus_features
from bit_transformer.experts.passes import Passed, Say, feature_bytes, window_features
from bit_transformer.machine import free_memory

LEAST = 1 << 10  # bytes that are worth a reader
LOOK = 0.2  # seconds between two looks at what the readers have done

_Made = TypeVar("_Made")
_Reader = Callable[[Say, Passed], _Made]


class JoinedFeatures:
    """Features of a corpus that was read in parts.

    Attributes:
        bank: what the readers have learned, merged.
        made: whether any part had to be read.
    """

    def __init__(self, parts: Sequence[CorpusFeatures], bits: Sequence[int], bank: ExpertBank) -> None:
        self.bank, self.made = bank, any(part.made for part in parts)
        self._parts, self._ends = parts, list(itertools.accumulate(bits))

    def read(self, bit: int, length: int) -> Features:
        """Features of `length` bits: (T, F)."""
        found = []
        index = bisect.bisect_right(self._ends, bit)
        while length and index < len(self._parts):
            inside = bit - (self._ends[index - 1] if index else 0)
            found.append(self._parts[index].read(inside, min(length, self._ends[index] - bit)))
            bit, length, index = bit + len(found[-1]), length - len(found[-1]), index + 1
        return found[0] if len(found) == 1 else np.concatenate(found)


def sharded_features(
    corpus: Corpus,
    model: ModelConfig,
    workers: int,
    *,
    start: ExpertBank | None = None,
    limit: int,
    folder: Path | None = None,
    memory: int | None = None,
    say: Say = lambda _: None,
    passed: Passed = lambda done, total: None,
) -> CorpusFeatures | JoinedFeatures:
    """The features of a corpus, read by `workers` threads. Every part has its own entry in the cache. Other arguments, and errors, as of
    `corpus_features`. `say` and `passed` are called by the caller's thread alone; if one raises, the readers stop.

    Args:
        corpus: of whole units, as `Corpus.aligned` gives.

    Raises:
        ConfigError: more readers than there is data or memory for.
    """
    if workers == 1:
        return corpus_features(
            corpus, model, start=start, limit=limit, folder=folder, memory=memory, say=say, passed=passed
        )
    _check(workers, len(corpus) // LEAST, f"{len(corpus):,} bytes; each reads at least {LEAST:,}", model)
    align = model.align_bytes
    cuts = [*(len(corpus) * index // workers // align * align for index in range(workers)), len(corpus)]
    parts = [corpus.part(begin, stop) for begin, stop in itertools.pairwise(cuts)]
    small = feature_bytes(corpus, model) <= (feature_cache.MEMORY if memory is None else memory)

    def reader(part: Corpus) -> _Reader[CorpusFeatures]:
        return lambda say, passed: corpus_features(
            part,
            model,
            start=start,
            limit=limit,
            folder=folder,
            memory=feature_bytes(part, model) if small else 0,
            whole=corpus,
            say=say,
            passed=passed,
        )

    made = _in_threads([reader(part) for part in parts], len(corpus), say, passed)
    bank = _merged([part.bank for part in made], start)
    return JoinedFeatures(made, [len(part) * model.byte_bits for part in parts], bank)


def sharded_window_features(
    bits_NT: Tensor, model: ModelConfig, workers: int, start: ExpertBank | None = None
) -> tuple[Features, ExpertBank]:
    """`window_features` by `workers` threads: each reads some of the rows.

    Raises:
        BitStreamError: rows that are not whole units.
        ConfigError: more readers than there are rows or memory for.
    """
    if workers == 1:
        return window_features(bits_NT, model, start)
    _check(workers, len(bits_NT), f"{len(bits_NT):,} windows; each reads at least one", model)

    def reader(rows_NT: Tensor) -> _Reader[tuple[Features, ExpertBank]]:
        return lambda say, passed: window_features(rows_NT, model, start)

    made = _in_threads([reader(rows_NT) for rows_NT in bits_NT.tensor_split(workers)])
    return np.concatenate([part_NTF for part_NTF, _ in made]), _merged([bank for _, bank in made], start)


def _check(workers: int, most: int, data: str, model: ModelConfig) -> None:
    """Refuse more readers than there is data or memory for."""
    if workers > most:
        raise ConfigError(
            f"got train.workers={workers} for {data}",
            field="train.workers",
            tries=(Give("train.workers", max(1, most)),),
        )
    free, each = free_memory(), memory_bytes(model)
    if free is not None and workers * each > free:
        raise ConfigError(
            f"got train.workers={workers}, whose experts need {workers * each / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            field="train.workers",
            tries=(Give("train.workers", max(1, int(free // each))), "a smaller model.experts.buckets"),
        )


def _merged(banks: Sequence[ExpertBank], start: ExpertBank | None) -> ExpertBank:
    """What banks have learned one after the other, in the first of them. All began as copies of `start`."""
    first, *others = banks
    for other in others:
        first.merge(other, since=start)
    return first


class _Stopped(Exception):
    """A reader was asked to stop."""


def _in_threads(
    readers: Sequence[_Reader[_Made]],
    total: int = 0,
    say: Say = lambda _: None,
    passed: Passed = lambda done, total: None,
) -> list[_Made]:
    """What readers give, each in a thread of its own.

    Messages are passed on by this thread, each text once, and progress is that of all readers together. If a reader fails, or `say` or `passed`
    raises, the other readers stop too.
    """
    done, told, stop = [0] * len(readers), SimpleQueue[str](), threading.Event()
    said: set[str] = set()

    def following(index: int) -> Passed:
        def follow(count: int, _: int) -> None:
            done[index] = count
            if stop.is_set():
                raise _Stopped

        return follow

    with ThreadPoolExecutor(len(readers), thread_name_prefix="experts") as threads:
        running = [threads.submit(reader, told.put, following(index)) for index, reader in enumerate(readers)]
        waiting, shown = set(running), 0
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=LOOK, return_when=FIRST_COMPLETED)
                while not told.empty():
                    if (text := told.get()) not in said:
                        said.add(text)
                        say(text)
                if (now := sum(done)) != shown:
                    shown = now
                    passed(now, total)
                for one in finished:
                    one.result()
        except BaseException:
            stop.set()
            raise
    return [one.result() for one in running]
