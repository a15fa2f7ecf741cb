"""Runs and jobs as they are sent."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bit_transformer.service import checkpoints
from bit_transformer.service.checkpoints import GATE_FILE, MODEL_FILE, bands
from bit_transformer.service.home import Home
from bit_transformer.service.runs import summary

if TYPE_CHECKING:
    from bit_transformer.runs.jobs import JobRecord
    from bit_transformer.runs.store import Overview

SPARK = 40  # points


def run_rows(home: Home, found: Sequence[Overview], *, spark: bool) -> list[dict[str, Any]]:
    """Runs in a list; with their curves of training bits per byte, thinned out."""
    jobs = home.jobs.latest_by_run()
    sparks = home.store.sparks([item.run.id for item in found], SPARK) if spark else {}
    rows = []
    for item in found:
        row, folder = asdict(summary(item)), Path(item.run.folder)
        del row["folder"]
        row["causal"] = bool(item.run.config.get("model", {}).get("causal", True))
        row["usable"], row["calibrated"] = (folder / MODEL_FILE).is_file(), (folder / GATE_FILE).is_file()
        row["job"] = jobs.get(item.run.id)
        row["spark"] = sparks.get(item.run.id, [])
        rows.append(row)
    return rows


def run_details(home: Home, found: Overview) -> dict[str, Any]:
    """A run with its settings, result, triggers and normal bands."""
    store, run = home.store, found.run
    model = run.config.get("model", {})
    size = int(model.get("max_seq_len", 2048)) // (9 if model.get("parity") else 8)
    kept = checkpoints.summarize(run.id, Path(run.folder))
    config = {name: run.config.get(name, {}) for name in ("model", "train", "data", "provenance")}
    steered: dict[str, float] = {}
    for event in store.events(run=run.id, kinds=("changed",), latest=True):
        steered |= event.detail
    return {
        **run_rows(home, [found], spark=True)[0],
        "steered": steered,
        "parameters": kept.parameters if kept else None,
        "config": config,
        "result": run.result,
        "keys": store.metric_keys(run.id),
        "triggers": [asdict(trigger) for trigger in store.triggers(run.id)],
        "gate": bands(Path(run.folder), size),
        "command": shlex.join(run.config["command"]) if run.config.get("command") and not run.config.get("job") else "",
        "cursor": store.last_event(),
    }


def job_view(job: JobRecord, *, result: bool = True) -> dict[str, Any]:
    """A job."""
    view = asdict(job)
    del view["told"]
    if not result:
        del view["result"], view["request"]
    return view
