"""Tests of paired results, and plans of comparisons."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from bit_transformer.errors import Ask, ConfigError
from bit_transformer.evaluation.significance import (
    PairedTest,
    paired_test,
    pairs_needed,
    power,
    smallest_difference,
)
from bit_transformer.runs.store import Run
from bit_transformer.service.advisor.requests import PlanRequest, SignificanceRequest
from bit_transformer.service.jobs import Job
from bit_transformer.service.workspace import Workspace

DEVIATION = 0.0205  # of paired differences in bits per byte, `btlm bench reversible-quality`: six seeds, interval -0.034 to 0.009
RULES = (
    "same data, split, budget and machine for all rows; seeds paired: the same seed draws the same windows",
    "bits per byte of the held-out bytes, every byte scored once, window and overlap reported",
    "a model over tokens: bits per byte = sum of -log2 p over all tokens / bytes of the text, not per token",
    "frozen models are compared with frozen ones (--protocol static), adaptive ones with compressors that read the same training bytes first",
    "the number of seeds and the test are settled before the first result is seen; every run is reported, failed ones too",
)


@dataclass(frozen=True)
class Row:
    """A model in a plan. `command`: empty where it is not one of this package."""

    model: str
    trainings: int
    seconds: float
    command: str
    scored: str


@dataclass(frozen=True)
class Plan:
    """How to compare models.

    Attributes:
        seeds: of each row; `power`: probability that the difference is shown.
        smallest: difference that so many seeds show with the wanted probability; None if they can show none.
        alpha_each: after dividing alpha by the comparisons (Bonferroni; Holm's method is never weaker).
        deviation: of paired differences; `deviation_from`: where it was measured.
        smallest_p: of the sign-flip test with so many seeds.
        seconds: of all trainings.
        rules: of the protocol.
    """

    metric: str
    seeds: int
    difference: float
    power: float
    smallest: float | None
    comparisons: int
    alpha_each: float
    deviation: float
    deviation_from: str
    smallest_p: float
    seconds: float
    rows: list[Row]
    rules: list[str]
    warnings: list[str]


def plan(request: PlanRequest, workspace: Workspace, job: Job) -> Plan:
    """Plan a comparison.

    Raises:
        ConfigError: fewer than two models, or a difference that no number of seeds shows.
    """
    models = list(dict.fromkeys(request.models))
    if len(models) < 2:
        raise ConfigError(f"got {len(models)} models; two or more are needed. Try ours and gpt2", field="models")
    comparisons = len(models) - 1
    alpha = request.alpha / comparisons
    deviation, source = _deviation(request, workspace)
    seeds = request.seeds or pairs_needed(request.difference, deviation, alpha, request.power)
    reached = power(request.difference, deviation, seeds, alpha)
    smallest_p = 2.0 ** (1 - seeds)
    smallest = smallest_difference(deviation, seeds, alpha, request.power)
    warnings = []
    if smallest_p > alpha:
        warnings.append(
            f"{seeds} seeds cannot give p <= {alpha:.3g} by flipping signs (the smallest is {smallest_p:.3g}). Try {math.ceil(1 - math.log2(alpha))}"
        )
    if reached < request.power:
        warnings.append(f"power is {reached:.2f}: a difference that is not shown will say little")
    rows = [_row(name, seeds, request.seconds) for name in models]
    return Plan(
        metric="bits per byte of held-out bytes, lower is better",
        seeds=seeds,
        difference=request.difference,
        power=reached,
        smallest=None if math.isinf(smallest) else smallest,
        comparisons=comparisons,
        alpha_each=alpha,
        deviation=deviation,
        deviation_from=source,
        smallest_p=smallest_p,
        seconds=sum(row.seconds for row in rows),
        rows=rows,
        rules=list(RULES),
        warnings=warnings,
    )


def _row(name: str, seeds: int, seconds: float) -> Row:
    if name == "ours" or name.startswith("ours"):
        command = f"btlm train DATA --seconds {_number(seconds)} --seed SEED --out runs/{name}-SEED"
        return Row(
            name,
            seeds,
            seeds * seconds,
            command,
            "bits, exact; --protocol static next to frozen models, online next to compressors",
        )
    tokens = "sum of -log2 p of its tokens / bytes; context and stride as ours" if "gpt" in name else "as ours"
    return Row(name, seeds, seeds * seconds, "", tokens)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _deviation(request: PlanRequest, workspace: Workspace) -> tuple[float, str]:
    """Deviation of paired differences: as given, as the store's runs show, or as measured before."""
    if request.deviation is not None:
        return request.deviation, "given"
    groups = {name: found for name, found in groups_by_seed(workspace.store.list_runs()).items() if len(found) > 2}
    if groups:
        squares = [(len(group) - 1, stdev(_bpb(run) for run in group.values()) ** 2) for group in groups.values()]
        pooled = math.sqrt(sum(n * square for n, square in squares) / sum(n for n, _ in squares))
        runs = sum(len(group) for group in groups.values())
        if pooled > 0:
            # Of two rows that share nothing but the seed: the variances add. Pairing only lowers it.
            return (
                math.sqrt(2) * pooled,
                f"{runs} runs of the store in {len(groups)} groups that differ by seed, as if unpaired",
            )
    return DEVIATION, "`btlm bench reversible-quality`: small models, six paired seeds"


def significance(request: SignificanceRequest, workspace: Workspace, job: Job) -> PairedTest:
    """Test paired results: of numbers, or of runs.

    Raises:
        ConfigError: rows that cannot be paired.
        RunNotFound: no such run.
    """
    a, b = list(request.a), list(request.b)
    if request.runs_a or request.runs_b:
        if a or b:
            raise ConfigError("got numbers and runs; one kind is needed. Try runs_a and runs_b alone", field="a")
        rows = [_of_seeds(names, workspace) for names in (request.runs_a, request.runs_b)]
        scored = {(run.result.get("protocol"), run.result.get("bytes")) for row in rows for run in row}
        if len(scored) > 1:
            raise ConfigError(
                "got runs that were scored by different protocols or on different bytes. Try runs of one comparison",
                field="runs_a",
            )
        one, other = ({_seed(run): _bpb(run) for run in row} for row in rows)
        shared = sorted(one.keys() & other.keys())
        if len(shared) < 2 or one.keys() != other.keys():
            raise ConfigError(
                f"got runs of seeds {sorted(one)} and {sorted(other)}; both need the same two or more seeds",
                field="runs_a",
                tries=(Ask("runs.list"),),
            )
        a, b = [one[seed] for seed in shared], [other[seed] for seed in shared]
    return paired_test(a, b, request.comparisons)


def _of_seeds(names: Sequence[str], workspace: Workspace) -> list[Run]:
    runs = [workspace.store.get(name) for name in names]
    for run in runs:
        if not scored(run):
            raise ConfigError(f"run {run.id!r} has no result. Try one that has finished", field="runs_a")
    seeds = [_seed(run) for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"got runs of seeds {seeds}; each seed is needed once. Try one run per seed", field="runs_a")
    return runs


# ---- runs that differ by seed alone ----


def groups_by_seed(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Finished runs by their settings without the seed: name of the first -> seed -> run."""
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: (run.created, run.id)):
        if run.status == "finished" and scored(run):
            found[_but_seed(run.config)].setdefault(_seed(run), run)
    return {next(iter(group.values())).id: group for group in found.values()}


def _but_seed(config: Mapping[str, Any]) -> str:
    train = {key: value for key, value in config.get("train", {}).items() if key != "seed"}
    kept = ("model", "data", "eval_bytes", "teacher", "init")
    return repr([train, *(config.get(key) for key in kept)])


def scored(run: Run) -> bool:
    """Whether a run has a finite result."""
    bpb = run.result.get("bpb")
    return isinstance(bpb, int | float) and math.isfinite(bpb)


def _seed(run: Run) -> int:
    return int(run.config.get("train", {}).get("seed", 0))


def _bpb(run: Run) -> float:
    return float(run.result["bpb"])
