"""Runs: lists, curves, events, steering, checkpoints, files."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field

from bit_transformer.config import BUDGETS
from bit_transformer.errors import ConfigError, RunNotFound
from bit_transformer.server.dependencies import JobId, RunId, Server
from bit_transformer.server.errors import answers
from bit_transformer.server.events import curve_view
from bit_transformer.server.routes_jobs import QUEUE, Done, JobAnswer
from bit_transformer.server.views import job_view, run_details, run_rows
from bit_transformer.service import checkpoints
from bit_transformer.service.checkpoints import CheckpointSummary
from bit_transformer.service.control import Told

router = APIRouter(tags=["runs"], responses=answers(404, 409, 503))
# What a training writes that others can use; names are never taken from a request as a path.
FILES = ("model.safetensors", "gate.safetensors", "config.json", "metrics.csv", "metrics.jsonl", "loss.png")
Cursor = Annotated[int | None, Query(ge=0, lt=1 << 53, description="Id of the last event that is known.")]


class RunRow(BaseModel):
    """A run in a list."""

    id: str
    status: str
    created: str
    step: int
    train_bpb: float | None
    val_bpb: float | None
    held_out_bpb: float | None
    share: float | None
    eta: float | None
    bytes_per_s: float | None
    note: str
    causal: bool
    usable: bool
    calibrated: bool
    job: int | None
    spark: list[float] = []


class RunDetails(RunRow):
    """A run with its settings, result, triggers and normal bands."""

    parameters: int | None
    steered: dict[str, float]
    config: dict[str, Any]
    result: dict[str, Any]
    keys: list[str]
    triggers: list[dict[str, Any]]
    gate: dict[str, Any] | None
    command: str
    cursor: int


class Points(BaseModel):
    """A curve: last step of each point's range, mean and extremes over it."""

    step: list[int]
    mean: list[float]
    min: list[float]
    max: list[float]


class Happening(BaseModel):
    """Something that happened to a run."""

    id: int
    run: str | None
    job: int | None
    step: int | None
    kind: str
    at: str
    detail: dict[str, Any]


class Updates(BaseModel):
    """How many updates to make."""

    updates: int = Field(1, ge=1, le=1_000_000)


class Settings(BaseModel):
    """Learning rates (lr, matrix_lr, table_lr) and penalties (lambda_K, lambda_C, lambda_S) from now on."""

    settings: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class NewTrigger(BaseModel):
    """What to do once a metric crosses a line; one of above and below."""

    metric: str = Field(max_length=64)
    above: float | None = None
    below: float | None = None
    action: Literal["pause", "checkpoint", "notify"] = "notify"


class TriggerAnswer(BaseModel):
    """A trigger; `fired_at` is the step at which it did."""

    id: int
    metric: str
    above: float | None
    below: float | None
    action: str
    fired_at: int | None


class Budget(BaseModel):
    """A new budget, counted from the start of the training, such as {"steps": 1000}. Default: the run's own."""

    budget: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    restarts: int = Field(0, ge=0, le=1000)


class NewBranch(BaseModel):
    """A new run that goes on from a checkpoint."""

    out: str = Field(max_length=64, description="Its name.")
    step: int | None = Field(None, ge=0, lt=1 << 53, description="Of a kept checkpoint. Default: the last one.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of the training that differ.")


class BranchAnswer(BaseModel):
    """A new run; resuming it starts the training."""

    id: str
    step: int
    changed: dict[str, Any]


class FileEntry(BaseModel):
    """A file of a run."""

    name: str
    bytes: int


@router.get("/api/runs")
def list_runs(
    server: Server,
    response: Response,
    text: Annotated[str, Query(max_length=64, description="Only runs whose name has this in it.")] = "",
    offset: Annotated[int, Query(ge=0, lt=1 << 31)] = 0,
    limit: Annotated[int, Query(ge=1, le=2000)] = 1000,
    spark: bool = True,
) -> list[RunRow]:
    """Runs, newest first. The header X-Total-Count says how many there are."""
    found = [item for item in server.home.store.overview() if text.lower() in item.run.id.lower()]
    response.headers["X-Total-Count"] = str(len(found))
    return [RunRow(**row) for row in run_rows(server.home, found[offset : offset + limit], spark=spark)]


