"""How a run goes, and why: from its records alone, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any, Literal

import numpy as np

from bit_transformer.errors import Advice, Ask, Give
from bit_transformer.runs.store import Run, RunStore
from bit_transformer.service.advisor.requests import DiagnoseRequest
from bit_transformer.service.jobs import Job
from bit_transformer.service.runs import run_status
from bit_transformer.service.workspace import Workspace

Verdict = Literal[
    "too early",
    "converging",
    "levelled off",
    "diverging",
    "over-fitting",
    "not a number",
    "out of memory",
    "failed",
    "killed",
]
LEAST = 12  # recorded updates before anything is said of a curve
SURE = 4.0  # standard errors: the best of several parts is compared
PARTS, OF_PART = 8, 5  # of a curve, at most, and updates of one, at least
RISE = 0.02  # of the best bits per byte: a validation above it by this fraction, and noise, is over-fitting
SLOWER = 0.7  # of its own first speed, or of other runs of its shape
EVENTS = 10_000


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        kind: a short name; `problem`: whether something should be done.
        numbers: that it rests on.
        tries: operations and fields.
        quoted: what was recorded of it, such as the text of an error.
    """

    kind: str
    problem: bool
    says: str
    numbers: dict[str, float]
    tries: list[Advice] = field(default_factory=list)
    quoted: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """How a run goes.

    Attributes:
        verdict: of the training itself.
        findings: the verdict's and all others, problems first.
        figures: latest values: step, share, train_bpb, val_bpb, best_val_bpb, grad_norm, bytes_per_s, K, C, S.
    """

    run: str
    status: str
    verdict: Verdict
    findings: list[Finding]
    figures: dict[str, float]


def diagnose(request: DiagnoseRequest, workspace: Workspace, job: Job) -> Diagnosis:
    """Say how a run goes, and why.

    Raises:
        RunNotFound: no such run.
    """
    store, run = workspace.store, workspace.store.get(request.run)
    (seen,) = store.overview(run.id)
    status = run_status(run, seen.live)
    curves = {key: store.series(run.id, key) for key in store.metric_keys(run.id)}
    verdict, first = _verdict(run, status, curves)
    findings = [
        first,
        *_speed(run, store, curves),
        *_gradients(curves),
        *_gate(run, store),
        *_drift(run, store),
        *_calibrated(curves),
    ]
    if status == "killed" and verdict != "killed":
        findings.append(_killed(run))
    figures = {key: rows[-1][1] for key, rows in curves.items() if rows and key in FIGURES}
    steps = [rows[-1][0] for rows in curves.values() if rows]
    if validated := _finite(curves.get("val_bpb", [])):
        figures["best_val_bpb"] = min(value for _, value in validated)
    if seen.live:
        figures["share"] = seen.live.share
    figures["step"] = float(max(steps, default=0))
    return Diagnosis(run.id, status, verdict, sorted(findings, key=lambda found: not found.problem), figures)


FIGURES = ("train_bpb", "val_bpb", "grad_norm", "bytes_per_s", "K", "C", "S", "seconds", "bytes")
Rows = Sequence[tuple[int, float]]


def _finite(rows: Rows) -> list[tuple[int, float]]:
    return [row for row in rows if math.isfinite(row[1])]


