"""Runs a comparison: each cell in a process of its own. One that was killed goes on with the cells that are not done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.config import ComparisonConfig, DataConfig, TrainConfig
from bit_transformer.config.comparison import corpus_label
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.extras import require
from bit_transformer.runs.lock import held
from bit_transformer.service.comparing.cells import (
    CELLS,
    NO_ROOM,
    PLAN_FILE,
    Cell,
    CellResult,
    cells_of,
    cut,
    model_config,
    needs,
    read_result,
    result_file,
    sha256_of,
)
from bit_transformer.service.comparing.findings import Findings, findings_of
from bit_transformer.service.comparing.report import HTML_FILE, MARKDOWN_FILE, write_report
from bit_transformer.service.files import write_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import CompareRequest
from bit_transformer.service.settings import train_config
from bit_transformer.service.workspace import Workspace

# Settings of trainings that those of others do not have.
IGNORED = ("patience", "accum_steps", "compile_model", "qat", "progressive", "compress_prob", "auto_batch", "window")
SOFTMAX_IGNORED = ("compress_prob", "progressive", "qat")
LOOK = 0.1  # seconds between looks at processes
LAST = 2000  # characters of a log that an error shows


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison.

    Attributes:
        done, of: cells.
        failed: by cell, the reason.
        stopped: whether it was stopped before all were done; the same command goes on.
        findings: tables and tests over the cells that are done.
        markdown, html: files of the report.
    """

    folder: str
    done: int
    of: int
    failed: dict[str, str]
    stopped: bool
    findings: Findings
    markdown: str
    html: str


def compare(request: CompareRequest, workspace: Workspace, job: Job) -> ComparisonResult:
    """Train and score every model on every corpus with every seed, test the differences, and write a report. What is done is not done again.

    Raises:
        ConfigError: a plan that cannot be carried out; nothing is trained then.
        BitStreamError: a corpus that is not there, or is not what it should be.
        MissingExtra: a library that a model needs is not installed.
        RunBusy: another process works in this folder.
    """
    plan, folder = request.plan, request.out
    digests = _check(plan, folder)
    made: dict[str, CellResult] = {}
    failed: dict[str, str] = {}
    with held(folder), job.stoppable() as asked:
        (folder / CELLS).mkdir(exist_ok=True)
        cells = {cell.key(plan): cell for cell in cells_of(plan)}
        waiting = []
        for key, cell in cells.items():
            found = read_result(result_file(folder, key))
            if found is not None and found.data_sha256 != digests[cell.data]:
                job.notice(f"{key} is of other data than there is now: it is done again")
            elif found is not None:
                made[key] = found
                continue
            waiting.append((key, cell))
        write_file(folder / PLAN_FILE, f"{plan.model_dump_json(indent=2)}\n".encode())
        if made and waiting:
            job.notice(f"{len(made)} of {len(cells)} cells are done already")
        job.tell(Reading(len(made), len(cells), "compare:", "cells"))
        with tempfile.TemporaryDirectory(prefix="bit-transformer-") as cache:
            for key, cell, error in _ran(plan, folder, waiting, Path(cache), asked):
                found = read_result(result_file(folder, key))
                if found is None or error:
                    failed[key] = error
                    job.notice(f"{key} failed: {error}")
                else:
                    made[key] = found
                    said = ", ".join(f"{name} {score.bpb:.3f}" for name, score in found.scores.items())
                    job.notice(f"{_where(cell, found)}: {said} bits per byte")
                job.tell(Reading(len(made) + len(failed), len(cells), "compare:", "cells"))
        findings = findings_of(plan, list(made.values()), failed)
        write_report(folder, plan, findings)
    stopped = len(made) + len(failed) < len(cells)
    html, markdown = folder / HTML_FILE, folder / MARKDOWN_FILE
    return ComparisonResult(str(folder), len(made), len(cells), failed, stopped, findings, str(markdown), str(html))


def _where(cell: Cell, found: CellResult) -> str:
    seed = "" if cell.seed is None else f", seed {cell.seed}"
    return f"{found.corpus}{seed}, {found.train_seconds:.0f} s"


