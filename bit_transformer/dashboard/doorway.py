"""What goes in and out at the dashboard's door, beside the checks of `server.security`: links from elsewhere, and headers for browsers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Vue compiles templates in the browser, hence 'unsafe-eval'. Nothing may come from another host, and no other page may frame these.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' ws: wss:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Doorway:
    """Lets links from other sites lead here, which only show a page, and tells browsers what pages may load."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a connection on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if is_followed_link(scope):
            scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() != b"sec-fetch-site"]

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


def is_followed_link(scope: Scope) -> bool:
    """Whether a browser opens a page of ours in a window of its own, because somebody followed a link."""
    found = {name.lower(): value for name, value in scope["headers"]}
    return (
        scope["method"] == "GET"
        and found.get(b"sec-fetch-mode") == b"navigate"
        and found.get(b"sec-fetch-dest") == b"document"
        and b"origin" not in found
    )
