"""Which corpora can be named: licences, sizes, checksums, standard parts, and what is here already. No torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.data.registry import (
    DATA_DIR_VARIABLE,
    REGISTRY,
    NamedCorpus,
    check_file,
    corpus_cache,
    found_file,
)
from bit_transformer.data.sources import stdlib_files
from bit_transformer.errors import BitStreamError
from bit_transformer.service.jobs import Job
from bit_transformer.service.requests import CorporaRequest
from bit_transformer.service.workspace import Workspace


@dataclass(frozen=True)
class ListedFile:
    """A file of a corpus.

    Attributes:
        bytes: None if not known before the download.
        checksum: `ALGORITHM:HEX`; empty if there is none.
        path: where it is; None if it must be downloaded.
    """

    name: str
    bytes: int | None
    checksum: str
    path: str | None


@dataclass(frozen=True)
class ListedCorpus:
    """A corpus that can be named.

    Attributes:
        bytes: of all files; None if not known before the download.
        parts: bytes of the standard parts train, validation and test, with None for an unknown size; empty if there are none.
        place: `here` (it comes with Python), `data folder`, `cache`, or `download`: not here yet.
        checked: whether the checksums were compared and are right; None if they were not compared.
        problem: what is wrong with a file that is here, with both checksums.
    """

    name: str
    about: str
    licence: str
    source: str
    bytes: int | None
    parts: dict[str, int | None]
    place: str
    files: list[ListedFile]
    url: str = ""
    checked: bool | None = None
    problem: str = ""


@dataclass(frozen=True)
class Corpora:
    """All corpora that can be named.

    Attributes:
        data_folder: that `BTLM_DATA_DIR` names; None if it names none.
        cache: the folder of downloads.
        others: how any other data is named.
    """

    corpora: list[ListedCorpus]
    data_folder: str | None
    cache: str
    others: str


OTHERS = (
    "hf:NAME[:CONFIG][:SPLIT][:COLUMN] for a data set of the Hugging Face hub or a local folder of one, whose SHA-256 is recorded when it is first "
    "written; files, folders, globs, and - for standard input"
)


def corpora(request: CorporaRequest, workspace: Workspace, job: Job) -> Corpora:
    """List the corpora that can be named. Nothing is downloaded."""
    listed = [_stdlib(), *(_listed(name, corpus, request.check) for name, corpus in REGISTRY.items())]
    return Corpora(listed, os.environ.get(DATA_DIR_VARIABLE) or None, str(corpus_cache()), OTHERS)


def _stdlib() -> ListedCorpus:
    files = stdlib_files()
    return ListedCorpus(
        name="stdlib",
        about=f"the source files of this Python's standard library, {len(files)} files",
        licence="PSF License 2.0",
        source=f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}",
        bytes=sum(path.stat().st_size for path in files),
        parts={},
        place="here",
        files=[],
    )


def _listed(name: str, corpus: NamedCorpus, check: bool) -> ListedCorpus:
    found = [found_file(file) for file in corpus.files]
    places = ["download" if place is None else "data folder" if place[1] else "cache" for place in found]
    problem = ""
    if check:
        for file, place in zip(corpus.files, found, strict=True):
            if place is not None and not problem:
                problem = _problem(place[0], file.checksum, name)
    complete = None not in found
    return ListedCorpus(
        name=name,
        about=corpus.about,
        licence=corpus.licence,
        source=corpus.source,
        bytes=corpus.size,
        parts={part: corpus.part_size(part) for part in corpus.parts},
        place="download" if not complete else places[0] if len(set(places)) == 1 else "data folder and cache",
        files=[
            ListedFile(file.name, file.size, file.checksum, None if place is None else str(place[0]))
            for file, place in zip(corpus.files, found, strict=True)
        ],
        url=corpus.url,
        checked=not problem if check and any(found) else None,
        problem=problem,
    )


def _problem(path: Path, checksum: str, name: str) -> str:
    try:
        check_file(path, checksum, f"corpus {name!r}", "removing the file, then it is downloaded")
    except BitStreamError as wrong:
        return str(wrong)
    return ""
