"""The one connection over which the server tells what happens, shared by all pages of all browsers.

It reconnects by itself, from the last event that it got, so nothing is lost and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from bit_transformer.dashboard.client import Server, ServerDown, ServerError

Listener = Callable[[str, dict[str, Any]], None]
LOG = logging.getLogger(__name__)
FIRST_WAIT, LONGEST_WAIT = 0.3, 3.0  # seconds until it tries again


class Feed:
    """Events of the server, passed on to whoever listens.

    Besides the server's own kinds, listeners get `up` (connected, also for the first time), `down`, and `reset` (events were missed:
    whatever was read must be read again).

    Attributes:
        up: whether there is a connection; None before the first answer.
        trouble: why there is none.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.up: bool | None = None
        self.trouble = ""
        self.cursor = ""
        self._listeners: dict[int, Listener] = {}
        self._count = 0

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Pass events on to `listener`, which must be quick; the result ends that."""
        self._count += 1
        number = self._count
        self._listeners[number] = listener

        def end() -> None:
            self._listeners.pop(number, None)

        return end

    async def run(self) -> None:
        """Stay connected until cancelled."""
        wait = FIRST_WAIT
        while True:
            try:
                async for event in self.server.live(self.cursor):
                    wait = FIRST_WAIT
                    if event.kind == "opened":
                        self._set(True, "")
                        continue
                    self.cursor = event.id or self.cursor
                    self._tell(event.kind, _object(event.data))
                self._set(False, "the server closed the connection")
            except ServerDown as down:
                self._set(False, str(down))
            except ServerError as refused:
                self._set(False, str(refused))
                if self.cursor and refused.status not in (401, 403, 429, 503):
                    self.cursor = ""  # the server does not know it: another database
                    self._tell("reset", {})
            except Exception:  # a fault of ours must not end the connection of all pages
                LOG.exception("the feed met a fault and connects anew")
                self._set(False, "the dashboard met a fault; its log says more")
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT, 1.6 * wait)

    def _set(self, up: bool, trouble: str) -> None:
        changed, self.up, self.trouble = up != self.up, up, trouble
        if changed:
            self._tell("up" if up else "down", {})

    def _tell(self, kind: str, found: dict[str, Any]) -> None:
        if kind == "reset":
            self.cursor = ""
        for listener in list(self._listeners.values()):
            listener(kind, found)


def _object(data: str) -> dict[str, Any]:
    found = json.loads(data or "{}")
    return found if isinstance(found, dict) else {"value": found}
