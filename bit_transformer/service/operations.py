"""All operations in one table: name, request and result. The command line, HTTP, MCP and the dashboard use it.

    found = call("score", {"run": "runs/demo", "name": "photo.raw"}, Workspace())
    OPERATIONS["score"].request.model_json_schema()

Modules are loaded when one of their operations is called, so listing operations does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from bit_transformer.errors import ConfigError
from bit_transformer.service import requests
from bit_transformer.service.jobs import Job
from bit_transformer.service.requests import Request
from bit_transformer.service.workspace import Workspace


@dataclass(frozen=True)
class Operation:
    """An operation that users can call.

    Attributes:
        request: the type of its request.
        home: the module of `service` and the function.
        writes: whether it changes files or records; other operations can safely be offered to anybody.
        long: whether it takes minutes, reports progress, and can be cancelled.
    """

    name: str
    request: type[Request]
    home: str
    writes: bool = False
    long: bool = False

    @property
    def summary(self) -> str:
        """A description in one line."""
        return (self.request.__doc__ or "").splitlines()[0]

    def __call__(self, request: Request, workspace: Workspace, job: Job | None = None) -> Any:
        """Run the operation; the result is a record of plain values.

        Raises:
            BitTransformerError: it failed; the error says what was wrong, which field, and what to try.
        """
        return self._function()(request, workspace, job or Job())

    def result(self) -> TypeAdapter[Any]:
        """The type of the result, for its JSON schema and for writing it as JSON."""
        return TypeAdapter(get_type_hints(self._function())["return"])

    def _function(self) -> Any:
        module, _, function = self.home.partition(":")
        return getattr(importlib.import_module(f"bit_transformer.service.{module}"), function)


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("train", requests.TrainRequest, "training:train", writes=True, long=True),
        Operation("train_further", requests.FurtherRequest, "training:train_further", writes=True, long=True),
        Operation("resume", requests.ResumeRequest, "training:resume", writes=True, long=True),
        Operation("distill", requests.DistillRequest, "training:distill", writes=True, long=True),
        Operation("estimate", requests.EstimateRequest, "memory:estimate"),
        Operation("generate", requests.GenerateRequest, "inference:generate"),
        Operation("generate_gated", requests.GateRequest, "inference:generate_gated"),
        Operation("infill", requests.InfillRequest, "restoration:infill", long=True),
        Operation("repair", requests.RepairRequest, "restoration:repair_file", writes=True, long=True),
        Operation("protect", requests.ProtectRequest, "restoration:protect_file", writes=True),
        Operation("compress", requests.CompressRequest, "compression:compress", writes=True, long=True),
        Operation("decompress", requests.DecompressRequest, "compression:decompress", writes=True, long=True),
        Operation("evaluate", requests.EvaluateRequest, "evaluation:evaluate", long=True),
        Operation("score", requests.ScoreRequest, "evaluation:score", long=True),
        Operation("telemetry", requests.FileTelemetryRequest, "telemetry:of_file"),
        Operation("telemetry_of_run", requests.RunTelemetryRequest, "telemetry:of_run"),
        Operation("calibrate", requests.CalibrateRequest, "safety:calibrate_run", writes=True, long=True),
        Operation("explain", requests.ExplainRequest, "safety:explain"),
        Operation("runs.list", requests.ListRunsRequest, "runs:list_runs"),
        Operation("runs.show", requests.RunRequest, "runs:show_run"),
        Operation("runs.remove", requests.RemoveRunsRequest, "runs:remove_runs", writes=True),
        Operation("runs.stop", requests.StopRunRequest, "runs:stop_run", writes=True),
    )
}


def call(name: str, fields: Mapping[str, Any], workspace: Workspace, job: Job | None = None) -> Any:
    """Call an operation by name, with plain fields.

    Raises:
        ConfigError: an unknown operation, or invalid fields.
        BitTransformerError: as raised by the operation.
    """
    if name not in OPERATIONS:
        raise ConfigError(f"got operation {name!r}; it must be one of {', '.join(OPERATIONS)}", field="operation")
    operation = OPERATIONS[name]
    return operation(operation.request.of(fields), workspace, job)
