"""Baselines: general-purpose compressors on the same bytes, alone or after reading other bytes first (primed).

A primed compressor's cost is what the data adds: C(primer + data) - C(primer). A model that has read training bytes is compared with compressors
that have read the same ones; those that start empty look much worse.
"""

from __future__ import annotations

import bz2
import importlib.util
import lzma
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.errors import BitStreamError
from bit_transformer.evaluation.scorer import Score, Scorer, check_filled, cost_of

PIECE = 1 << 20  # bytes that are compressed at a time
PPMD_MEMORY = 1 << 28


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


@dataclass(frozen=True)
class Program:
    """A compressor that is a program of its own, as a `Scorer`: what it makes of a file.

    Attributes:
        command: with FILE and OUT in the places of the file and of what is made of it.
        primer: as of `Compressor`.
        by_powers: its tables grow with the input, in powers of two. Where the primer alone and primer and data fall on two sides of such a
            step, both begin with random bytes that bring them past it, or the difference is too small.
    """

    name: str
    command: tuple[str, ...]
    primer: Corpus | None = None
    by_powers: bool = False

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """One score, of the whole corpus.

        Raises:
            BitStreamError: the program failed.
        """
        check_filled(corpus)
        if self.primer is None:
            yield Score(8 * self._size(corpus), len(corpus), "starts empty")
            return
        pad = bytes_corpus(self.padding(len(self.primer), len(corpus)))
        size = self._size(pad, self.primer, corpus) - self._size(pad, self.primer)
        yield Score(8 * size, len(corpus), f"primed with {len(self.primer):,} bytes")

    def padding(self, before: int, after: int) -> bytes:
        """What a primer of `before` bytes and data of `after` bytes begin with, if they need it: random bytes, because what repeats is stored only once."""
        if not self.by_powers:
            return b""
        step = 1
        while True:
            pad = max(0, step - before + (1 << 16)) if before <= step else 0
            if before + pad > step and before + pad + after <= 2 * step:
                return np.random.default_rng(0).bytes(pad)
            step *= 2

    def _size(self, *corpora: Corpus) -> int:
        with tempfile.TemporaryDirectory(prefix="bit-transformer-") as folder:
            data, out = Path(folder) / "data", Path(folder) / "out.zpaq"
            with data.open("wb") as file:
                for corpus in corpora:
                    for at in range(0, len(corpus), PIECE):
                        file.write(corpus.read(at, PIECE).tobytes())
            places = {"FILE": data.name, "OUT": out.name}
            command = [places.get(word, word) for word in self.command]
            try:
                # In a session of its own, so that Ctrl-C reaches only us, who wait for it.
                subprocess.run(command, cwd=folder, check=True, capture_output=True, start_new_session=True)
                return out.stat().st_size
            except (OSError, subprocess.CalledProcessError) as failed:
                raise BitStreamError(f"{self.name}: the program failed ({failed}). Try without it") from None


def installed(primer: Corpus | None = None, *, quick: bool = False) -> list[Scorer]:
    """All compressors that are there: zlib, bz2 and xz, which come with Python; PPMd of the library pyppmd; the programs zstd and zpaq.

    Args:
        primer: data that they read first. Default: none.
        quick: leave out the programs, which are the slowest.
    """
    found: list[Scorer] = [*compressors(primer)]
    if importlib.util.find_spec("pyppmd") is not None:
        found.append(ppmd(8, primer))
    if quick:
        return found
    if shutil.which("zstd"):
        zstd = ("zstd", "-q", "--ultra", "-22", "--long=27", "--single-thread", "FILE", "-o", "OUT")
        found.append(Program("zstd -22", zstd, primer))
    if shutil.which("zpaq"):
        zpaq = ("zpaq", "a", "OUT", "FILE", "-m5", "-threads", "1")
        found.append(Program("zpaq -m5", zpaq, primer, by_powers=True))
    return found


def ppmd(order: int, primer: Corpus | None = None) -> Compressor:
    """PPMd with contexts of up to `order` bytes. The library pyppmd must be installed."""

    def open_() -> _Stream:
        import pyppmd

        stream: _Stream = pyppmd.PpmdCompressor(order, PPMD_MEMORY)
        return stream

    return Compressor(f"PPMd order {order}", open_, primer)


@dataclass(frozen=True)
class Coding:
    """What a compressor made of data.

    Attributes:
        primed_with: bytes that it had read before.
        bytes: of the data; `coded`: what it costs, in bytes; `bpb`: the same in bits per byte.
        seconds: that this took, with reading the primer.
    """

    name: str
    primed_with: int
    bytes: int
    coded: int
    bpb: float
    seconds: float


def codings(corpus: Corpus, primer: Corpus | None = None, *, quick: bool = False) -> Iterator[Coding]:
    """What all installed compressors make of a corpus, one after the other.

    Args:
        primer: data that they read first. Default: none.
        quick: leave out the slowest.

    Raises:
        BitStreamError: an empty corpus, or a program failed.
    """
    for one in installed(primer, quick=quick):
        began = time.perf_counter()
        score = cost_of(one, corpus)
        seconds = time.perf_counter() - began
        read = len(primer) if primer is not None else 0
        yield Coding(one.name, read, score.bytes, round(score.bits / 8), score.bpb, seconds)
