"""What everybody has: general-purpose compressors on the same bytes."""

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
    """A compressor as a `Scorer`. It costs what a file as a whole takes, as one stream; memory does not grow with the corpus.

    Attributes:
        open: makes a stream, as of zlib, bz2 and lzma.
        primer: what the compressor reads before: the cost is then C(primer + corpus) - C(primer).
    """

    name: str
    open: Callable[[], _Stream]
    primer: Corpus | None = None

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """Once, for all of it: what a compressor holds back says nothing of the cost so far."""
        check_filled(corpus)
        if self.primer is None:
            yield Score(8 * self._size(corpus), len(corpus), "starts empty")
            return
        size = self._size(self.primer, corpus) - self._size(self.primer)
        yield Score(8 * size, len(corpus), f"C(A + B) - C(A), {len(self.primer):,} bytes of A before")

    def _size(self, *corpora: Corpus) -> int:
        """Bytes that some corpora take, one after the other."""
        stream = self.open()
        pieces = (corpus.read(at, PIECE) for corpus in corpora for at in range(0, len(corpus), PIECE))
        return sum(len(stream.compress(piece.tobytes())) for piece in pieces) + len(stream.flush())


def compressors(primer: Corpus | None = None) -> list[Compressor]:
    """zlib -9, bz2 -9 and xz -9e.

    Args:
        primer: what they read before; not given: nothing.
    """
    return [
        Compressor("zlib -9", lambda: zlib.compressobj(9), primer),
        Compressor("bz2 -9", lambda: bz2.BZ2Compressor(9), primer),
        Compressor("xz -9e", lambda: lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME), primer),
    ]


def compressors_bpb(corpus: Corpus, primer: Corpus | None = None) -> dict[str, float]:
    """Bits per byte of zlib -9, bz2 -9 and xz -9e on a corpus.

    Args:
        primer: what they read before; not given: nothing.

    Raises:
        BitStreamError: an empty corpus.
    """
    return {compressor.name: cost_of(compressor, corpus).bpb for compressor in compressors(primer)}
