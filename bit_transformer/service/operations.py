"""All operations in one table: name, request and result. The command line, HTTP, MCP and the dashboard use it.

    found = call("score", {"run": "runs/demo", "name": "photo.raw"}, Workspace())
    OPERATIONS["score"].request.model_json_schema()

Modules are loaded when one of their operations is called, so listing operations does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from bit_transformer.errors import ConfigError
from bit_transformer.service import requests
from bit_transformer.service.advisor import requests as questions
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
        streamed: the module of `service` and the function that gives the result piece by piece, if there is one.
    """

    name: str
    request: type[Request]
    home: str
    writes: bool = False
    long: bool = False
    streamed: str = ""

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

    def stream(self, request: Request, workspace: Workspace) -> Iterator[Any]:
        """The result piece by piece: bytes, or records of plain values. Only for operations that are `streamed`.

        Raises:
            BitTransformerError: as raised by the operation; invalid requests before the first piece.
        """
        pieces: Iterator[Any] = _loaded(self.streamed)(request, workspace)
        return pieces

    def _function(self) -> Any:
        return _loaded(self.home)


def _loaded(home: str) -> Any:
    module, _, function = home.partition(":")
    return getattr(importlib.import_module(f"bit_transformer.service.{module}"), function)


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("train", requests.TrainRequest, "training:train", writes=True, long=True),
        Operation("train_further", requests.FurtherRequest, "training:train_further", writes=True, long=True),
        Operation("resume", requests.ResumeRequest, "training:resume", writes=True, long=True),
        Operation("distill", requests.DistillRequest, "training:distill", writes=True, long=True),
        Operation("grow", requests.GrowRequest, "growing:grow", writes=True, long=True),
        Operation("quantize", requests.QuantizeRequest, "quantization:quantize", writes=True, long=True),
        Operation("estimate", requests.EstimateRequest, "memory:estimate"),
        Operation("estimate_time", requests.TimeRequest, "duration:estimate_time", long=True),
        Operation("generate", requests.GenerateRequest, "inference:generate", streamed="inference:stream"),
        Operation(
            "generate_gated", requests.GateRequest, "inference:generate_gated", streamed="inference:stream_gated"
        ),
        Operation("map", requests.MapRequest, "maps.mapping:map_file", writes=True, long=True),
        Operation("locate", requests.LocateRequest, "locating:locate", long=True),
        Operation(
            "infill",
            requests.InfillRequest,
            "restoration:infill",
            long=True,
            streamed="restoration:stream_infill",
        ),
        Operation("repair", requests.RepairRequest, "restoration:repair_file", writes=True, long=True),
        Operation("repair_proved", requests.ProveRequest, "proving:repair_proved", writes=True, long=True),
        Operation(
            "repair_bytes",
            requests.RepairBytesRequest,
            "restoration:repair_bytes",
            long=True,
            streamed="restoration:stream_repair",
        ),
        Operation("protect", requests.ProtectRequest, "restoration:protect_file", writes=True),
        Operation("compress", requests.CompressRequest, "compression:compress", writes=True, long=True),
        Operation("decompress", requests.DecompressRequest, "compression:decompress", writes=True, long=True),
        Operation("fit", requests.FitRequest, "fitting:fit", writes=True, long=True),
        Operation("filter", requests.FilterRequest, "filtering:filter_texts", writes=True, long=True),
        Operation("evaluate", requests.EvaluateRequest, "evaluation:evaluate", long=True),
        Operation("compare", requests.CompareRequest, "comparing.comparing:compare", writes=True, long=True),
        Operation("score", requests.ScoreRequest, "evaluation:score", long=True),
        Operation("harness", requests.HarnessRequest, "harness:harness", long=True),
        Operation("corpora", requests.CorporaRequest, "corpora:corpora"),
        Operation("predictions", requests.PredictionsRequest, "predictions:predictions"),
        Operation("histogram", requests.HistogramRequest, "histogram:histogram"),
        Operation("telemetry", requests.FileTelemetryRequest, "telemetry:of_file"),
        Operation("telemetry_of_run", requests.RunTelemetryRequest, "telemetry:of_run"),
        Operation("calibrate", requests.CalibrateRequest, "safety:calibrate_run", writes=True, long=True),
        Operation("explain", requests.ExplainRequest, "safety:explain"),
        Operation("explain_file", requests.ExplainFileRequest, "safety:explain_file", long=True),
        Operation("doctor", questions.DoctorRequest, "advisor.doctor:doctor"),
        Operation("advise", questions.AdviseRequest, "advisor.configuring:advise", long=True),
        Operation("trade", questions.TradeRequest, "advisor.configuring:trade", long=True),
        Operation("diagnose", questions.DiagnoseRequest, "advisor.diagnosis:diagnose"),
        Operation("diagnose_error", questions.DiagnoseErrorRequest, "advisor.error_logs:diagnose_error"),
        Operation("diagnose_gate", questions.DiagnoseGateRequest, "advisor.gate:diagnose_gate", long=True),
        Operation("measure", questions.MeasureRequest, "advisor.texts:measure"),
        Operation("interpret", questions.InterpretRequest, "advisor.kinds:interpret"),
        Operation("plan", questions.PlanRequest, "advisor.significance:plan"),
        Operation("significance", questions.SignificanceRequest, "advisor.significance:significance"),
        Operation("report", questions.ReportRequest, "advisor.report:report"),
        Operation("runs.list", requests.ListRunsRequest, "runs:list_runs"),
        Operation("runs.show", requests.RunRequest, "runs:show_run"),
        Operation("runs.compare", requests.CompareRunsRequest, "runs:compare_runs"),
        Operation("runs.remove", requests.RemoveRunsRequest, "runs:remove_runs", writes=True),
        Operation("runs.stop", requests.StopRunRequest, "runs:stop_run", writes=True),
        Operation("runs.pause", requests.RunRequest, "control:pause", writes=True),
        Operation("runs.continue", requests.RunRequest, "control:go_on", writes=True),
        Operation("runs.step", requests.StepRequest, "control:step", writes=True),
        Operation("runs.change", requests.ChangeRequest, "control:change", writes=True),
        Operation("runs.checkpoint", requests.RunRequest, "control:checkpoint", writes=True),
        Operation("runs.branch", requests.BranchRequest, "control:branch", writes=True),
        Operation("runs.trigger", requests.TriggerRequest, "control:add_trigger", writes=True),
        Operation("runs.untrigger", requests.RemoveTriggerRequest, "control:remove_trigger", writes=True),
        Operation("jobs.list", requests.ListJobsRequest, "queue:list_jobs"),
        Operation("export", requests.ExportRequest, "export:export", writes=True, long=True),
        # It changes nothing, but whose token this is must not be told to anybody who may only read.
        Operation("hub.login", requests.LoginRequest, "hub:login", writes=True),
        Operation("hub.push", requests.PushRequest, "hub:push", writes=True, long=True),
        Operation("hub.pull", requests.PullRequest, "hub:pull", writes=True, long=True),
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