@router.get("/api/runs/{run}")
def show_run(server: Server, run: RunId) -> RunDetails:
    """One run, with all that is needed to show it but its curves."""
    found = server.home.store.overview(run)
    if not found:
        server.home.store.get(run)  # says what there is
    return RunDetails(**run_details(server.home, found[0]))


@router.get("/api/runs/{run}/metrics")
def metrics(
    server: Server,
    run: RunId,
    keys: Annotated[str, Query(max_length=1000, description="Names, with commas between. Default: all.")] = "",
    points: Annotated[int, Query(ge=1, le=5000, description="Most points of each curve.")] = 600,
    after: Annotated[int, Query(ge=-1, lt=1 << 53, description="Only of later steps.")] = -1,
) -> dict[str, Points]:
    """Curves, thinned out on the server: mean and extremes of equal ranges of steps."""
    store = server.home.store
    store.get(run)
    names = [name for name in keys.split(",") if name] or store.metric_keys(run)
    return {name: Points(**curve_view(curve)) for name, curve in store.curves(run, names, points, after).items()}


@router.get("/api/runs/{run}/happenings")
def happenings(
    server: Server,
    run: RunId,
    after: Annotated[int, Query(ge=0, lt=1 << 53)] = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
) -> list[Happening]:
    """What happened to a run: changes, pauses, triggers, growth, drift, samples, notices."""
    server.home.store.get(run)
    without = ("metrics", "rewound", "run", "job")
    return [Happening(**asdict(e)) for e in server.home.store.events(after, run=run, without=without, most=limit)]


