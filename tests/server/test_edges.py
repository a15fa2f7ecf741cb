"""What is rare: readers that were away for long, questions nobody waits for any more, a full disk, checkpoints that cannot be kept."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn

from bit_transformer.runs.store import Live, RunStore
from bit_transformer.server import events, inference
from bit_transformer.server.app import create_app
from bit_transformer.server.events import Feed
from bit_transformer.server.inference import InferenceProcess
from bit_transformer.service.home import Home
from bit_transformer.service.jobs import Job, Notice
from bit_transformer.service.observers import Checkpoints
from bit_transformer.service.steering import Clock, Steering
from tests.conftest import TEXT
from tests.server.conftest import QUICK, TINY, Server, wait_for

# ---- readers of events ----


class Reader:
    """Takes events apart: ids in order, and (event, data)."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.got: list[tuple[str, Any]] = []
        self.rest = ""

    def take(self, text: bytes) -> None:
        whole, _, self.rest = (self.rest + text.decode()).rpartition("\n\n")
        for block in whole.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "id" in fields:
                self.ids.append(int(fields["id"]))
            if "event" in fields:
                self.got.append((fields["event"], json.loads(fields["data"])))

    def happened(self) -> list[int]:
        """Ids of happenings, in the order in which they came."""
        return [data["id"] for event, data in self.got if event == "happening"]


@contextlib.contextmanager
def served(home: Home) -> Iterator[str]:
    """The address of a server in a thread of this process, in which constants can be changed."""
    config = uvicorn.Config(create_app(home, device="cpu"), port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def read(url: str, after: int, until: int, reader: Reader | None = None) -> Reader:
    """Read events over HTTP until there is one with this id, or a later one; then the connection is closed."""
    reader = reader or Reader()
    with httpx.stream("GET", f"{url}/api/events?after={after}", timeout=30) as stream:
        for text in stream.iter_bytes():
            reader.take(text)
            if reader.ids and reader.ids[-1] >= until:
                return reader
    raise AssertionError("the stream ended")


def add(store: RunStore, count: int, run: str = "a") -> list[int]:
    """Let something happen; the ids of it."""
    before = store.last_event()
    for step in range(count):
        store.add_happening(run, step, "sample", {"data": ""})
    return list(range(before + 1, before + count + 1))


@pytest.fixture
def few_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 8)
    monkeypatch.setattr(events, "BATCH", 5)
    monkeypatch.setattr(events, "LOOK", 0.02)


def test_a_reader_that_was_cut_off_for_long_gets_every_event_once_and_in_order(home, few_kept):
    home.store.begin("a", home.runs / "a", {"model": TINY, "train": {}, "data": {}})
    first = home.store.last_event()
    last = first + 82
    with served(home) as url:
        stays = Reader()  # so that events go through memory, and out of it again
        thread = threading.Thread(target=read, args=(url, first, last, stays))
        thread.start()
        expected = add(home.store, 10)
        cut = read(url, first, expected[4])
        assert cut.happened() == expected[: len(cut.happened())]
        expected += add(home.store, 50)
        home.store.add_metrics("a", [(step, "train_bpb", 1.0) for step in range(1, 40)])
        home.store.add_metrics("a", [(40, "train_bpb", 2.0)])
        wait_for(lambda: stays.ids and stays.ids[-1] == last - 20)
        adds = threading.Thread(target=lambda: expected.extend(add(home.store, 20)))  # while it catches up
        adds.start()
        read(url, cut.ids[-1], last, cut)
        adds.join()
        thread.join(30)
    assert expected[-1] == last and cut.happened() == expected and stays.happened() == expected
    assert cut.ids == sorted(set(cut.ids)) and cut.ids[-1] == last
    curves = [data["series"]["train_bpb"] for event, data in cut.got if event == "metrics"]
    assert curves[0]["step"] == list(range(1, 41)) and curves[0]["mean"][-1] == 2.0
    assert "reset" not in [event for event, _ in cut.got + stays.got]


