"""Fits a quality model to clean text, or opens one to score with."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.data.sources import find_files
from bit_transformer.errors import Ask, BitStreamError, ConfigError, Give
from bit_transformer.quality.documents import STDIN, Source
from bit_transformer.quality.model import QualityModel, is_quality_file
from bit_transformer.service.files import check_out
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import FitRequest
from bit_transformer.service.workspace import Workspace

MOST_CLEAN = 1 << 26  # bytes; a larger bank would not be much better
_HELD_OUT = 1 << 21  # bytes of a run's held-out data that are measured


@dataclass(frozen=True)
class Length:
    """What is normal for clean texts of a length.

    Attributes:
        bytes: the length; `texts`: how many were measured.
        low, middle, high: bits per byte of the 2.5 %, 50 % and 97.5 % quantiles.
    """

    bytes: int
    texts: int
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """A quality model that was fitted.

    Attributes:
        out: its file, of `file_bytes`.
        documents, bytes: of clean text that was read.
        unreadable: documents that could not be read, by why.
        whole: whether all of the text was read; 64 MiB are.
        lengths: by the length of a text.
    """

    out: str
    file_bytes: int
    documents: int
    bytes: int
    unreadable: dict[str, int]
    whole: bool
    lengths: list[Length]
    seconds: float


def fit(request: FitRequest, workspace: Workspace, job: Job) -> Fitted:
    """Learn what clean text is like.

    Raises:
        BitStreamError: files that cannot be read, or too little text.
        ConfigError: the file exists already.
        CheckpointError: it cannot be written.
    """
    began, out = time.monotonic(), request.out
    if out.exists() and not request.overwrite:
        raise ConfigError(f"{out}: is there already", field="out", tries=(Give("out"), Give("overwrite", True)))
    check_out(out)
    unreadable: Counter[str] = Counter()
    documents: list[str] = []
    size, whole = 0, True
    for text in _texts(request, unreadable):
        if size + len(text) > MOST_CLEAN:
            whole = False
            job.notice(f"only the first {size:,} bytes are read; more would change little")
            break
        documents.append(text)
        size += len(text)
    if not documents:
        why = ", ".join(f"{count:,} {what}" for what, count in unreadable.most_common(3)) or "nothing in them"
        raise BitStreamError(f"got no text in {', '.join(request.names)}: {why}", tries=(Give("field"), "other files"))
    with job.cancellable():
        model = QualityModel.fit(documents, tell=lambda done, total: job.tell(Reading(done, total, "fit: read")))
    model.save(out)
    lengths = []
    for length, table in zip(model.normal.lengths, model.normal.tables, strict=True):
        costs = sorted(table.rows[:, 0].tolist())
        lengths.append(Length(length, len(costs), table.span("bpb")[0], costs[len(costs) // 2], table.span("bpb")[1]))
    facts = model.facts
    return Fitted(
        str(out),
        out.stat().st_size,
        facts["documents"],
        facts["bytes"],
        dict(unreadable),
        whole,
        lengths,
        time.monotonic() - began,
    )


def _texts(request: FitRequest, unreadable: Counter[str]) -> Iterator[str]:
    files = [STDIN if name == STDIN else str(path) for name in request.names for path in _paths(name)]
    for name in dict.fromkeys(files):
        for found in Source(name, request.field).documents():
            if found.text:
                yield found.text
            elif found.text is None and found.why != "blank line":
                unreadable[found.why] += 1


def _paths(name: str) -> list[Path]:
    return [Path(STDIN)] if name == STDIN else find_files([name])


def opened_model(run: str, workspace: Workspace, job: Job) -> QualityModel:
    """A quality model: the file that `fit` wrote, or made of a run's experts and the data that it held out.

    Raises:
        CheckpointError: no such file or run, or a damaged one.
        ConfigError: a run without experts, or whose units are no bytes.
    """
    path = Path(run)
    if path.is_file() and (is_quality_file(path) or path.suffix == ".btlm"):
        return QualityModel.load(path)
    model = workspace.model(run)
    if model.config.experts is None or model.bank.unit_bits != 8:
        what = "without experts" if model.config.experts is None else f"with units of {model.bank.unit_bits} bits"
        raise ConfigError(
            f"got run {run!r} {what}; experts that read bytes are needed",
            field="run",
            tries=(Ask("fit"), "a run without parity"),
        )
    from bit_transformer.service.training import held_out_part

    held_out = held_out_part(workspace.model_path(run).parent, workspace).part(0, _HELD_OUT)
    job.notice(f"measuring {len(held_out):,} held-out bytes of {run}; a file that `btlm fit` writes needs no such pass")
    return QualityModel.of_bank(model.bank, [span.read(0, len(span)).tobytes() for span in held_out.spans])
