"""Servers for benchmarks: started as processes, on free ports, with homes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bit_transformer.extras import require

ROOT = Path(__file__).resolve().parents[1]
START = 60.0  # seconds that a server may take to start


class Server:
    """A management server in a process."""

    def __init__(self, home: Path, port: int = 0) -> None:
        command = [sys.executable, str(ROOT / "mcp_server.py"), "--home", str(home), "--port", str(port)]
        self.log = home.parent / f"{home.name}.log"
        with self.log.open("w") as log:
            # In a session of its own: a signal to this process group must not reach it.
            self.process = subprocess.Popen(command, cwd=home.parent, stdout=log, stderr=log, start_new_session=True)
        self.url = self._address()
        self.token = (home / "token").read_text().strip()
        httpx = require("httpx", extra="dashboard", purpose="this benchmark")
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def _address(self) -> str:
        end = time.monotonic() + START
        while time.monotonic() < end:
            if found := re.search(r"http://\S+", self.log.read_text()):
                return found[0]
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text())

    def get(self, path: str, **query: Any) -> Any:
        """A read."""
        return self.http.get(path, params=query).raise_for_status().json()

    def post(self, path: str, body: Any = None) -> Any:
        """A write."""
        return self.http.post(path, json=body).raise_for_status().json()

    def kill(self) -> None:
        """Kill it at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.http.close()


@contextlib.contextmanager
def server(home: Path) -> Iterator[Server]:
    """Within: a server."""
    home.mkdir(parents=True, exist_ok=True)
    made = Server(home)
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait()


def job_process(home: Path, job: int) -> int | None:
    """The process that says that it works on a job."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((home / "jobs" / str(job) / "lock").read_text())
        if b"job_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
