"""A draft of a report, from the run store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from bit_transformer.config.base import flat
from bit_transformer.errors import Ask, ConfigError
from bit_transformer.evaluation.significance import PairedTest, holm, paired_test, student_quantile
from bit_transformer.runs.store import Run
from bit_transformer.service.advisor.requests import ReportRequest
from bit_transformer.service.advisor.significance import groups_by_seed, scored
from bit_transformer.service.jobs import Job
from bit_transformer.service.runs import run_status
from bit_transformer.service.workspace import Workspace

ALPHA = 0.05


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone.

    Attributes:
        name: of its first run.
        seeds: of its runs; `bpb`: of each.
        low, high: 95 % interval of the mean over seeds, by Student's t; None with one seed.
        differs: settings in which groups differ, as key=value.
        compressors: the best of them on the same bytes, if they were measured.
    """

    name: str
    seeds: list[int]
    bpb: list[float]
    mean: float
    low: float | None
    high: float | None
    protocol: str
    bytes: int
    differs: list[str]
    best_compressor: tuple[str, float] | None


@dataclass(frozen=True)
class Claim:
    """A comparison of two groups over the seeds that they share.

    Attributes:
        shown: whether Holm's corrected p is at most 0.05.
        p_holm: corrected over all comparisons of the report.
    """

    a: str
    b: str
    test: PairedTest
    p_holm: float
    shown: bool
    says: str


@dataclass(frozen=True)
class Report:
    """A draft. `markdown` says the same as the rest.

    Attributes:
        not_shown: what must not be claimed, and why.
        failed: runs that did not finish, with the reason.
    """

    title: str
    groups: list[Group]
    claims: list[Claim]
    not_shown: list[str]
    failed: list[str]
    markdown: str


def report(request: ReportRequest, workspace: Workspace, job: Job) -> Report:
    """Draft a report of runs.

    Raises:
        RunNotFound: no such run.
        ConfigError: no run has a result.
    """
    store = workspace.store
    runs = [store.get(name) for name in dict.fromkeys(request.names)] or store.list_runs()
    grouped = groups_by_seed(runs)
    if not grouped:
        raise ConfigError(
            "got no run with a result; one that has finished is needed", field="names", tries=(Ask("runs.list"),)
        )
    differs = _differing({name: next(iter(group.values())) for name, group in grouped.items()})
    groups = [_group(name, found, differs[name]) for name, found in grouped.items()]
    claims = _claims(groups)
    failed = [
        f"{run.id}: {run_status(run)}{f' ({run.note})' if run.note else ''}"
        for run in runs
        if run.status != "finished" or not scored(run)
    ]
    not_shown = list(_not_shown(groups, claims))
    counted = {run.id for found in grouped.values() for run in found.values()}
    not_shown += [
        f"{run.id}: settings and seed of a run that is shown; {run.result['bpb']:.3f}, not counted again"
        for run in runs
        if run.status == "finished" and scored(run) and run.id not in counted
    ]
    text = _markdown(request.title, groups, claims, not_shown, failed, runs)
    return Report(request.title, groups, claims, not_shown, failed, text)


