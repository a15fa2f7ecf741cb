"""The protocol's server in this process, with the SDK's own client; a home with a trained and calibrated run, and one whose runs are only records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="mcp is not installed")

from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp.client.client import Client

from bit_transformer.data.sources import stdlib_files, whole_files
from bit_transformer.server.mcp.endpoint import build
from bit_transformer.server.mcp.guards import Budget, Guards
from bit_transformer.server.state import State
from bit_transformer.service.home import Home
from tests.conftest import ROOT

if str(ROOT / "benchmarks") not in sys.path:
    sys.path.append(str(ROOT / "benchmarks"))

TINY = {
    "d_model": 32,
    "nhead": 2,
    "num_layers": 1,
    "max_seq_len": 2048,
    "ngram_orders": [2],
    "ngram_words": False,
    "ngram_rows": 1024,
    "experts": None,
}
QUICK = {"batch_size": 4, "amp": False, "eval_bytes": 512, "telemetry": 0.01}


class Agent:
    """A client that calls tools."""

    def __init__(self, state: State, guards: Guards, portal: BlockingPortal, client: Client) -> None:
        self.state, self.guards, self.portal, self.client = state, guards, portal, client

    def call(self, tool: str, **arguments: Any) -> Any:
        """A tool's result."""
        return self.portal.call(self._call, tool, arguments)

    async def _call(self, tool: str, arguments: dict[str, Any]) -> Any:
        return await self.client.call_tool(tool, arguments)

    def ask(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a tool that succeeds."""
        found = self.call(tool, **arguments)
        assert not found.is_error, found.content
        answer: dict[str, Any] = found.structured_content
        return answer

    def refused(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The error of a tool that does not."""
        found = self.call(tool, **arguments)
        assert found.is_error, found.content
        error: dict[str, Any] = found.structured_content
        assert len(error["message"].splitlines()) == 1 and "Traceback" not in error["message"]
        return error

    def done(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a tool that starts a job, once the job has ended."""
        job = self.ask(tool, **arguments)
        while job["state"] in ("queued", "running"):
            job = self.ask("job", job=job["job"], wait=60)
        assert job["state"] == "finished", job
        return job


@contextmanager
def agent_of(home: Home, budget: Budget = Budget(), read_only: bool = False) -> Iterator[Agent]:  # noqa: B008
    """An agent of a home, as one over standard input and output is."""
    state = State.of(home, device="cpu")
    guards = Guards(state, budget, read_only)

    async def end() -> None:
        await state.inference.close()
        await state.hands.close()

    with start_blocking_portal() as portal:
        if not read_only:
            state.scheduler.start()
        with (
            portal.wrap_async_context_manager(guards.watching()),
            portal.wrap_async_context_manager(Client(build(state, guards, local=True))) as client,
        ):
            yield Agent(state, guards, portal, client)
        state.scheduler.close()
        for process in state.scheduler._mine.values():  # jobs outlive their scheduler, but not the test
            process.kill()
            process.wait()
        portal.call(end)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent of a home with the run `one`, trained and calibrated, and its data."""
    with agent_of(Home(tmp_path_factory.mktemp("agents") / "home")) as agent:
        text = whole_files(stdlib_files()).read(200_000, 80_000).tobytes().decode("utf-8", errors="replace")
        agent.data = agent.ask("add_data", name="code.txt", text=text)["id"]  # type: ignore[attr-defined]
        agent.done("start_run", name="one", data=[agent.data], model=TINY, train={**QUICK, "steps": 40})  # type: ignore[attr-defined]
        agent.done("calibrate_gate", run="one", data=[agent.data], alpha=0.02)  # type: ignore[attr-defined]
        yield agent


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent that only reads, of a home whose runs are records of which it is known how they went."""
    from seeded_store import seed

    home = Home(tmp_path_factory.mktemp("recorded") / "home")
    seed(home)
    with agent_of(home, read_only=True) as agent:
        yield agent


@pytest.fixture
def new_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Makes agents of homes of their own."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda name="home", **fields: stack.enter_context(agent_of(Home(tmp_path / name), **fields))
