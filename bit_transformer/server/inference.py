"""Asks the process that keeps models loaded; starts it when it is first needed, and again when it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from bit_transformer import errors
from bit_transformer.errors import BitTransformerError, QueueFull, RankFailed
from bit_transformer.service.home import Home

ENDED = "the process that keeps models ended, perhaps for want of memory. Try again"
PATIENCE = 10.0  # seconds that the process may take to notice that a request was given up
WAITING = 16  # most requests at a time
LINE = 256 << 20  # bytes of an answer
IDLE = 900.0  # seconds without a request after which its memory is given back

Answer = tuple[str, Any]  # kind (progress, piece, result), body


class InferenceProcess:
    """Requests to the process, each answered in turn.

    Args:
        device: for its models.
    """

    def __init__(self, home: Home, device: str = "auto") -> None:
        self.home, self.device = home, device
        self._process: asyncio.subprocess.Process | None = None
        self._answers: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._asked: dict[int, asyncio.subprocess.Process] = {}
        self._cancelled: set[int] = set()  # and not yet ended by the process
        self._numbers = itertools.count(1)
        self._starting = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def ask(self, operation: str, request: Mapping[str, Any]) -> Any:
        """The result of an operation, as plain values.

        Raises:
            BitTransformerError: as raised by the operation.
            QueueFull: too many requests wait already.
        """
        async for kind, body in self.stream(operation, request, pieces=False):
            if kind == "result":
                return body
        raise AssertionError("no result")

    async def stream(self, operation: str, request: Mapping[str, Any], *, pieces: bool = True) -> AsyncIterator[Answer]:
        """Progress, the pieces of the result if the operation has some, and the result. Leaving it early cancels the request.

        Raises:
            BitTransformerError, QueueFull: as of `ask`.
        """
        if len(self._answers) >= WAITING:
            raise QueueFull(f"got more than {WAITING} requests to models at a time. Try again in a moment")
        process = await self._started()
        if process.stdin is None or process.stdin.is_closing():
            raise RankFailed(ENDED)
        number = next(self._numbers)
        answers = self._answers[number] = asyncio.Queue()
        self._asked[number] = process
        done = False
        try:
            await self._send(process, {"id": number, "operation": operation, "request": request, "stream": pieces})
            while not done:
                answer = await answers.get()
                if answer is None:
                    done = True
                    raise RankFailed(ENDED)
                done = answer["kind"] in ("result", "error")
                if answer["kind"] == "error":
                    raise _error(answer["body"])
                yield answer["kind"], answer["body"]
        finally:
            del self._answers[number], self._asked[number]
            if not done:
                self._cancelled.add(number)
                asyncio.get_running_loop().call_later(PATIENCE, self._end_if_deaf, process, number)
                with contextlib.suppress(RankFailed):
                    await self._send(process, {"cancel": number})
            self._rest()

    def _end_if_deaf(self, process: asyncio.subprocess.Process, number: int) -> None:
        """End the process if it still works on a request that nobody waits for."""
        if number in self._cancelled and process.returncode is None:
            process.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _send(self, process: asyncio.subprocess.Process, asked: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            await process.stdin.drain()
        except OSError:  # it ended just now
            raise RankFailed(ENDED) from None

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._idle is not None:
                self._idle.cancel()
            if self._process is None or self._process.returncode is not None:
                command = ["-m", "bit_transformer.service.inference_process", str(self.home.folder), self.device]
                log = (self.home.folder / "inference.log").open("ab")
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    cwd=self.home.folder,
                    limit=LINE,
                    start_new_session=True,  # Ctrl-C is for the server
                )
                log.close()
                self._reader = asyncio.create_task(self._read(self._process))
            return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than LINE
                process.kill()
                break
            if not line:
                break
            answer = json.loads(line)
            if answer["kind"] in ("result", "error"):
                self._cancelled.discard(answer["id"])
            if (answers := self._answers.get(answer["id"])) is not None:
                answers.put_nowait(answer)
        await process.wait()
        for number, of in list(self._asked.items()):
            if of is process:
                self._cancelled.discard(number)
                if (answers := self._answers.get(number)) is not None:
                    answers.put_nowait(None)

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE, self._give_back)

    def _give_back(self) -> None:
        if self._process is not None and self._process.returncode is None and not self._answers:
            self._process.kill()


def _error(told: Mapping[str, Any]) -> BitTransformerError:
    """An error of the process, of its own kind; a fault of the program is a training error's sibling, and answered as one."""
    kind = getattr(errors, str(told["error"]), errors.TrainingError)
    error: BitTransformerError = kind.__new__(kind)
    what = told["message"].rpartition(". Try ")[0] if told["tries"] else told["message"]
    error.args, error.what, error.field, error.tries = (what,), what, told["field"], tuple(told["tries"])
    return error
