"""What a text measures: K, C and S, and how much it repeats itself."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from statistics import median

import numpy as np

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.errors import Advice, Ask, Give
from bit_transformer.safety.repetition import Repetition
from bit_transformer.service.advisor.kinds import interpret
from bit_transformer.service.advisor.requests import InterpretRequest, MeasureRequest
from bit_transformer.service.jobs import Job
from bit_transformer.service.workspace import Workspace
from bit_transformer.telemetry import bit_negentropy, lz_complexity

GRAM = 4  # bytes of the n-grams that are counted
LOOP = 64  # bytes that a loop copies, from which a text is called repetitive whatever its windows measure
COMPARABLE = (
    256  # bytes of a window, from which its K and C are like those of the 512 bytes that kinds of data were measured on
)


@dataclass(frozen=True)
class TextMeasures:
    """Measures of a text.

    Attributes:
        verdict: repetitive, noise or structured; with a run also off-domain or typical.
        K, C, S: medians over windows; S only with a run.
        kinds: with a calibrated run: how many windows are of each kind.
        distinct: fraction of the 4-byte strings that differ; low is repetitive.
        zlib_ratio: compressed by zlib / bytes.
        loop_bytes: copied by the longest loop, and `loop_period`: its length.
        says: in words, with what it is compared with.
    """

    bytes: int
    windows: int
    verdict: str
    K: float
    C: float
    S: float | None
    kinds: dict[str, int]
    distinct: float
    zlib_ratio: float
    loop_bytes: int
    loop_period: int
    says: list[str]
    tries: list[Advice]


def measure(request: MeasureRequest, workspace: Workspace, job: Job) -> TextMeasures:
    """Measure a text.

    Raises:
        CheckpointError: no such run, or it is not calibrated.
    """
    data = np.frombuffer(request.data, dtype=np.uint8)
    size = min(request.window, len(data))
    count = len(data) // size
    rows = bytes_to_bits(data[: count * size].reshape(count, size))
    K, C = median(bit_negentropy(rows).tolist()), median(lz_complexity(rows).tolist())
    S, kinds = None, Counter[str]()
    if request.run is not None:
        model = workspace.model(request.run)
        calibration, reference = workspace.calibration(request.run)
        found = reference.measure(bytes_to_bits(data[: count * size].reshape(count, size), parity=model.config.parity))
        S = median(v.S for v in found)
        if calibration.shortest <= size <= calibration.longest:
            kinds = Counter(calibration.kind(v) for v in found)
    meant = interpret(InterpretRequest(K=K, C=C, S=S), workspace, job)
    grams = len(data) - GRAM + 1
    distinct = len({request.data[i : i + GRAM] for i in range(grams)}) / grams
    loop = Repetition(8, 8).longest(bytes_to_bits(data), len(data) * 8)
    copied, period = int(loop.copied), int(loop.period)
    loops = (
        f"the longest loop copies {copied} bytes with a period of {period}"
        if copied
        else "no loop with a period of 4 bytes or more"
    )
    verdict = kinds.most_common(1)[0][0] if kinds else meant.verdict
    says = [
        *meant.says,
        f"{distinct:.0%} of its {GRAM}-byte strings differ; {loops}.",
    ]
    tries: list[Advice] = list(meant.tries)
    if size < COMPARABLE:
        says.append(
            f"Its {size} bytes are few: kinds of data were measured on 512, and shorter windows have a lower K and a higher C."
        )
    if copied > LOOP:
        verdict = "repetitive"
    if verdict == "repetitive":
        tries = [
            Give("sampling.temperature", 1.0),
            Give("sampling.top_p", 0.95),
            Ask("generate_gated"),
            *tries,
        ]
    return TextMeasures(
        len(data),
        count,
        verdict,
        K,
        C,
        S,
        dict(kinds),
        distinct,
        len(zlib.compress(request.data, 9)) / len(data),
        copied,
        period,
        says,
        [advice for i, advice in enumerate(tries) if advice not in tries[:i]],
    )