def _verdict(run: Run, status: str, curves: dict[str, Any]) -> tuple[Verdict, Finding]:
    """What is to be said of the training first."""
    note = run.note.lower()
    train, validated = _finite(curves.get("train_bpb", [])), _finite(curves.get("val_bpb", []))
    norms = _finite(curves.get("grad_norm", []))
    if run.status == "failed" and "must be finite" in note:
        before = [value for _, value in norms[-20:]]
        numbers = {"step": float(train[-1][0]) if train else 0.0} | _rates(run)
        if before:
            numbers |= {"grad_norm_before": before[-1], "grad_norm_median": median(value for _, value in norms)}
        says = "the training ended because a number was not finite; the last checkpoint is kept"
        tries = _said(_slower_branch(run), Ask("resume", more=(Give("out", run.folder),)))
        return "not a number", Finding("not a number", True, says, numbers, tries, run.note)
    if run.status == "failed" and re.search(r"out of memory|memoryerror|outofmemory|micro-batch", note):
        tries = _said(Ask("estimate"), Give("train.auto_batch", True))
        return "out of memory", Finding(
            "out of memory", True, "memory did not suffice for an update", {}, tries, run.note
        )
    if run.status == "failed":
        tries = _said(Ask("diagnose_error"), Ask("resume", more=(Give("out", run.folder),)))
        return "failed", Finding("failed", True, "it ended with an error", {}, tries, run.note)
    if len(train) < LEAST:
        if status == "killed":
            return "killed", _killed(run)
        return "too early", Finding(
            "too early",
            False,
            f"{len(train)} updates are recorded; {LEAST} are needed to say anything",
            {"updates": float(len(train))},
        )
    if found := _diverging(train):
        found.numbers.update(_rates(run))
        running = status in ("running", "paused")
        found.tries.extend(_said(Ask("runs.pause", run.id), _slower(run)) if running else [])
        found.tries.append(_slower_branch(run))
        return "diverging", found
    if found := _overfitting(run, train, validated):
        return "over-fitting", found
    return _trend(run, train, validated, status)


def _slower(run: Run) -> Advice:
    """Half the learning rates, while it runs."""
    halved = {name: rate / 2 for name, rate in _rates(run).items()}
    return Ask("runs.change", run.id, (Give("settings", halved),))


def _slower_branch(run: Run) -> Advice:
    """Half the learning rates, in a new run from a checkpoint."""
    halved = {name: rate / 2 for name, rate in _rates(run).items()}
    return Ask("runs.branch", run.id, (Give("train", {"optim": halved}),))


