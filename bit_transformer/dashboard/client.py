"""What the dashboard asks the management server, and how its errors come back.

server = Server("http://127.0.0.1:7000", token=lambda: "...")
rows = await server.get("runs")
made = await server.call("estimate", model={}, train={"steps": 100})
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from bit_transformer.dashboard.sse import Event, events
from bit_transformer.errors import BitTransformerError

QUICK, LONG = httpx.Timeout(30, connect=3), httpx.Timeout(600, connect=3)
LISTENING = httpx.Timeout(45, connect=3)  # the server says something every 15 seconds


class ServerError(BitTransformerError):
    """What the server answered instead of a result, in its own words.

    Attributes:
        status: HTTP status; 0 if there was no answer.
    """

    def __init__(self, what: str, *, field: str | None = None, tries: Sequence[str] = (), status: int = 0) -> None:
        super().__init__(what, field=field, tries=tries)
        self.status = status

    def __str__(self) -> str:
        """The message; what to try is said only if the message does not say it."""
        return self.what if "Try " in self.what or not self.tries else self.said()


class ServerDown(ServerError):
    """Nobody answers at the server's address."""


class Server:
    """The management server, as one browser may use it.

    Args:
        address: such as http://127.0.0.1:7000.
        token: gives the token to send, if there is one.
        http: the connections, shared by all browsers.
    """

    def __init__(self, address: str, token: Callable[[], str | None], http: httpx.AsyncClient | None = None) -> None:
        self.address = address.rstrip("/")
        self.token = token
        self.http = http or httpx.AsyncClient(trust_env=False, timeout=QUICK, follow_redirects=False)

    def with_token(self, token: Callable[[], str | None]) -> Server:
        """The same server with another token."""
        return Server(self.address, token, self.http)

    async def get(self, path: str, **query: Any) -> Any:
        """Read something.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer.
        """
        return await self._ask("GET", path, params={k: v for k, v in query.items() if v is not None})

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for a change.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer.
        """
        return await self._ask("POST", path, json=dict(body or {}), timeout=LONG)

    async def delete(self, path: str, **query: Any) -> Any:
        """Remove something.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer.
        """
        return await self._ask("DELETE", path, params=query, timeout=LONG)

    async def call(self, operation: str, **request: Any) -> Any:
        """The result of an operation; bytes in the request are sent as base64.

        Raises:
            ServerError: the operation failed.
            ServerDown: the server does not answer.
        """
        return await self.post(f"operations/{operation}", encoded(request))

    async def start(self, operation: str, **request: Any) -> dict[str, Any]:
        """Start an operation as a job, and give the job.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer.
        """
        job: dict[str, Any] = await self.post("jobs", {"operation": operation, "request": encoded(request)})
        return job

    async def upload(self, name: str, content: AsyncIterable[bytes] | bytes) -> Any:
        """Store a file on the server.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer.
        """
        headers = {"content-type": "application/octet-stream"}
        return await self._ask("POST", "uploads", params={"name": name}, content=content, headers=headers, timeout=LONG)

    async def pieces(self, operation: str, **request: Any) -> AsyncIterator[tuple[str, Any]]:
        """An operation piece by piece: ("piece", ...), ("progress", ...) and at last ("result", ...).

        Raises:
            ServerError: the operation failed, before or after its first piece.
            ServerDown: the server does not answer.
        """
        body = encoded(request)
        async with self.opened("POST", f"operations/{operation}/stream", json=body, timeout=LONG) as answer:
            async for event in events(answer.aiter_bytes()):
                found = json.loads(event.data)
                if event.kind == "error":
                    raise _refusal(found, 0)
                yield event.kind, found

    async def live(self, after: str = "") -> AsyncIterator[Event]:
        """The server's events as they happen, from a cursor on.

        Raises:
            ServerError: the server refuses, for example a cursor that it does not know.
            ServerDown: the connection ended.
        """
        query = {"after": after} if after else {}
        async with self.opened("GET", "events", params=query, timeout=LISTENING) as answer:
            yield Event("opened", "{}")
            async for event in events(answer.aiter_bytes()):
                yield event

    @asynccontextmanager
    async def opened(self, method: str, path: str, **more: Any) -> AsyncIterator[httpx.Response]:
        """An answer that is read while it comes.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer, or stops answering.
        """
        headers = self._headers(more.pop("headers", {}))
        try:
            async with self.http.stream(method, f"{self.address}/api/{path}", headers=headers, **more) as answer:
                if answer.status_code >= 400:
                    raise _answered(answer.status_code, await answer.aread())
                yield answer
        except httpx.HTTPError as lost:
            raise self._down(lost) from lost

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        headers = self._headers(more.pop("headers", {}))
        try:
            answer = await self.http.request(method, f"{self.address}/api/{path}", headers=headers, **more)
        except httpx.HTTPError as lost:
            raise self._down(lost) from lost
        except httpx.InvalidURL as wrong:
            raise ServerDown(f"got the address {self.address!r}; {wrong}. Try http://127.0.0.1:7000") from wrong
        if answer.status_code >= 400:
            raise _answered(answer.status_code, answer.content)
        return answer.json() if answer.content else None

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        token = self.token()
        return {**more, **({"authorization": f"Bearer {token}"} if token else {})}

    def _down(self, lost: Exception) -> ServerDown:
        reason = " ".join(str(lost).split()) or type(lost).__name__
        return ServerDown(f"no answer from the server at {self.address} ({reason}). Try: python mcp_server.py")


def _answered(status: int, content: bytes) -> ServerError:
    try:
        found = json.loads(content)
    except ValueError:
        found = {}
    return _refusal(found if isinstance(found, Mapping) else {}, status)


def _refusal(found: Mapping[str, Any], status: int) -> ServerError:
    what = found.get("message") or found.get("detail") or f"the server answered with status {status}"
    if status == 401:
        what = f"{what}. Paste the server's token on the page Settings" if "Settings" not in str(what) else what
    return ServerError(str(what), field=found.get("field"), tries=tuple(found.get("tries") or ()), status=status)


def encoded(value: Any) -> Any:
    """A request as JSON can carry it: bytes as base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: encoded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(one) for one in value]
    return value


def decoded(text: Any) -> bytes:
    """Bytes from base64, as the server sends them."""
    return base64.b64decode(text) if isinstance(text, str) else b""