def test_a_slow_reader_holds_up_nobody_and_misses_nothing(home, few_kept):
    home.store.begin("a", home.runs / "a", {"model": TINY, "train": {}, "data": {}})

    async def take(stream: AsyncIterator[bytes], reader: Reader, last: int) -> None:
        async for text in stream:
            reader.take(text)
            if reader.ids and reader.ids[-1] >= last:
                return

    async def scenario() -> tuple[Reader, Reader, list[int]]:
        feed, slow, quick = Feed(home), Reader(), Reader()
        feed.start()
        lags, keeps_up = feed.stream(None, None), feed.stream(None, None)
        await anext(lags)
        await anext(keeps_up)
        expected = add(home.store, 5)
        slow.take(await asyncio.wait_for(anext(lags), 10))  # and then it reads nothing for long
        await asyncio.wait_for(take(keeps_up, quick, expected[-1]), 10)
        for _ in range(6):
            expected += add(home.store, 7)
            await asyncio.wait_for(take(keeps_up, quick, expected[-1]), 10)
        assert feed.first > expected[10]  # what it has not read is no longer in memory
        await asyncio.wait_for(take(lags, slow, expected[-1]), 10)
        expected += add(home.store, 3)
        await asyncio.wait_for(take(lags, slow, expected[-1]), 10)
        await asyncio.wait_for(take(keeps_up, quick, expected[-1]), 10)
        await lags.aclose()
        await keeps_up.aclose()
        assert feed.readers == 0
        await feed.close()
        return slow, quick, expected

    slow, quick, expected = asyncio.run(scenario())
    assert slow.happened() == expected and quick.happened() == expected and quick.ids == expected
    assert slow.ids == sorted(set(slow.ids))


def test_a_reader_that_missed_too_much_is_told_to_read_everything_anew(home, few_kept, monkeypatch):
    monkeypatch.setattr(events, "MOST_MISSED", 30)
    home.store.begin("a", home.runs / "a", {"model": TINY, "train": {}, "data": {}})
    first = home.store.last_event()
    add(home.store, 40)
    last = home.store.last_event()
    with served(home) as url:
        away = read(url, first, last)
        assert away.got == [("reset", {})] and away.ids == [last]
        after = add(home.store, 3)  # from there on it misses nothing
        read(url, last, after[-1], away)
        assert away.happened() == after
        just = read(url, after[-1] - 30, after[-1])  # as much as may be missed
        assert just.happened() == list(range(after[-1] - 29, after[-1] + 1))


# ---- questions that nobody waits for any more ----


