"""Compressed files."""

from __future__ import annotations

import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bit_transformer.coding.container import Header
from bit_transformer.compression.codec import Coder, coder_for
from bit_transformer.compression.files import check_experts, compress_stream, decompress_stream, new_coder
from bit_transformer.errors import BitStreamError, CompressedFileError, ConfigError, Give
from bit_transformer.service.files import check_out, new_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import CompressRequest, DecompressRequest
from bit_transformer.service.workspace import Workspace

SUFFIX = ".btlm"


@dataclass(frozen=True)
class Compressed:
    """A file that was compressed.

    Attributes:
        bytes: before. `compressed`: after.
        bpb: bits of the compressed file per byte of the data.
        coded_by: how many of the frames each kind of predictor coded.
    """

    file: str
    out: str
    bytes: int
    compressed: int
    bpb: float | None
    frames: int
    coded_by: dict[str, int]


@dataclass(frozen=True)
class Decompressed:
    """A file that was decompressed.

    Attributes:
        lost: ranges of bytes that could not be read and are zeros: first byte, and the byte after the last.
        cut: whether the end of the compressed file is damaged or missing, so that there may have been more bytes.
    """

    file: str
    out: str
    bytes: int
    lost: list[tuple[int, int]]
    cut: bool


def compress(request: CompressRequest, workspace: Workspace, job: Job) -> Compressed:
    """Compress a file. Every frame is decoded again before the file gets its name.

    Raises:
        BitStreamError: an unreadable file.
        ConfigError: a file that exists already, or settings that do not fit.
        CheckpointError: no such run.
    """
    path = request.path
    out = request.out or path.parent / (path.name + SUFFIX)
    with opened_pair(path, out, overwrite=request.overwrite) as (source, target):
        return compress_pipe(request, source, target, coder_of(request, workspace), job, out=str(out))


def decompress(request: DecompressRequest, workspace: Workspace, job: Job) -> Decompressed:
    """Read a compressed file back.

    Raises:
        CompressedFileError: damage, unless `keep_going`; or another model.
        BitStreamError: an unreadable file.
        ConfigError: a file that exists already, or not enough room on the disk.
        CheckpointError: no such run.
    """
    path = request.path
    out = request.out or path.with_suffix("")
    if request.out is None and path.suffix != SUFFIX:
        raise ConfigError(
            f"{path}: does not end in {SUFFIX}, so the result has no name",
            field="out",
            tries=(Give("out"),),
        )
    with opened_pair(path, out, overwrite=request.overwrite) as (source, target):
        return decompress_pipe(request, source, target, workspace, job, out=out)


def coder_of(request: CompressRequest, workspace: Workspace) -> Coder:
    """The coder that a request asks for.

    Raises:
        ConfigError: settings that do not fit.
        CheckpointError: no such run.
    """
    check_experts(request.experts, request.run is not None)
    return new_coder(workspace.model(request.run) if request.run else None, request.adapt, request.experts)


def compress_pipe(
    request: CompressRequest, source: BinaryIO, target: BinaryIO, coder: Coder, job: Job, *, out: str
) -> Compressed:
    """Compress what a stream gives, into another.

    Raises:
        ConfigError: settings that do not fit.
    """
    size = _size(source)
    with job.cancellable():
        made = compress_stream(
            source,
            target,
            coder,
            size=size,
            frame_bytes=request.frame_bytes,
            jobs=request.jobs,
            verify=request.verify,
            tell=lambda done: job.tell(Reading(done, size or 0, "compressed")),
        )
    bpb = 8 * made.coded / made.size if made.size else None
    return Compressed(str(request.path), out, made.size, made.coded, bpb, made.frames, made.coded_by)


def decompress_pipe(
    request: DecompressRequest,
    source: BinaryIO,
    target: BinaryIO,
    workspace: Workspace,
    job: Job,
    *,
    out: Path | None,
) -> Decompressed:
    """Read back what a stream gives, into another.

    Args:
        out: the file that the target is, if it is one: its disk must have room.

    Raises:
        CompressedFileError: damage, unless `keep_going`; or another model.
        ConfigError: not enough room on the disk.
        CheckpointError: no such run.
    """
    total = 0

    def begin(size: int | None) -> None:
        nonlocal total
        total = size or 0
        free = None if out is None else shutil.disk_usage(out.absolute().parent).free
        if free is not None and total > free:
            raise ConfigError(
                f"{request.path}: declares {total:,} bytes of data; {free:,} are free where {out} is to be written",
                field="out",
                tries=(Give("out"),),
            )

    def coder(header: Header) -> Coder:
        return coder_for(header, workspace.model(request.run) if request.run else None)

    with job.cancellable():
        try:
            made = decompress_stream(
                source,
                target,
                coder,
                jobs=request.jobs,
                keep_going=request.keep_going,
                before=begin,
                tell=lambda done: job.tell(Reading(done, total, "decompressed")),
            )
        except CompressedFileError as damage:
            damage.what = f"{request.path}: {damage.what}"
            raise
    return Decompressed(str(request.path), "-" if out is None else str(out), made.size, made.lost, made.cut)


@contextmanager
def opened_pair(
    source: Path | BinaryIO, target: Path | BinaryIO, *, overwrite: bool
) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Within: both as streams. A target that is a file gets its name, and a source file's permissions and times, at the end.

    Raises:
        BitStreamError: an unreadable file.
        ConfigError: a target that exists already.
    """
    with ExitStack() as stack:
        path = source if isinstance(source, Path) else None
        given = stack.enter_context(_opened(source)) if isinstance(source, Path) else source
        if isinstance(target, Path):
            _check_new(path, target, overwrite)
            yield given, stack.enter_context(new_file(target, like=path))
        else:
            yield given, target
            target.flush()


def _size(source: BinaryIO) -> int | None:
    """The length of a file; None for pipes, devices and files that the system makes up."""
    try:
        found = os.fstat(source.fileno())
    except (OSError, io.UnsupportedOperation):
        return None
    return (found.st_size or None) if stat.S_ISREG(found.st_mode) else None


def _opened(path: Path) -> BinaryIO:
    if path.is_dir():
        raise BitStreamError(f"{path}: is a folder; a file is needed. Try tar c {path} | btlm compress -")
    try:
        return path.open("rb")
    except OSError as unreadable:
        raise BitStreamError(f"{path}: cannot be read ({unreadable.strerror}). Try another file") from None


def _check_new(path: Path | None, out: Path, overwrite: bool) -> None:
    check_out(out)
    if out.exists() and (not overwrite or (path is not None and out.resolve() == path.resolve())):
        raise ConfigError(
            f"{out}: exists; it would be lost",
            field="out",
            tries=(Give("out"),) if overwrite else (Give("out"), Give("overwrite", True)),
        )
