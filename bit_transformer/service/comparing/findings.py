"""What a comparison shows: rows with intervals, paired tests, and what must not be claimed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any

import numpy as np

from bit_transformer.config import ComparisonConfig
from bit_transformer.config.comparison import corpus_label
from bit_transformer.errors import ConfigError
from bit_transformer.evaluation.significance import (
    PairedTest,
    bootstrap_interval,
    holm,
    paired_test,
    pairs_needed,
    student_quantile,
)
from bit_transformer.service.comparing.cells import CellResult, Scored, model_config

ALPHA = 0.05
MATTERS = 0.01  # bits per byte: the difference that the needed number of seeds is given for
LEAST_SEEDS = 6  # with fewer, no flips of signs give p <= 0.05
LEAST_BLOCKS = 10


@dataclass(frozen=True)
class Row:
    """A model on a corpus, over its seeds.

    Attributes:
        model: as in the plan. `name`: of the row: with what learns, or the compressor.
        adaptive: whether it learns from what it is scored on.
        bpb: by seed. `low`, `high`: 95 % interval of the mean over seeds, by Student's t; None with one seed.
        seconds, bytes, flops: of training, means. `speed`: training bytes a second.
        score_seconds: of scoring the held-out sample.
        bit_costs: mean cost of a bit by its place in the byte.
    """

    corpus: str
    model: str
    name: str
    adaptive: bool
    trained: bool
    bpb: dict[str, float]
    mean: float
    low: float | None
    high: float | None
    protocol: str
    seconds: float
    bytes: float
    flops: float
    speed: float
    parameters: int
    score_seconds: float
    bit_costs: list[float]


@dataclass(frozen=True)
class Claim:
    """The reference against another model: reference minus the other, so below 0 the reference is better.

    Attributes:
        corpus: None: over all corpora together, with a pair for each corpus and seed.
        test: paired by seed; None with fewer than two pairs.
        p_holm: corrected over all claims of the report.
        window_low, window_high: 95 % interval of the difference over blocks of the held-out bytes, given these trainings (BCa bootstrap); None over
            several corpora.
        spread: standard deviation of the differences between seeds; None over several corpora, which differ for other reasons than luck.
        seeds_needed: for a difference of 0.01 bits per byte, with power 0.8 among so many claims; None if the spread is not known.
        shown: whether p_holm is at most 0.05.
    """

    reference: str
    other: str
    corpus: str | None
    test: PairedTest | None
    p_holm: float
    window_low: float | None
    window_high: float | None
    spread: float | None
    seeds_needed: int | None = None
    shown: bool = False
    says: str = ""


@dataclass(frozen=True)
class Curve:
    """Validation during training, the mean over seeds at each point: (seconds, bytes, operations, bits per byte).

    Attributes:
        adaptive: whether the model learned from the validation sample as it was scored, as models with experts do.
    """

    corpus: str
    model: str
    adaptive: bool
    points: list[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Findings:
    """All that a comparison shows.

    Attributes:
        claims: per corpus; `joint`: over all corpora together, if there are several. All are corrected together.
        limits: what cannot be said, and why.
        failed: by cell.
        machines: that cells ran on.
    """

    title: str
    reference: str | None
    budget: tuple[str, float]
    rows: list[Row]
    claims: list[Claim]
    joint: list[Claim]
    curves: list[Curve]
    limits: list[str]
    failed: dict[str, str]
    machines: list[dict[str, Any]]
    digests: dict[str, list[str]] = field(default_factory=dict)


def findings_of(plan: ComparisonConfig, cells: Sequence[CellResult], failed: dict[str, str]) -> Findings:
    """Tables and tests over cells that are done."""
    rows = _rows(plan, cells)
    trained = [model.label for model in plan.models if model.trained and "static" in model.learning]
    reference = plan.reference or (trained[0] if trained else None)
    claims: list[Claim] = []
    joint: list[Claim] = []
    if reference is not None:
        others = [name for name in trained if name != reference]
        corpora = [corpus_label(data) for data in plan.corpora]
        wanted = [_claim(cells, reference, other, [corpus]) for corpus in corpora for other in others]
        if len(corpora) > 1:
            wanted += [_claim(cells, reference, other, corpora) for other in others]
        corrected = _corrected(wanted)
        claims = [claim for claim in corrected if claim.corpus is not None]
        joint = [claim for claim in corrected if claim.corpus is None]
    machines: list[dict[str, Any]] = []
    digests: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        if cell.provenance not in machines:
            machines.append(cell.provenance)
        if list(cell.data_sha256) not in [digests[cell.corpus]]:
            digests[cell.corpus] = list(cell.data_sha256)
    return Findings(
        plan.title,
        reference,
        plan.budget,
        rows,
        claims,
        joint,
        _curves(plan, cells),
        _limits(plan, rows, claims, joint, cells, failed),
        failed,
        machines,
        dict(digests),
    )


def _rows(plan: ComparisonConfig, cells: Sequence[CellResult]) -> list[Row]:
    groups: dict[tuple[str, str, str], list[tuple[CellResult, Scored]]] = defaultdict(list)
    for cell in cells:
        for name, score in cell.scores.items():
            groups[cell.corpus, cell.model, name].append((cell, score))
    order = {corpus_label(data): place for place, data in enumerate(plan.corpora)}
    rows = [_row(*key, found) for key, found in groups.items()]
    return sorted(rows, key=lambda row: (order.get(row.corpus, 0), row.adaptive, row.mean))


def _row(corpus: str, model: str, name: str, found: Sequence[tuple[CellResult, Scored]]) -> Row:
    bpb = {"-" if cell.seed is None else str(cell.seed): score.bpb for cell, score in found}
    values = list(bpb.values())
    low = high = None
    if len(values) > 1:
        half = student_quantile(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
        low, high = mean(values) - half, mean(values) + half
    first, score = found[0]
    seconds, size = mean(cell.train_seconds for cell, _ in found), mean(cell.train_bytes for cell, _ in found)
    costs = [score.bit_costs for _, score in found if score.bit_costs]
    return Row(
        corpus=corpus,
        model=model,
        name=name,
        adaptive=score.adaptive,
        trained=first.seed is not None,
        bpb=bpb,
        mean=mean(values),
        low=low,
        high=high,
        protocol=score.protocol,
        seconds=seconds,
        bytes=size,
        flops=mean(cell.train_flops for cell, _ in found),
        speed=size / seconds if seconds else 0.0,
        parameters=first.parameters,
        score_seconds=mean(score.seconds for _, score in found),
        bit_costs=np.mean(costs, axis=0).tolist() if costs else [],
    )


def _claim(cells: Sequence[CellResult], reference: str, other: str, corpora: Sequence[str]) -> Claim:
    """A claim that is not corrected yet."""
    by_corpus = [_pairs(cells, reference, other, corpus) for corpus in corpora]
    pairs = [pair for found in by_corpus for pair in found]
    test, low, high, spread = None, None, None, None
    if len(pairs) > 1:
        test = paired_test([a.bpb for a, _ in pairs], [b.bpb for _, b in pairs])
    if len(corpora) == 1 and pairs:
        low, high = _over_blocks(pairs)
        spread = stdev(a.bpb - b.bpb for a, b in pairs) if len(pairs) > 1 else None
    where = corpora[0] if len(corpora) == 1 else None
    return Claim(reference, other, where, test, test.p if test else 1.0, low, high, spread)


def _pairs(cells: Iterable[CellResult], a: str, b: str, corpus: str) -> list[tuple[Scored, Scored]]:
    """Scores of two models as frozen models, by the seeds that both have."""
    found: dict[str, dict[int, Scored]] = {a: {}, b: {}}
    for cell in cells:
        if cell.corpus == corpus and cell.model in found and cell.seed is not None:
            frozen = [score for score in cell.scores.values() if not score.adaptive]
            if frozen:
                found[cell.model][cell.seed] = frozen[0]
    return [(found[a][seed], found[b][seed]) for seed in sorted(found[a].keys() & found[b].keys())]


def _over_blocks(pairs: Sequence[tuple[Scored, Scored]]) -> tuple[float | None, float | None]:
    """95 % interval of the difference in bits per byte over blocks, of the mean over seeds."""
    if any(len(a.block_bits) != len(b.block_bits) or len(a.block_bits) < LEAST_BLOCKS for a, b in pairs):
        return None, None
    difference = np.mean([np.subtract(a.block_bits, b.block_bits) for a, b in pairs], axis=0)
    each = pairs[0][0].bytes / len(difference)
    low, high = bootstrap_interval(difference / each)
    return low, high


def _corrected(claims: Sequence[Claim]) -> list[Claim]:
    """The claims of a report, with Holm's correction over all of them, and in words."""
    made = []
    for claim, p in zip(claims, holm([claim.p_holm for claim in claims]), strict=True):
        shown = claim.test is not None and p <= ALPHA
        needed = _needed(claim.spread, len(claims))
        made.append(replace(claim, p_holm=p, shown=shown, seeds_needed=needed, says=_said(claim, shown)))
    return made


