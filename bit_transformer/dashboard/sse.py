"""Server-sent events, read from chunks of bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event; `id` is empty where it has none."""

    kind: str
    data: str
    id: str = ""


class Parser:
    """Turns chunks into events, wherever the chunks are cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._kind, self._id = "", ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in this chunk."""
        found: list[Event] = []
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if not line:
                if self._data or self._id:  # an id alone says how far the reader is
                    found.append(Event(self._kind or "message", "\n".join(self._data) or "{}", self._id))
                self._kind, self._id, self._data = "", "", []
            elif not line.startswith(":"):
                self._take(line)
        return found

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id":
            self._id = value


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """The events of a stream."""
    parser = Parser()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
