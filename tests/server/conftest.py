"""A server in this process, and servers as processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from bit_transformer.server.app import create_app
from bit_transformer.service.home import Home
from tests.conftest import ROOT, TEXT

START = 60.0  # seconds that a busy machine may take
TINY = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "experts": None}
QUICK = {"steps": 60, "batch_size": 2, "amp": False, "eval_bytes": 512, "telemetry": 0.0, "checkpoint_seconds": 0.3}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def client(home: Home) -> Iterator[TestClient]:
    """A server in this process, asked with its token."""
    app = create_app(home, device="cpu")
    with TestClient(app, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {home.token()[0]}"}) as made:
        yield made


class Server:
    """A server as a process."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self.log = home.parent / f"{home.name}.log"
        command = [sys.executable, str(ROOT / "mcp_server.py"), "--home", str(home), "--port", "0", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=home.parent, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        found = wait_for(lambda: re.search(r"http://\S+", self.log.read_text()) or self.process.poll() is not None)
        assert found is not True, self.log.read_text()
        headers = {"Authorization": f"Bearer {(home / 'token').read_text().strip()}"}
        self.url = found[0]
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=300)  # the first generation compiles

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def train(self, name: str = "a", restarts: int = 0, **train: Any) -> int:
        data = self.http.post("/api/uploads?name=text.txt", content=TEXT).json()["id"]
        request = {"out": name, "model": TINY, "train": {**QUICK, **train}, "data": {"corpora": [data]}}
        number: int = self.post("/api/jobs", {"operation": "train", "request": request, "restarts": restarts})["id"]
        return number

    def job(self, number: int) -> dict[str, Any]:
        return self.get(f"/api/jobs/{number}")

    def ended(self, number: int) -> dict[str, Any]:
        return wait_for(lambda: (job := self.job(number))["state"] not in ("queued", "running") and job, 120)

    def row(self, run: str = "a") -> dict[str, Any]:
        return self.get(f"/api/runs/{run}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.http.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends them and their jobs with the test."""
    servers: list[Server] = []

    def make(*options: str, home: str = "home") -> Server:
        (tmp_path / home).mkdir(exist_ok=True)
        servers.append(Server(tmp_path / home, *options))
        return servers[-1]

    yield make
    for server in servers:
        server.process.terminate()
        server.process.wait()
        server.http.close()
    for lock in tmp_path.glob("*/jobs/*/lock"):
        if (process := job_process(lock)) is not None:
            os.kill(process, 9)


def job_process(lock: Path) -> int | None:
    try:
        pid = int(lock.read_text())
        return pid if b"job_process" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (OSError, ValueError):
        return None


def wait_for(what: Callable[[], Any], seconds: float = START) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise TimeoutError
