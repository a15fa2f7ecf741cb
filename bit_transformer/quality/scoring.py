"""Scores of many texts: lazily, in order, in constant memory, on all cores.

>>> odd = [score.percentile for score in score_texts(texts, "quality.btlm")]  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from bit_transformer.quality.model import QualityModel, TextScore

Given = TypeVar("Given")
Made = TypeVar("Made")

TEXTS = 32  # texts that a thread scores at a time
_AHEAD = 2  # pieces of work for each thread that are read before they are needed


def score_texts(
    texts: Iterable[str | bytes], model: str | Path | QualityModel, *, jobs: int | None = None
) -> Iterator[TextScore]:
    """Scores of texts, in their order, while they are read.

    Args:
        texts: any number; some of them are read ahead.
        model: a quality model, or its file.
        jobs: threads; default: one per core. Scores do not depend on it.

    Raises:
        CheckpointError: no such file, or another one.
        BitStreamError: something that is not text.
    """
    scorer = model if isinstance(model, QualityModel) else QualityModel.load(model)
    return _scores(iter(texts), scorer, jobs)


def _scores(texts: Iterator[str | bytes], model: QualityModel, jobs: int | None) -> Iterator[TextScore]:
    pieces = iter(lambda: list(islice(texts, TEXTS)), [])
    for scores in in_order(pieces, lambda piece: list(map(model.score, piece)), jobs):
        yield from scores


def in_order(given: Iterable[Given], work: Callable[[Given], Made], jobs: int | None) -> Iterator[Made]:
    """What is made of each, in their order, by threads. Only a few are read ahead."""
    threads = jobs or os.cpu_count() or 1
    if threads == 1:
        yield from map(work, given)
        return
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for each in given:
            waiting.append(pool.submit(work, each))
            if len(waiting) >= threads * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for left in waiting:
            left.cancel()
        pool.shutdown()
