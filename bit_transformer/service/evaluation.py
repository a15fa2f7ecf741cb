"""Cost in bits per byte: of files, next to compressors, and window by window."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bit_transformer.data.sources import Corpus, find_file, find_files, whole_files
from bit_transformer.errors import BitTransformerError, ConfigError
from bit_transformer.evaluation.baselines import Coding, codings, compressors, installed
from bit_transformer.evaluation.metrics import ModelScorer, byte_costs, default_protocol
from bit_transformer.evaluation.scorer import Score, cost_of
from bit_transformer.model import BitTransformerLM
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.plots import check_plot, plot_windows
from bit_transformer.service.requests import EvaluateRequest, ScoreRequest
from bit_transformer.service.workspace import Workspace

PLAIN = ("zlib -9", "bz2 -9", "xz -9e")  # compressors that every evaluation has
SHOWN = 48  # bytes of a region
MOST_CODED = 16 << 20  # bytes for which the slowest compressors are run


@dataclass(frozen=True)
class Comparison:
    """A model next to compressors on the same bytes.

    Attributes:
        bpb: bits per byte of the model.
        bytes: bytes scored.
        protocol: how they were scored.
        compressors: bits per byte of each; empty if scoring was stopped.
        standard_error: of the bits per byte, if they are a sampled bound; else 0.
    """

    bpb: float
    bytes: int
    protocol: str
    compressors: dict[str, float]
    standard_error: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """A model on several files: each file, and all together.

    Attributes:
        of_bytes: bytes to score.
        stopped: whether scoring was stopped early. The figures are then of the bytes so far, and the last file is incomplete.
        seconds: that scoring took; `coded`: bytes that the files cost the model.
        codings: what all installed compressors make of the files: starting empty and, where the training bytes are still there, after reading the
            latest of them, as the model has.
    """

    run: str
    files: dict[str, float]
    total: Comparison
    of_bytes: int
    stopped: bool = False
    seconds: float = 0.0
    coded: int = 0
    codings: list[Coding] = field(default_factory=list)


@dataclass(frozen=True)
class Surprise:
    """A window of a file and its cost."""

    offset: int
    bytes: int
    bpb: float


@dataclass(frozen=True)
class Region:
    """Neighbouring windows that cost unusually much, or unusually little.

    Attributes:
        bytes: of all of them. `bpb`: of all of them.
        dear: whether they cost much; else little, as where bytes repeat themselves.
        content: how it begins, bytes that are not printable as dots.
    """

    offset: int
    bytes: int
    bpb: float
    dear: bool
    content: str


@dataclass(frozen=True)
class Scoring:
    """A file, window by window.

    Attributes:
        regions: windows beyond 19 of 20 others on either side, neighbours joined, the most unusual first.
        of_bytes: bytes to score.
        stopped: whether scoring was stopped early. The figures are then of the windows so far.
    """

    run: str
    file: str
    bpb: float
    protocol: str
    windows: list[Surprise]
    of_bytes: int
    stopped: bool = False
    regions: list[Region] = field(default_factory=list)


def compare_on(model: BitTransformerLM, corpus: Corpus, job: Job) -> Comparison:
    """Compare a model with zlib, bz2 and xz on the same bytes."""
    ours = ModelScorer(model, default_protocol(model))
    tell = lambda so_far: job.tell(Reading(so_far.bytes, len(corpus), "last evaluation: scored"))  # noqa: E731
    return _compared(cost_of(ours, corpus, tell), corpus)


def _compared(ours: Score, corpus: Corpus | None) -> Comparison:
    """A model's score next to the compressors' on the same corpus; without a corpus, the model's alone."""
    rows = {} if corpus is None else {other.name: cost_of(other, corpus).bpb for other in compressors()}
    return Comparison(ours.bpb, ours.bytes, str(ours.protocol), rows, ours.standard_error / ours.bytes)


def evaluate(request: EvaluateRequest, workspace: Workspace, job: Job) -> Evaluation:
    """Bits per byte of files, folders or named corpora; every file starts from the model as it is. If stopped, gives the results so far.

    Raises:
        BitStreamError: an empty or unreadable file.
        CheckpointError: no such run.
        ConfigError: an invalid overlap or protocol, or a run and files that are swapped.
    """
    run, names = request.run, list(request.names)
    check_overlap(request.overlap)
    workspace.check_order("evaluate", run, names)
    files = find_files(names)
    model = workspace.model(run)
    ours = ModelScorer(model, default_protocol(model, request.overlap, request.learning))
    of_bytes, scores, stopped = len(whole_files(files)), dict[str, Score](), False
    began, others = time.perf_counter(), list[Coding]()
    with job.stoppable() as asked:
        for path in files:
            before = sum(s.bytes for s in scores.values())
            for so_far in ours.scores(whole_files([path])):
                scores[str(path)] = so_far
                job.tell(Reading(before + so_far.bytes, of_bytes, "scored"))
                if stopped := asked() and before + so_far.bytes < of_bytes:
                    break
            if stopped:
                break
        seconds = time.perf_counter() - began
        if not stopped:
            others = _codings(request, workspace, whole_files(files), job, asked)
    bits, size = sum(s.bits for s in scores.values()), sum(s.bytes for s in scores.values())
    error = math.sqrt(sum(s.standard_error**2 for s in scores.values()))
    total = _compared(Score(bits, size, ours.protocol, error), None if stopped or others else whole_files(files))
    total.compressors.update({one.name: one.bpb for one in others if not one.primed_with and one.name in PLAIN})
    bpb = {name: score.bpb for name, score in scores.items()}
    return Evaluation(run, bpb, total, of_bytes, stopped, seconds, round(bits / 8), others)


