"""Calibrates a run's gate, and explains K, C and S from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from bit_transformer.compression.profiles import is_text
from bit_transformer.data.sources import find_files, whole_files
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.safety import Limits, Reference, Vitals, calibrate, save_calibration
from bit_transformer.safety.calibration import GATE_FILE, LENGTHS, Calibration
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import CalibrateRequest, ExplainFileRequest, ExplainRequest, FileTelemetryRequest
from bit_transformer.service.telemetry import Window, of_file
from bit_transformer.service.training import held_out_part, split_of
from bit_transformer.service.workspace import Workspace
from bit_transformer.telemetry import METRICS


@dataclass(frozen=True)
class Normal:
    """Normal values for windows of one length.

    Attributes:
        bytes: the length; `windows`: number of windows measured.
        C_floor, S_floor: a window below is blocked; `most_copied`: bytes that a loop in it may copy.
        C_median, S_median: of the reference.
        alarms: 95 % interval of the false-alarm rate on new text of this kind: `Calibration.alarms`.
    """

    bytes: int
    windows: int
    C_floor: float
    C_median: float
    S_floor: float
    S_median: float
    most_copied: float
    alarms: tuple[float, float]


@dataclass(frozen=True)
class Calibrated:
    """A calibrated run.

    Attributes:
        left_out: lengths in bytes that had too few windows.
    """

    run: str
    file: str
    alpha: float
    reference_bytes: int
    reference: str
    lengths: list[Normal]
    left_out: list[int]


@dataclass(frozen=True)
class Explanation:
    """What K, C and S mean for a run.

    Attributes:
        kind: typical, repetitive, noise or off-domain.
        ranks: for each metric, the fraction of reference windows of this length with a lower value.
        limits: of C and S, and of bytes copied in a loop.
        text: the same in words.
    """

    run: str
    bytes: int
    kind: str
    ranks: dict[str, float]
    limits: dict[str, float]
    text: str


@dataclass(frozen=True)
class Stretch:
    """Neighbouring windows of a file that are of one kind.

    Attributes:
        begin, end: offsets; `text`: why, of the one of its windows that is least like the reference.
    """

    begin: int
    end: int
    kind: str
    text: str


@dataclass(frozen=True)
class FileExplanation:
    """What a run's gate makes of a file.

    Attributes:
        windows: how many were judged; `kinds`: how many of them are of each kind.
        stretches: those that are not typical, in order.
        alpha: fraction of typical windows that are called otherwise.
    """

    run: str
    file: str
    window: int
    windows: int
    kinds: dict[str, int]
    stretches: list[Stretch]
    alpha: float


def explain_file(request: ExplainFileRequest, workspace: Workspace, job: Job) -> FileExplanation:
    """Judge a file window by window, and say what is not typical and why.

    Raises:
        CheckpointError: no such run, or it is not calibrated.
        BitStreamError: an unreadable file, or windows of a length that was not calibrated.
    """
    calibration, _ = workspace.calibration(request.run)
    calibration.limits_at(request.window)
    with job.cancellable():
        found = of_file(FileTelemetryRequest(name=request.name, run=request.run, window=request.window), workspace, job)
    kinds, stretches = dict[str, int](), list[Stretch]()
    if found.windows[0].bytes < request.window:
        raise BitStreamError(
            f"{found.file}: got {found.windows[0].bytes:,} bytes; a window of {request.window:,} is needed",
            field="window",
            tries=("a longer file, or shorter windows",),
        )
    lowest = 0.0
    for w in found.windows:
        if w.kind is None or w.S is None:
            continue
        kinds[w.kind] = kinds.get(w.kind, 0) + 1
        if w.kind == "typical":
            continue
        before = stretches[-1] if stretches else None
        if before is not None and before.kind == w.kind and before.end == w.offset:
            if lowest > w.S:
                lowest, text = w.S, _why(w, calibration)
            else:
                text = before.text
            stretches[-1] = Stretch(before.begin, w.offset + w.bytes, w.kind, text)
        else:
            lowest = w.S
            stretches.append(Stretch(w.offset, w.offset + w.bytes, w.kind, _why(w, calibration)))
    total = sum(kinds.values())
    return FileExplanation(request.run, found.file, request.window, total, kinds, stretches, calibration.alpha)


def _why(window: Window, calibration: Calibration) -> str:
    """A window in words, without what is said of all of them."""
    vitals = Vitals(window.K, window.C, window.S or 0.0, window.bytes)
    ranks = calibration.ranks(vitals)
    lines = _in_words(window.kind or "typical", vitals, ranks, calibration.limits_at(vitals.size), calibration.alpha)
    return " ".join(lines.splitlines()[1:])


def calibrate_run(request: CalibrateRequest, workspace: Workspace, job: Job) -> Calibrated:
    """Measure normal values on reference files, and store limits beside the checkpoint.

    Raises:
        BitStreamError: too few bytes; says how many are needed.
        CheckpointError: no such run.
        ConfigError: an invalid alpha, or a run and files that are swapped.
    """
    run, names, alpha = request.run, list(request.names), request.alpha
    workspace.check_order("calibrate", run, names)
    model = workspace.model(run)
    checkpoint = workspace.model_path(run)
    corpus = whole_files(find_files(names)) if names else held_out_part(checkpoint.parent, workspace)
    corpus = corpus.aligned(model.config.align_bytes)
    if model.config.experts:
        reference, what = Reference(model.bank, model.config.byte_bits), "the model's experts"
    else:
        half = len(corpus) // 2 // model.config.align_bytes * model.config.align_bytes
        reference = Reference.fit(corpus.part(0, half), model.config)
        what = f"contexts of one to four units, fitted to the first {half:,} bytes"
        corpus = corpus.part(half, len(corpus))
    if not names and not is_text(corpus.read(0, 1 << 16)) and split_of(checkpoint.parent) not in ("blocks", "standard"):
        job.notice(
            "this is binary data: what was held out should be spread over the files, not their ends. Train with --set data.split=blocks"
        )
    with job.cancellable():
        found = calibrate(
            reference,
            corpus,
            model.config,
            alpha=alpha,
            seed=request.seed,
            passed=lambda done, total: job.tell(Reading(done, total)),
        )
    path = checkpoint.with_name(GATE_FILE)
    save_calibration(path, found, reference, of_model=model.config.experts is not None)
    left_out = [size for size in LENGTHS if size > found.longest]
    return Calibrated(run, str(path), alpha, len(corpus), what, _normal(found), left_out)


def explain(request: ExplainRequest, workspace: Workspace, job: Job) -> Explanation:
    """Explain K, C and S by the quantiles from the run's calibration.

    Raises:
        CheckpointError: no such run, or it is not calibrated.
        ConfigError: values outside [0, 1].
        BitStreamError: the window is shorter or longer than any calibrated one.
    """
    run, K, C, S, size = request.run, request.K, request.C, request.S, request.size
    for name, value in zip(METRICS, (K, C, S), strict=True):
        if not 0 <= value <= 1:
            raise ConfigError(
                f"got {name}={value}; it must be in [0, 1]", field=name, tries=("a value that telemetry gives",)
            )
    calibration, _ = workspace.calibration(run)
    vitals = Vitals(K, C, S, size)
    kind, ranks = calibration.kind(vitals), calibration.ranks(vitals)
    limits = calibration.limits_at(vitals.size)
    text = _in_words(kind, vitals, ranks, limits, calibration.alpha)
    return Explanation(run, size, kind, ranks, limits._asdict(), text)


def _normal(found: Calibration) -> list[Normal]:
    rows = []
    for i, size in enumerate(found.lengths):
        (c_floor, s_floor, copied), (c_median, s_median, _) = found.limits[i].tolist(), found.medians[i].tolist()
        count, alarms = int(found.windows[i]), found.alarms(i)
        rows.append(Normal(int(size), count, c_floor, c_median, s_floor, s_median, copied, alarms))
    return rows


_SAYS = {
    "typical": "C and S are like those of {fraction:.1%} of reference windows.",
    "repetitive": "C is below its floor: the window repeats itself.",
    "noise": "S is below its floor, and K and C are like those of fair coin flips.",
    "off-domain": "S is below its floor, but this is not noise: it has structure that the reference does not have.",
}


def _in_words(kind: str, vitals: Vitals, ranks: dict[str, float], limits: Limits, alpha: float) -> str:
    within = {
        "C": f", floor {limits.c_floor:.3f}",
        "S": f", floor {limits.s_floor:.3f}",
    }
    lines = [_SAYS[kind].format(fraction=1 - alpha)]
    for name, rank in ranks.items():
        where = "below all" if rank == 0 else "above all" if rank == 1 else f"above {rank:.1%}"
        lines.append(f"{name} {getattr(vitals, name):.3f}: {where} of the reference{within.get(name, '')}.")
    return "\n".join(lines)