def _diverging(train: Rows) -> Finding | None:
    """The cost rises for good: the last part of the curve is above the best part by more than noise, and by 5 %.

    Noise is that of single updates, from the differences of neighbours, which a slow rise or fall hardly changes.
    """
    values = np.array([value for _, value in train])
    parts = np.array_split(values, min(PARTS, len(values) // OF_PART))
    if len(parts) < 3:
        return None
    means, last = [float(part.mean()) for part in parts], parts[-1]
    best = min(range(len(parts)), key=lambda i: means[i])
    single = math.sqrt(float((np.diff(values) ** 2).mean()) / 2)
    noise = single * math.sqrt(1 / len(parts[best]) + 1 / len(last))
    rise = means[-1] - means[best]
    if best == len(parts) - 1 or rise < max(SURE * noise, 0.05 * means[best]):
        return None
    numbers = {"best": means[best], "now": means[-1], "rise": rise, "noise": noise}
    says = f"training bits per byte rose from {means[best]:.3f} to {means[-1]:.3f}; noise of these means is {noise:.3f}"
    return Finding("diverging", True, says, numbers)


def _overfitting(run: Run, train: Rows, validated: Rows) -> Finding | None:
    """Validation rises while training falls."""
    if len(validated) < 3:
        return None
    best_step, best = min(validated, key=lambda row: row[1])
    after = [value for step, value in validated if step > best_step]
    if len(after) < 2 or min(after[-2:]) < best * (1 + RISE):
        return None
    then = mean([value for step, value in train if step <= best_step][-10:] or [train[0][1]])
    now = mean(value for _, value in train[-10:])
    if now >= then:
        return None
    numbers = {"best": best, "best_step": float(best_step), "now": after[-1], "train_then": then, "train_now": now}
    data = run.config.get("data", {}).get("train_bytes")
    if data:
        numbers["train_bytes"] = float(data)
    kept = bool(run.config.get("train", {}).get("keep_best", True))
    says = (
        f"validation rose from {best:.3f} at update {best_step} to {after[-1]:.3f} while training fell from {then:.3f} to {now:.3f}; "
        f"the weights of update {best_step} are {'kept' if kept else 'not kept'}"
    )
    return Finding(
        "over-fitting",
        True,
        says,
        numbers,
        _said("more data", "a smaller model", Give("model.dropout", 0.1), Give("train.patience", 3)),
    )


def _trend(run: Run, train: Rows, validated: Rows, status: str) -> tuple[Verdict, Finding]:
    """Whether the last third still falls: a line through it, and its standard error."""
    rows = train[-max(LEAST, len(train) // 3) :]
    x, y = np.array([step for step, _ in rows], dtype=float), np.array([value for _, value in rows])
    x -= x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - slope * x
    error = math.sqrt(float((rest**2).sum()) / max(1, len(y) - 2) / float((x * x).sum()))
    fall = -slope * float(x[-1] - x[0])
    numbers = {
        "fall": fall,
        "standard_error": error * float(x[-1] - x[0]),
        "updates": float(len(rows)),
        "now": float(y[-10:].mean()),
    }
    if len(validated) > 1:
        numbers |= {"validation": validated[-1][1], "validation_before": validated[-2][1]}
    if slope < -2 * error:
        says = f"training bits per byte fell by {fall:.3f} over the last {len(rows)} recorded updates"
        more = (
            _said(Ask("resume", more=(Give("out", run.folder), Give("budget", {"steps": 2 * train[-1][0]}))))
            if status == "finished"
            else []
        )
        return "converging", Finding(
            "converging",
            False,
            says + ("; a longer budget would lower it further" if status == "finished" else ""),
            numbers,
            more,
        )
    what = f"rose by {-fall:.3f}" if slope > 2 * error else f"no longer fall: {fall:+.3f}, within noise,"
    says = f"training bits per byte {what} over the last {len(rows)} recorded updates"
    tries = _said("a larger model", "more data", "a budget that ends earlier, because learning rates fall at its end")
    return "levelled off", Finding("levelled off", False, says, numbers, tries)


def _speed(run: Run, store: RunStore, curves: dict[str, Any]) -> Iterator[Finding]:
    """Slower than it was, or than other runs of its shape; and what takes the time."""
    speeds = [value for _, value in _finite(curves.get("bytes_per_s", []))]
    if len(speeds) < 4:
        return
    quarter = max(1, len(speeds) // 4)
    first, now = median(speeds[:quarter]), median(speeds[-quarter:])
    numbers = {"bytes_per_s": now, "bytes_per_s_at_first": first}
    loads = [value for _, value in _finite(curves.get("cpu_percent", []))]
    if loads:
        numbers["cpu_percent"] = median(loads[-quarter:])
    others = {
        other.id: speed
        for other in store.list_runs()
        if other.id != run.id and _shape(other) == _shape(run) and (speed := _pace(store, other.id))
    }
    if others:
        numbers["fastest_of_its_shape"] = max(others.values())
    why = []
    if now < SLOWER * first:
        why.append(f"it was at {first:,.0f} bytes a second at first")
    if others and now < SLOWER * max(others.values()):
        fastest = max(others, key=lambda name: others[name])
        why.append(f"run {fastest!r} of the same shape had {others[fastest]:,.0f}")
    like = ", as at first" if now < first / SLOWER else ", more than at first"
    like += " and as other runs of its shape" if others else ""
    if not why:
        yield Finding(
            "speed",
            False,
            f"{now:,.0f} bytes a second{like}",
            numbers,
        )
        return
    threads = run.config.get("provenance", {}).get("threads")
    if loads and threads and numbers["cpu_percent"] < 70 * threads:
        why.append(
            f"the process had {numbers['cpu_percent']:.0f} % of a core and {threads} threads, so something else uses the machine"
        )
    yield Finding(
        "too slow",
        True,
        f"{now:,.0f} bytes a second; " + "; ".join(why),
        numbers,
        _said(Ask("jobs.list"), "ending other work on this machine"),
    )


def _shape(run: Run) -> str:
    train = run.config.get("train", {})
    return repr(
        [
            run.config.get("model"),
            train.get("batch_size"),
            train.get("window"),
            run.config.get("provenance", {}).get("cpu"),
        ]
    )


def _pace(store: RunStore, run: str) -> float:
    speeds = [value for _, value in store.series(run, "bytes_per_s") if math.isfinite(value)]
    return median(speeds) if len(speeds) >= 4 else 0.0


def _gradients(curves: dict[str, Any]) -> Iterator[Finding]:
    """Gradients that jump."""
    norms = [value for _, value in _finite(curves.get("grad_norm", []))]
    if len(norms) < LEAST:
        return
    middle, most = median(norms), max(norms[-max(LEAST, len(norms) // 4) :])
    if middle > 0 and most > 20 * middle:
        says = f"the gradient's norm reached {most:.3g}, {most / middle:.0f} times its median"
        yield Finding(
            "gradient spikes", True, says, {"largest": most, "median": middle}, _said(Give("train.clip_norm", 1.0))
        )


def _gate(run: Run, store: RunStore) -> Iterator[Finding]:
    """Windows that the run's gate has blocked."""
    blocked = store.events(run=run.id, kinds=("gate",), most=EVENTS, latest=True)
    if not blocked:
        return
    reasons: dict[str, int] = {}
    for event in blocked:
        why = str(event.detail.get("why", ""))
        kind = next(
            (name for name in ("repeat", "loop", "coin flips", "noise", "reference", "parity") if name in why), "other"
        )
        reasons[kind] = reasons.get(kind, 0) + 1
    numbers = {"blocked": float(len(blocked)), **{f"blocked: {name}": float(n) for name, n in reasons.items()}}
    tries = _said(Ask("diagnose_gate", run.id), Ask("calibrate", run.id))
    last = str(blocked[-1].detail.get("why", ""))
    yield Finding("gate", True, f"its gate blocked {len(blocked)} windows", numbers, tries, last)


def _drift(run: Run, store: RunStore) -> Iterator[Finding]:
    alerts = store.alerts(run.id)
    if alerts:
        metrics = sorted({metric for _, metric, _, _ in alerts})
        step, metric, detector, size = alerts[-1]
        says = f"{', '.join(metrics)} drifted, {len(alerts)} alerts; the last: {metric} by {size:.3g} at update {step} ({detector})"
        yield Finding(
            "drift",
            True,
            says,
            {"alerts": float(len(alerts)), "last_step": float(step), "size": size},
            _said(Ask("telemetry_of_run", run.id)),
        )


def _calibrated(curves: dict[str, Any]) -> Iterator[Finding]:
    """Whether the model is as sure as it may be: K says what it expects to need, training what it needs."""
    order, train = _finite(curves.get("K", [])), _finite(curves.get("train_bpb", []))
    if len(order) < 3 or len(train) < LEAST:
        return
    expected = 8 * (1 - mean(value for _, value in order[-3:]))
    needed = mean(value for _, value in train[-10:])
    numbers = {"expected_bpb": expected, "train_bpb": needed, "K": order[-1][1]}
    if expected < 0.8 * needed:
        yield Finding(
            "over-confident",
            True,
            f"predictions expect {expected:.2f} bits per byte (8 (1 - K)) and need {needed:.2f}",
            numbers,
            _said("more data", Give("model.dropout", 0.1)),
        )


def _killed(run: Run) -> Finding:
    return Finding(
        "killed",
        True,
        "its process ended without a word, perhaps for want of memory; nothing after the last checkpoint is there",
        {},
        _said(Ask("resume", more=(Give("out", run.folder),))),
    )


def _rates(run: Run) -> dict[str, float]:
    optim = run.config.get("train", {}).get("optim", {})
    return {name: float(optim.get(name, default)) for name, default in (("lr", 0.003), ("matrix_lr", 0.02))}


def _said(*tries: Advice) -> list[Advice]:
    return list(tries)
