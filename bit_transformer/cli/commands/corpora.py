"""`btlm corpora`: which corpora can be named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Json
from bit_transformer.cli.output import EXIT_INPUT, console, errors_in_one_line, gigabytes, show_json

if TYPE_CHECKING:
    from bit_transformer.service.corpora import Corpora, ListedCorpus


def run(
    check: Annotated[bool, typer.Option("--check", help="Compare the checksums of the files that are here.")] = False,
    as_json: Json = False,
) -> None:
    """List the corpora that can be named: size, licence, standard parts, checksum, and whether they are here. Nothing is downloaded."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found: Corpora = call("corpora", {"check": check}, Workspace())
        if as_json:
            show_json(found)
        else:
            _show(found)
    if any(corpus.problem for corpus in found.corpora):
        raise SystemExit(EXIT_INPUT)


def _show(found: Corpora) -> None:
    for corpus in found.corpora:
        console.print(
            f"{corpus.name:<16}{_size(corpus.bytes):>9}  {corpus.place:<12}{corpus.licence}",
            style="bold",
            soft_wrap=True,
        )
        parts = f"; standard parts {' / '.join(map(_size, corpus.parts.values()))}" if corpus.parts else ""
        checksum = f"; {_checksum(corpus)}" if corpus.files else ""
        console.print(f"    {corpus.about}{parts}{checksum}", soft_wrap=True)
    for corpus in found.corpora:
        if corpus.problem:
            console.print(corpus.problem, style="bold", soft_wrap=True)
    console.print(f"also: {found.others}", style="dim", soft_wrap=True)
    folder = found.data_folder or "none (BTLM_DATA_DIR is not set)"
    console.print(f"data folder: {folder}; downloads go to {found.cache}", style="dim", soft_wrap=True)


def _size(count: int | None) -> str:
    return "unknown" if count is None else gigabytes(count)


def _checksum(corpus: ListedCorpus) -> str:
    kinds = dict.fromkeys(file.checksum.partition(":")[0] for file in corpus.files)
    said = {True: ", right", False: ", WRONG", None: ""}[corpus.checked]
    first = corpus.files[0].checksum.partition(":")[2][:8]
    return f"{' and '.join(kinds)} {first}...{said}"
