"""The dashboard's web application: its pages, its own files, and what it lets in."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from nicegui import app as pages_app
from nicegui import ui

from bit_transformer.dashboard.client import LONG, ServerError
from bit_transformer.dashboard.desk import Access, Desk
from bit_transformer.dashboard.doorway import Doorway
from bit_transformer.dashboard.pages import PAGES
from bit_transformer.server.security import OnlyLocal

STATIC = Path(__file__).parent / "static"
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 26 26"><rect width="26" height="26" rx="7" fill="#3a4fd0"/>'
    '<g fill="#fff"><rect x="6" y="7" width="3" height="12" rx="1.5"/><rect x="11.5" y="11" width="3" height="8" rx="1.5"/>'
    '<rect x="17" y="14" width="3" height="5" rx="1.5"/></g></svg>'
)


def build(address: str, access: Access, *, hosts: frozenset[str], state: Path) -> FastAPI:
    """The application.

    Args:
        address: of the management server.
        access: who may use which token.
        hosts: names under which browsers may reach the dashboard.
        state: folder for what it remembers of browsers: light or dark, filters.
    """
    desk = Desk(address, access)
    state.mkdir(parents=True, exist_ok=True)
    pages_app.storage.path = state
    type(pages_app.storage).path = state
    version = str(int(max(path.stat().st_mtime for path in STATIC.iterdir())))
    pages_app.add_static_files("/assets", STATIC)
    ui.add_head_html(
        f'<link rel="stylesheet" href="/assets/dashboard.css?{version}"><script src="/assets/dashboard.js?{version}"></script>',
        shared=True,
    )
    for register in PAGES:
        register(desk)
    _add_downloads(desk)
    pages_app.on_startup(desk.begin)
    pages_app.on_shutdown(desk.end)
    whole = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        whole,
        title="BitTransformerLM",
        favicon=ICON,
        dark=None,
        tailwind=False,
        storage_secret=_secret(state / "secret"),
        show_welcome_message=False,
        reconnect_timeout=30.0,
    )
    whole.add_middleware(OnlyLocal, hosts=hosts)
    whole.add_middleware(Doorway)
    return whole


def _secret(path: Path) -> str:
    """What browsers' cookies are signed with, kept so that they stay valid."""
    try:
        return path.read_text()
    except OSError:
        made = secrets.token_urlsafe(32)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(made)
        return made


def _add_downloads(desk: Desk) -> None:
    """Files of runs, passed through, so that a browser needs to reach only the dashboard."""

    @pages_app.get("/download/{run}/{name}", include_in_schema=False)
    async def download(run: str, name: str, request: Request) -> Response:
        browser = str(request.session.get("id", ""))
        if not desk.access.may_read(browser):
            return PlainTextResponse("the server's token is needed. Paste it on the page Settings", 401)
        opened = desk.for_browser(browser).opened("GET", f"runs/{run}/files/{name}", timeout=LONG)
        try:
            answer = await opened.__aenter__()
        except ServerError as refused:
            return PlainTextResponse(str(refused), refused.status or 503)

        async def content() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await opened.__aexit__(None, None, None)

        kept: dict[str, Any] = {
            key: answer.headers[key] for key in ("content-length", "content-encoding") if key in answer.headers
        }
        kept["content-disposition"] = f'attachment; filename="{name}"'
        return StreamingResponse(content(), media_type="application/octet-stream", headers=kept)
