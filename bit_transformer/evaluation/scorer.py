"""One interface for everything that can say how many bits data costs: our models, compressors, models of other libraries.

`metrics.ModelScorer` and `baselines.Compressor` are scorers. To compare another model, write a class with a `name` and a
method `scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from bit_transformer.data.sources import Corpus
from bit_transformer.errors import BitStreamError


@dataclass(frozen=True)
class Score:
    """The cost of data: `bits` in total, for `bytes` data bytes.

    Attributes:
        protocol: how they were scored; `str` of it is reported with the figure.
        standard_error: of `bits`; 0 if they are exact and not a sampled bound.
    """

    bits: float
    bytes: int
    protocol: object
    standard_error: float = 0.0

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return self.bits / self.bytes


class Scorer(Protocol):
    """Anything that can score a corpus."""

    @property
    def name(self) -> str:
        """The name of its row in a table."""

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """Cumulative scores of a corpus, each from its start to a later position. The last one is of the whole corpus.

        A scorer that knows only the cost of the whole yields one score.

        Raises:
            BitStreamError: an empty corpus.
        """


def cost_of(scorer: Scorer, corpus: Corpus, scored: Callable[[Score], None] = lambda _: None) -> Score:
    """Score a whole corpus.

    Args:
        scored: called with each score so far; it may raise an error to stop.

    Raises:
        BitStreamError: an empty corpus.
    """
    check_filled(corpus)
    latest = None
    for latest in scorer.scores(corpus):
        scored(latest)
    if latest is None:
        raise BitStreamError(f"got no score from {scorer.name!r}; a scorer must give one of the whole corpus")
    return latest


def check_filled(corpus: Corpus) -> None:
    """Refuse an empty corpus.

    Raises:
        BitStreamError: it is empty.
    """
    if not len(corpus):
        raise BitStreamError("got no bytes to score; at least one is needed. Try another file, or a larger holdout")
