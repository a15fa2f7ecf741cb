"""How often a run's gate blocks something, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import Sampling
from bit_transformer.data.sources import Corpus, bytes_corpus, find_files, whole_files
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.errors import Advice, Ask, BitStreamError, Give
from bit_transformer.safety import Calibration, Reference
from bit_transformer.service.advisor.requests import DiagnoseGateRequest
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.workspace import Workspace

ROWS = 16  # samples at a time


@dataclass(frozen=True)
class GateDiagnosis:
    """What a gate makes of a text, or of a model's samples.

    Attributes:
        verdict: as calibrated, repetitive, noise, off-domain: the kind that most blocked windows are of.
        blocked: fraction of windows; `alpha`: that was calibrated; `expected`: 95 % interval of it on text of the reference's kind.
        kinds: how many windows are of each kind.
        medians: of K, C and S here; `reference`: those of C and S in the calibration; `floors`: below them a window is blocked.
    """

    run: str
    what: str
    verdict: str
    windows: int
    bytes: int
    blocked: float
    alpha: float
    expected: tuple[float, float]
    kinds: dict[str, int]
    medians: dict[str, float]
    reference: dict[str, float]
    floors: dict[str, float]
    says: str
    tries: list[Advice]


def diagnose_gate(request: DiagnoseGateRequest, workspace: Workspace, job: Job) -> GateDiagnosis:
    """Find out how often a gate blocks, and why.

    Raises:
        CheckpointError: no such run, or it is not calibrated.
        BitStreamError: the text is too short, or the window was not calibrated.
    """
    model = workspace.model(request.run)
    calibration, reference = workspace.calibration(request.run)
    wanted = min(max(request.window, calibration.shortest), calibration.longest)
    size = -(-wanted // model.config.align_bytes) * model.config.align_bytes
    limits, medians = calibration.limits_at(size), calibration.medians_at(size)
    with job.cancellable():
        if request.name is not None:
            what = request.name
            corpus = _spread(whole_files(find_files([request.name])), size, request.windows)
        else:
            what = f"samples at temperature {request.temperature:g}"
            made: list[bytes] = []
            while len(made) < request.windows:
                rows = min(ROWS, request.windows - len(made))
                sampling = Sampling(temperature=request.temperature, seed=request.seed + len(made))
                made += generate_bytes(model, [b""] * rows, size, sampling)
                job.tell(Reading(len(made) * size, request.windows * size, "sampled"))
            corpus = bytes_corpus(b"".join(made))
    kinds, values = _judged(corpus, size, calibration, reference, model.config.parity)
    count = sum(kinds.values())
    bad = {kind: n for kind, n in kinds.items() if kind != "typical"}
    blocked = sum(bad.values()) / count
    at = int(np.argmin(np.abs(np.log(calibration.lengths) - np.log(size))))
    expected = calibration.alarms(at)
    usual = blocked <= max(expected[1], calibration.alpha) or sum(bad.values()) <= 1
    verdict = "as calibrated" if usual else max(bad, key=lambda kind: bad[kind])
    return GateDiagnosis(
        run=request.run,
        what=what,
        verdict=verdict,
        windows=count,
        bytes=size,
        blocked=blocked,
        alpha=calibration.alpha,
        expected=expected,
        kinds=dict(kinds),
        medians=values,
        reference={"C": medians.c_floor, "S": medians.s_floor},
        floors={"C": limits.c_floor, "S": limits.s_floor},
        says=_SAYS[verdict].format(
            blocked=blocked, count=count, alpha=calibration.alpha, **values, c=limits.c_floor, s=limits.s_floor
        ),
        tries=list(_TRIES[verdict](request.run)),
    )


_SAYS = {
    "as calibrated": "It blocks {blocked:.1%} of {count} windows, which is what alpha = {alpha:g} allows.",
    "repetitive": "It blocks {blocked:.0%} of {count} windows, mostly because they repeat themselves: the median C is {C:.2f}, the floor {c:.2f}.",
    "noise": "It blocks {blocked:.0%} of {count} windows, mostly because they look like coin flips: the median S is {S:.2f}, the floor {s:.2f}.",
    "off-domain": "It blocks {blocked:.0%} of {count} windows, mostly because they are unlike the reference: the median S is {S:.2f}, the floor {s:.2f}.",
}
_TRIES: dict[str, Callable[[str], tuple[Advice, ...]]] = {
    "as calibrated": lambda run: (),
    "repetitive": lambda run: (Give("sampling.temperature", 1.0), Give("sampling.top_p", 0.95), "training for longer"),
    "noise": lambda run: (Give("sampling.temperature", 0.8), "training for longer, or more data"),
    "off-domain": lambda run: (
        Ask("calibrate", run, (Give("names", ("files of the kind that it shall pass",)),)),
        Give("sampling.temperature", 0.8),
    ),
}


def _spread(corpus: Corpus, size: int, windows: int) -> Corpus:
    if len(corpus) < size:
        raise BitStreamError(
            f"got {len(corpus)} bytes; one window of {size} is needed",
            field="name",
            tries=("more text", Give("window", 32)),
        )
    return corpus.thinned(windows * size, size)


def _judged(
    corpus: Corpus, size: int, calibration: Calibration, reference: Reference, parity: bool
) -> tuple[Counter[str], dict[str, float]]:
    """Kinds of a corpus's windows, each judged by itself, and medians of K, C and S."""
    count = len(corpus) // size
    rows = corpus.read(0, count * size).reshape(count, size)
    found = [
        v for at in range(0, count, ROWS) for v in reference.measure(bytes_to_bits(rows[at : at + ROWS], parity=parity))
    ]
    return Counter(calibration.kind(v) for v in found), {
        name: median(getattr(v, name) for v in found) for name in "KCS"
    }
