"""Servers as processes: trainings that outlive them, kills, restarts, damage, and what is said where a server cannot start."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from bit_transformer.service.home import Home
from bit_transformer.tensor_file import read_tensors
from tests.conftest import ROOT, TEXT
from tests.server.conftest import QUICK, TINY, Server, job_process, wait_for

pytestmark = pytest.mark.timeout(300)


def tables(server: Server, run: str) -> dict[str, bytes]:
    tensors, _ = read_tensors(server.home / "runs" / run / "training.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_training_is_steered_killed_and_resumed_over_http(start):
    """One training goes through all of it, and ends as another that was only changed after the same update."""
    server = start()
    job = server.train("a", steps=4000, restarts=0)
    wait_for(lambda: server.http.get("/api/runs/a").status_code == 200 and server.row()["step"] > 5)
    server.post("/api/runs/a/pause")
    paused = wait_for(lambda: (row := server.row())["status"] == "paused" and row)
    server.post("/api/runs/a/step", {"updates": 2})
    wait_for(lambda: (row := server.row())["status"] == "paused" and row["step"] == paused["step"] + 2)
    server.post("/api/runs/a/checkpoint")
    kept = f"a@{paused['step'] + 2}"
    wait_for(lambda: kept in [c["name"] for c in server.get("/api/runs/a/checkpoints")])
    server.post("/api/runs/a/continue")
    wait_for(lambda: server.row()["status"] == "running")
    # The worker is killed: that shows, and nothing past the last checkpoint is lost.
    os.kill(job_process(server.home / "jobs" / str(job) / "lock"), signal.SIGKILL)
    killed = server.ended(job)
    assert killed["state"] == "killed" and "killed by signal 9" in killed["error"]["message"]
    assert server.row()["status"] == "killed"
    assert server.http.post("/api/runs/a/pause").status_code == 409
    again = server.post("/api/runs/a/resume", {"budget": {"steps": 6000}})["id"]
    wait_for(lambda: server.row()["status"] == "running")
    server.post("/api/runs/a/stop")
    assert server.ended(again)["state"] == "stopped" and server.row()["status"] == "stopped"
    step = server.row()["step"]
    assert step > paused["step"]
    made = server.post(
        "/api/runs/a/branch", {"out": "b", "step": paused["step"] + 2, "train": {"steps": paused["step"] + 30}}
    )
    assert made == {"id": "b", "step": paused["step"] + 2, "changed": {"steps": paused["step"] + 30}}
    assert server.ended(server.post("/api/runs/b/resume")["id"])["state"] == "finished"
    assert server.row("b")["step"] == paused["step"] + 30 and server.row("b")["result"]["bpb"] > 0
    text = server.post("/api/operations/generate", {"run": kept, "prompts": ["YQ=="], "max_bytes": 8})
    assert len(text["data"]) == 1
    kinds = [e["kind"] for e in server.get("/api/runs/a/happenings")]
    assert [k for k in kinds if k in ("paused", "stepped", "checkpoint", "continued")][:5] == [
        "paused",
        "stepped",
        "paused",
        "checkpoint",
        "continued",
    ]
    assert server.http.delete("/api/runs/b?files=true").status_code == 200
    assert not (server.home / "runs" / "b").exists()


def test_a_training_outlives_its_server_and_is_found_again(start):
    server = start()
    whole = server.train("whole", steps=1000)
    job = server.train("a", steps=1000, restarts=3)
    wait_for(lambda: server.http.get("/api/runs/a").status_code == 200 and server.row()["step"] > 5, 120)
    assert server.job(whole)["state"] == "finished"  # one at a time, in order
    server.post("/api/runs/a/pause")  # so that it does not end meanwhile
    wait_for(lambda: server.row()["status"] == "paused")
    process = job_process(server.home / "jobs" / str(job) / "lock")
    server.kill()
    assert job_process(server.home / "jobs" / str(job) / "lock") == process
    other = start()
    assert other.job(job)["state"] == "running" and other.row()["status"] == "paused"
    os.kill(process, signal.SIGKILL)  # it has leave to be started again
    wait_for(lambda: other.job(job)["restarts_left"] == 2)
    assert other.ended(job)["state"] == "finished"
    assert tables(other, "a") == tables(other, "whole")
    texts = [e["detail"]["text"] for e in other.get("/api/runs/a/happenings") if e["kind"] == "notice"]
    assert any("was started again" in text for text in texts)


@pytest.mark.slow
def test_a_training_in_several_processes_ends_with_its_job_and_is_started_again(start):
    server = start()
    data = server.http.post("/api/uploads?name=text.txt", content=TEXT).json()["id"]
    train = {**QUICK, "steps": 3000, "batch_size": 4}
    request = {"out": "a", "model": TINY, "train": train, "data": {"corpora": [data]}, "distributed": {"nproc": 2}}
    job = server.post("/api/jobs", {"operation": "train", "request": request, "restarts": 1})["id"]
    wait_for(lambda: (server.home / "runs" / "a" / "training.safetensors").exists(), 120)
    os.kill(job_process(server.home / "jobs" / str(job) / "lock"), signal.SIGKILL)
    wait_for(lambda: server.job(job)["restarts_left"] == 0)
    assert server.ended(job)["state"] == "finished", server.job(job)["error"]


def test_a_run_that_is_replaced_is_not_gone_on_with(start):
    server = start()
    server.ended(server.train("a", steps=30))
    data = server.http.post("/api/uploads?name=text.txt", content=TEXT).json()["id"]
    request = {
        "out": "a",
        "model": {**TINY, "d_model": 32},
        "train": {**QUICK, "steps": 40},
        "data": {"corpora": [data]},
    }
    asked = {"operation": "train", "request": {**request, "overwrite": True}, "restarts": 2}
    job = server.post("/api/jobs", asked)["id"]
    process = wait_for(lambda: job_process(server.home / "jobs" / str(job) / "lock"))
    os.kill(process, signal.SIGKILL)  # while it loads: the folder still holds the old run
    assert server.ended(job)["state"] == "finished"
    assert server.row()["step"] == 40 and server.row()["config"]["model"]["d_model"] == 32


def test_jobs_wait_are_stopped_and_removed(start):
    server = start()
    first, second = server.train("a", seconds=120.0, steps=None), server.train("b")
    wait_for(lambda: server.job(first)["state"] == "running")
    assert server.job(second)["state"] == "queued"
    assert server.get("/api/system")["queue"] == {"running": 1, "queued": 1, "limit": 1}
    assert server.http.delete(f"/api/jobs/{first}").status_code == 422
    server.post(f"/api/jobs/{second}/stop")
    assert server.job(second)["state"] == "stopped"
    wait_for(lambda: server.http.get("/api/runs/a").status_code == 200)
    server.post(f"/api/jobs/{first}/stop")
    assert server.ended(first)["state"] == "stopped"
    assert server.http.post(f"/api/jobs/{first}/stop").status_code == 422
    assert server.http.delete(f"/api/jobs/{first}").status_code == 200
    assert [job["id"] for job in server.get("/api/jobs")] == [second]


def test_a_failed_job_says_why(start):
    server = start()
    data = server.http.post("/api/uploads?name=x", content=b"short").json()["id"]
    request = {"out": "a", "model": TINY, "train": QUICK, "data": {"corpora": [data]}}
    job = server.ended(server.post("/api/jobs", {"operation": "train", "request": request})["id"])
    assert (
        job["state"] == "failed" and job["error"]["error"] == "BitStreamError" and "\n" not in job["error"]["message"]
    )
    assert "BitStreamError" in server.get(f"/api/jobs/{job['id']}/log")["text"]


def test_files_are_compressed_and_come_back(start):
    server = start()
    data = server.http.post("/api/uploads?name=text.txt", content=TEXT).json()["id"]
    packed = server.ended(server.post("/api/jobs", {"operation": "compress", "request": {"path": data}})["id"])
    assert packed["state"] == "finished", packed["error"]
    names = {source["id"]: source for source in server.get("/api/corpora")}
    assert names[packed["request"]["out"]]["name"] == "text.txt.btlm" and names[packed["request"]["out"]][
        "bytes"
    ] < len(TEXT)
    asked = {"operation": "decompress", "request": {"path": packed["request"]["out"]}}
    unpacked = server.ended(server.post("/api/jobs", asked)["id"])
    number = unpacked["request"]["out"].removeprefix("upload:")
    assert server.http.get(f"/api/uploads/{number}").content == TEXT


def test_events_come_as_they_happen_and_after_a_cursor_none_is_missing(start):
    server = start()
    store = Home(server.home).store
    store.begin("a", server.home / "runs" / "a", {"model": TINY, "train": {}, "data": {}})
    ids: list[int] = []
    kinds: list[str] = []

    def read(after: int, until: int) -> None:
        with httpx.stream("GET", f"{server.url}/api/events?run=a&after={after}", timeout=30) as stream:
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    ids.append(int(line[4:]))
                elif line.startswith("event: "):
                    kinds.append(line[7:])
                if ids and ids[-1] >= until and not line:  # the event's end
                    return

    first = store.last_event()
    reader = threading.Thread(target=read, args=(first, first + 20))
    reader.start()
    time.sleep(1)
    for step in range(1, 11):
        store.add_metrics("a", [(step, "train_bpb", float(step))])
        store.add_happening("a", step, "sample", {"data": ""})
        time.sleep(0.02)
    reader.join(30)
    assert ids == list(range(first + 1, first + 21)) and kinds == ["metrics", "happening"] * 10
    # Who was away gets one curve and all happenings, and the cursor at the end.
    server.kill()
    store.go_on("a", 5)
    store.add_metrics("a", [(6, "train_bpb", 0.5)])
    again = start()
    server.url, before = again.url, ids[-1]
    ids.clear()
    kinds.clear()
    read(before - 10, store.last_event())
    assert ids == [store.last_event()] and kinds[:2] == ["rewound", "metrics"] and "run" in kinds
    ids.clear()
    kinds.clear()
    with httpx.stream(
        "GET", f"{server.url}/api/events", headers={"Last-Event-ID": str(store.last_event() - 1)}, timeout=30
    ) as stream:
        assert (
            next(line for line in stream.iter_lines() if line.startswith("id: ")) == f"id: {store.last_event()}"
        )  # as browsers go on
    reader = threading.Thread(target=read, args=(1 << 40, 1))  # of another database
    reader.start()
    reader.join(30)
    assert kinds == ["reset"] and ids == [store.last_event()]


def test_a_damaged_database_is_kept_and_a_new_one_begun(start):
    server = start()
    server.ended(server.train("a"))
    server.kill()
    database = server.home / "runs.sqlite"
    for part in server.home.glob("runs.sqlite-*"):
        part.unlink()
    data = bytearray(database.read_bytes())
    data[:200] = bytes(200)
    database.write_bytes(data)
    again = start()
    assert (server.home / "runs.sqlite.damaged-1").read_bytes() == bytes(data)
    assert "the database was damaged; it is kept as runs.sqlite.damaged-1" in again.get("/api/health")["notes"][0]
    assert [(run["id"], run["status"]) for run in again.get("/api/runs")] == [("a", "stopped")]
    assert [c["name"] for c in again.get("/api/checkpoints")] == ["a"]


def says(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "mcp_server.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def test_where_a_server_cannot_start_it_says_why_in_one_line(start, tmp_path):
    server = start()
    port = int(server.url.rpartition(":")[2])
    busy = says("--home", str(tmp_path / "other"), "--port", str(port))
    assert busy.returncode == 2 and re.fullmatch(
        rf"mcp_server: 127.0.0.1:{port}: cannot be listened on \(Address already in use\). Try --port \d+, or --port 0.*\n",
        busy.stderr,
    )
    twice = says("--home", str(server.home), "--port", "0")
    assert twice.returncode == 2 and "another server uses this home" in twice.stderr and twice.stderr.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert says("--home", str(tmp_path / "file"), "--port", "0").returncode == 2
    assert says("--home", str(tmp_path / "x"), "--port", "0", "--data", "/none").returncode == 2
    assert says("--home", str(tmp_path / "x"), "--port", "0", "--jobs", "0").returncode == 2
    foreign = says("--home", str(tmp_path / "x"), "--host", "203.0.113.9", "--port", "0")
    assert foreign.returncode == 2 and "cannot be listened on" in foreign.stderr


def test_a_body_of_a_gigabyte_is_refused_early_with_flat_memory(start):
    server = start()
    memory = memory_of(server.process.pid)
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    head = (
        "POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        + f"Authorization: {server.http.headers['authorization']}\r\n"
    )
    with socket.create_connection(address, timeout=30) as stream:
        stream.sendall(f"{head}Content-Length: {1 << 30}\r\n\r\n".encode())
        assert stream.recv(100).startswith(b"HTTP/1.1 413")  # before a byte of it was sent
    sent = 0
    with socket.create_connection(address, timeout=30) as stream:  # without a length
        stream.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        try:
            while sent < 1 << 30:
                stream.sendall(piece)
                sent += 1 << 20
        except OSError:
            pass
    assert sent < 400 << 20
    assert memory_of(server.process.pid) - memory < 64 << 20
    assert not list((server.home / "uploads").iterdir())
    assert server.get("/api/health")["status"] == "ok"


def memory_of(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_process_with_the_models_is_started_again_when_it_was_killed(start):
    server = start()
    server.ended(server.train("a"))
    ask = {"run": "a", "prompts": ["YQ=="], "max_bytes": 4, "sampling": {"seed": 1}}
    first = server.post("/api/operations/generate", ask)
    (process,) = [
        int(name)
        for name in os.listdir("/proc")
        if name.isdigit()
        and (command := _command(name))
        and b"inference_process" in command
        and str(server.home).encode() in command
    ]
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: server.http.post("/api/operations/generate", json=ask).status_code == 200)
    assert server.post("/api/operations/generate", ask) == first
    refused = server.http.post("/api/operations/generate", json={**ask, "max_bytes": 0})
    assert refused.status_code == 422 and refused.json()["field"] == "max_bytes"
    with httpx.stream(
        "POST", f"{server.url}/api/operations/generate/stream", json=ask, headers=server.http.headers
    ) as stream:
        lines = [line for line in stream.iter_lines() if line]
    pieces = [json.loads(data[6:])["data"] for event, data in itertools.pairwise(lines) if event == "event: piece"]
    assert b"".join(map(base64.b64decode, pieces)) == base64.b64decode(first["data"][0]) and lines[-2:] == [
        "event: result",
        "data: null",
    ]
    explained = server.http.post("/api/operations/histogram", json={"name": "stdlib"})
    assert explained.status_code == 200 and sum(explained.json()["counts"]) == explained.json()["bytes"]


def test_the_workflow_starts_server_and_dashboard(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    command = [sys.executable, str(ROOT / "unified_workflow.py"), "--dashboard", "--corpus", str(tmp_path / "text.txt")]
    environment = {**os.environ, "BTLM_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("MCP_SERVER_ADDR", None)
    with (tmp_path / "log").open("w") as log:
        options = ["--dataset-size", "20000", "--batch-size", "2"]
        process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: "stay until Ctrl-C" in (tmp_path / "log").read_text() or process.poll() is not None, 120)
        assert process.poll() is None, (tmp_path / "log").read_text()
        server, dashboard = re.findall(
            r"(?m)^(?:management server at|dashboard:) (http://\S+)", (tmp_path / "log").read_text()
        )
        (run,) = httpx.get(f"{server}/api/runs").json()
        assert (run["id"], run["status"]) == ("workflow", "finished")
        assert httpx.get(dashboard).status_code == 200
        process.terminate()  # not by SIGINT, which is ignored where a shell has started the tests in the background
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server}/api/health")
    finally:
        process.kill()
        process.wait()


def _command(number: str) -> bytes:
    try:
        with open(f"/proc/{number}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
