"""How often each byte value occurs in data. Without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import find_files
from bit_transformer.errors import BitStreamError
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import HistogramRequest
from bit_transformer.service.workspace import Workspace

PIECE = 1 << 20  # bytes counted at a time


@dataclass(frozen=True)
class Histogram:
    """The byte values of some data.

    Attributes:
        name: as asked for; `files`: how many files that is.
        bytes: size.
        counts: of the 256 byte values.
        entropy: bits per byte, if bytes were drawn independently with these frequencies (order 0).
        ones: fraction of ones at each of the eight bits, first the most significant.
    """

    name: str
    files: int
    bytes: int
    counts: list[int]
    entropy: float
    ones: list[float]


def histogram(request: HistogramRequest, workspace: Workspace, job: Job) -> Histogram:
    """Count the byte values of a file, a folder or a named corpus. Memory does not grow with its size.

    Raises:
        BitStreamError: an empty or unreadable file, or no such corpus.
    """
    files = find_files([request.name])
    whole = sum(path.stat().st_size for path in files)
    counts, done = np.zeros(256, dtype=np.int64), 0
    with job.cancellable():
        for path in files:
            try:
                with path.open("rb") as file:  # not mapped: pages of a mapped file would count as this process's memory
                    while piece := file.read(PIECE):
                        counts += np.bincount(np.frombuffer(piece, dtype=np.uint8), minlength=256)
                        done += len(piece)
                        job.tell(Reading(done, whole, "counted"))
            except OSError as unreadable:
                raise BitStreamError(
                    f"{path}: cannot be read ({unreadable.strerror}). Try another file", field="name"
                ) from None
    if not done:
        raise BitStreamError(f"{request.name}: was emptied while it was read. Try again", field="name")
    share = counts / done
    seen = share[share > 0]
    bit_VU = bytes_to_bits(np.arange(256, dtype=np.uint8)[:, None])
    return Histogram(
        name=request.name,
        files=len(files),
        bytes=done,
        counts=counts.tolist(),
        entropy=max(0.0, float(-(seen * np.log2(seen)).sum())),
        ones=(share @ bit_VU).tolist(),
    )
