"""Baselines: general-purpose compressors on the same bytes."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from bit_transformer.data.sources import Corpus
from bit_transformer.evaluation.scorer import Score, check_filled, cost_of

PIECE = 1 << 20  # bytes that are compressed at a time


class _Stream(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


@dataclass(frozen=True)
class Compressor:
    """A compressor as a `Scorer`. The cost is the size of the whole corpus as one stream, in constant memory.

    Attributes:
        open: makes a stream like those of zlib, bz2 and lzma.
        primer: data that the compressor reads first. The cost is then C(primer + corpus) - C(primer).
    """

    name: str
    open: Callable[[], _Stream]
    primer: Corpus | None = None

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """One score, of the whole corpus: a compressor buffers its output, so its size so far means nothing."""
        check_filled(corpus)
        if self.primer is None:
            yield Score(8 * self._size(corpus), len(corpus), "starts empty")
            return
        size = self._size(self.primer, corpus) - self._size(self.primer)
        yield Score(8 * size, len(corpus), f"primed with {len(self.primer):,} bytes")

    def _size(self, *corpora: Corpus) -> int:
        """Compressed bytes of corpora, one after the other."""
        stream = self.open()
        pieces = (corpus.read(at, PIECE) for corpus in corpora for at in range(0, len(corpus), PIECE))
        return sum(len(stream.compress(piece.tobytes())) for piece in pieces) + len(stream.flush())


def compressors(primer: Corpus | None = None) -> list[Compressor]:
    """zlib -9, bz2 -9 and xz -9e.

    Args:
        primer: data that they read first. Default: none.
    """
    return [
        Compressor("zlib -9", lambda: zlib.compressobj(9), primer),
        Compressor("bz2 -9", lambda: bz2.BZ2Compressor(9), primer),
        Compressor("xz -9e", lambda: lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME), primer),
    ]


def compressors_bpb(corpus: Corpus, primer: Corpus | None = None) -> dict[str, float]:
    """Bits per byte of zlib -9, bz2 -9 and xz -9e on a corpus.

    Args:
        primer: data that they read first. Default: none.

    Raises:
        BitStreamError: an empty corpus.
    """
    return {compressor.name: cost_of(compressor, corpus).bpb for compressor in compressors(primer)}