def _codings(
    request: EvaluateRequest, workspace: Workspace, corpus: Corpus, job: Job, asked: Callable[[], bool]
) -> list[Coding]:
    """What compressors make of the files, alone and after reading what the model was trained on."""
    if request.primer_bytes < 1:
        return []
    quick = len(corpus) > MOST_CODED
    if quick:
        job.notice(f"zstd and zpaq are left out, because the files are larger than {MOST_CODED >> 20} MiB")
    primer = _primer(request, workspace, job)
    wanted = [None] if primer is None else [None, primer]
    found: list[Coding] = []
    total = len(wanted) * len(installed(quick=quick))
    for before in wanted:
        for coding in codings(corpus, before, quick=quick):
            found.append(coding)
            job.tell(Reading(len(found), total, "compressors: ran", "of them"))
            if asked():
                return found
    return found


def _primer(request: EvaluateRequest, workspace: Workspace, job: Job) -> Corpus | None:
    """The latest of the bytes that the model was trained on, if they are still there."""
    from bit_transformer.service.training import trained_on  # it imports this module

    try:
        training = trained_on(workspace.model_path(request.run).parent, workspace)
    except BitTransformerError as gone:
        job.notice(f"compressors start empty, because the training bytes cannot be read: {gone}")
        return None
    return training.part(max(0, len(training) - request.primer_bytes), len(training))


def score(request: ScoreRequest, workspace: Workspace, job: Job) -> Scoring:
    """Bits per byte of a file by window, to find what is surprising. If stopped, gives the results so far.

    Raises:
        BitStreamError: an empty or unreadable file.
        CheckpointError: no such run.
        ConfigError: an invalid window or overlap, or a run and a file that are swapped.
    """
    run, window, plot = request.run, request.window, request.plot
    check_overlap(request.overlap)
    if window < 1:
        raise ConfigError(f"got window={window}; at least 1 byte is needed. Try 256", field="window")
    if plot:
        check_plot(plot)
    workspace.check_order("score", run, [request.name])
    workspace.model_path(run)  # errors of the run come first
    path = find_file(request.name, "score", ", or evaluate")
    model = workspace.model(run)
    protocol = default_protocol(model, request.overlap, request.learning)
    corpus, windows, stopped = whole_files([path]), list[Surprise](), False
    bits, inside, offset, total = 0.0, 0, 0, 0.0
    with job.stoppable() as asked:
        for cost in byte_costs(model, corpus, protocol):
            for value in cost.tolist():
                bits, inside, total = bits + value, inside + 1, total + value
                if inside == window:
                    windows.append(Surprise(offset, inside, bits / inside))
                    offset, bits, inside = offset + inside, 0.0, 0
            done = offset + inside
            job.tell(Reading(done, len(corpus), "scored"))
            if stopped := asked() and 0 < done < len(corpus):
                break
    if inside:
        windows.append(Surprise(offset, inside, bits / inside))
    if plot:
        plot_windows([w.offset for w in windows], [w.bpb for w in windows], plot, title=str(path))
    regions = regions_of(windows, corpus)
    return Scoring(run, str(path), total / (offset + inside), str(protocol), windows, len(corpus), stopped, regions)


def regions_of(windows: Sequence[Surprise], corpus: Corpus) -> list[Region]:
    """Windows that cost more or less than nineteen of twenty do, as regions: the most unusual first, in distances of that limit from the median."""
    cost = np.array([w.bpb for w in windows])
    low, middle, high = np.quantile(cost, [0.05, 0.5, 0.95])
    if len(windows) < 3:
        low, high = -1.0, float(cost.max()) - 1e-9  # the dearest
    scales = {True: max(high - middle, 1e-9), False: max(middle - low, 1e-9)}
    side = np.where(cost > high, 1, np.where(cost < low, -1, 0)).tolist()
    made = list[tuple[float, Region]]()
    for sign, group in itertools.groupby(zip(side, windows, strict=True), key=lambda row: row[0]):
        if not sign:
            continue
        of = [window for _, window in group]
        size, dear = sum(w.bytes for w in of), sign > 0
        bpb = sum(w.bpb * w.bytes for w in of) / size
        content = "".join(
            chr(b) if 32 <= b < 127 else "·" for b in corpus.read(of[0].offset, min(size, SHOWN)).tolist()
        )
        made.append((abs(bpb - middle) / scales[dear], Region(of[0].offset, size, bpb, dear, content)))
    return [region for _, region in sorted(made, key=lambda row: -row[0])]


def check_overlap(overlap: float) -> None:
    """Refuse an invalid overlap of windows.

    Raises:
        ConfigError: it is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"got overlap={overlap}; it must be in [0, 1). Try 0.5", field="overlap")
