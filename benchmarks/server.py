"""What the management server costs, and whether it loses anything: a run of a million steps, a hundred readers, a training that is watched."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import harness
from servers import ROOT, Server, processor_seconds, server

from bit_transformer.runs.curves import roll_up
from bit_transformer.runs.store import Live, RunStore

KEYS = ("train_bpb", "grad_norm", "rate", "lr", "bytes", "seconds")
READERS = 100
MODEL = {"d_model": 128, "nhead": 2, "num_layers": 4, "max_seq_len": 2048, "experts": None}


def main(quick: bool) -> int:
    """Measure."""
    goals = {
        "open_1m_steps_s": "<= 1",
        "points_per_s": ">= 5",
        "server_core_share": "<= 0.05",
        "lost_events": "<= 0",
        "training_slowdown": "<= 0.03",
    }
    report = harness.Report("server", "one server, its clients on the same machine", goals)
    with tempfile.TemporaryDirectory(prefix="btlm-server-", ignore_cleanup_errors=True) as place:
        long_run(Path(place) / "long", report, 100_000 if quick else 1_000_000, 5 if quick else 30)
        many_readers(Path(place) / "many", report, 10 if quick else 60)
        watched_training(Path(place), report, 150 if quick else 300, 1 if quick else 5)
    return report.finish()


# ---- a run of a million steps ----


def long_run(home: Path, report: harness.Report, steps: int, seconds: float) -> None:
    """Open a run of so many recorded steps, then watch it while more come, ten a second."""
    store = RunStore(home / "runs.sqlite")
    fill(store, home, steps)
    report.row(
        "store of the long run", f"{store.path.stat().st_size / 1e6:,.0f} MB, {steps:,} steps of {len(KEYS)} metrics"
    )
    with server(home) as there:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            there.get("/api/runs/long")
            curves = there.get("/api/runs/long/metrics", points=600)
            times.append(time.perf_counter() - began)
        assert len(curves) == len(KEYS) and all(400 <= len(c["step"]) <= 600 for c in curves.values())
        report.row(
            "open it: the first time, and the median of five", f"{times[0]:.3f} s, {statistics.median(times):.3f} s"
        )
        report.figures["open_1m_steps_s"] = times[0]
        writer = Writer(store, "long", steps)
        with writer.running(every=0.1, rows=1), reading(there, "long") as reader:
            time.sleep(2)
            spent, seen, began = processor_seconds(there.process.pid), reader.points, time.perf_counter()
            time.sleep(seconds)
            elapsed = time.perf_counter() - began
            spent, seen = processor_seconds(there.process.pid) - spent, reader.points - seen
        report.figures["points_per_s"] = seen / elapsed
        report.figures["server_core_share"] = spent / elapsed


def fill(store: RunStore, home: Path, steps: int) -> None:
    """Record a run of many steps; by one statement, which is faster than as a training does."""
    store.begin("long", home / "runs" / "long", {"model": MODEL, "train": {}, "data": {}})
    with store._open(write=True) as db:
        for key in KEYS:
            query = """WITH RECURSIVE counted (step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM counted WHERE step < ?)
                INSERT INTO metrics SELECT 'long', ?, step, 2 + ABS(RANDOM() % 1000) / 1000.0 FROM counted"""
            db.execute(query, (steps, key))
            roll_up(db, "long", [key], 0)


class Writer:
    """Writes to a store as a training does."""

    def __init__(self, store: RunStore, run: str, step: int = 0) -> None:
        self.store, self.run, self.step = store, run, step
        self.closed = threading.Event()

    @contextmanager
    def running(self, every: float, rows: int) -> Iterator[None]:
        """Within: it writes rows of all metrics each so many seconds."""

        def write() -> None:
            while not self.closed.wait(every):
                new = range(self.step + 1, self.step + 1 + rows)
                self.step += rows
                live = Live(self.step, 0.5, 60.0, 1e5)
                self.store.add_metrics(self.run, [(s, key, 2 + random.random()) for s in new for key in KEYS], live)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            self.closed.set()
            thread.join()


# ---- event streams ----


class Reader:
    """Reads an event stream; keeps the ids that it saw, and how many points of the loss."""

    def __init__(self, there: Server, run: str = "", draw: random.Random | None = None) -> None:
        self.address, self.run, self.draw = urlsplit(there.url), run, draw
        self.ids: list[int] = []
        self.points = 0
        self.cuts = 0
        self.cursor: int | None = None
        self.until: int | None = None

    async def read(self) -> None:
        """Read until the event `until`; with `draw`, break off now and then and go on from the cursor."""
        while True:
            reader, writer = await asyncio.open_connection(self.address.hostname, self.address.port)
            after = "" if self.cursor is None else f"&after={self.cursor}"
            text = f"GET /api/events?run={self.run}{after} HTTP/1.1\r\nHost: {self.address.netloc}\r\n\r\n"
            writer.write(text.encode())
            leave = time.monotonic() + (self.draw.uniform(1, 15) if self.draw else 1e9)
            kind = ""
            while time.monotonic() < leave:
                try:
                    raw = await asyncio.wait_for(reader.readline(), 0.5)
                except asyncio.TimeoutError:
                    if self.until is not None and (self.cursor or 0) >= self.until:
                        break
                    continue
                if not raw:  # the server has closed it
                    break
                line = raw.decode().strip()
                if line.startswith("id: "):
                    self.cursor = int(line[4:])
                    self.ids.append(self.cursor)
                elif line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: ") and kind == "metrics":
                    self.points += len(json.loads(line[6:])["series"]["train_bpb"]["step"])
            writer.close()
            if self.until is not None and (self.cursor or 0) >= self.until:
                return
            self.cuts += 1


@contextmanager
def reading(there: Server, run: str) -> Iterator[Reader]:
    """Within: a reader in a thread."""
    reader = Reader(there, run)

    async def read() -> None:
        await asyncio.wait([asyncio.create_task(reader.read())], timeout=3600)

    thread = threading.Thread(target=asyncio.run, args=(read(),), daemon=True)
    thread.start()
    yield reader
    reader.until = 0
    thread.join(5)


def many_readers(home: Path, report: harness.Report, seconds: float) -> None:
    """A hundred readers for a minute; a third of them are cut off now and then. Each must have every event, in order."""
    store = RunStore(home / "runs.sqlite")
    store.begin("many", home / "runs" / "many", {"model": MODEL, "train": {}, "data": {}})
    with server(home) as there:
        first = store.last_event()
        readers = [Reader(there, draw=random.Random(i) if i % 3 == 0 else None) for i in range(READERS)]
        for reader in readers:
            reader.cursor = first
        spent = processor_seconds(there.process.pid)

        async def all_of_them() -> None:
            tasks = [asyncio.create_task(reader.read()) for reader in readers]
            await asyncio.sleep(2)
            with Writer(store, "many").running(every=0.1, rows=5):
                for number in range(int(seconds * 5)):
                    await asyncio.sleep(0.2)
                    store.add_happening("many", number, "notice", {"text": f"number {number}"})
            last = store.last_event()
            for reader in readers:
                reader.until = last
            await asyncio.wait_for(asyncio.gather(*tasks), 60)

        asyncio.run(all_of_them())
        spent = processor_seconds(there.process.pid) - spent
        wanted = {event.id for event in store.events(first, most=1 << 30)}
        lost, again, disorder = 0, 0, 0
        for reader in readers:
            # After a gap, events come together under the last one's id; ids between two cursors count as received then.
            got = set(reader.ids)
            missing = wanted - got
            lost += len(missing) if reader.cuts == 0 else len({id for id in missing if id > max(got)})
            again += len(reader.ids) - len(got)
            disorder += sum(b <= a for a, b in zip(reader.ids, reader.ids[1:], strict=False))
        report.figures["lost_events"] = float(lost)
        cuts = sum(reader.cuts for reader in readers)
        report.row(
            f"{READERS} readers, {seconds:.0f} s", f"{len(wanted):,} events each; {cuts} times cut off and gone on"
        )
        report.row("events that came twice, or out of order", f"{again}, {disorder}")
        report.row("cores that the server took for them", f"{spent / seconds:.2f}")


# ---- a training that is watched ----


def watched_training(place: Path, report: harness.Report, steps: int, rounds: int) -> None:
    """The same training alone, and as a job with server, dashboard and a browser on its page, in turn."""
    speeds: dict[str, list[float]] = {"alone": [], "watched": []}
    for number in range(rounds):
        for kind in ("alone", "watched") if number % 2 == 0 else ("watched", "alone"):
            speeds[kind].append(training(place / f"{kind}-{number}", steps, watched=kind == "watched"))
    ratios = [w / a for w, a in zip(speeds["watched"], speeds["alone"], strict=True)]
    middle = statistics.median(ratios)
    report.row(
        "updates a second: alone, watched",
        f"{statistics.median(speeds['alone']):.1f}, {statistics.median(speeds['watched']):.1f}",
    )
    report.row(f"watched / alone, {rounds} pairs", f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    report.figures["training_slowdown"] = 1 - middle


def training(home: Path, steps: int, *, watched: bool) -> float:
    """Updates a second of a training, without its first tenth."""
    home.mkdir()
    train: dict[str, Any] = {"steps": steps, "batch_size": 8, "eval_bytes": 4096, "average": 0.0}
    request = {"out": "run", "model": MODEL, "train": train, "data": {"corpora": ["stdlib"]}}
    os.environ["OMP_NUM_THREADS"] = "1"
    if watched:
        with server(home) as there, dashboard(there, home):
            job = there.post("/api/jobs", {"operation": "train", "request": request})["id"]
            while there.get(f"/api/jobs/{job}")["state"] in ("queued", "running"):
                time.sleep(1)
    else:  # the very same request, in a process of its own
        code = "import json, sys; from bit_transformer.service.operations import call; from bit_transformer.service.workspace import Workspace; "
        code += "from pathlib import Path; call('train', json.loads(sys.argv[1]), Workspace(Path('runs.sqlite')))"
        subprocess.run([sys.executable, "-c", code, json.dumps(request)], cwd=home, check=True, capture_output=True)
    times = dict(RunStore(home / "runs.sqlite").series("run", "seconds"))
    begin = steps // 10
    return (steps - begin) / (times[steps] - times[begin])


@contextmanager
def dashboard(there: Server, home: Path) -> Iterator[None]:
    """Within: a dashboard of the server, and a browser on the run's page, if there is one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bit_transformer.dashboard_app", "--port", str(port), "--no-browser"]
    environment = {**os.environ, "MCP_SERVER_ADDR": there.url, "BTLM_HOME": str(home)}
    with (home / "dashboard.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        page = browser(f"http://127.0.0.1:{port}/runs/run", home)
        try:
            yield
        finally:
            for started in (page, process):
                if started is not None:
                    started.terminate()
                    started.wait()


def browser(url: str, home: Path) -> subprocess.Popen[bytes] | None:
    """A headless Chromium that opens a page once the dashboard is there and stays on it."""
    import shutil

    path = shutil.which("chromium")
    if path is None:
        return None
    code = (
        "import sys, time\n"
        "from playwright.sync_api import sync_playwright\n"
        "with sync_playwright() as p:\n"
        "    page = p.chromium.launch(executable_path=sys.argv[2], args=['--no-sandbox']).new_page()\n"
        "    for _ in range(60):\n"
        "        try:\n"
        "            page.goto(sys.argv[1])\n"
        "            break\n"
        "        except Exception:\n"
        "            time.sleep(0.5)\n"
        "    time.sleep(3600)\n"
    )
    with (home / "browser.log").open("w") as log:
        return subprocess.Popen([sys.executable, "-c", code, url, path], stdout=log, stderr=log)


if __name__ == "__main__":
    harness.run(main, __doc__)
