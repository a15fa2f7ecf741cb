"""What happens, as server-sent events. Every event has an id; a reader that was cut off goes on from the last one it has.

One task reads the store's feed for all streams, and each event is encoded once, so that a hundred readers cost little more than one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from bit_transformer.errors import BitTransformerError, StoreError
from bit_transformer.server.views import job_view, run_rows
from bit_transformer.service.home import Home

if TYPE_CHECKING:
    from bit_transformer.runs.curves import Curve
    from bit_transformer.runs.store import Event

_log = logging.getLogger(__name__)
LOOK = 0.2  # seconds between looks at the feed
KEPT = 4000  # events in memory; readers that lag further read the store
POINTS, MISSED_POINTS = 60, 600  # of each curve in an event; after a gap
BATCH = 1000
MOST_MISSED = 50_000  # events after which a reader is told to read everything anew
QUIET = 15.0  # seconds after which a comment keeps a connection open


class Sent(NamedTuple):
    """An event as it is sent."""

    id: int
    run: str | None
    text: bytes


class Feed:
    """The events of a home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.kept: deque[Sent] = deque(maxlen=KEPT)
        self.last = 0  # id of the last event that was read
        self.first = 0  # id before the first event in memory
        self.readers = 0
        self.pruned = -MOST_MISSED - 1  # as of when old events were last removed: at the first look, and now and then
        self._new = asyncio.Event()  # another one after each batch, so that no reader can hold up others
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read the feed."""
        self.last = self.first = self.home.store.last_event()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop reading it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                new = await asyncio.to_thread(self._read)
            except (StoreError, OSError):  # a full disk, a locked file: it stays where it is
                continue
            except Exception:  # one event that cannot be shown must not end all streams
                _log.exception("an event could not be sent")
                continue
            if new:
                for sent in new:
                    if len(self.kept) == KEPT:
                        self.first = self.kept[0].id
                    self.kept.append(sent)
                self._new.set()
                self._new = asyncio.Event()

    def _read(self) -> list[Sent]:
        events = self.home.store.events(self.last, most=BATCH)
        if not events:
            return []
        self.last = events[-1].id
        if self.last - self.pruned > MOST_MISSED:
            self.pruned = self.last
            self.home.store.prune_events(self.last - 2 * MOST_MISSED)
        if not self.readers:  # nobody to send them to; who comes with an older id reads the store
            self.first = self.last
            self.kept.clear()
            return []
        return [Sent(event.id, event.run, text) for event in events if (text := self._encoded(event)) is not None]

    async def stream(self, after: int | None, run: str | None) -> AsyncIterator[bytes]:
        """Events after an id, as long as the reader stays.

        Args:
            after: None: only what comes from now on.
            run: only of this run; None: of all.
        """
        self.readers += 1
        try:
            at = self.last if after is None else after
            yield b": connected\n\n"
            if at > self.last and at > await asyncio.to_thread(self.home.store.last_event):  # of another store
                at = self.last
                yield _sse("reset", {}, at)
            while True:
                if at < self.first:
                    first = self.first  # it may move on while the texts are sent
                    if first - at > MOST_MISSED:
                        at = self.last
                        yield _sse("reset", {}, at)
                        continue
                    upto, texts = await asyncio.to_thread(self._missed, at, run)
                    for text in texts:
                        yield text
                    at = max(upto, first)
                for sent in [sent for sent in self.kept if sent.id > at]:
                    at = sent.id
                    if run is None or sent.run == run:
                        yield sent.text
                new = self._new
                if at < self.first or (self.kept and self.kept[-1].id > at):
                    continue
                try:
                    await asyncio.wait_for(new.wait(), QUIET)
                except asyncio.TimeoutError:  # another class before Python 3.11
                    yield b": quiet\n\n"
        finally:
            self.readers -= 1

    def _missed(self, after: int, run: str | None) -> tuple[int, list[bytes]]:
        """Events that are no longer in memory: rewinds first, then each run's curves as they are now, then the rest in order. Only the last one
        has an id, so that a reader that is cut off here gets all of them again."""
        upto = after
        rest: list[Event] = []
        rewound, curves = dict[str, int](), dict[str, int]()  # by run: the earliest step
        while True:
            events = self.home.store.events(upto, most=BATCH)
            if not events:
                break
            upto = events[-1].id
            for event in events:
                if event.run is None or run not in (None, event.run):
                    if run is None:
                        rest.append(event)
                elif event.kind == "rewound":
                    rewound[event.run] = min(event.step or 0, rewound.get(event.run, event.step or 0))
                    curves[event.run] = min((event.step or 0) + 1, curves.get(event.run, 1 << 62))
                elif event.kind == "metrics":
                    curves[event.run] = min(int(event.detail["from"]), curves.get(event.run, 1 << 62))
                else:
                    rest.append(event)
            if upto >= self.last:
                break
        found = [_sse("rewound", {"run": name, "step": step}) for name, step in rewound.items()]
        found += [text for name, step in curves.items() if (text := self._curves(name, step, MISSED_POINTS))]
        latest = {(event.kind, event.run, event.job): event.id for event in rest if event.kind in ("run", "job")}
        for event in rest:
            if latest.get((event.kind, event.run, event.job), event.id) == event.id:
                text = self._encoded(event, with_id=False)
                found += [text] if text is not None else []
        return upto, [*found, f"id: {upto}\n: caught up\n\n".encode()]

    def _encoded(self, event: Event, *, with_id: bool = True) -> bytes | None:
        number = event.id if with_id else None
        if event.kind == "metrics":
            return self._curves(event.run or "", int(event.detail["from"]), POINTS, number)
        if event.kind == "rewound":
            return _sse("rewound", {"run": event.run, "step": event.step}, number)
        if event.kind == "job":
            return _sse("job", self._job(event), number)
        if event.kind == "run":
            return _sse("run", self._row(event), number)
        return _sse("happening", asdict(event), number)

    def _job(self, event: Event) -> dict[str, Any]:
        try:
            return job_view(self.home.jobs.get(event.job or 0), result=False)
        except BitTransformerError:
            return {"id": event.job, "removed": True}

    def _row(self, event: Event) -> dict[str, Any]:
        found = self.home.store.overview(event.run)
        return run_rows(self.home, found, spark=False)[0] if found else {"id": event.run, "removed": True}

    def _curves(self, run: str, first: int, points: int, number: int | None = None) -> bytes | None:
        store = self.home.store
        found = store.curves(run, store.metric_keys(run), points, first - 1)
        if not found:
            return None
        overview = store.overview(run)
        live = asdict(overview[0].live) if overview and overview[0].live else None
        series = {key: curve_view(curve) for key, curve in found.items()}
        return _sse("metrics", {"run": run, "series": series, "live": live}, number)


def curve_view(curve: Curve) -> dict[str, Any]:
    """A curve as it is sent."""
    return {"step": curve.step, "mean": curve.mean, "min": curve.low, "max": curve.high}


def _sse(event: str, data: Any, number: int | None = None) -> bytes:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {event}\ndata: {json.dumps(data)}\n\n".encode()