@router.get(
    "/api/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(
    server: Server,
    after: Cursor = None,
    run: Annotated[str, Query(max_length=64, description="Only of this run.")] = "",
    last_event_id: Annotated[
        str, Header(description="As browsers send it after a break; `after` comes before it.")
    ] = "",
) -> Response:
    """Everything that happens, as it happens (server-sent events). Each has an id; with `after` it goes on from one."""
    if after is None and last_event_id.isdecimal() and len(last_event_id) < 16:
        after = int(last_event_id)
    assert server.feed is not None  # routes are of servers that have one
    return StreamingResponse(
        server.feed.stream(after, run or None), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@router.post("/api/runs/{run}/pause")
def pause(server: Server, run: RunId) -> Told:
    """Save, and wait."""
    told: Told = server.call("runs.pause", run=run)
    return told


@router.post("/api/runs/{run}/continue")
def go_on(server: Server, run: RunId) -> Told:
    """Let a paused training go on."""
    told: Told = server.call("runs.continue", run=run)
    return told


@router.post("/api/runs/{run}/step")
def step(server: Server, run: RunId, updates: Updates | None = None) -> Told:
    """Let a paused training make some updates, and pause again."""
    told: Told = server.call("runs.step", run=run, updates=(updates or Updates()).updates)
    return told


@router.post("/api/runs/{run}/checkpoint")
def keep_checkpoint(server: Server, run: RunId) -> Told:
    """Save, and keep this checkpoint as RUN@STEP."""
    told: Told = server.call("runs.checkpoint", run=run)
    return told


@router.post("/api/runs/{run}/change")
def change(server: Server, run: RunId, settings: Settings) -> Told:
    """Change learning rates or penalties of a running training."""
    told: Told = server.call("runs.change", run=run, settings=settings.settings)
    return told


@router.post("/api/runs/{run}/stop")
def stop(server: Server, run: RunId) -> Done:
    """Let a training save and end; or take it from the queue."""
    waiting = [job for job in server.home.jobs.list_jobs("queued", run=run)]
    for job in waiting:
        server.scheduler.stop(job.id)
    if not waiting:
        server.call("runs.stop", run=run)
    return Done()


@router.post("/api/runs/{run}/resume", status_code=201)
def resume(server: Server, run: RunId, budget: Budget | None = None) -> JobAnswer:
    """Go on with a training that was stopped, failed or killed, from its last checkpoint."""
    asked = budget or Budget()
    server.home.store.get(run)
    other = next((name for name in asked.budget if name not in BUDGETS), None)
    if other is not None:
        text = f"got budget {other[:40]!r}; it must be one of {', '.join(BUDGETS)}. Try steps"
        raise ConfigError(text.encode(errors="replace").decode(), field="budget")
    amounts = {name: int(value) if value.is_integer() else value for name, value in asked.budget.items()}
    request, _ = server.home.prepare("resume", {"out": run, "budget": amounts})
    return JobAnswer(**job_view(server.home.jobs.add("resume", request, run, asked.restarts, QUEUE, trains=True)))


@router.post("/api/runs/{run}/triggers", status_code=201)
def add_trigger(server: Server, run: RunId, new: NewTrigger) -> TriggerAnswer:
    """Add a trigger. It fires once."""
    return TriggerAnswer(**asdict(server.call("runs.trigger", run=run, **new.model_dump())))


@router.delete("/api/runs/{run}/triggers/{trigger}")
def remove_trigger(server: Server, run: RunId, trigger: JobId) -> Done:
    """Remove a trigger."""
    server.call("runs.untrigger", run=run, trigger=trigger)
    return Done()


@router.post("/api/runs/{run}/branch", status_code=201)
async def branch(server: Server, run: RunId, new: NewBranch) -> BranchAnswer:
    """Make a new run that goes on from a checkpoint of this one, with changed settings."""
    fields = {"run": run, "out": new.out, "step": new.step, "train": new.train}
    fields, _ = server.home.prepare("runs.branch", fields)
    made = await server.hands.ask("runs.branch", fields)
    return BranchAnswer(id=made["run"], step=made["step"], changed=made["changed"])


@router.delete("/api/runs/{run}")
async def remove(server: Server, run: RunId, files: bool = False) -> Done:
    """Remove a run from the store; with `files`, also what training wrote into its folder."""
    known = await asyncio.to_thread(server.home.store.overview, run)
    if files and not known:  # a quantized or pulled copy, or what is left of a run
        await asyncio.to_thread(server.home.remove_folder, run)
    elif files:
        await server.hands.ask("runs.remove", {"names": [run], "files": True})
    else:
        server.call("runs.remove", names=[run])
    return Done()


@router.get("/api/runs/{run}/checkpoints")
def list_checkpoints(server: Server, run: RunId) -> list[CheckpointSummary]:
    """A run's checkpoints, the latest first."""
    return checkpoints.of_run(run, server.home.run_folder(run))


@router.get("/api/checkpoints")
def all_checkpoints(server: Server) -> list[CheckpointSummary]:
    """The checkpoints of all runs, and quantized or pulled copies."""
    folders = {place.name: place for place in server.home.runs.iterdir() if place.is_dir()}
    folders |= {run.id: Path(run.folder) for run in server.home.store.list_runs()}
    found = [item for name, folder in folders.items() for item in checkpoints.of_run(name, folder)]
    return sorted(found, key=lambda item: item.written, reverse=True)


@router.get("/api/runs/{run}/files")
def list_files(server: Server, run: RunId) -> list[FileEntry]:
    """Files of a run that can be downloaded."""
    folder = server.home.run_folder(run)
    there = [folder / name for name in FILES if (folder / name).is_file()]
    return [FileEntry(name=path.name, bytes=path.stat().st_size) for path in there]


@router.get(
    "/api/runs/{run}/files/{name}",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def download(server: Server, run: RunId, name: str) -> Response:
    """A file of a run."""
    path = server.home.run_folder(run) / name if name in FILES else None
    if path is None or not path.is_file():
        raise RunNotFound(f"got file {name[:64]!r}; run {run!r} has none of that name. Try GET /api/runs/{run}/files")
    return FileResponse(path, filename=f"{run}-{name}", media_type="application/octet-stream")
