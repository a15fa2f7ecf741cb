"""Jobs: operations that run in processes of their own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from bit_transformer.errors import ConfigError
from bit_transformer.server.dependencies import JobId, Server
from bit_transformer.server.errors import answers
from bit_transformer.server.views import job_view
from bit_transformer.service.jobs import OPEN, TRAININGS, State
from bit_transformer.service.operations import OPERATIONS

router = APIRouter(tags=["jobs"], responses=answers(404, 409, 503))
QUEUE = 100  # most jobs that wait


class NewJob(BaseModel):
    """An operation to run."""

    operation: str = Field(max_length=64, description="One of GET /api/operations, such as train.")
    request: dict[str, Any] = Field(default_factory=dict, description="Fields of its request; runs and data by id.")
    restarts: int = Field(0, ge=0, le=1000, description="How often it is started again after it was killed.")


class JobAnswer(BaseModel):
    """A job."""

    id: int
    operation: str
    request: dict[str, Any]
    run: str | None
    state: State
    created: str
    started: str | None
    ended: str | None
    begun: bool
    stopping: bool
    restarts: int
    restarts_left: int
    progress: dict[str, Any] | None
    error: dict[str, Any] | None
    result: Any
    allowance: float | None
    spent: float


class Log(BaseModel):
    """The end of what a job has printed."""

    text: str


class Done(BaseModel):
    """What was asked for was done."""

    ok: Literal[True] = True


@router.get("/api/jobs")
def list_jobs(
    server: Server,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[JobAnswer]:
    """Jobs, newest first."""
    return [JobAnswer(**job_view(job)) for job in server.home.jobs.list_jobs(state, most=limit)]


@router.post("/api/jobs", status_code=201)
def add_job(server: Server, new: NewJob) -> JobAnswer:
    """Put an operation into the queue. The request is checked first."""
    if new.operation in OPERATIONS and not OPERATIONS[new.operation].long and not OPERATIONS[new.operation].writes:
        raise ConfigError(
            f"got operation {new.operation!r}, which is quick. Try POST /api/operations/{new.operation}",
            field="operation",
        )
    request, run = server.home.prepare(new.operation, new.request)
    trains = new.operation in TRAININGS
    job = server.home.jobs.add(new.operation, request, run, new.restarts, QUEUE, trains=trains)
    return JobAnswer(**job_view(job))


@router.get("/api/jobs/{job}")
def show_job(server: Server, job: JobId) -> JobAnswer:
    """One job, with its result."""
    return JobAnswer(**job_view(server.home.jobs.get(job)))


@router.get("/api/jobs/{job}/log")
def job_log(server: Server, job: JobId) -> Log:
    """The end of what a job has printed."""
    server.home.jobs.get(job)
    return Log(text=server.scheduler.log(job))


@router.post("/api/jobs/{job}/stop")
def stop_job(server: Server, job: JobId) -> Done:
    """Ask a job to stop. A training saves first."""
    if server.home.jobs.get(job).state not in OPEN:
        raise ConfigError(f"got job {job}, which has ended. Try one that runs", field="job")
    server.scheduler.stop(job)
    return Done()


@router.delete("/api/jobs/{job}")
def remove_job(server: Server, job: JobId) -> Done:
    """Remove the record of a job that has ended."""
    if server.home.jobs.get(job).state in OPEN:
        raise ConfigError(f"got job {job}, which has not ended. Try stopping it first", field="job")
    server.home.jobs.remove(job)
    server.scheduler.forget(job)
    return Done()