def processes(home: Path) -> list[int]:
    """Ids of the processes that keep a home's models."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if b"bit_transformer.service.inference_process" in words and str(home).encode() in words:
                found.append(int(name))
    return found


def long_question(seconds: float = 60.0) -> dict[str, Any]:
    """A question that takes so long, and says how far it is."""
    return {"model": TINY, "train": {**QUICK, "eval_bytes": 128}, "seconds": seconds}


def test_a_question_that_the_client_gave_up_is_cancelled_and_the_next_one_answered(start):
    server: Server = start()
    server.post("/api/operations/estimate_time", long_question(0.1))  # the process is there
    before = processes(server.home)
    data = server.http.post("/api/uploads?name=text.txt", content=TEXT).json()["id"]
    headers = server.http.headers
    with httpx.Client(base_url=server.url, headers=headers, timeout=3) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/api/operations/estimate_time", json=long_question())
    began = time.monotonic()
    counted = server.post("/api/operations/histogram", {"name": data})
    assert counted["bytes"] == len(TEXT) and time.monotonic() - began < 30
    assert processes(server.home) == before and len(before) == 1  # it was told, not killed
    # A stream that is closed is given up too.
    with httpx.stream(
        "POST",
        f"{server.url}/api/operations/estimate_time/stream",
        json=long_question(),
        headers=headers,
        timeout=30,
    ) as stream:
        assert next(line for line in stream.iter_lines() if line) == "event: progress"
    began = time.monotonic()
    assert server.post("/api/operations/histogram", {"name": data}) == counted and time.monotonic() - began < 30
    assert processes(server.home) == before


def test_a_question_that_was_given_up_while_it_waited_does_not_end_the_one_at_work(home, monkeypatch):
    """Nobody waits for the second one any more; the first goes on for longer than the process may take to notice."""
    monkeypatch.setattr(inference, "PATIENCE", 1.0)

    async def scenario() -> Any:
        asker = InferenceProcess(home, "cpu")
        try:
            await asker.ask("estimate_time", long_question(0.1))
            at_work = asyncio.create_task(asker.ask("estimate_time", long_question(4.0)))
            await asyncio.sleep(0.5)
            waits = asyncio.create_task(asker.ask("estimate_time", long_question()))
            await asyncio.sleep(0.5)
            waits.cancel()
            answer = await at_work
            assert await asker.ask("estimate_time", long_question(0.1))  # in order, so the other is done with
            return answer, asker._cancelled
        finally:
            await asker.close()

    answer, left = asyncio.run(scenario())
    assert answer["measured_updates"] > 0 and not left


# ---- a full disk ----


@pytest.mark.parametrize("size", [1 << 20, 10])  # it fails while it is written; when it is closed
def test_an_upload_to_a_full_disk_is_refused_in_one_line_and_leaves_nothing(client, home, monkeypatch, size):
    plain = Home.new_upload

    def on_a_full_disk(home: Home, name: str) -> tuple[str, Path]:
        place, path = plain(home, name)
        path.symlink_to("/dev/full")
        return place, path

    with monkeypatch.context() as patched:
        patched.setattr(Home, "new_upload", on_a_full_disk)
        answer = client.post("/api/uploads?name=x", content=bytes(size))
    assert answer.status_code == 507 and set(answer.json()) == {"error", "message", "field", "tries"}
    assert os.strerror(errno.ENOSPC) in answer.json()["message"] and "\n" not in answer.json()["message"]
    assert not list(home.uploads.iterdir()) and client.get("/api/audit").json()[0]["status"] == 507
    assert client.post("/api/uploads?name=x", content=bytes(size)).status_code == 201


def test_an_upload_whose_name_cannot_be_written_leaves_nothing_either(client, home, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("bit_transformer.service.home.write_file", full)
    answer = client.post("/api/uploads?name=x", content=b"abc")
    assert answer.status_code == 507 and "\n" not in answer.json()["message"]
    assert not list(home.uploads.iterdir())


# ---- a branch of a long run ----


def test_while_a_long_history_is_copied_others_can_write(tmp_path, monkeypatch):
    """Its metrics are copied one by one; in between, other trainings and the run itself write without waiting."""
    path, keys, steps, at = tmp_path / "runs.sqlite", [f"key{number}" for number in range(10)], 5000, 4321
    store = RunStore(path)
    rows = [(step, key, float((step * 7919 + len(key)) % 1000)) for step in range(1, steps + 1) for key in keys]
    for run in ("a", "other"):
        store.begin(run, tmp_path / run, {})
    store.begin("straight", tmp_path / "straight", {})
    for first in range(0, len(rows), 5000):
        store.add_metrics("a", rows[first : first + 5000])
    store.add_metrics("straight", [row for row in rows if row[0] <= at])
    store.add_alert("a", at, "K", "adwin", 0.1)
    store.add_alert("a", at + 1, "K", "adwin", 0.1)

    monkeypatch.setattr("bit_transformer.runs.database.BUSY", 0.0)  # who finds it locked fails
    opened, written = store._open, 0

    @contextlib.contextmanager
    def in_turns(*, write: bool) -> Iterator[Any]:
        nonlocal written
        with opened(write=write) as db:
            yield db
        if write:
            written += 1
            RunStore(path).add_metrics("other", [(written, "train_bpb", 1.0)])
            RunStore(path).add_metrics("a", [(steps + written, key, 0.0) for key in keys])

    monkeypatch.setattr(store, "_open", in_turns)
    store.copy("a", "b", tmp_path / "b", {"train": {"lr": 0.1}}, at, "branched")
    copied = RunStore(path)
    assert written >= len(keys) + 1
    assert len(copied.series("other", "train_bpb")) == written and len(copied.series("a", "key0")) == steps + written
    assert copied.metric_keys("b") == keys
    for key in keys:
        assert copied.series("b", key) == copied.series("a", key)[:at] == copied.series("straight", key)
    for points in (7, 100, 100_000):
        assert copied.curves("b", keys, points) == copied.curves("straight", keys, points)
        assert copied.curves("b", keys, points, 1234) == copied.curves("straight", keys, points, 1234)
    assert copied.alerts("b") == [(at, "K", "adwin", 0.1)]
    made = copied.get("b")
    assert (made.status, made.note, made.config) == ("stopped", "branched", {"train": {"lr": 0.1}})
    assert [(e.kind, e.step) for e in copied.events(run="b")] == [("branched", at), ("run", None)]


def test_two_long_histories_are_copied_at_the_same_time(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    keys = [f"key{number}" for number in range(10)]
    for run in ("a", "b"):
        store.begin(run, tmp_path / run, {})
        store.add_metrics(run, [(step, key, float(step)) for step in range(1, 2501) for key in keys])
    done = threading.Event()
    count = 0

    def train() -> None:
        nonlocal count
        while not done.is_set():
            RunStore(store.path).add_metrics("b", [(3000 + count, "train_bpb", 1.0)])
            count += 1

    copies = [
        threading.Thread(target=RunStore(store.path).copy, args=(run, f"{run}2", tmp_path / f"{run}2", {}, 2000, ""))
        for run in ("a", "b")
    ]
    training = threading.Thread(target=train)
    for thread in (training, *copies):
        thread.start()
    for thread in copies:
        thread.join()
    done.set()
    training.join()
    assert len(store.series("b", "train_bpb")) == count > 0 and store.series("b2", "train_bpb") == []
    for run in ("a", "b"):
        assert all(store.series(f"{run}2", key) == store.series(run, key)[:2000] for key in keys)


# ---- checkpoints that cannot be kept ----


class Stays:
    """A trainer as steering sees it."""

    def __init__(self) -> None:
        self.progress = SimpleNamespace(step=0, commands=0)
        self.parallel = SimpleNamespace(size=1)
        self.changed: list[dict[str, float]] = []

    def change(self, settings: dict[str, float]) -> None:
        self.changed.append(settings)


def test_a_training_with_sharded_weights_says_that_no_checkpoint_is_kept_and_goes_on(tmp_path):
    store, heard = RunStore(tmp_path / "runs.sqlite"), list[str]()
    store.begin("a", tmp_path / "a", {})
    checkpoints = Checkpoints(tmp_path / "a", SimpleNamespace(shards=False))
    checkpoints._parts = SimpleNamespace()  # as with sharded weights, for which processes are needed
    steering = Steering(
        store,
        "a",
        save=lambda trainer: None,
        keep=checkpoints.keep,
        asked=lambda: False,
        live=lambda trainer: Live(trainer.progress.step, 0.5),
        clock=Clock(),
        job=Job(lambda message: heard.append(message.text) if isinstance(message, Notice) else None, listens=False),
    )
    trainer = Stays()
    store.add_command("a", "checkpoint")
    store.add_command("a", "change", {"lr": 0.001})
    store.add_trigger("a", "train_bpb", None, 2.0, "checkpoint")
    for step, bpb in ((1, 3.0), (2, 1.5), (3, 1.4)):
        trainer.progress.step = step
        steering.looked = 0.0  # look now
        steering(trainer, {"step": step, "train_bpb": bpb})
    happened = [(e.step, e.kind) for e in store.events(run="a", without=["run", "rewound"])]
    assert happened == [(1, "notice"), (1, "changed"), (2, "trigger"), (2, "notice")]
    texts = [e.detail["text"] for e in store.events(run="a") if e.kind == "notice"]
    assert all(text.startswith("no checkpoint was kept: got sharded weights") for text in texts), texts
    assert trainer.changed == [{"lr": 0.001}] and store.commands("a") == [] and store.triggers("a")[0].fired_at == 2
    assert not (tmp_path / "a" / "checkpoints").exists()