def _check(plan: ComparisonConfig, folder: Path) -> dict[DataConfig, tuple[str, str]]:
    """Whatever can be refused before hours of training is. The digests of the data: of the part to train on, and of the scored sample."""
    for library in needs(plan):
        require(library, extra="compare", purpose="the comparison with GPT-2")
    for model in plan.models:
        if not model.trained:
            continue
        shape = model_config(plan, model)
        for seed in plan.seeds:
            config = train_config(shape, {**plan.train, **model.train, "seed": seed})
        ignored = IGNORED if model.kind.startswith("gpt2") else SOFTMAX_IGNORED if model.kind == "byte-softmax" else ()
        if other := next(
            (name for name in ignored if getattr(config, name) != TrainConfig.model_fields[name].default), None
        ):
            raise ConfigError(
                f"got train.{other} and model {model.label!r}, whose training has no such thing. Try leaving it out",
                field="plan.train",
            )
        adaptive = [learning for learning in model.learning if learning != "static"]
        if adaptive and not shape.experts:
            raise ConfigError(
                f"got model {model.label!r} with learning={adaptive[0]!r} and no experts; only they learn what is scored. Try learning: [static]",
                field="plan.models",
            )
        if not shape.causal:
            raise ConfigError(
                f"got model {model.label!r}, a diffusion model, whose likelihood is only bounded. Try causal: true",
                field="plan.models",
            )
        if model.kind == "byte-softmax" and (shape.patch_bits, shape.parity, shape.experts) != (8, False, None):
            raise ConfigError(
                f"got model {model.label!r} with other units than bytes, or experts; a softmax over bytes has neither. Try patch_bits: 8",
                field="plan.models",
            )
        if model.kind.startswith("gpt2") and plan.shape.d_model % plan.shape.nhead:
            raise ConfigError(
                f"got shape.d_model={plan.shape.d_model} and shape.nhead={plan.shape.nhead}; the width must be a multiple of the heads. Try nhead: 2",
                field="plan.shape",
            )
    digests = {}
    for data in plan.corpora:
        training, sample = cut(plan, data, folder)
        if not len(training) or not len(sample):
            raise BitStreamError(f"{corpus_label(data)}: got no bytes to train on, or none held out. Try more data")
        digests[data] = (sha256_of(training), sha256_of(sample))
    return digests


def _ran(
    plan: ComparisonConfig, folder: Path, waiting: list[tuple[str, Cell]], cache: Path, asked: Callable[[], bool]
) -> Iterator[tuple[str, Cell, str]]:
    """Run cells, some at once; each as it ends, with the error if it failed. Ends early where it is asked to stop."""
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    left = list(waiting)
    try:
        while left or running:
            while left and len(running) < plan.at_once and not asked():
                key, cell = left.pop(0)
                running[key] = (cell, _started(plan, folder, key, cache))
            if asked():
                return
            for key, (cell, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[key]
                shutil.rmtree(cache / key, ignore_errors=True)
                error = "" if process.returncode == 0 else _why(folder, key, process.returncode)
                if process.returncode == NO_ROOM:
                    raise BitStreamError(f"{folder}: {error}. Try freeing space; the same command goes on")
                yield key, cell, error
            time.sleep(LOOK)
    finally:
        for _, process in running.values():
            with suppress(OSError):  # it has just ended
                os.killpg(
                    process.pid, signal.SIGKILL
                )  # with the programs that it has started; there is nothing to save
            process.wait()


def _started(plan: ComparisonConfig, folder: Path, key: str, cache: Path) -> subprocess.Popen[bytes]:
    """A cell's process. Features of another cell's pass over the data are not there for it: reading is part of its budget."""
    threads = plan.threads or max(1, (os.cpu_count() or 1) // plan.at_once)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "BTLM_CACHE_DIR": str(cache / key)}
    command = [
        sys.executable,
        "-m",
        "bit_transformer.service.comparing.cells",
        str(folder.absolute()),
        key,
        str(os.getpid()),
    ]
    with (folder / CELLS / f"{key}.log").open("wb") as log:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _why(folder: Path, key: str, code: int) -> str:
    """Why a cell failed, in one line."""
    path = result_file(folder, key)
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads(path.with_suffix(".error").read_text())["message"])
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    lines = path.with_suffix(".log").read_text(errors="replace")[-LAST:].splitlines()
    return next((line for line in reversed(lines) if line.strip()), f"its process ended with code {code}")
