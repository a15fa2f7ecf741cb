"""One interface to whatever says how many bits data costs: our models, compressors, models of other libraries.

`metrics.ModelScorer` and `baselines.Compressor` are scorers. Another model becomes one by a class with a `name` and a method
`scores`; tables and comparisons then take it like the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from bit_transformer.data.sources import Corpus
from bit_transformer.errors import BitStreamError


@dataclass(frozen=True)
class Score:
    """What some bytes cost: `bits` in all, over `bytes` data bytes.

    Attributes:
        protocol: how they were scored; its `str` goes with the figure.
        standard_error: of the bits; 0 where they are exact, and not a bound that was sampled.
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
    """What tells the cost of a corpus."""

    @property
    def name(self) -> str:
        """Of its row in a table."""

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """What a corpus costs from its start up to ever later places; the last score is of all of it.

        A scorer that knows the cost of every stretch gives one score for each; one that knows only the whole gives one.

        Raises:
            BitStreamError: an empty corpus.
        """


def cost_of(scorer: Scorer, corpus: Corpus, scored: Callable[[Score], None] = lambda _: None) -> Score:
    """What all of a corpus costs.

    Args:
        scored: told what the bytes so far cost; may raise an error of its own, to end here.

    Raises:
        BitStreamError: an empty corpus.
    """
    check_filled(corpus)
    for latest in scorer.scores(corpus):
        scored(latest)
    return latest


def check_filled(corpus: Corpus) -> None:
    """Refuse a corpus without bytes.

    Raises:
        BitStreamError: it is one.
    """
    if not len(corpus):
        raise BitStreamError("got no bytes to score; at least one is needed. Try another file, or a larger holdout")
