"""A run whose worker and server are killed again and again (kill -9, at random moments): it must end, equal to one that was never killed, bit for bit.

The server is started again by this script, as a service manager would do; the worker by the server, which has leave to do so. Learning rates are
changed on the way, in both runs after the same update.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from servers import Server, job_process

from bit_transformer.runs.store import RunStore
from bit_transformer.tensor_file import read_tensors

WORKER, SERVER = 50, 20
TIMES = ("seconds", "bytes_per_s", "cpu_percent", "memory")  # of the clock and the machine
CHANGE = 400  # the update after which the learning rate is changed


def main(quick: bool) -> int:
    """Measure."""
    workers, servers = (4, 2) if quick else (WORKER, SERVER)
    os.environ["OMP_NUM_THREADS"] = "1"  # another number of threads sums in another order
    report = harness.Report(
        "chaos",
        f"a training of {steps(quick):,} updates, killed at random: the worker {workers} times, the server {servers} times",
        {"kills": f">= {workers + servers}", "bitwise_equal": ">= 1", "ended": ">= 1"},
    )
    with tempfile.TemporaryDirectory(prefix="btlm-chaos-", ignore_cleanup_errors=True) as place:
        calm = run(Path(place) / "calm", quick, 0, 0, report)
        chaos = run(Path(place) / "chaos", quick, workers, servers, report)
        same = [name for name in calm if calm[name] == chaos.get(name)]
        report.row("tensors and curves that are equal", f"{len(same)} of {len(calm)}")
        for name in calm:
            if name not in same:
                report.row("not equal", name)
        report.figures["bitwise_equal"] = float(calm.keys() == chaos.keys() and len(same) == len(calm))
    return report.finish()


def steps(quick: bool) -> int:
    """Updates of the training."""
    return 1500 if quick else 4000


def run(home: Path, quick: bool, workers: int, servers: int, report: harness.Report) -> dict[str, Any]:
    """A training in a home, with so many kills; its last state and its curves."""
    home.mkdir()
    draw, server = random.Random(0), Server(home)
    data = server.http.post("/api/uploads?name=text", content=corpus()).raise_for_status().json()["id"]
    request = {
        "out": "run",
        "model": {"d_model": 64, "nhead": 2, "num_layers": 2, "max_seq_len": 1024, "experts": {"buckets": 4096}},
        "train": {"steps": steps(quick), "batch_size": 4, "amp": False, "checkpoint_seconds": 0.5},
        "data": {"corpora": [data]},
    }
    job = server.post("/api/jobs", {"operation": "train", "request": request, "restarts": 1000})["id"]
    store, began, changed = RunStore(home / "runs.sqlite"), time.monotonic(), False
    killed = {"worker": 0, "server": 0}
    wanted = {"worker": workers, "server": servers}
    due = time.monotonic() + draw.uniform(0.2, 4)
    while True:
        time.sleep(0.02)
        if not changed and store.list_runs():  # a change that is due after a certain update, in both runs
            changed = change_at(store, CHANGE)
        state = server.get(f"/api/jobs/{job}")["state"]
        if state not in ("queued", "running"):
            break
        left = [kind for kind in killed if killed[kind] < wanted[kind]]
        if not left or time.monotonic() < due:
            continue
        kind = draw.choices(left, [wanted[kind] - killed[kind] for kind in left])[0]
        if kind == "server":
            server.kill()
            server = Server(home)
        elif (pid := job_process(home, job)) is not None:
            os.kill(pid, signal.SIGKILL)
        else:
            continue
        killed[kind] += 1
        due = time.monotonic() + draw.uniform(0.5, 8)
    told = server.get(f"/api/jobs/{job}")
    name = "killed" if workers else "left alone"
    report.row(f"{name}: ended as, after", f"{told['state']}, {time.monotonic() - began:.0f} s")
    if workers:
        report.row("worker and server killed", f"{killed['worker']} and {killed['server']} times")
        report.figures["kills"] = float(sum(killed.values()))
        report.figures["ended"] = float(told["state"] == "finished")
    server.kill()
    tensors, document = read_tensors(home / "runs" / "run" / "training.safetensors")
    found: dict[str, Any] = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    found |= {f"curve {key}": store.series("run", key) for key in ("train_bpb", "val_bpb", "grad_norm", "lr")}
    found["progress"] = {
        key: value for key, value in document["progress"].items() if key not in ("seconds", "commands")
    }
    found["held out"] = told["result"] and told["result"]["comparison"]["bpb"]
    return found


def change_at(store: RunStore, step: int) -> bool:
    """Tell the run to change its learning rate after a certain update."""
    number = store.add_command("run", "change", {"lr": 0.001})
    with store._open(write=True) as db:
        db.execute("UPDATE commands SET due = ? WHERE id = ?", (step, number))
    return True


def corpus() -> bytes:
    """Some text that every machine has."""
    return b"".join(Path(file).read_bytes() for file in (os.__file__, tempfile.__file__, random.__file__) if file)


if __name__ == "__main__":
    harness.run(main, __doc__)