def _needed(spread: float | None, claims: int) -> int | None:
    """Seeds with which a difference that matters would be shown in a table of so many claims."""
    if spread is None:
        return None
    try:
        needed = pairs_needed(MATTERS, spread, ALPHA / claims) if spread > 0 else 2
    except ConfigError:  # more than anybody trains
        return None
    return max(needed, _fewest(claims))


def _fewest(claims: int) -> int:
    """Fewest pairs with which any of so many claims can be shown."""
    return 1 + math.ceil(math.log2(claims / ALPHA))


def _said(claim: Claim, shown: bool) -> str:
    where = f"on {claim.corpus}" if claim.corpus else "over all corpora"
    if claim.test is None:
        return f"{claim.reference} and {claim.other} {where}: nothing can be said"
    d = claim.test.difference
    if not shown:
        return f"{claim.reference} and {claim.other} {where}: no difference shown"
    return f"{claim.reference} is {'better' if d < 0 else 'worse'} than {claim.other} by {abs(d):.4f} bits per byte {where}"


def _curves(plan: ComparisonConfig, cells: Sequence[CellResult]) -> list[Curve]:
    groups: dict[tuple[str, str], list[CellResult]] = defaultdict(list)
    for cell in cells:
        if cell.curve:
            groups[cell.corpus, cell.model].append(cell)
    learns = {m.label for m in plan.models if m.kind == "bits" and model_config(plan, m).experts is not None}
    order = [model.label for model in plan.models]
    made = []
    for (corpus, model), found in sorted(groups.items(), key=lambda group: order.index(group[0][1])):
        count = min(len(cell.curve) for cell in found)
        whole = np.mean([cell.curve[:count] for cell in found], axis=0)
        points = [(float(s), float(b), float(f), float(v)) for s, b, f, v in whole]
        made.append(Curve(corpus, model, model in learns, points))
    return made


