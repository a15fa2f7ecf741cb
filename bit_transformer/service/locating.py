"""Damaged ranges of a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bit_transformer.service.jobs import Job
from bit_transformer.service.readers import opened, prepared, progress
from bit_transformer.service.requests import LocateRequest
from bit_transformer.service.workspace import Workspace
from bit_transformer.surprisal.damage import Damage
from bit_transformer.surprisal.segments import segments_of


@dataclass(frozen=True)
class Located:
    """Damaged ranges.

    Attributes:
        bpb: bits per byte of the file, as read.
        ranges: by descending evidence; offsets are of the file.
        found: how many there are; `ranges` may have fewer.
        false_alarms: per megabyte of clean data, as counted in the reference; None without one, or against an intact version.
        between: the 95 % interval of that.
        reference_bytes: clean bytes by which the limits were set.
        blind: bytes that are compressed or encrypted, where damage leaves no mark.
        reader: who read the file, in words.
    """

    file: str
    bytes: int
    bpb: float
    ranges: list[Damage]
    found: int
    false_alarms: float | None
    between: tuple[float, float] | None
    reference_bytes: int
    blind: int
    reader: str


def locate(request: LocateRequest, workspace: Workspace, job: Job) -> Located:
    """Find damaged ranges of a file.

    Raises:
        BitTransformerError: a file that cannot be read, no such run, or too little clean data for so few false alarms.
    """
    alone = not (request.run or request.reference or request.against)
    file = opened(request.path, request.span, alone=alone)
    with job.cancellable():
        ready = prepared(request.run, request.reference, workspace, job, against=request.against)
        ready.check(request.false_alarms)
        costs = ready.reader.costs(file.data, tell=progress(job, len(file.data), "read"))
        found, limits = ready.judge(file.data, costs, request.false_alarms, job)
    blind = sum(part.end - part.begin for part in segments_of(file.data, costs) if part.kind == "compressed")
    known = not math.isnan(limits.false_alarms)
    return Located(
        str(file.path),
        len(file.data),
        float(costs.lower.mean(dtype="float64")),
        [replace(d, begin=d.begin + file.begin) for d in found[: request.most]],
        len(found),
        limits.false_alarms if known else None,
        limits.between if known else None,
        limits.reference_bytes,
        blind,
        ready.reader.words,
    )
