"""The real server and the real dashboard, as processes with a home of their own, and a headless browser on them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT, TEXT

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("nicegui", reason="nicegui is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SMALL: dict[str, Any] = {"d_model": 32, "nhead": 2, "num_layers": 1, "max_seq_len": 256}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Process:
    """A program of ours that answers HTTP."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, answers: str) -> None:
        self.command, self.env, self.log, self.answers = command, env, log, answers
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=ROOT,
                env=self.env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(self.answers, timeout=5, trust_env=False).status_code < 500:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(f"{self.answers} did not answer: {self.log.read_text()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


class Site:
    """A server and a dashboard.

    Attributes:
        address: of the dashboard.
        data: id of an uploaded text.
    """

    def __init__(self, home: Path) -> None:
        env = {key: value for key, value in os.environ.items() if key not in ("BTLM_TOKEN", "MCP_SERVER_ADDR")}
        env |= {"BTLM_HOME": str(home), "OMP_NUM_THREADS": "1"}
        port = free_port()
        self.api = f"http://127.0.0.1:{port}/api"
        server = ["mcp_server.py", "--port", str(port)]
        self.server = Process(server, env, home / "server.log", f"{self.api}/health")
        env |= {"MCP_SERVER_ADDR": f"http://127.0.0.1:{port}"}
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        app = ["-m", "bit_transformer.dashboard_app", "--port", str(port), "--no-browser"]
        self.dashboard = Process(app, env, home / "dashboard.log", self.address)
        self.token = (home / "token").read_text().strip()
        self.data = str(self.post("uploads?name=text.txt", TEXT)["id"])

    def ask(self, method: str, path: str, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = httpx.request(method, f"{self.api}/{path}", headers=headers, timeout=60, trust_env=False, **more)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None) -> Any:
        return self.ask("POST", path, **({"content": body} if isinstance(body, bytes) else {"json": body or {}}))

    def train(self, name: str, **fields: Any) -> None:
        """Start a small training."""
        train = {"batch_size": 4, "eval_bytes": 512, "telemetry": 0.1, **fields}
        request = {"out": name, "model": SMALL, "train": train, "data": {"corpora": [self.data]}, "eval_bytes": 1024}
        self.post("jobs", {"operation": "train", "request": request})

    def wait(self, name: str, *statuses: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until a run has one of these statuses."""
        until, row = time.monotonic() + seconds, {}
        while time.monotonic() < until:
            row = next((row for row in self.ask("GET", "runs") if row["id"] == name), {})
            if row.get("status") in statuses:
                return row
            time.sleep(0.2)
        raise AssertionError(f"{name}: {row}; {self.ask('GET', 'jobs')[:2]}")

    def close(self) -> None:
        for job in self.ask("GET", "jobs"):
            if job["state"] in ("queued", "running"):
                self.post(f"jobs/{job['id']}/stop")
        until = time.monotonic() + 20
        while time.monotonic() < until and any(job["state"] == "running" for job in self.ask("GET", "jobs")):
            time.sleep(0.2)
        self.dashboard.stop()
        self.server.stop()


@pytest.fixture(scope="package")  # not longer: where Playwright runs, asyncio.run cannot
def chromium() -> str:
    found = os.environ.get("BTLM_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no chromium: install Debian's package chromium, or name one in BTLM_CHROMIUM")
    return found


@pytest.fixture(scope="package")  # not longer: where Playwright runs, asyncio.run cannot
def browser(chromium: str) -> Iterator[Any]:
    switches = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=chromium, args=switches)
        yield made
        made.close()


@pytest.fixture(scope="package")  # not longer: where Playwright runs, asyncio.run cannot
def site(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("home"))
    made.train("first", steps=40)
    yield made
    made.close()


@pytest.fixture
def open_page(browser: Any, site: Site) -> Iterator[Callable[..., Any]]:
    """Opens pages. At the end of a test, none of them may have asked another host, or have met an error."""
    contexts: list[Any] = []
    asked: set[str] = set()
    faults: list[str] = []

    def open_(path: str, *, width: int = 1280, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": 900 if width > 500 else 844}, color_scheme=scheme, base_url=site.address
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: asked.add(urlsplit(socket.url).netloc))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.goto(path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert asked <= {urlsplit(site.address).netloc, ""}, asked
    assert not faults, faults


@pytest.fixture
def shot(tmp_path: Path) -> Callable[[Any, str], None]:
    """Keeps a screenshot, in BTLM_SCREENSHOTS if that is set."""
    folder = Path(os.environ.get("BTLM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Any, name: str) -> None:
        page.wait_for_timeout(250)  # drawn
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return take