def _limits(
    plan: ComparisonConfig,
    rows: Sequence[Row],
    claims: Sequence[Claim],
    joint: Sequence[Claim],
    cells: Sequence[CellResult],
    failed: dict[str, str],
) -> list[str]:
    """What the tables do not show."""
    said = []
    seeds, count = len(plan.seeds), len(claims) + len(joint)
    for family, what in ((claims, "a single corpus"), (joint, "all corpora together")):
        if not family:
            continue
        pairs = min(claim.test.n if claim.test else 0 for claim in family)
        # Holm's factor is at least the number of claims that are not sure to have a smaller p; those of more pairs may have.
        rank = len(family) if family is claims else count
        least = min(1.0, 2.0 ** (1 - pairs) * rank)
        if least > ALPHA:
            enough = math.ceil(_fewest(rank) / (1 if family is claims else len(plan.corpora)))
            said.append(
                f"With {pairs} {'pair' if pairs == 1 else 'pairs'} and {count} {'claim' if count == 1 else 'claims'} in all, p after Holm is at least "
                f"{least:.2g}: no claim about {what} can be shown at {ALPHA}, however large the difference. {enough} seeds would do. The intervals stand; "
                "that no difference was shown does not mean that there is none."
            )
    said += _not_shown([*joint, *claims])
    whole = [row for row in rows if row.trained and len(row.bpb) < seeds]
    said += [f"{row.name} on {row.corpus} has {len(row.bpb)} of {seeds} seeds." for row in whole]
    said += [f"{key} failed: {why}" for key, why in failed.items()]
    distinct = {(str(cell.provenance.get("cpu")), str(cell.provenance.get("threads"))) for cell in cells}
    if len(distinct) > 1:
        said.append(
            "Cells ran on different machines, or with different threads; seconds are not comparable between them."
        )
    if plan.at_once > 1:
        said.append(f"{plan.at_once} trainings ran at once; each had part of the machine.")
    return said


def _not_shown(claims: Sequence[Claim]) -> Iterator[str]:
    """The claims that were not shown, one line for each corpus and reason."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for claim in claims:
        where = f"on {claim.corpus}" if claim.corpus else "over all corpora together"
        if claim.test is None:
            groups[where, "nothing can be said: fewer than two pairs"].append(claim.other)
        elif not claim.shown:
            groups[where, "no difference shown"].append(claim.other)
    for (where, what), others in groups.items():
        yield f"{claims[0].reference} and {', '.join(others)}, {where}: {what}."
