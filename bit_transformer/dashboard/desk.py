"""What all pages share: the server, the feed, the list of runs, and which browser may do what."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable

from bit_transformer.dashboard.client import Server, ServerError
from bit_transformer.dashboard.feed import Feed
from bit_transformer.dashboard.rows import RunList


class Access:
    """The server's token, and who may use it.

    The process may know the token itself (from the environment, or from the file that the server wrote); it is then used for every browser
    that reaches the dashboard, unless each browser is to be asked. A token that somebody pastes is kept in memory, for that browser only.

    Args:
        own: gives the token that the process knows, if it knows one.
        ask: whether each browser has to paste it, also for reading.
    """

    def __init__(self, own: Callable[[], str | None], *, ask: bool = False) -> None:
        self._own = own
        self.ask = ask
        self._pasted: dict[str, str] = {}

    def token(self, browser: str) -> str | None:
        """The token that is sent for a browser."""
        return self._pasted.get(browser) or (None if self.ask else self._own())

    def may_read(self, browser: str) -> bool:
        """Whether pages show anything to this browser."""
        return not self.ask or browser in self._pasted

    def pasted(self, browser: str) -> bool:
        """Whether this browser has pasted a token."""
        return browser in self._pasted

    def process_token(self) -> str | None:
        """The token with which the process itself listens to the server."""
        return self._own() or next(iter(self._pasted.values()), None)

    def is_own(self, token: str) -> bool:
        """Whether a pasted token is the one that the process knows, compared in constant time."""
        own = self._own()
        return own is not None and hmac.compare_digest(own.encode(), token.encode("utf-8", "replace"))

    def keep(self, browser: str, token: str) -> None:
        """Use this token for a browser, until the dashboard ends."""
        self._pasted[browser] = token

    def forget(self, browser: str) -> None:
        """Use a browser's token no longer."""
        self._pasted.pop(browser, None)


class Desk:
    """Everything that pages share.

    Args:
        address: of the management server.
        access: who may use which token.
    """

    def __init__(self, address: str, access: Access) -> None:
        self.access = access
        self.server = Server(address, access.process_token)
        self.feed = Feed(self.server)
        self.runs = RunList()
        self.feed.listen(self.runs.take)
        self._tasks: list[asyncio.Task[None]] = []

    def for_browser(self, browser: str) -> Server:
        """The server as one browser may use it."""
        return self.server.with_token(lambda: self.access.token(browser))

    async def rows(self) -> RunList:
        """The list of runs, read if it was not since the connection was made.

        Raises:
            ServerError: the server refuses.
            ServerDown: it does not answer.
        """
        if not self.runs.loaded:
            await self.runs.load(self.server)
        return self.runs

    async def begin(self) -> None:
        """Connect to the server and stay connected."""
        self._tasks = [asyncio.create_task(self.feed.run()), asyncio.create_task(self._keep_rows())]

    async def end(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.http.aclose()

    async def check(self, token: str) -> str:
        """What is wrong with a token; empty if the server takes it."""
        try:
            await self.server.with_token(lambda: token).get("audit")
        except ServerError as refused:
            return "the server does not take this token" if refused.status == 401 else str(refused)
        return ""

    async def _keep_rows(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self.feed.up and not self.runs.loaded:
                try:
                    await self.runs.load(self.server)
                except ServerError:
                    await asyncio.sleep(1)
