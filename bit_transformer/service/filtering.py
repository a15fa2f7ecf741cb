"""Scores texts in files, and keeps those that are not odder than asked. An interrupted run goes on where it was."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bit_transformer.errors import BitStreamError, Cancelled, ConfigError, Give
from bit_transformer.extras import require
from bit_transformer.quality.documents import PACKED, STDIN, Found, Piece, Source, read_line, with_columns
from bit_transformer.quality.model import COLUMNS, QualityModel, TextScore
from bit_transformer.quality.scoring import in_order
from bit_transformer.service.files import check_out
from bit_transformer.service.filtered.sinks import (
    STDOUT,
    Lines,
    Nowhere,
    Pipe,
    Sink,
    Tables,
    clear,
    partial,
    read_note,
    write_note,
)
from bit_transformer.service.filtered.tally import Tally
from bit_transformer.service.fitting import opened_model
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import FilterRequest
from bit_transformer.service.workspace import Workspace

EVERY = 0.5  # seconds between two notes of how far it is


@dataclass(frozen=True)
class Filtered:
    """What a filter did.

    Attributes:
        out, rejects, report: files that were written.
        documents: texts that could be read, of `bytes`; `kept`, `dropped`: of them; `empty`: of them, without a score.
        blocked: that the gate blocked, kept or not; `odd`: from a percentile of 95 on or blocked, by kind.
        reasons: of what was dropped, by kind.
        unreadable: what could not be read, by why; `blank`: lines with nothing in them.
        bpb: bits per byte of all texts together.
        resumed: whether it went on where another run was interrupted.
        seconds: of this run; `scored_bytes`: in it.
    """

    inputs: list[str]
    out: str
    rejects: str | None
    report: str | None
    documents: int
    bytes: int
    kept: int
    dropped: int
    empty: int
    blocked: int
    odd: dict[str, int]
    reasons: dict[str, int]
    unreadable: dict[str, int]
    blank: int
    bpb: float | None
    resumed: bool
    seconds: float
    scored_bytes: int


@dataclass
class _Part:
    """What a piece became: kept rows, rows that are not, counts; and where its source goes on."""

    kept: Any
    rejected: bytes
    tally: Tally
    source: int
    piece: Piece


def filter_texts(request: FilterRequest, workspace: Workspace, job: Job) -> Filtered:
    """Score texts, write them with their scores, and leave out the odd ones.

    Raises:
        BitTransformerError: inputs that cannot be read or hold no text at all, no such model, files that exist already.
    """
    began = time.monotonic()
    sources = [Source(name, request.field) for name in request.names]
    out = _checked(request, sources)
    model = opened_model(request.run, workspace, job)
    asked = _asked(request, sources, out, model)
    may_go_on = str(out) != STDOUT and STDIN not in request.names
    told = read_note(out, asked, overwrite=request.overwrite) if may_go_on else None
    tally, before = Tally(**told["tally"]) if told else Tally(), told["tally"]["size"] if told else 0
    if told:
        job.notice(f"going on after {tally.documents:,} documents of an interrupted run")
    kept = _sink(out, told["files"].get(str(partial(out)), 0) if told else 0)
    rejects = request.rejects
    rejected = Lines(rejects, told["files"].get(str(partial(rejects)), 0) if told else 0) if rejects else Nowhere()
    start = (told["source"], told["at"], told["count"]) if told else (0, 0, 0)
    total, done = _total(sources), told["read"] if told else 0

    def write_down(part: _Part) -> None:
        files = {str(partial(path)): sink.sync() for path, sink in ((out, kept), (rejects, rejected)) if path}
        state = {"asked": asked, "source": part.source, "at": part.piece.end, "count": part.piece.count, "read": done}
        write_note(out, {**state, "files": files, "tally": tally.state()})

    work = _Work(model, sources, request.keep_below, as_table=isinstance(kept, Tables), wanted=rejects is not None)
    part, noted = None, 0.0
    try:
        with job.stoppable() as stopped:
            for part in in_order(_pieces(sources, start), work, request.jobs):
                kept.write(part.kept)
                rejected.write(part.rejected)
                tally.add(part.tally)
                done += part.piece.size
                if may_go_on and time.monotonic() - noted >= EVERY:
                    write_down(part)
                    noted = time.monotonic()
                job.tell(Reading(done, total, "filter: read"))
                if stopped():
                    if may_go_on:
                        write_down(part)
                    more = "; the same command goes on from there" if may_go_on else ""
                    raise Cancelled(f"stopped after {tally.documents:,} documents{more}")
        _check_found(tally, request)
        for sink in (rejected, kept):
            sink.finish()
    except BitStreamError:
        if not tally.documents:
            kept.close()
            clear(out, *([rejects] if rejects else []))
        raise
    finally:
        kept.close()
        rejected.close()
    if str(out) != STDOUT:
        clear(out)
    if request.report:
        from bit_transformer.service.filtered.report import write_report

        write_report(request.report, tally, model, list(request.names), request.keep_below)
    return Filtered(
        list(request.names),
        str(out),
        str(rejects) if rejects else None,
        str(request.report) if request.report else None,
        tally.documents,
        tally.size,
        tally.kept,
        tally.dropped,
        tally.empty,
        tally.blocked,
        tally.odd,
        tally.reasons,
        tally.unreadable,
        tally.blank,
        tally.bits / tally.measured if tally.measured else None,
        told is not None,
        time.monotonic() - began,
        tally.size - before,
    )


# ---- what is asked ----


def _checked(request: FilterRequest, sources: Sequence[Source]) -> Path:
    """Where the result goes.

    Raises:
        ConfigError: several results for one file, files that exist, or a kind of file that does not fit.
    """
    out = request.out or _beside(request.names)
    written = {"out": out, "rejects": request.rejects, "report": request.report}
    inputs = {source.path.resolve() for source in sources if source.name != STDIN}
    taken: dict[Path, str] = {}
    for name, path in written.items():
        if path is None or (str(path) == STDOUT and name == "out"):
            continue
        if path.resolve() in inputs:
            raise ConfigError(f"got {name}={str(path)!r}, which is an input", field=name, tries=(Give(name),))
        if path.resolve() in taken:
            raise ConfigError(f"got one file for {taken[path.resolve()]} and {name}", field=name, tries=(Give(name),))
        taken[path.resolve()] = name
        if path.exists() and not request.overwrite:
            raise ConfigError(f"{path}: is there already", field=name, tries=(Give(name), Give("overwrite", True)))
        check_out(path, name)
    if out.suffix == ".parquet" and any(source.form != "parquet" for source in sources):
        raise ConfigError(
            f"got {out} for inputs that are no parquet; their rows have no columns",
            field="out",
            tries=(Give("out", str(out.with_suffix(".jsonl"))),),
        )
    return out


def _beside(names: Sequence[str]) -> Path:
    if len(names) > 1:
        raise ConfigError(
            f"got {len(names)} inputs and no name for the result", field="out", tries=(Give("out", "kept.jsonl"),)
        )
    if names[0] == STDIN:
        return Path(STDOUT)
    path = Path(names[0])
    packed = path.suffix if path.suffix in PACKED and path.is_file() else ""
    stem = Path(path.name.removesuffix(packed)).stem if path.is_file() else (path.resolve().name or "texts")
    return path.with_name(f"{stem}.filtered{'.parquet' if path.suffix == '.parquet' else '.jsonl'}{packed}")


def _asked(request: FilterRequest, sources: Sequence[Source], out: Path, model: QualityModel) -> dict[str, Any]:
    """What must be the same for a run to go on from another."""
    found = hashlib.sha256()
    for source in sources:
        for path in [] if source.name == STDIN else source.files():
            stat = path.stat()
            found.update(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return {
        "version": 1,
        "model": model.digest,
        "inputs": found.hexdigest(),
        "field": request.field,
        "keep_below": request.keep_below,
        "out": str(out),
        "rejects": str(request.rejects) if request.rejects else None,
    }


def _check_found(tally: Tally, request: FilterRequest) -> None:
    """Refuse inputs in which nothing can be read.

    Raises:
        BitStreamError: as above.
    """
    if tally.documents:
        return
    names = ", ".join(request.names)
    if not tally.lost:
        raise BitStreamError(
            f"{names}: got no documents; at least one is needed", field="names", tries=("another file",)
        )
    kinds = sorted(tally.unreadable.items(), key=lambda kind: -kind[1])
    told = ", ".join(f"{count:,} {why}" for why, count in kinds)
    raise BitStreamError(
        f"{names}: none of {tally.lost:,} lines or files could be read as a document: {told}",
        field="field",
        tries=(Give("field"), "JSON lines"),
    )


def _sink(out: Path, size: int) -> Sink:
    if str(out) == STDOUT:
        return Pipe()
    return Tables(out, size) if out.suffix == ".parquet" else Lines(out, size)


def _total(sources: Sequence[Source]) -> int:
    """Bytes of all inputs; 0: not known."""
    sizes = [0 if source.form == "parquet" else source.size for source in sources]
    return sum(sizes) if all(sizes) else 0


def _pieces(sources: Sequence[Source], start: tuple[int, int, int]) -> Iterator[tuple[int, Piece]]:
    first, at, count = start
    for number, source in enumerate(sources[first:], first):
        for piece in source.pieces(*((at, count) if number == first else (0, 0))):
            yield number, piece


# ---- pieces ----


class _Work:
    """Scores a piece. Threads share it."""

    def __init__(
        self, model: QualityModel, sources: Sequence[Source], keep_below: float | None, *, as_table: bool, wanted: bool
    ) -> None:
        self.model, self.sources, self.keep_below = model, sources, keep_below
        self.as_table, self.wanted = as_table, wanted

    def __call__(self, given: tuple[int, Piece]) -> _Part:
        number, piece = given
        source, tally = self.sources[number], Tally()
        if piece.table is not None:
            kept, rejected = self._table(source, piece, tally)
        else:
            kept, rejected = self._lines(source, piece, tally)
        return _Part(kept, rejected, tally, number, piece)

    def _lines(self, source: Source, piece: Piece, tally: Tally) -> tuple[bytes, bytes]:
        kept: list[bytes] = []
        rejected: list[bytes] = []
        for index, line in enumerate(piece.lines):
            place = {"input": source.name, "line": piece.first + index}
            row: Any = None
            if source.form == "files":
                found = source.read_file(line)
                name = _relative(source, line)
                place = {"input": source.name, "file": name}
                if found.text is not None:
                    row = {"file": name, source.field: found.text}
                    line = json.dumps(row, ensure_ascii=False).encode()
            else:
                found, row = read_line(line, source.field, piece, index)
            if found.why == "blank line":
                tally.blank += 1
            elif found.text is None:
                tally.refuse(found.why, b"" if source.form == "files" else line, place)
                if self.wanted:
                    raw = {} if source.form == "files" else _raw(line, piece.too_long.get(index))
                    rejected.append(_json({**place, "unreadable": found.why, **raw}))
            else:
                keep, columns = self._score(found, place, tally)
                (kept if keep else rejected).append(with_columns(line, row, columns))
        return _joined(kept), _joined(rejected) if self.wanted else b""

    def _table(self, source: Source, piece: Piece, tally: Tally) -> tuple[Any, bytes]:
        arrow = require("pyarrow", extra="parquet", purpose="parquet")
        table, added = piece.table, {name: list[Any]() for name in COLUMNS}
        mask: list[bool] = []
        rejected: list[bytes] = []
        for index, text in enumerate(table.column(source.field).to_pylist()):
            place = {"input": source.name, "row": piece.first + index}
            keep, columns = False, dict.fromkeys(COLUMNS)
            if text is None:
                tally.refuse("no text: null", b"", place)
                extra: dict[str, Any] = {"unreadable": "no text: null", **place}
            else:
                keep, columns = self._score(Found(text), place, tally)
                extra = columns
            if not keep and self.wanted:
                (plain,) = table.slice(index, 1).to_pylist()
                rejected.append(_json({**plain, **extra}))
            mask.append(keep)
            for name, value in columns.items():
                added[name].append(value)
        for name, values in added.items():
            column = arrow.array(values, arrow.string() if name in ("gate", "reason") else arrow.float64())
            at = table.schema.get_field_index(name)
            table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
        table = table.filter(arrow.array(mask, arrow.bool_()))
        if self.as_table:
            return table, _joined(rejected)
        return _joined([_json(row) for row in table.to_pylist()]), _joined(rejected)

    def _score(self, found: Found, place: dict[str, Any], tally: Tally) -> tuple[bool, dict[str, Any]]:
        """Whether a document is kept, and its new columns."""
        assert found.text is not None
        score = self.model.score(found.text)
        columns: dict[str, Any] = score.columns()
        keep = self.keep_below is None or (score.percentile is not None and columns["percentile"] < self.keep_below)
        if not keep and not columns["reason"]:
            columns["reason"] = _not_below(score, self.keep_below)
        tally.count(found.text, score, self.model.normal, keep, place, columns)
        return keep, columns


def _not_below(score: TextScore, keep_below: float | None) -> str:
    return f"{score.kind}: percentile {score.percentile or 0:.4g}, and below {keep_below or 0:g} is kept"


def _relative(source: Source, name: bytes) -> str:
    path = Path(os.fsdecode(name))
    shown = path.relative_to(source.path).as_posix() if source.path.is_dir() else path.name
    return shown.encode(errors="surrogateescape").decode(errors="replace")


def _raw(line: bytes, whole: int | None) -> dict[str, Any]:
    """A line as it was: as text where it is some, else in base64."""
    if whole is not None:
        return {"bytes": whole, "begins_base64": base64.b64encode(line).decode()}
    try:
        return {"raw": line.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(line).decode()}


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode(errors="surrogatepass")


def _joined(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
