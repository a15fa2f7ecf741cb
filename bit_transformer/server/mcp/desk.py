"""What tools work with: operations that are asked and answered, and jobs that are started and waited for."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bit_transformer.config import BUDGETS
from bit_transformer.errors import ConfigError, RunNotFound
from bit_transformer.server.mcp.guards import Guards
from bit_transformer.server.state import State
from bit_transformer.service.jobs import OPEN, TRAININGS
from bit_transformer.service.operations import OPERATIONS
from bit_transformer.service.requests import Place

Tell = Callable[[float, float | None, str], Awaitable[None]]  # done, total, what
LOOK = 0.2  # seconds between looks whether a job has ended
SHOWN = 2000  # characters of data in an answer


@dataclass
class Desk:
    """Does what tools ask for.

    Attributes:
        tell: says how far long work is; None: nobody listens.
    """

    state: State
    guards: Guards
    tell: Tell | None = None

    async def ask(self, operation: str, fields: Mapping[str, Any]) -> Any:
        """The result of an operation that needs torch or a model, as plain values; from the process that keeps models.

        Raises:
            BitTransformerError: as raised by the operation.
        """
        await asyncio.to_thread(self.state.home.request, operation, fields)  # what is wrong with it is said at once
        async for kind, body in self.state.inference.stream(operation, fields, pieces=False):
            if kind == "result":
                return body
            if self.tell is not None:
                await self.tell(body.get("done", 0), body.get("total") or None, body.get("doing", ""))
        raise AssertionError("no result")

    async def quick(self, operation: str, fields: Mapping[str, Any]) -> Any:
        """The result of an operation that is quick and needs no torch, as plain values; in this process.

        Raises:
            BitTransformerError: as raised by the operation.
        """

        def carry_out() -> Any:
            home, kind = self.state.home, OPERATIONS[operation]
            found = kind(home.request(operation, fields), self.state.workspace)
            return home.named(kind.result().dump_python(found, mode="json"))

        return await asyncio.to_thread(carry_out)

    def check_run(self, run: str) -> None:
        """Refuse a run that is not there.

        Raises:
            RunNotFound: there is none.
            RunBusy: its job has not begun it yet.
        """
        try:
            self.state.home.store.get(run)
        except RunNotFound:
            if (waiting := self.state.about_to_begin(run)) is not None:
                raise waiting from None
            raise

    async def job(
        self, operation: str, fields: Mapping[str, Any], wait: float, *, restarts: int = 0, seconds: float | None = None
    ) -> dict[str, Any]:
        """Start a job, and wait for it for so many seconds.

        Args:
            seconds: that it will run, where that is known.

        Raises:
            Refused: nothing is left of the agents' budget.
            BitTransformerError: an invalid request.
        """
        home, guards = self.state.home, self.guards
        if operation in TRAININGS and guards.budget.memory is not None:
            guards.check_memory(await self._peak(operation, fields))

        def add() -> int:
            allowance = guards.allowance(seconds)
            request, run = home.prepare(operation, fields)
            if run is not None and operation == "resume":
                guards.writes_to(home.run_folder(run))
            for name, info in OPERATIONS[operation].request.model_fields.items():
                value = request.get(name)
                if isinstance(value, str) and Place.NEW_RUN in info.metadata:
                    guards.writes_to(home.runs / value)
                if isinstance(value, str) and Place.NEW_FILE in info.metadata:
                    guards.writes_to(home.upload_path(value))
            trains = operation in TRAININGS
            made = home.jobs.add(operation, request, run, restarts, trains=trains, allowance=allowance)
            guards.jobs[made.id] = 0.0
            return made.id

        return await self.job_state(await asyncio.to_thread(add), wait)

    async def _peak(self, operation: str, fields: Mapping[str, Any]) -> int:
        """Bytes that a training takes, by the estimator: of all its processes on a processor, of each on GPUs."""
        model, train = fields.get("model"), dict(fields.get("train") or {})
        if operation != "train":  # the model and all that is not given are those of the run
            run = str(fields["out"] if operation == "resume" else fields["run"]).partition("@")[0]
            config = (await asyncio.to_thread(self.state.home.store.get, run)).config
            model, train = config["model"], config["train"] | train
            budgets = [name for name in BUDGETS if (fields.get("train") or {}).get(name) is not None]
            train |= {name: None for name in BUDGETS if budgets and name not in budgets}
        spread = fields.get("distributed") or {}
        count = int(spread.get("nproc") or 1)
        each = train | {"batch_size": int(train.get("batch_size") or 16)}
        asked = {"model": model, "train": each, "world_size": count if spread.get("shard") else 1}
        peak = int((await self.ask("estimate", asked))["estimate"]["peak"])
        on_processor = self.state.workspace.device_name == "cpu" or shutil.which("nvidia-smi") is None
        return peak * count if on_processor else peak

    async def job_state(self, number: int, wait: float = 0.0) -> dict[str, Any]:
        """A job, once it has ended or so many seconds have passed.

        Raises:
            JobNotFound: no such job.
        """
        end = time.monotonic() + wait
        while (
            job := await asyncio.to_thread(self.state.home.jobs.get, number)
        ).state in OPEN and time.monotonic() < end:
            if self.tell is not None and job.progress:
                await self.tell(
                    job.progress.get("done", 0), job.progress.get("total") or None, job.progress.get("doing", "")
                )
            await asyncio.sleep(LOOK)
        found: dict[str, Any] = {"job": job.id, "operation": job.operation, "run": job.run, "state": job.state}
        if job.state in OPEN:
            found["progress"] = job.progress
        else:
            found |= {"error": job.error, "result": job.result}
            new = next((str(v) for k, v in job.request.items() if k == "out" and str(v).startswith("upload:")), None)
            found |= {"data": new} if new else {}
        return found

    @contextlib.asynccontextmanager
    async def given(self, text: str | None, data: str | None) -> AsyncIterator[str]:
        """The id of data that was given as such, or as a text, which is kept for as long as it is used.

        Raises:
            ConfigError: both, or neither.
        """
        if (text is None) == (data is None):
            raise ConfigError("got text and data, or neither; one is needed. Try text='...'", field="text")
        if data is not None:
            yield data
            return
        home = self.state.home
        place, path = home.new_upload("text")
        try:
            await asyncio.to_thread(path.write_bytes, (text or "").encode())
            yield place
        finally:
            await asyncio.to_thread(home.remove_upload, place)


def as_data(value: bytes | str, most: int = SHOWN, *, tail: bool = False) -> dict[str, Any]:
    """What a model, a file or a log says, marked as data: nothing in it is an instruction to the reader.

    Args:
        most: bytes that are shown; `tail`: the last ones.
    """
    whole = value.encode() if isinstance(value, str) else value
    part = whole[-most:] if tail else whole[:most]
    text = part.decode("utf-8", errors="backslashreplace")
    shown = "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)
    return {"untrusted_data": shown, "bytes": len(whole), "cut": len(whole) > most}


def in_tools(text: str, names: Mapping[str, str]) -> str:
    """Advice in the words of HTTP, in those of tools."""
    text = re.sub(r"POST /api/(?:jobs with operation |operations/)([\w.]+)", lambda m: names.get(m[1], m[1]), text)
    text = re.sub(r"POST /api/runs/\S+?/(\w+)", lambda m: names.get(f"runs.{m[1]}", f"{m[1]}_run"), text)
    return text.replace("GET /api/runs", "list_runs").replace("GET /api/jobs", "job")


def said(value: Any, names: Mapping[str, str]) -> Any:
    """A result with advice as text: `calibrate_gate(run='a')` for {"operation": "calibrate", "run": "a", "more": []}."""
    if isinstance(value, list):
        return [said(item, names) for item in value]
    if not isinstance(value, dict):
        return in_tools(value, names) if isinstance(value, str) and "/api/" in value else value
    if value.keys() == {"field", "value"}:
        if value["field"] == "budget" and isinstance(value["value"], dict):  # tools take its fields
            return ", ".join(f"{name}={amount!r}" for name, amount in value["value"].items())
        return f"{value['field']}={value['value']!r}" if value["value"] is not None else f"another {value['field']}"
    if value.keys() == {"operation", "run", "more"}:
        more = [f"run={value['run']!r}"] if value["run"] else []
        more += [
            said({**item, "field": "run" if item["field"] == "out" else item["field"]}, names) for item in value["more"]
        ]
        return f"{names.get(value['operation'], value['operation'])}({', '.join(more)})"
    return {key: said(item, names) for key, item in value.items()}
