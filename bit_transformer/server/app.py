"""The management server as an ASGI app."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI
from starlette.routing import Route

from bit_transformer.server import routes_data, routes_jobs, routes_operations, routes_runs, routes_system
from bit_transformer.server.errors import HANDLERS
from bit_transformer.server.events import Feed
from bit_transformer.server.mcp.endpoint import Endpoint
from bit_transformer.server.mcp.guards import Budget, Guards
from bit_transformer.server.security import LOOPBACK, TOOLS, Audited, Bearer, Bounded, OnlyLocal, is_loopback
from bit_transformer.server.state import State
from bit_transformer.service.home import READ_TOKEN, Home

UPLOAD_BYTES = 256 << 20
NO_LIMIT = Budget()
ABOUT = """Train, watch, steer and test models of bits.

Reads on this machine are open. Writes need the header `Authorization: Bearer TOKEN`; the token is in the file `token` of the server's home.
The token in `token.read` is good for reads alone, which servers on other interfaces ask for too. Agents connect to `/mcp` (Model Context Protocol).
Runs and data are named by ids, never by paths. Bytes in JSON are base64. Errors have one shape: `error`, `message`, `field`, `tries`.
"""


def create_app(
    home: Home,
    *,
    host: str = "127.0.0.1",
    hosts: frozenset[str] = frozenset(),
    limit: int = 1,
    device: str = "auto",
    upload_bytes: int = UPLOAD_BYTES,
    budget: Budget = NO_LIMIT,
    read_only: bool = False,
) -> FastAPI:
    """The server of a home.

    Args:
        host: the interface that it will listen on; on others than loopback, reads need the token too.
        hosts: further names by which it may be asked.
        limit: jobs that run at a time.
        device: for models.
        upload_bytes: most bytes of an upload.
        budget: what agents may take.
        read_only: nothing is written, and no jobs are started.
    """
    feed = Feed(home)
    state = State.of(home, limit=limit, device=device, feed=feed)
    endpoint = Endpoint(state, Guards(state, budget, read_only))

    @contextlib.asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        feed.start()
        if not read_only:
            state.scheduler.start()
        try:
            with home.store.in_use():
                async with endpoint.running():
                    yield
        finally:
            state.scheduler.close()
            await feed.close()
            await state.inference.close()
            await state.hands.close()

    app = FastAPI(
        title="BitTransformerLM management server",
        version=version("bit-transformer"),
        description=ABOUT,
        lifespan=alive,
        docs_url=None,
        redoc_url=None,
        exception_handlers=HANDLERS,
    )
    app.state.server = state
    app.router.routes.append(Route(TOOLS, endpoint=endpoint))
    for routes in (routes_system, routes_runs, routes_jobs, routes_operations, routes_data):
        app.include_router(routes.router)
    names = LOOPBACK | hosts | ({host} if host not in ("0.0.0.0", "::") else set())
    # The last one added is asked first.
    app.add_middleware(
        Bearer,
        token=home.token()[0],
        read_token=home.token(READ_TOKEN)[0],
        always=not is_loopback(host),
        read_only=read_only,
    )
    app.add_middleware(Audited, record=home.jobs.add_audit)
    app.add_middleware(Bounded, upload_bytes=upload_bytes)
    app.add_middleware(OnlyLocal, hosts=frozenset(names))
    return app