def _group(name: str, found: dict[int, Run], differs: list[str]) -> Group:
    seeds = sorted(found)
    values = [float(found[seed].result["bpb"]) for seed in seeds]
    half = (
        student_quantile(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    )
    first = found[seeds[0]].result
    compressors = first.get("compressors") or {}
    best = min(compressors.items(), key=lambda row: row[1]) if compressors else None
    middle = mean(values)
    return Group(
        name=name,
        seeds=seeds,
        bpb=values,
        mean=middle,
        low=None if half is None else middle - half,
        high=None if half is None else middle + half,
        protocol=str(first.get("protocol", "")),
        bytes=int(first.get("bytes", 0)),
        differs=differs,
        best_compressor=best,
    )


def _differing(first: dict[str, Run]) -> dict[str, list[str]]:
    """Settings in which groups differ."""
    rows = {
        name: dict(flat("", {key: run.config.get(key) or {} for key in ("model", "train", "data")}))
        for name, run in first.items()
    }
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    keys.pop("train.seed", None)
    unlike = [key for key in keys if len({repr(row.get(key)) for row in rows.values()}) > 1]
    return {name: [f"{key}={row.get(key)}" for key in unlike if key != "data.digest"] for name, row in rows.items()}


def _claims(groups: Sequence[Group]) -> list[Claim]:
    """All pairs of groups that share at least two seeds and were scored alike."""
    tests = []
    for a, b in combinations(groups, 2):
        shared = sorted(set(a.seeds) & set(b.seeds))
        if len(shared) > 1 and a.protocol == b.protocol and a.bytes == b.bytes:
            one, other = (dict(zip(g.seeds, g.bpb, strict=True)) for g in (a, b))
            tests.append((a.name, b.name, paired_test([one[s] for s in shared], [other[s] for s in shared])))
    corrected = holm([test.p for _, _, test in tests])
    claims = []
    for (a_name, b_name, test), p in zip(tests, corrected, strict=True):
        shown = p <= ALPHA
        better = a_name if test.difference < 0 else b_name
        found = f"{better} is better" if shown else "no difference shown"
        says = f"{a_name} minus {b_name}: {test.difference:+.3f} bits per byte, 95 % interval {test.low:.3f} to {test.high:.3f}, p {p:.3g} (Holm), {test.n} paired seeds: {found}"
        claims.append(Claim(a_name, b_name, test, p, shown, says))
    return claims


def _not_shown(groups: Sequence[Group], claims: Sequence[Claim]) -> Iterator[str]:
    for claim in claims:
        if not claim.shown:
            least = claim.test.smallest_p * len(claims)
            few = (
                f"; {claim.test.n} seeds cannot give a corrected p below {min(1.0, least):.2g}" if least > ALPHA else ""
            )
            yield f"{claim.a} against {claim.b}: no difference shown{few}"
    compared = {frozenset((claim.a, claim.b)) for claim in claims}
    for a, b in combinations(groups, 2):
        if frozenset((a.name, b.name)) not in compared:
            why = (
                "scored by another protocol or on other bytes"
                if (a.protocol, a.bytes) != (b.protocol, b.bytes)
                else "they share fewer than two seeds"
            )
            yield f"{a.name} against {b.name}: not comparable, {why}"
    for group in groups:
        if len(group.seeds) == 1:
            yield f"{group.name}: one seed, so how far its figure varies is not known"
        if group.best_compressor and group.mean >= group.best_compressor[1]:
            yield f"{group.name} does not beat {group.best_compressor[0]}: {group.mean:.3f} against {group.best_compressor[1]:.3f}, which starts empty"


def _markdown(
    title: str,
    groups: Sequence[Group],
    claims: Sequence[Claim],
    not_shown: Sequence[str],
    failed: Sequence[str],
    runs: Sequence[Run],
) -> str:
    lines = [
        f"# {' '.join(title.split())}",
        "",
        "Bits per byte of held-out data; lower is better. Intervals are of the mean over seeds, 95 %, by Student's t.",
        "",
    ]
    lines += [
        "| runs | seeds | bits per byte | interval | best compressor | settings that differ |",
        "|---|---|---|---|---|---|",
    ]
    for group in sorted(groups, key=lambda g: g.mean):
        interval = "one seed" if group.low is None else f"{group.low:.3f} to {group.high:.3f}"
        best = "-" if group.best_compressor is None else f"{group.best_compressor[0]} {group.best_compressor[1]:.3f}"
        lines.append(
            f"| {group.name} | {len(group.seeds)} | {group.mean:.3f} | {interval} | {best} | {'; '.join(group.differs) or '-'} |"
        )
    for heading, found in (
        ("What is shown", [c.says for c in claims if c.shown]),
        ("What is not shown", not_shown),
        ("Runs that did not finish", failed),
    ):
        lines += ["", f"## {heading}", "", *(f"- {text}" for text in found or ["nothing"])]
    protocols = sorted({f"{group.protocol}; {group.bytes:,} bytes" for group in groups})
    machines = sorted(
        {
            "{cpu}, {cores} cores, GPU: {gpu}, torch {torch}, commit {commit}".format_map(
                _Known(run.config.get("provenance", {}))
            )
            for run in runs
        }
    )
    lines += ["", "## How it was measured", "", *(f"- {text}" for text in (*protocols, *machines))]
    if claims:
        lines.append(
            "- differences are paired by seed; p by flipping their signs, exactly; corrected over all comparisons of this report (Holm)"
        )
    return "\n".join(lines) + "\n"


class _Known(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "unknown"
