"""The protocol over HTTP and over standard input and output, by real servers and the SDK's own clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("mcp", reason="mcp is not installed")

import httpx2
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from bit_transformer.server.mcp.tools import TOOLS
from bit_transformer.service.home import Home
from tests.conftest import ROOT, TEXT
from tests.mcp.calls import others, reads, writes
from tests.mcp.conftest import Agent
from tests.server.conftest import start as start

READS = ("list_runs", {}), ("corpora", {}), ("plan_comparison", {"seeds": 6})


@contextlib.asynccontextmanager
async def over_http(url: str, token: str, mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,  # type: ignore[arg-type]
    ):
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_tools_are_listed_and_called_over_http(start, mode: str) -> None:
    server = start()

    async def talk() -> None:
        async with over_http(server.url, (server.home / "token").read_text().strip(), mode) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == set(TOOLS)
            for tool, arguments in READS:
                assert not (await client.call_tool(tool, arguments)).is_error
            added = await client.call_tool("add_data", {"text": "abc"})
            assert added.structured_content["bytes"] == 3
            assert len((await client.list_prompts()).prompts) == 20

    asyncio.run(talk())
    audit = server.get("/api/audit")
    assert [entry["path"] for entry in audit] == ["add_data()"] and audit[0]["method"] == "TOOL"


def test_tokens_over_http(start) -> None:
    server = start()
    hello = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eA=="}):
        for method in ("POST", "GET", "DELETE"):
            answer = httpx.request(
                method, f"{server.url}/mcp", headers=headers, json=hello if method == "POST" else None
            )
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", (method, headers)
            assert answer.json()["error"] == "NoToken"
    assert httpx.post(f"{server.url}/mcp", headers={"Host": "evil.example"}, json=hello).status_code == 421
    assert httpx.post(f"{server.url}/mcp", headers={"Origin": "http://evil.example"}, json=hello).status_code == 403

    async def read_only() -> None:
        async with over_http(server.url, (server.home / "token.read").read_text().strip()) as client:
            for tool, arguments in READS:
                assert not (await client.call_tool(tool, arguments)).is_error
            refused = await client.call_tool("add_data", {"text": "abc"})
            assert refused.is_error and refused.structured_content["error"] == "Refused"
            assert "token for reads" in refused.structured_content["message"]

    asyncio.run(read_only())
    reader = {"Authorization": f"Bearer {(server.home / 'token.read').read_text().strip()}"}
    assert httpx.get(f"{server.url}/api/runs", headers=reader).status_code == 200
    assert httpx.post(f"{server.url}/api/uploads", headers=reader, content=b"x").status_code == 403
    assert (server.home / "token.read").stat().st_mode & 0o077 == 0


def test_a_read_only_server_refuses_every_write(start) -> None:
    server = start("--read-only")
    assert server.http.post("/api/uploads", content=TEXT).status_code == 403
    assert server.http.post("/api/jobs", json={"operation": "train"}).json()["error"] == "Refused"
    assert server.get("/api/runs") == []
    assert [entry["status"] for entry in server.get("/api/audit")] == [403, 403]

    async def talk() -> None:
        async with over_http(server.url, (server.home / "token").read_text().strip()) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {
                n for n, t in TOOLS.items() if not t.writes
            }
            assert (await client.call_tool("add_data", {"text": "abc"})).is_error

    asyncio.run(talk())


def test_a_client_that_vanishes_leaves_the_server_well(start) -> None:
    server = start()
    token = (server.home / "token").read_text().strip()

    async def vanish() -> None:
        async with over_http(server.url, token) as client:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(client.call_tool("suggest_config", {"measure": 60}), 4)

    with contextlib.suppress(BaseException):
        asyncio.run(vanish())
    # One that is cut off in mid-stream, without a word.
    body = json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "tail_metrics", "arguments": {"run": "a"}},
        }
    )
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as cut:
        cut.sendall(
            f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body) + 100}\r\n\r\n{body}".encode()
        )

    async def after() -> None:
        async with over_http(server.url, token) as client:
            assert not (await client.call_tool("list_runs", {})).is_error
            found = await asyncio.wait_for(client.call_tool("suggest_config", {"measure": 0}), 60)
            assert not found.is_error

    asyncio.run(after())


def test_a_body_that_is_too_large_is_refused(start) -> None:
    server = start()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as asking:  # it is refused before it is sent
        asking.sendall(f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {5 << 20}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: asking.recv(4096), b""))
    assert b" 413 " in answer and b"TooLarge" in answer


def test_over_standard_input_and_output_beside_a_server_on_the_same_home(start, tmp_path: Path) -> None:
    """Either of them looks after the queue; jobs that one starts are seen by the other."""
    server = start()
    command = StdioServerParameters(
        command=sys.executable,
        args=[str(ROOT / "mcp_server.py"), "--stdio", "--home", str(server.home)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    async def talk() -> int:
        async with Client(stdio_client(command)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == set(TOOLS)
            data = (await client.call_tool("add_data", {"text": TEXT.decode()})).structured_content["id"]
            model = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "experts": None}
            train = {"steps": 5, "batch_size": 2, "amp": False, "eval_bytes": 512}
            job = await client.call_tool("start_run", {"name": "a", "data": [data], "model": model, "train": train})
            return int(job.structured_content["job"])

    job = asyncio.run(talk())  # the client has gone; the server's queue goes on
    assert server.ended(job)["state"] == "finished"
    assert server.row("a")["status"] == "finished"


def test_a_job_stops_itself_when_its_agent_has_gone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    options = ["--stdio", "--home", str(home.folder), "--agent-seconds", "9"]
    command = StdioServerParameters(command=sys.executable, args=[str(ROOT / "mcp_server.py"), *options])

    async def talk() -> int:
        async with Client(stdio_client(command)) as client:
            data = (await client.call_tool("add_data", {"text": TEXT.decode()})).structured_content["id"]
            model = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "experts": None}
            train = {"steps": 10_000_000, "batch_size": 2, "amp": False, "eval_bytes": 512}
            job = await client.call_tool("start_run", {"name": "a", "data": [data], "model": model, "train": train})
            while (await client.call_tool("job", {"job": 1, "wait": 1})).structured_content["state"] == "queued":
                pass
            return int(job.structured_content["job"])

    job = asyncio.run(talk())
    end = time.monotonic() + 60
    while home.jobs.get(job).state == "running":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert home.jobs.get(job).state == "stopped" and 8 <= home.jobs.get(job).seconds() < 40


def test_an_interrupt_ends_a_server_over_standard_input_and_output(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "mcp_server.py"), "--stdio", "--home", str(tmp_path / "home")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
    assert process.stdin and process.stdout
    process.stdin.write(
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode() + b"\n"
    )
    process.stdin.flush()
    assert b"bit-transformer" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.communicate()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--jobs", "0"), "at least 1"),
        (("--agent-memory", "inf"), "not finite"),
        (("--agent-seconds", "-1"), "above 0"),
    ],
)
@pytest.mark.parametrize("stdio", [True, False])
def test_options_that_cannot_be_are_one_line(tmp_path: Path, options: tuple[str, ...], says: str, stdio: bool) -> None:
    command = [
        sys.executable,
        str(ROOT / "mcp_server.py"),
        "--home",
        str(tmp_path),
        *options,
        *(["--stdio"] if stdio else ["--port", "0"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_starting_over_standard_input_and_output_loads_no_torch(tmp_path: Path) -> None:
    code = "import sys, bit_transformer.server.mcp.endpoint, bit_transformer.server.state; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def refused(told: dict[str, Any]) -> bool:
    return (
        set(told) <= {"error", "message", "field", "tries"}
        and told["error"] != "Fault"
        and len(told["message"].splitlines()) == 1
    )


@pytest.mark.slow
def test_every_tool_is_called_over_both_transports(start, trained: Agent, tmp_path: Path) -> None:
    server, data = start(), "?"

    async def call_all(client: Client) -> None:
        for tool, arguments in {**reads(data), **writes(data), **others(data)}.items():
            found = await client.call_tool(tool, arguments)
            assert found.structured_content and (not found.is_error or refused(found.structured_content)), (tool, found)

    async def http(home: Path) -> None:
        async with over_http(server.url, (home / "token").read_text().strip()) as client:
            await call_all(client)

    async def stdio(home: Path) -> None:
        command = [str(ROOT / "mcp_server.py"), "--stdio", "--home", str(home)]
        async with Client(stdio_client(StdioServerParameters(command=sys.executable, args=command))) as client:
            await call_all(client)

    for name, talk in (("http", http), ("stdio", stdio)):
        home = server.home if name == "http" else tmp_path / name
        data = copied(trained, home)
        asyncio.run(talk(home))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_inspector_lists_and_calls_every_tool(start, trained: Agent, tmp_path: Path) -> None:
    """By the MCP Inspector's command line, from npm, over both transports."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    packages = ["node@22", "@modelcontextprotocol/inspector@2.12.0"]
    subprocess.run(["npm", "install", "--silent", *packages], cwd=tmp_path, check=True, capture_output=True)
    inspector = str(tmp_path / "node_modules/.bin/mcp-inspector")
    path = {**os.environ, "PATH": f"{tmp_path / 'node_modules/.bin'}:{os.environ['PATH']}"}
    server = start()
    over = {
        "stdio": [sys.executable, str(ROOT / "mcp_server.py"), "--stdio", "--home", str(tmp_path / "stdio")],
        "http": [
            f"{server.url}/mcp",
            "--transport",
            "http",
            "--header",
            f"Authorization: Bearer {(server.home / 'token').read_text().strip()}",
        ],
    }

    def ask(*words: str) -> Any:
        done = subprocess.run([inspector, "--cli", *words], cwd=tmp_path, env=path, capture_output=True, text=True)
        assert done.stdout.strip(), (words, done.stderr)
        return json.loads(done.stdout)

    for name, target in over.items():
        data = copied(trained, server.home if name == "http" else tmp_path / name)
        assert {tool["name"] for tool in ask(*target, "--method", "tools/list")["tools"]} == set(TOOLS)
        for tool, arguments in {**reads(data), **writes(data), **others(data)}.items():
            given = [
                word
                for key, value in arguments.items()
                for word in ("--tool-arg", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
            ]
            found = ask(*target, "--method", "tools/call", "--tool-name", tool, *given)
            told = found["structuredContent"]
            assert not found.get("isError") or refused(told), (name, tool, found)


def copied(agent: Agent, home: Path) -> str:
    """Give a home the run `one`, with its records, and its data; returns the data's id."""
    source, there = agent.state.home, Home(home)
    there.open_store()
    run = source.store.get("one")
    shutil.copytree(source.runs / "one", there.runs / "one")
    there.store.begin("one", there.runs / "one", run.config)
    there.store.add_metrics(
        "one", [(step, "train_bpb", value) for step, value in source.store.series("one", "train_bpb")]
    )
    there.store.end("one", "finished", run.note, run.result)
    there.jobs.end(there.jobs.add("telemetry", {}, None).id, "finished")
    place, path = there.new_upload("code.txt")
    shutil.copyfile(source.upload_path(agent.data), path)  # type: ignore[attr-defined]
    return place
