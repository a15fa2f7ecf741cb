"""K, C and S of a file by window, and of a run by step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import Corpus, find_file, whole_files
from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.runs.store import RunStore
from bit_transformer.safety.reference import ROWS
from bit_transformer.safety.repetition import MEMORY
from bit_transformer.service.jobs import Job
from bit_transformer.service.observers import WATCHED
from bit_transformer.service.plots import check_plot, plot_telemetry
from bit_transformer.service.requests import FileTelemetryRequest, RunTelemetryRequest
from bit_transformer.service.training import CONFIG_FILE
from bit_transformer.service.workspace import Workspace
from bit_transformer.telemetry import METRICS, TelemetrySynthesizer, bit_negentropy, lz_complexity


@dataclass(frozen=True)
class Window:
    """A window of a file.

    Attributes:
        S: against the run's reference; None without a run.
        kind: typical, repetitive, noise or off-domain, for the run; None if it was not calibrated for this length. A window is also
            repetitive if it continues a loop from earlier in the file.
    """

    offset: int
    bytes: int
    K: float
    C: float
    S: float | None
    kind: str | None


@dataclass(frozen=True)
class FileTelemetry:
    """A file, window by window.

    Attributes:
        informative: indices of the windows that differ most from one another, the most typical first.
        cluster: for each window, the index of the most similar informative window.
    """

    file: str
    run: str | None
    windows: list[Window]
    informative: list[int]
    cluster: list[int]


@dataclass(frozen=True)
class RunTelemetry:
    """A training, step by step.

    Attributes:
        series: by metric, (step, value).
        alerts: (step, metric, detector, size).
    """

    run: str
    series: dict[str, list[tuple[int, float]]]
    alerts: list[tuple[int, str, str, float]]


def is_run(target: str, workspace: Workspace) -> bool:
    """Whether this names a run with records: by its folder, or by its name in the store."""
    return _found(target, workspace.store_path) is not None


def of_run(request: RunTelemetryRequest, workspace: Workspace, job: Job) -> RunTelemetry:
    """K, C, S and loss of a training by step, and where they drifted. A run folder's config says which store has its records.

    Raises:
        RunNotFound: no such run.
        BitStreamError: a run without telemetry.
    """
    target, plot = request.run, request.plot
    if plot:
        check_plot(plot)
    runs, run = _found(target, workspace.store_path) or (workspace.store, workspace.store.get(target).id)
    series = {name: runs.series(run, name) for name in WATCHED}
    series = {name: rows for name, rows in series.items() if rows}
    if "K" not in series:
        raise BitStreamError(
            f"run {run!r} has no telemetry", field="run", tries=("a longer training", Give("train.telemetry", 0.005))
        )
    alerts = runs.alerts(run)
    if plot:
        drawn = {name: rows for name, rows in series.items() if name in METRICS}
        plot_telemetry(drawn, plot, title=run, x="update", marks=[step for step, *_ in alerts])
    return RunTelemetry(run, series, alerts)


def _found(target: str, store: Path) -> tuple[RunStore, str] | None:
    """The store that has records of a run, and the run's name there."""
    place = Path(target).resolve()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        store = Path(json.loads((place / CONFIG_FILE).read_text())["store"])
    runs = RunStore(store)
    ours = (run.id for run in runs.list_runs() if run.id == target or Path(run.folder) == place)
    return next(((runs, name) for name in ours), None)


def of_file(request: FileTelemetryRequest, workspace: Workspace, job: Job) -> FileTelemetry:
    """K and C of a file by window, and S against a run's reference.

    Raises:
        BitStreamError: an empty or unreadable file.
        CheckpointError: no such run.
        ConfigError: an invalid window.
    """
    name, run, window = request.name, request.run, request.window
    informative, plot = request.informative, request.plot
    if window < 1:
        raise ConfigError(f"got window={window}; at least 1 byte is needed. Try 512", field="window")
    if informative < 1:
        raise ConfigError(f"got top={informative}; at least 1 window is needed. Try 5", field="informative")
    if plot:
        check_plot(plot)
    path = find_file(name, "telemetry")
    corpus = whole_files([path])
    measure = _plain if run is None else _against(run, corpus, window, workspace)
    found = [row for offset, block in _blocks(corpus, window) for row in measure(offset, block)]
    columns = {key: [getattr(w, key) for w in found] for key in METRICS if getattr(found[0], key) is not None}
    made = TelemetrySynthesizer(informative).cluster(columns)
    if plot:
        drawn = {key: list(zip([w.offset for w in found], values, strict=True)) for key, values in columns.items()}
        plot_telemetry(drawn, plot, title=str(path), x="byte offset")
    return FileTelemetry(
        name if name == "-" else str(path),
        run,
        found,
        list(made.informative),
        [made.informative[cluster] for cluster in made.cluster],
    )


def _plain(offset: int, block: NDArray[np.uint8]) -> list[Window]:
    """K and C of windows of bytes; the first is at `offset`."""
    size = block.shape[1]
    bits = bytes_to_bits(block)
    pairs = zip(bit_negentropy(bits).tolist(), lz_complexity(bits).tolist(), strict=True)
    return [Window(offset + i * size, size, k, c, None, None) for i, (k, c) in enumerate(pairs)]


def _against(
    run: str, corpus: Corpus, window: int, workspace: Workspace
) -> Callable[[int, NDArray[np.uint8]], list[Window]]:
    """A function that measures K, C and S of a corpus's windows against a calibrated run, and classifies them."""
    model = workspace.model(run)
    align, parity = model.config.align_bytes, model.config.parity
    if window % align:
        raise ConfigError(
            f"got window={window}; for this run it must be a multiple of {align}. Try {-(-window // align) * align}"
        )
    calibration, reference = workspace.calibration(run)

    def measure(offset: int, block: NDArray[np.uint8]) -> list[Window]:
        size = block.shape[1]
        known = calibration.shortest <= size <= calibration.longest
        lead = min(offset, MEMORY)
        begins = lead + np.arange(len(block), dtype=np.int64) * size
        stream = corpus.part(offset - lead, offset + block.size)
        (copied,) = reference.repetition.of_windows(stream, [(begins, size)])
        found = reference.measure(bytes_to_bits(block, parity=parity))
        vitals = [replace(v, copied=loop) for v, loop in zip(found, copied.tolist(), strict=True)]
        kinds = [calibration.kind(v) if known else None for v in vitals]
        return [
            Window(offset + i * size, size, v.K, v.C, v.S, kind)
            for i, (v, kind) in enumerate(zip(vitals, kinds, strict=True))
        ]

    return measure


def _blocks(corpus: Corpus, window: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(offset, windows of one length) until the end of the corpus."""
    whole = len(corpus) // window
    for first in range(0, whole, ROWS):
        count = min(ROWS, whole - first)
        yield first * window, corpus.read(first * window, count * window).reshape(count, window)
    rest = len(corpus) - whole * window
    if rest and (not whole or rest >= window / 2):
        yield whole * window, corpus.read(whole * window, rest)[None]
