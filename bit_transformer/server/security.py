"""Who may ask for what: plain ASGI middleware, so that streams pass through.

A server on this machine can be reached by every web page that is open in a browser here. So requests must name this server as their host (else a
foreign name was made to lead here: DNS rebinding), and those of pages must come from a page of its own (cross-site requests). Writes need a
bearer token; on other interfaces than loopback, so does everything.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from bit_transformer.errors import StoreError
from bit_transformer.service.home import home_folder as home_folder
from bit_transformer.service.home import read_token as read_token

_log = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
READS = frozenset({"GET", "HEAD", "OPTIONS"})
ASKS = "/api/operations/"  # they write nothing
TOOLS = "/mcp"  # the protocol for agents: reads and writes are told apart by its tools
MAY_WRITE = "bit_transformer.may_write"  # in the scope of a request to it
OPEN_PATHS = frozenset({"/api/health"})  # for checks that the server is there
REQUEST_BYTES = 4 << 20  # of a request's body; uploads may be larger
RATE, BURST = 100.0, 400.0  # requests a second from one address, and how many at once after a rest
SLOW = 30.0  # seconds that a piece of a body may take
TOGETHER, CALLS, STREAMS = 64, 64, 512  # requests, calls of agents, and event streams at the same time


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, for itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OnlyLocal:
    """Refuses requests and websockets that name another host than this server, or come from a page of another origin.

    Args:
        hosts: names that this server has, without port.
    """

    def __init__(self, app: App, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a connection and pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if _name(host) not in self.hosts:
            what = f"got host {host[:80]!r}; this server is {', '.join(sorted(self.hosts))}. Try its address, or --allow-host"
            await _refuse(scope, receive, send, 421, "WrongHost", what)
        elif (origin is not None and origin.partition("://")[2].lower() != host.lower()) or (
            headers.get("sec-fetch-site") == "cross-site"
        ):
            what = f"got a request from a page of {(origin or 'another site')[:80]!r}; only pages of this server may ask. Try without a browser"
            await _refuse(scope, receive, send, 403, "WrongOrigin", what)
        else:
            await self.app(scope, receive, send)


class Bounded:
    """Refuses bodies that are too large before they are read, and too many requests.

    Args:
        upload_bytes: most bytes of an upload.
    """

    def __init__(self, app: App, upload_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.app, self.upload_bytes, self.clock = app, upload_bytes, clock
        self.left: dict[str, tuple[float, float]] = {}  # by client: requests it may make at once, as of when
        self.now = {"requests": 0, "calls": 0, "streams": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.upload_bytes if scope["path"] == "/api/uploads" else REQUEST_BYTES
        text = _headers(scope).get("content-length", "0")
        too_large = f"got a body of more than {most:,} bytes, which is the most here. Try less, or an upload"
        if not text.isdigit() or int(text) > most:
            await _refuse(scope, receive, send, 413, "TooLarge", too_large)
            return
        is_stream = scope["path"].endswith("/events") or (scope["path"] == TOOLS and scope["method"] == "GET")
        kind = "streams" if is_stream else "calls" if scope["path"] == TOOLS else "requests"
        busy = self.now[kind] >= {"streams": STREAMS, "calls": CALLS, "requests": TOGETHER}[kind]
        if scope["path"] not in OPEN_PATHS and (busy or not self._may(scope)):
            await _refuse(
                scope, receive, send, 429, "TooMany", "got too many requests at a time. Try again in a second"
            )
            return
        taken, whole, refused, answered = 0, False, False, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken, whole, refused
            try:
                message = await (receive() if whole else asyncio.wait_for(receive(), SLOW))
            except asyncio.TimeoutError:
                return {"type": "http.disconnect"}  # it is let go, as if it had gone
            taken, whole = taken + len(message.get("body", b"")), not message.get("more_body", False)
            if taken > most:
                refused = True
                raise BodyTooLarge(too_large)
            return message

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal answered
            if refused and not answered:  # whatever the application makes of it
                answered = True
                await _refuse(scope, receive, send, 413, "TooLarge", too_large)
            elif not refused:
                await send(message)

        self.now[kind] += 1
        try:
            await self.app(scope, counted, answer)
        finally:
            self.now[kind] -= 1

    def _may(self, scope: Scope) -> bool:
        """Whether a client may ask now: a token bucket."""
        client, now = (scope.get("client") or ("",))[0], self.clock()
        if len(self.left) > 10_000:
            self.left.clear()
        left, then = self.left.get(client, (BURST, now))
        left = min(BURST, left + max(0.0, now - then) * RATE)
        self.left[client] = (max(0.0, left - 1), now)
        return left >= 1


class BodyTooLarge(Exception):
    """A body without a stated length was larger than allowed."""


class Bearer:
    """Asks for the token: for writes, and for all else if `always`.

    Args:
        token: compared in constant time.
        read_token: good for reads alone.
        always: reads need one of them too; for servers on other interfaces than loopback.
        read_only: nothing is written, with whatever token.
    """

    def __init__(self, app: App, token: str, always: bool, read_token: str = "", read_only: bool = False) -> None:
        self.app, self.token, self.read_token = app, token.encode(), read_token.encode()
        self.always, self.read_only = always, read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        path = scope.get("path", "")
        if scope["type"] not in ("http", "websocket") or path in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        kind, _, given = _headers(scope).get("authorization", "").partition(" ")
        sent = given.strip().encode() if kind.lower() == "bearer" else b""
        right = hmac.compare_digest(sent, self.token)
        may_read = right or (bool(self.read_token) and hmac.compare_digest(sent, self.read_token))
        reads = scope.get("method", "GET") in READS and path != "/api/audit"
        asks = path.startswith(ASKS) or path == TOOLS
        if path == TOOLS:
            scope[MAY_WRITE] = right
        if (
            (right and (reads or not self.read_only or path == "/api/audit"))
            or (may_read and (reads or asks))
            or (reads and not asks and not self.always and not given)
        ):
            await self.app(scope, receive, send)
            return
        if may_read:
            text = (
                "this server is read-only. Try one that was started without --read-only"
                if self.read_only
                else "got the token for reads; this writes. Try the token in the file `token` of the server's home"
            )
            await _refuse(scope, receive, send, 403, "Refused", text)
            return
        what = "got a wrong token" if given else "got no token"
        text = f"{what}; this needs the header Authorization: Bearer TOKEN. Try the token in the file `token` of the server's home"
        await _refuse(scope, receive, send, 401, "NoToken", text, ((b"www-authenticate", b"Bearer"),))


class Audited:
    """Writes every request that changes something to a log, with how it ended.

    Args:
        record: called in a thread with client, method, path and status.
    """

    def __init__(self, app: App, record: Callable[[str, str, str, int], None]) -> None:
        self.app, self.record = app, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, then record it."""
        if (
            scope["type"] != "http"
            or scope["method"] in READS
            or scope["path"].startswith(ASKS)
            or scope["path"] == TOOLS
        ):
            await self.app(scope, receive, send)
            return
        status = 500

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            client = (scope.get("client") or ("?",))[0]
            try:
                await asyncio.to_thread(self.record, client, scope["method"], scope["path"][:200], status)
            except (StoreError, OSError) as failed:  # a full disk; the request itself is done
                _log.warning(
                    "not in the audit log: %s %s %s (%s)", scope["method"], scope["path"][:200], status, failed
                )


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _name(host: str) -> str:
    """A host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    kind: str,
    text: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": text[:120]})
        return
    body = json.dumps({"error": kind, "message": text, "field": None, "tries": []}).encode()
    # The rest of the body is not read.
    more = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*more, *headers]})
    await send({"type": "http.response.body", "body": body})
