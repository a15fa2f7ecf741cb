"""Who reads a file for its surprise: experts alone, or after clean files, or a run's model; and what is normal for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bit_transformer.data.sources import Corpus, find_file, find_files, whole_files
from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.experts.bank import Tell
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.training import held_out_part, trained_on
from bit_transformer.service.workspace import Workspace
from bit_transformer.surprisal.damage import (
    Damage,
    Limits,
    allowed_in,
)
from bit_transformer.surprisal.mapping import judged
from bit_transformer.surprisal.reading import BankReader, Bytes, Costs, ModelReader, Reader

MOST_BYTES = 1 << 28  # of a file, and of a reference: what is kept of each byte must fit in memory
LEAST_ALONE = 1 << 10  # bytes that experts need to learn what is normal
RUN_BEFORE, RUN_CLEAN = (
    1 << 22,
    1 << 20,
)  # of a run's training bytes, for banks; of its held-out bytes, to know what is normal
BLOCK = 1 << 16
LEAST_REFERENCE = 1 << 14


@dataclass(frozen=True)
class Opened:
    """A file, or a part of one.

    Attributes:
        begin: offset of the first byte in the file.
    """

    path: Path
    data: Bytes
    begin: int


def opened(
    path: Path, span: tuple[int, int] | None, *, alone: bool, most: int = MOST_BYTES, tries: tuple[str, ...] = ()
) -> Opened:
    """Map a file into memory.

    Args:
        alone: whether no run and no reference helps to read it.
        most: bytes that can be read at once. `tries`: what to try with more. Default: a range.

    Raises:
        BitStreamError: it cannot be read, is too small to be read alone, or too large.
    """
    path = find_file(str(path), "map")
    size = path.stat().st_size
    begin, end = span or (0, size)
    if not 0 <= begin < end <= size:
        raise BitStreamError(
            f"got the range {begin}:{end} of {size:,} bytes; it must be in 0:{size}",
            field="span",
            tries=(Give("span", f"0:{min(size, 1 << 20)}"),),
        )
    if end - begin > most:
        raise BitStreamError(
            f"{path}: got {end - begin:,} bytes; at most {most:,} can be read at once",
            field="span",
            tries=tries or (Give("span", f"{begin}:{begin + most}"),),
        )
    if alone and end - begin < LEAST_ALONE:
        raise BitStreamError(
            f"{path}: got {end - begin:,} bytes and no run; experts alone need {LEAST_ALONE:,} to learn what is normal",
            field="run",
            tries=(Give("run", "RUN"), Give("reference", "FILE")),
        )
    return Opened(path, np.memmap(path, dtype=np.uint8, mode="r", offset=begin, shape=(end - begin,)), begin)


@dataclass(frozen=True)
class Prepared:
    """A reader, and data by which it is known what is normal for it.

    Attributes:
        folds: clean data, and a reader that has not read it.
        memorised: it has: the clean data is another version of the file.
    """

    reader: Reader
    folds: Sequence[tuple[Bytes, Reader]]
    memorised: bool = False

    @property
    def known(self) -> bool:
        """Whether there is something to compare with."""
        return bool(self.folds)

    def check(self, false_alarms: float) -> None:
        """Refuse a rate of false alarms that is too low for so little clean data, before anything is read.

        Raises:
            BitStreamError: it is.
        """
        if self.folds and not self.memorised:
            allowed_in(sum(len(clean) for clean, _ in self.folds), false_alarms)

    def judge(self, data: Bytes, costs: Costs, false_alarms: float, job: Job) -> tuple[list[Damage], Limits]:
        """Damaged ranges of data that the reader has read, and the limits that they exceed.

        Raises:
            BitStreamError: too little clean data.
        """
        telling = lambda doing, total, done: progress(job, total, doing, done)  # noqa: E731
        return judged(data, costs, self.reader, self.folds, false_alarms, memorised=self.memorised, telling=telling)


def progress(job: Job, total: int, doing: str, before: int = 0) -> Tell:
    """What readers call with the bytes that they read. Both ways count, so it tells half of them."""
    read = [0]

    def tell(count: int) -> None:
        read[0] += count
        job.tell(Reading(min(total, before + read[0] // 2), total, doing))

    return tell


def prepared(
    run: str | None, reference: Sequence[str], workspace: Workspace, job: Job, *, against: str | None = None
) -> Prepared:
    """The reader that was asked for.

    Args:
        reference: clean files of the same kind.
        against: an intact version of the file itself.

    Raises:
        BitTransformerError: no such run or file, or its data is gone.
    """
    before = [_bytes_of(whole_files([find_file(against, "compare with")]))] if against else []
    if run is not None and reference:
        raise ConfigError(
            "got a run and a reference; one of them says what is normal", field="reference", tries=("one of them",)
        )
    if run is not None:
        return _of_run(run, before, workspace, job)
    if reference:
        clean = _bytes_of(whole_files(find_files(list(reference))))
        halves = [np.concatenate(part) for part in _scattered(clean) if part]
        if len(clean) < LEAST_REFERENCE:
            raise BitStreamError(
                f"got a reference of {len(clean):,} bytes; at least {LEAST_REFERENCE:,} are needed",
                field="reference",
                tries=(Give("reference", "MORE"),),
            )
        folds = [(halves[0], BankReader([halves[1], *before])), (halves[1], BankReader([halves[0], *before]))]
        words = f"experts that had read {len(clean):,} bytes of clean files, forwards and backwards"
        return Prepared(BankReader([clean, *before], words), folds)
    if against:
        reader = BankReader(before, f"experts that had read {Path(against).name}, forwards and backwards")
        return Prepared(reader, [(before[0], reader)], memorised=True)
    return Prepared(BankReader(), [])


def _of_run(run: str, before: list[Bytes], workspace: Workspace, job: Job) -> Prepared:
    model = workspace.model(run)
    folder = workspace.model_path(run).parent
    training = trained_on(folder, workspace)
    primer = _bytes_of(training.thinned(RUN_BEFORE, BLOCK))
    reader = ModelReader(model, [primer, *before], f"model of {run}")
    try:
        held_out = held_out_part(folder, workspace)
    except BitStreamError as nothing:
        job.notice(f"what is normal is not known: {nothing}")
        return Prepared(reader, [])
    return Prepared(reader, [(_bytes_of(held_out.thinned(RUN_CLEAN, BLOCK)), reader)])


def _bytes_of(corpus: Corpus) -> Bytes:
    if len(corpus) > MOST_BYTES:
        raise BitStreamError(
            f"got {len(corpus):,} bytes to compare with; at most {MOST_BYTES:,} can be read at once. Try fewer files"
        )
    return corpus.read(0, len(corpus))


def _scattered(data: Bytes) -> tuple[list[Bytes], list[Bytes]]:
    """Two halves of blocks in turn: parts of a file differ, and each half has some of all of them."""
    size = min(BLOCK, max(1, -(-len(data) // 8)))
    blocks = [data[b : b + size] for b in range(0, len(data), size)]
    return blocks[::2], blocks[1::2]
