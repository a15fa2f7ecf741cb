"""Packs a model and what belongs to it into one file: a .zip whose bytes follow from what is in it."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bit_transformer.errors import ConfigError, Give
from bit_transformer.service.files import check_out, new_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.model_card import METRICS_FILE, parcel
from bit_transformer.service.requests import ExportRequest
from bit_transformer.service.workspace import Workspace

PIECE = 1 << 20
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date that the format knows
PERMISSIONS = 0o644 << 16


@dataclass(frozen=True)
class Exported:
    """A file with a model in it.

    Attributes:
        files: what is in it, by name, and how many bytes each has.
        bytes: of the file.
    """

    run: str
    out: str
    bytes: int
    files: dict[str, int]


def export(request: ExportRequest, workspace: Workspace, job: Job) -> Exported:
    """Pack a run's model, its settings, its gate, its metrics and a model card into one file.

    Raises:
        CheckpointError: no such run.
        ConfigError: the file is there already, or cannot be written.
    """
    out = request.out
    of = parcel(request.run, workspace)
    if out.exists() and not request.overwrite:
        raise ConfigError(
            f"got out={str(out)!r}, which exists", field="out", tries=(Give("overwrite", True), Give("out"))
        )
    check_out(out)
    files = of.files()
    if of.metrics is not None:
        files[METRICS_FILE] = of.metrics
    with ExitStack() as stack, job.cancellable():
        # Open before the first is read: what a training replaces meanwhile stays as it was.
        opened = {name: _opened(files[name], stack) for name in sorted(files)}
        sizes = {name: _size(file) for name, file in opened.items()}
        total, done = sum(sizes.values()), 0
        if total > (free := shutil.disk_usage(out.absolute().parent).free):
            raise ConfigError(f"{out}: needs {total:,} bytes; {free:,} are free there. Try another disk", field="out")
        with new_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, source in opened.items():
                info = zipfile.ZipInfo(name, LONG_AGO)
                info.external_attr, info.create_system, info.file_size = PERMISSIONS, 3, sizes[name]
                with archive.open(info, "w") as entry:
                    while piece := source.read(PIECE):
                        entry.write(piece)
                        done += len(piece)
                        job.tell(Reading(done, total, "packed"))
    return Exported(of.name, str(out), out.stat().st_size, sizes)


def _opened(file: Path | bytes, stack: ExitStack) -> BinaryIO:
    return io.BytesIO(file) if isinstance(file, bytes) else stack.enter_context(file.open("rb"))


def _size(file: BinaryIO) -> int:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    return end
