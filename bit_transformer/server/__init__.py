"""The management server: start, watch, steer and test trainings over HTTP. `main` is its entry point.

It holds no model and no training: jobs run in processes that outlive it, and a process beside it keeps models for questions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bit_transformer.errors import BitTransformerError, ConfigError
from bit_transformer.extras import require
from bit_transformer.service.home import Home, home_folder

if TYPE_CHECKING:
    from bit_transformer.server.mcp.guards import Budget

DEFAULT_PORT = 7000
BACKLOG = 512  # connections that wait
PURPOSE = "the management server"


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the server; ends with exit code 2 and one line where it cannot be started."""
    parser = argparse.ArgumentParser(
        prog="mcp_server.py", description="The management server: train, watch and steer from HTTP and a dashboard."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="interface to listen on; others than loopback ask for the token always"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: any free one (default %(default)s)")
    parser.add_argument(
        "--home", type=Path, help="folder of its state (default: BTLM_HOME, else the user's data folder)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a file or folder that trainings may read, as data:NAME; kept for later starts",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of this server, for example behind a proxy",
    )
    parser.add_argument("--jobs", type=int, default=1, help="jobs that run at a time (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--stdio",
        action="store_true",
        help="no port: speak the Model Context Protocol over standard input and output, to the program that started this one",
    )
    parser.add_argument(
        "--read-only", action="store_true", help="no request or tool may write, and no jobs are started"
    )
    agents = parser.add_argument_group("what agents may take, all together, from this start on")
    agents.add_argument("--agent-seconds", type=float, metavar="S", help="seconds that their jobs run, added up")
    agents.add_argument("--agent-memory", type=float, metavar="GB", help="memory on a device, of one training")
    agents.add_argument("--agent-disk", type=float, metavar="GB", help="disk, of what their jobs write")
    parser.add_argument(
        "--max-upload", type=int, default=256, metavar="MB", help="most megabytes of an upload (default %(default)s)"
    )
    given = parser.parse_args(arguments)
    try:
        (speak if given.stdio else serve)(given)
    except (BitTransformerError, OSError) as error:
        text = (
            str(error)
            if isinstance(error, BitTransformerError)
            else f"{error.filename or given.host}: {error.strerror}. Try another"
        )
        print(f"mcp_server: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def serve(given: argparse.Namespace) -> None:
    """Serve until it is interrupted.

    Raises:
        ConfigError: the port is in use, or another server uses the home.
        MissingExtra: a library is not installed.
    """
    require("fastapi", extra="server", purpose=PURPOSE)
    require("mcp", extra="server", purpose=PURPOSE)
    require("psutil", extra="server", purpose=PURPOSE)
    uvicorn = require("uvicorn", extra="server", purpose=PURPOSE)
    from bit_transformer.server.app import create_app

    _check(given)
    home = Home(given.home or home_folder())
    with _bound(given.host, given.port) as bound, _alone(home):
        for path in given.data:
            print(f"data: {home.declare(path)} is {path.absolute()}")
        app = create_app(
            home,
            host=given.host,
            hosts=frozenset(given.allow_host),
            limit=given.jobs,
            device=given.device,
            upload_bytes=given.max_upload << 20,
            budget=_budget(given),
            read_only=given.read_only,
        )
        port = bound.getsockname()[1]
        shown = f"[{given.host}]" if ":" in given.host else given.host
        for note in app.state.server.notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"management server at http://{shown}:{port} (home: {home.folder})", flush=True)
        config = uvicorn.Config(
            app, log_level=logging.WARNING, access_log=False, server_header=False, timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[bound])


def speak(given: argparse.Namespace) -> None:
    """Speak the Model Context Protocol over standard input and output, until they are closed. Other servers may use the home meanwhile.

    Raises:
        MissingExtra: a library is not installed.
    """
    require("mcp", extra="server", purpose="the Model Context Protocol")
    from bit_transformer.server.mcp.endpoint import over_stdio
    from bit_transformer.server.mcp.guards import Guards
    from bit_transformer.server.state import State

    _check(given)
    home = Home(given.home or home_folder())
    for path in given.data:
        home.declare(path)
    state = State.of(home, limit=given.jobs, device=given.device, yields=True)
    for note in state.notes:
        print(f"note: {note}", file=sys.stderr)

    def end() -> None:
        state.inference.kill()
        state.hands.kill()
        os._exit(130)

    async def alive() -> None:
        # The thread that reads standard input cannot be interrupted. Jobs go on.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, end)
        if not given.read_only:
            state.scheduler.start()
        try:
            await over_stdio(state, Guards(state, _budget(given), given.read_only))
        finally:
            state.scheduler.close()
            await state.inference.close()
            await state.hands.close()

    logging.basicConfig(level=logging.WARNING)  # to standard error; standard output is the protocol's
    asyncio.run(alive())


def _check(given: argparse.Namespace) -> None:
    if given.jobs < 1 or given.max_upload < 1:
        raise ConfigError("got jobs or max-upload below 1; at least 1 is needed. Try --jobs 1")
    _budget(given)


def _budget(given: argparse.Namespace) -> Budget:
    from bit_transformer.server.mcp.guards import Budget

    sizes = (given.agent_memory, given.agent_disk)
    if any(size is not None and not math.isfinite(size) for size in sizes):
        raise ConfigError("got a budget that is not finite. Try --agent-memory 8")
    memory, disk = (None if size is None else int(size * 1e9) for size in sizes)
    return Budget(given.agent_seconds, memory, disk)


@contextlib.contextmanager
def _alone(home: Home) -> Iterator[None]:
    """Within: no other server uses the home. The token is made at the first start, and shown then only."""
    import fcntl

    from bit_transformer.server.scheduler import SERVER_LOCK

    with (home.folder / SERVER_LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{home.folder}: another server uses this home. Try BTLM_HOME=another-folder, or stop that one"
            ) from None
        token, new = home.token()
        shown = f"{token} (shown only now; it is in" if new else "(in"
        print(f"token for writes: {shown} {home.folder / 'token'})", flush=True)
        yield


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens.

    Raises:
        ConfigError: the port is in use, or the interface is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
            made.listen(BACKLOG)  # who comes before the server is ready waits
        except (OSError, OverflowError) as refused:
            why = getattr(refused, "strerror", None) or refused
            raise ConfigError(
                f"{host}:{port}: cannot be listened on ({why}). Try --port {port % 65535 + 1}, or --port 0 for a free one"
            ) from None
        yield made
