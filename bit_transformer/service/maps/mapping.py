"""Where a file is surprising, byte by byte: read once, shown as a page, a picture, tables, bookmarks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from bit_transformer.errors import ConfigError, Give
from bit_transformer.service.files import check_out, new_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.maps.formats import write_csv, write_imhex, write_json, write_png
from bit_transformer.service.maps.marks import Mark
from bit_transformer.service.maps.page import write_page
from bit_transformer.service.readers import opened, prepared, progress
from bit_transformer.service.requests import MapRequest
from bit_transformer.service.workspace import Workspace
from bit_transformer.surprisal.damage import Damage
from bit_transformer.surprisal.records import Segment, SurpriseMap
from bit_transformer.surprisal.segments import segments_of

PIPE = Path("-")
BITS_UP_TO = 1 << 24  # bytes of a file whose single bits are kept: eight more numbers for each byte
MOST_MARKS = 1000
HIGH = 8.0  # bits of a byte that nothing was known about


@dataclass(frozen=True)
class Mapped:
    """A map that was made.

    Attributes:
        bpb: bits per byte, of the cheaper of both ways.
        segments: the parts of the file; offsets of the file.
        damaged: ranges beyond what clean data has; empty without a run or a reference.
        reader: who read the file, in words.
        written: files.
        seconds: that reading took.
    """

    file: str
    bytes: int
    bpb: float
    segments: list[Segment]
    damaged: list[Damage]
    reader: str
    written: list[str]
    seconds: float


def map_file(request: MapRequest, workspace: Workspace, job: Job) -> Mapped:
    """Read a file, and write what was asked for.

    Raises:
        BitTransformerError: a file that cannot be read, no such run, or a result that cannot be written.
    """
    outs = {"out": request.out, "csv": request.csv, "table": request.table, "png": request.png, "imhex": request.imhex}
    _check_outs(request, outs)
    file = opened(request.path, request.span, alone=not (request.run or request.reference))
    began = time.perf_counter()
    with job.cancellable():
        ready = prepared(request.run, request.reference, workspace, job)
        ready.check(request.false_alarms)
        size = len(file.data)
        costs = ready.reader.costs(file.data, bits=size <= BITS_UP_TO, tell=progress(job, size, "read"))
        seconds = time.perf_counter() - began
        damaged, normal = list[Damage](), None
        if ready.known:
            damaged, limits = ready.judge(file.data, costs, request.false_alarms, job)
            damaged, normal = damaged[:MOST_MARKS], limits.bpb
        made = SurpriseMap(
            (request.called or file.path.name).encode(errors="replace").decode(),
            file.data,
            costs.lower.astype(np.float16),
            costs.bits,
            segments_of(file.data, costs, normal),
            ready.reader.words,
            file.begin,
        )
        marks = [Mark(d.begin, d.begin + d.length, f"{d.kind}: {d.text}", d.bits) for d in damaged]
        written = _write(made, marks, outs, request, job)
    shift = file.begin
    return Mapped(
        str(file.path),
        size,
        made.bpb,
        [Segment(s.begin + shift, s.end + shift, s.kind, s.bpb, s.like) for s in made.segments],
        [Damage(d.begin + shift, d.length, d.bits, d.kind, d.sign, d.score, d.limit, d.text) for d in damaged],
        made.reader,
        written,
        seconds,
    )


def _check_outs(request: MapRequest, outs: dict[str, Path | None]) -> None:
    """Refuse results that cannot be written, or would replace each other, or what is read.

    Raises:
        ConfigError: as above.
    """
    inputs: tuple[str | Path, ...] = (request.path, *request.reference)
    taken = {Path(name).resolve(): "an input" for name in inputs}
    for field, out in outs.items():
        if out is None:
            continue
        if out == PIPE and field not in ("csv", "table"):
            raise ConfigError(f"got {field}=-; only tables go to standard output", field=field, tries=(Give(field),))
        where = out if out == PIPE else out.resolve()
        if where in taken:
            raise ConfigError(
                f"got {field}={str(out)!r}, which is {taken[where]} too", field=field, tries=(Give(field),)
            )
        taken[where] = field
        if out == PIPE:
            continue
        check_out(out, field)
        if out.exists() and not request.overwrite:
            raise ConfigError(f"{out}: is there already", field=field, tries=(Give(field), Give("overwrite", True)))


def _write(
    made: SurpriseMap, marks: Sequence[Mark], outs: dict[str, Path | None], request: MapRequest, job: Job
) -> list[str]:
    """Write the files that were asked for."""
    out, table, csv, png, imhex = (outs[name] for name in ("out", "table", "csv", "png", "imhex"))
    if csv is not None:
        _text(csv, lambda file: write_csv(made, file, request.window))
    if table is not None:
        _text(table, lambda file: write_json(made, file, request.window))
    if png is not None:
        write_png(made, png, hilbert=request.hilbert)
    if imhex is not None:
        write_imhex(made, imhex, marks, HIGH)
    if out is not None:
        write_page(made, out, marks=marks, tell=lambda done, total: job.tell(Reading(done, total, "page: written")))
    return [str(path) for path in outs.values() if path is not None]


def _text(path: Path, write: Callable[[TextIO], None]) -> None:
    """Write text to a file, all or nothing, or to standard output."""
    if path == PIPE:
        write(sys.stdout)
        return
    import io

    with new_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        write(text)
        text.detach()
