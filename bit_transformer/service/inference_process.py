"""A process that keeps models loaded and carries out operations that write nothing, for a server that itself stays small.

Requests come as lines of JSON on standard input: {"id", "operation", "request", "stream"} or {"cancel": id}. Answers go to standard output:
{"id", "kind": "progress" | "piece" | "result" | "error", "body"}. One request at a time.

python -m bit_transformer.service.inference_process HOME DEVICE
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bit_transformer.errors import BitTransformerError, Cancelled
from bit_transformer.service.home import Home
from bit_transformer.service.job_process import error_record
from bit_transformer.service.jobs import Job, Message, Notice, Reading
from bit_transformer.service.operations import OPERATIONS
from bit_transformer.service.workspace import Workspace


class Inference:
    """Carries out requests in the order in which they come."""

    def __init__(self, home: Home, workspace: Workspace) -> None:
        self.home, self.workspace = home, workspace
        self.waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.cancelled: set[int] = set()
        self.at: int | None = None
        self.job = Job(listens=False)
        self.lock, self.writing = threading.Lock(), threading.Lock()  # of what is at work; of answers
        # Libraries may print; only answers go to the server.
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def read(self) -> None:
        """Take requests until the server closes the pipe; then end, whatever is at work."""
        for line in sys.stdin:
            asked = json.loads(line)
            if "cancel" in asked:
                with self.lock:
                    self.cancelled.add(asked["cancel"])
                    waits = self.at != asked["cancel"]
                    if not waits:
                        self.job.cancel()
                if waits:  # answered at once, so that nobody takes this process for deaf while it is at another
                    self._say("error", error_record(Cancelled("stopped before it began")), asked["cancel"])
            else:
                self.waiting.put(asked)
        os._exit(0)

    def run(self) -> None:
        """Carry out requests."""
        while (asked := self.waiting.get()) is not None:
            with self.lock:
                if asked["id"] in self.cancelled:  # it was answered
                    self.cancelled.discard(asked["id"])
                    continue
                self.at = asked["id"]
                self.job = Job(self._progress, listens=False)
            try:
                self._answer(asked)
            except BitTransformerError as error:
                self._say("error", error_record(error))
            except Exception as fault:
                import traceback

                traceback.print_exc()
                self._say("error", error_record(fault))
            with self.lock:
                self.cancelled.discard(self.at)
                self.at = None

    def _answer(self, asked: dict[str, Any]) -> None:
        operation = OPERATIONS[asked["operation"]]
        request = self.home.request(asked["operation"], asked["request"])
        if "run" in asked["request"]:
            self._progress(
                Reading(0, 0, "reads the model; the first time its loops are compiled, which takes up to a minute", "")
            )
        if asked["stream"] and operation.streamed:
            for piece in operation.stream(request, self.workspace):
                if self.at in self.cancelled:
                    raise Cancelled("stopped")
                self._say("piece", _plain(piece))
            self._say("result", None)
            return
        with self.job.cancellable():
            result = operation(request, self.workspace, self.job)
        self._say("result", operation.result().dump_python(result, mode="json"))

    def _progress(self, message: Message) -> None:
        if not isinstance(message, Notice):
            self._say("progress", dataclasses.asdict(message))

    def _say(self, kind: str, body: Any, number: int | None = None) -> None:
        """An answer to the request at work, or to another one."""
        line = json.dumps({"id": self.at if number is None else number, "kind": kind, "body": self.home.named(body)})
        with self.writing:
            self.out.write(line + "\n")
            self.out.flush()


def _plain(piece: Any) -> Any:
    if isinstance(piece, bytes):
        import base64

        return {"data": base64.b64encode(piece).decode()}
    return TypeAdapter(type(piece)).dump_python(piece, mode="json")


def main() -> None:
    """Entry point."""
    home = Home(Path(sys.argv[1]))
    inference = Inference(home, home.workspace(sys.argv[2]))
    threading.Thread(target=inference.read, daemon=True).start()
    inference.run()


if __name__ == "__main__":
    main()
