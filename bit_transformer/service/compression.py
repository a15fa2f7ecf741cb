"""Compressed files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bit_transformer.coding.container import Header
from bit_transformer.compression.codec import Coder, coder_for
from bit_transformer.compression.files import Packing, Unpacking, compress_stream, decompress_stream, new_coder
from bit_transformer.errors import BitStreamError, ConfigError, Give
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
    """

    file: str
    out: str
    bytes: int
    compressed: int
    bpb: float | None
    frames: int


@dataclass(frozen=True)
class Decompressed:
    """A file that was decompressed.

    Attributes:
        lost: ranges of bytes that could not be read and are zeros: first byte, and the byte after the last.
        cut: whether the end of the compressed file is missing, so that bytes may be missing too.
    """

    file: str
    out: str
    bytes: int
    lost: list[tuple[int, int]]
    cut: bool


def compress(request: CompressRequest, workspace: Workspace, job: Job) -> Compressed:
    """Compress a file. The compressed file is decoded again before it gets its name.

    Raises:
        BitStreamError: an unreadable file.
        ConfigError: a file that exists already, or settings that do not fit.
        CheckpointError: no such run.
    """
    path = request.path
    out = request.out or path.with_name(path.name + SUFFIX)
    with _opened(path) as source:
        _check_new(path, out, request.overwrite)
        size = os.fstat(source.fileno()).st_size
        coder = coder_of(request, workspace)
        with new_file(out) as target:
            made = compress_pipe(request, source, target, coder, job, size=size)
    bpb = 8 * made.coded / made.size if made.size else None
    return Compressed(str(path), str(out), made.size, made.coded, bpb, made.frames)


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
            f"got {str(path)!r} without a name for the result; {SUFFIX} at the end can be dropped, other names not",
            field="out",
            tries=(Give("out"),),
        )
    with _opened(path) as source:
        _check_new(path, out, request.overwrite)

        def check_room(size: int | None) -> None:
            free = shutil.disk_usage(out.absolute().parent).free
            if size is not None and size > free:
                raise ConfigError(
                    f"{path}: declares {size:,} bytes of data; {free:,} are free where {out} is to be written",
                    field="out",
                    tries=(Give("out"),),
                )

        with new_file(out) as target:
            made = decompress_pipe(request, source, target, workspace, job, before=check_room)
    return Decompressed(str(path), str(out), made.size, made.lost, made.cut)


def coder_of(request: CompressRequest, workspace: Workspace) -> Coder:
    """The coder that a request asks for.

    Raises:
        ConfigError: settings that do not fit.
        CheckpointError: no such run.
    """
    return new_coder(workspace.model(request.run) if request.run else None, request.adapt)


def compress_pipe(
    request: CompressRequest, source: BinaryIO, target: BinaryIO, coder: Coder, job: Job, *, size: int | None = None
) -> Packing:
    """Compress what a stream gives, into another.

    Raises:
        ConfigError: settings that do not fit.
    """
    with job.cancellable():
        return compress_stream(
            source,
            target,
            coder,
            size=size,
            frame_bytes=request.frame_bytes,
            jobs=request.jobs,
            verify=request.verify,
            tell=_telling(job, size, "compressed"),
        )


def decompress_pipe(
    request: DecompressRequest,
    source: BinaryIO,
    target: BinaryIO,
    workspace: Workspace,
    job: Job,
    *,
    before: Callable[[int | None], None] = lambda size: None,
) -> Unpacking:
    """Read back what a stream gives, into another.

    Raises:
        CompressedFileError: damage, unless `keep_going`; or another model.
        CheckpointError: no such run.
    """
    total: list[int | None] = [None]

    def begin(size: int | None) -> None:
        total[0] = size
        before(size)

    def coder(header: Header) -> Coder:
        return coder_for(header, workspace.model(request.run) if request.run else None)

    with job.cancellable():
        return decompress_stream(
            source,
            target,
            coder,
            jobs=request.jobs,
            keep_going=request.keep_going,
            before=begin,
            tell=lambda done: _telling(job, total[0], "decompressed")(done),
        )


@contextmanager
def opened_pair(
    source: Path | BinaryIO, target: Path | BinaryIO, *, overwrite: bool
) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Within: both as streams. A target that is a file gets its name at the end.

    Raises:
        BitStreamError: an unreadable file.
        ConfigError: a target that exists already.
    """
    with ExitStack() as stack:
        given = stack.enter_context(_opened(source)) if isinstance(source, Path) else source
        if isinstance(target, Path):
            _check_new(source if isinstance(source, Path) else None, target, overwrite)
            yield given, stack.enter_context(new_file(target))
        else:
            yield given, target
            target.flush()


def _telling(job: Job, size: int | None, doing: str) -> Callable[[int], None]:
    return lambda done: job.tell(Reading(done, max(1, done if size is None else size), doing))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as unreadable:
        raise BitStreamError(f"{path}: cannot be read ({unreadable.strerror}). Try another file") from None


def _check_new(path: Path | None, out: Path, overwrite: bool) -> None:
    check_out(out)
    if out.exists() and (not overwrite or (path is not None and out.resolve() == path.resolve())):
        raise ConfigError(
            f"got out={str(out)!r}, which exists; it would be lost",
            field="out",
            tries=(Give("out"), Give("overwrite", True)),
        )
