"""What K, C and S mean without a calibrated run: next to what kinds of data measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bit_transformer.errors import Advice, Ask
from bit_transformer.service.advisor.requests import InterpretRequest
from bit_transformer.service.jobs import Job
from bit_transformer.service.workspace import Workspace

# `btlm bench bands`: quantiles 5, 50 and 95 % of windows of 512 bytes; S against a reference of source code.
MEASURED: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]] = {
    "source code": ((0.103, 0.159, 0.234), (0.281, 0.455, 0.588), (0.587, 0.712, 0.747)),
    "English prose": ((0.098, 0.116, 0.147), (0.432, 0.594, 0.665), (0.662, 0.695, 0.728)),
    "an executable": ((0.103, 0.264, 0.630), (0.221, 0.523, 0.708), (0.410, 0.425, 0.588)),
    "a table of numbers": ((0.181, 0.189, 0.202), (0.506, 0.533, 0.557), (0.529, 0.538, 0.546)),
    "compressed data": ((0.001, 0.005, 0.029), (0.943, 0.992, 1.000), (0.409, 0.414, 0.418)),
    "noise": ((0.000, 0.000, 0.002), (0.986, 1.000, 1.000), (0.409, 0.413, 0.416)),
    "a phrase, repeated": ((0.185, 0.241, 0.419), (0.026, 0.068, 0.102), (0.597, 0.675, 0.728)),
    "one byte, repeated": ((0.667, 0.667, 0.778), (0.006, 0.009, 0.011), (0.375, 0.393, 0.653)),
}
REPETITIVE_C = 0.2  # between the 95 % of repeated phrases and the 5 % of all else
NOISE_C, NOISE_K = 0.9, 0.03
LIKE_S = 0.59  # the 5 % of text like its reference; of executables 5 % are above it, and some repeated bytes
COIN_S = 1 - math.sqrt(
    1 + (0.5 * math.log2(0.5) - 1.5 * math.log2(1.5)) / 2
)  # of bits to which the reference gives 1/2: 0.442
LEAST_SPREAD = 0.03


@dataclass(frozen=True)
class Near:
    """A kind of data, and how far its median is, in units of half the width of its middle 90 %.

    Attributes:
        inside: whether K and C are in its middle 90 %.
    """

    kind: str
    distance: float
    inside: bool
    K: tuple[float, float, float]
    C: tuple[float, float, float]


@dataclass(frozen=True)
class Interpretation:
    """What values mean.

    Attributes:
        verdict: repetitive, noise, structured; of predictions: unsure, noise, structured, repetitive.
        similarity: of S: like the reference, unlike it, against it; None without S.
        nearest: kinds of data with such K and C, the nearest first; of bits only.
        expected_bpb: of predictions: what the model expects to need, 8 (1 - K).
        divergence: from the reference in bits per bit, (1 - S)^2; None without S.
        says: each value in words, with what it is compared with.
        tries: what would tell more.
    """

    verdict: str
    similarity: str | None
    nearest: list[Near]
    expected_bpb: float | None
    divergence: float | None
    says: list[str]
    tries: list[Advice]


def interpret(request: InterpretRequest, workspace: Workspace, job: Job) -> Interpretation:
    """Say what values of K, C and S mean. For a calibrated run, `explain` is exact."""
    K, C, S = request.K, request.C, request.S
    nearest = sorted((_near(kind, K, C) for kind in MEASURED), key=lambda near: near.distance)
    of_bits = request.source == "bits"
    if C < REPETITIVE_C:
        verdict = "repetitive"
    elif C >= NOISE_C and K <= NOISE_K:
        verdict = "noise"
    else:
        verdict = "structured"
    says = []
    expected = None
    if of_bits:
        first = nearest[0]
        says.append(f"K {K:.3g}, order within words of bits: {_place(K, 0)}.")
        says.append(f"C {C:.3g}, Lempel-Ziv complexity, fair coin flips being 1: {_place(C, 1)}.")
        within = "inside" if first.inside else "outside"
        says.append(f"Together they are nearest to {first.kind}, {within} its middle 90 %.")
    else:
        expected = 8 * (1 - K)
        says.append(
            f"K {K:.3g}: the model expects to need {expected:.2f} bits per byte, 8 (1 - K); if it costs more, it is too sure."
        )
        gap = C - (1 - K)
        known = (
            "less: its samples repeat themselves"
            if gap < -0.15
            else "more: samples are rougher than single predictions"
            if gap > 0.15
            else "as much"
        )
        says.append(
            f"C {C:.3g} of sampled bits, where 1 - K = {1 - K:.2f} is what single predictions leave open: {known}."
        )
        if gap < -0.15 and C < 0.5:
            verdict = "repetitive"
        elif K < 0.1:
            verdict = "unsure"
    similarity = None
    if S is not None:
        similarity = (
            "like the reference"
            if S >= LIKE_S
            else "against the reference"
            if S < COIN_S - 0.02
            else "unlike the reference"
        )
        says.append(
            f"S {S:.3g}: {(1 - S) ** 2:.2f} bits of divergence per bit; text like its reference has 0.59 to 0.75, noise {COIN_S - 0.03:.2f}, "
            f"and {COIN_S:.2f} is where the reference knows nothing: {similarity}."
        )
    return Interpretation(
        verdict=verdict,
        similarity=similarity,
        nearest=nearest[:3] if of_bits else [],
        expected_bpb=expected,
        divergence=None if S is None else (1 - S) ** 2,
        says=says,
        tries=_tries(verdict, similarity, of_bits),
    )


def _near(kind: str, K: float, C: float) -> Near:
    k_band, c_band, _ = MEASURED[kind]
    parts = [
        (value - middle) / max(LEAST_SPREAD, (high - low) / 2)
        for value, (low, middle, high) in ((K, k_band), (C, c_band))
    ]
    inside = k_band[0] <= K <= k_band[2] and c_band[0] <= C <= c_band[2]
    return Near(kind, math.hypot(*parts), inside, k_band, c_band)


def _place(value: float, metric: int) -> str:
    """Between which kinds' medians a value is."""
    medians = sorted((bands[metric][1], kind) for kind, bands in MEASURED.items())
    below = [row for row in medians if row[0] <= value]
    above = [row for row in medians if row[0] > value]
    if not above:
        return f"above all kinds measured (the highest median: {below[-1][1]}, {below[-1][0]:.2f})"
    if not below:
        return f"below all kinds measured (the lowest median: {above[0][1]}, {above[0][0]:.2f})"
    return f"between {below[-1][1]} ({below[-1][0]:.2f}) and {above[0][1]} ({above[0][0]:.2f})"


def _tries(verdict: str, similarity: str | None, of_bits: bool) -> list[Advice]:
    tries: list[Advice] = []
    if verdict == "repetitive":
        tries.append("a higher temperature, or top_p; the gate blocks loops")
    if verdict == "noise" and of_bits:
        tries.append(Ask("score"))
    if not of_bits and verdict == "unsure":
        tries.append("training for longer: predictions are near coin flips")
    if similarity in ("unlike the reference", "against the reference"):
        tries.append(Ask("calibrate"))
    return [*tries, Ask("explain")]
