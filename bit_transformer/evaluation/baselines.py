"""What everybody has: general-purpose compressors on the same bytes."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Protocol

from bit_transformer.data.sources import Corpus


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressors_bpb(corpus: Corpus, *, piece: int = 1 << 20) -> dict[str, float]:
    """Bits per byte of zlib -9, bz2 -9 and xz -9e on a corpus, as one stream; memory does not grow with the corpus."""
    coders: dict[str, _Compressor] = {
        "zlib -9": zlib.compressobj(9),
        "bz2 -9": bz2.BZ2Compressor(9),
        "xz -9e": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
    }
    size = dict.fromkeys(coders, 0)
    for offset in range(0, len(corpus), piece):
        data = corpus.read(offset, piece).tobytes()
        for name, coder in coders.items():
            size[name] += len(coder.compress(data))
    for name, coder in coders.items():
        size[name] += len(coder.flush())
    return {name: 8 * count / len(corpus) for name, count in size.items()}
