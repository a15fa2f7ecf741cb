"""The queue of a store: jobs that a management server runs in processes of their own."""

from __future__ import annotations

from bit_transformer.runs.jobs import JobRecord, JobStore
from bit_transformer.service.jobs import Job
from bit_transformer.service.requests import ListJobsRequest
from bit_transformer.service.workspace import Workspace


def list_jobs(request: ListJobsRequest, workspace: Workspace, job: Job) -> list[JobRecord]:
    """Jobs of the store, newest first; none if there is no store."""
    return JobStore(workspace.store_path).list_jobs(request.state)
