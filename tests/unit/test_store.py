from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading

import numpy as np
import pytest

from bit_transformer.errors import JobNotFound, QueueFull, RunNotFound, StoreError
from bit_transformer.runs.database import Database
from bit_transformer.runs.jobs import JobStore
from bit_transformer.runs.store import RunStore


def test_a_run_is_recorded_from_beginning_to_end(tmp_path):
    store = RunStore(tmp_path / "deep" / "runs.sqlite")
    assert store.list_runs() == []
    store.begin("a", tmp_path, {"model": {"d_model": 8}})
    store.add_metrics("a", [(1, "loss", 8.0), (2, "loss", 7.0), (2, "val", 6.0)])
    store.add_metrics("a", [(2, "loss", 7.5)])
    assert store.get("a").status == "running"
    store.end("a", "finished", "budget spent", {"bpb": 2.5})
    run = store.get("a")
    assert (run.status, run.note, run.result, run.config["model"]) == (
        "finished",
        "budget spent",
        {"bpb": 2.5},
        {"d_model": 8},
    )
    assert store.series("a", "loss") == [(1, 8.0), (2, 7.5)]
    assert store.metric_keys("a") == ["loss", "val"]
    assert store.last("a", "loss") == (2, 7.5) and store.last("a", "none") is None
    store.go_on("a", 1)
    assert store.get("a").status == "running"
    assert store.series("a", "loss") == [(1, 8.0)]


def test_beginning_again_keeps_one_record(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path, {})
    store.end("a", "stopped", "interrupted")
    store.add_metrics("a", [(1, "loss", 8.0)])
    store.begin("a", tmp_path, {"x": 1})
    assert [(r.status, r.result) for r in store.list_runs()] == [("running", {})]
    assert store.series("a", "loss") == []
    with pytest.raises(StoreError, match="Try another out, or another store"):
        store.begin("a", tmp_path / "elsewhere", {})


def test_a_run_that_is_not_there_is_named(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("known", tmp_path, {})
    with pytest.raises(RunNotFound, match="known"):
        store.get("other")


def test_several_writers_do_not_lose_rows(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    for name in "abcd":
        store.begin(name, tmp_path, {})

    def write(name: str) -> None:
        for step in range(25):
            RunStore(store.path).add_metrics(name, [(step, "loss", float(step))])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(store.series(name, "loss")) == 25 for name in "abcd")


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "runs.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="Try another store"):
        RunStore(tmp_path / "runs.sqlite").list_runs()


def test_curves_of_any_length_keep_means_and_extremes(tmp_path):
    store, generator = RunStore(tmp_path / "runs.sqlite"), np.random.default_rng(0)
    store.begin("a", tmp_path, {})
    values = generator.normal(size=20_000)
    steps = np.arange(1, 20_001)
    for first in range(0, 20_000, 1733):  # as a training writes them, in pieces
        piece = slice(first, first + 1733)
        store.add_metrics("a", [(int(s), "x", float(v)) for s, v in zip(steps[piece], values[piece], strict=True)])
    for points in (1, 7, 50, 600):
        curve = store.curves("a", ["x"], points)["x"]
        assert len(curve.step) <= points and curve.step == sorted(set(curve.step)) and curve.step[-1] == 20_000
        begin = 0
        for step, mean, low, high in zip(curve.step, curve.mean, curve.low, curve.high, strict=True):
            here = values[begin:step]  # exactly the steps since the last point
            assert (low, high) == (here.min(), here.max()) and mean == pytest.approx(here.mean(), abs=1e-12)
            begin = step
    few = store.curves("a", ["x"], 600, after=19_900)["x"]
    assert few.step == list(range(19_901, 20_001)) and few.mean == few.low == values[19_900:].tolist()
    assert store.curves("a", ["x", "y"], 10, after=20_000) == {}


def test_a_resumed_run_has_no_trace_of_what_it_repeats(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path, {})
    first, second = [float(i % 37) for i in range(1000)], [float(i % 41) for i in range(1000)]
    store.add_metrics("a", list(zip(range(1000), ["x"] * 1000, first, strict=True)))
    store.go_on("a", 500)
    store.add_metrics("a", list(zip(range(501, 1000), ["x"] * 499, second[501:], strict=True)))
    wanted = first[:501] + second[501:]
    curve = store.curves("a", ["x"], 40)["x"]
    begin = 0
    for step, mean in zip(curve.step, curve.mean, strict=True):
        assert mean == pytest.approx(np.mean(wanted[begin : step + 1]))
        begin = step + 1
    assert [(e.kind, e.step) for e in store.events(run="a") if e.kind in ("metrics", "rewound")] == [
        ("rewound", 0),
        ("rewound", 500),
        ("metrics", 999),
    ]


def test_changes_after_a_checkpoint_are_due_again(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path, {})
    numbers = [store.add_command("a", "change", {"lr": rate}) for rate in (0.1, 0.2, 0.3)]
    store.add_command("a", "pause")
    for command, step in zip(store.commands("a"), (10, 20, 30, 40), strict=True):
        store.take_command(command, step)
    assert store.commands("a") == []
    store.go_on("a", 20, numbers[0])  # the checkpoint was written before the second change, after the same update
    assert [(c.kind, c.detail, c.due) for c in store.commands("a")] == [
        ("change", {"lr": 0.2}, 20),
        ("change", {"lr": 0.3}, 30),
    ]
    for command in store.commands("a"):
        store.take_command(command, 30)
    store.drop_changes("a")  # it must not fail again with what it failed with
    store.go_on("a", 20, numbers[0])
    assert store.commands("a") == [] and [e.kind for e in store.events(run="a")][-3] == "notice"


def test_events_are_read_from_where_a_reader_stopped(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path, {})
    store.begin("b", tmp_path / "b", {})
    for step in range(5):
        store.add_happening("a", step, "sample", {"data": str(step)})
    first = store.events(most=3)
    rest = store.events(first[-1].id)
    assert [e.id for e in first + rest] == list(range(1, store.last_event() + 1))
    assert [e.detail["data"] for e in store.events(run="a", without=["run", "rewound"])] == list("01234")
    store.remove("a")
    assert [(e.kind, e.detail) for e in store.events(run="a")] == [("run", {"removed": True})]


def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path):
    path = tmp_path / "runs.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            """CREATE TABLE runs (id TEXT PRIMARY KEY, folder TEXT NOT NULL, created TEXT NOT NULL, status TEXT NOT NULL,
            note TEXT NOT NULL DEFAULT '', config TEXT NOT NULL, result TEXT NOT NULL DEFAULT '{}');
            CREATE TABLE metrics (run TEXT NOT NULL, step INTEGER NOT NULL, key TEXT NOT NULL, value REAL NOT NULL,
            PRIMARY KEY (run, step, key)) WITHOUT ROWID;
            INSERT INTO runs (id, folder, created, status, config) VALUES ('a', '/x', '2026-01-01', 'finished', '{}');"""
        )
        db.executemany("INSERT INTO metrics VALUES ('a', ?, 'x', ?)", [(i, float(i)) for i in range(1000)])
    store = RunStore(path)
    assert [run.id for run in store.list_runs()] == ["a"]
    assert store.series("a", "x") == [(i, float(i)) for i in range(1000)]
    curve = store.curves("a", ["x"], 10)["x"]
    assert curve.mean[0] == curve.step[0] / 2


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path, {})
    with contextlib.closing(sqlite3.connect(store.path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer version"):
        store.list_runs()


@pytest.mark.parametrize("damage", ["first page", "middle", "cut", "no database"])
def test_a_damaged_store_is_moved_aside_and_nothing_is_deleted(tmp_path, damage):
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path, {})
    store.add_metrics("a", [(i, "x", float(i)) for i in range(5000)])
    database = Database(store.path)
    assert database.move_damaged_aside() is None
    data = bytearray(store.path.read_bytes())
    if damage == "first page":
        data[:100] = bytes(100)
    elif damage == "middle":
        data[8192 : len(data) // 2] = b"\xff" * (len(data) // 2 - 8192)
    elif damage == "cut":
        data = data[: len(data) // 3]
    else:
        data = bytearray(b"not a database at all" * 500)
    store.path.write_bytes(data)
    aside = database.move_damaged_aside()
    assert aside is not None and aside.read_bytes() == bytes(data) and not store.path.exists()
    store.begin("b", tmp_path, {})
    assert [run.id for run in store.list_runs()] == ["b"]


def test_one_job_is_started_by_one_of_many(tmp_path):
    jobs = JobStore(tmp_path / "runs.sqlite")
    for _ in range(3):
        jobs.add("train", {"out": "a"}, "a")
    got: list[int] = []

    def take() -> None:
        while (job := JobStore(jobs.path).start_next()) is not None:
            got.append(job.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [1, 2, 3]
    jobs.end(1, "finished", result={"x": 1})
    jobs.end(1, "failed")  # what was recorded first counts
    assert (jobs.get(1).state, jobs.get(1).result) == ("finished", {"x": 1})
    jobs.again(2, counts=True)
    assert jobs.start_next() == dataclasses.replace(jobs.get(2), state="running")
    with pytest.raises(JobNotFound, match="got job 9"):
        jobs.get(9)
    with pytest.raises(QueueFull, match="1 jobs wait already"):
        for _ in range(2):
            jobs.add("train", {}, None, limit=1)


def test_events_are_chosen_by_kind_and_from_either_end(tmp_path) -> None:
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path / "a", {})
    for i in range(1200):
        store.add_happening("a", i, "changed" if i % 2 else "notice", {"i": i})
    first, last = (
        store.events(run="a", kinds=("changed",), most=3),
        store.events(run="a", kinds=("changed",), most=3, latest=True),
    )
    assert [e.detail["i"] for e in first] == [1, 3, 5] and [e.detail["i"] for e in last] == [1195, 1197, 1199]
    assert [
        e.detail["i"] for e in store.events(run="a", without=("run", "rewound", "changed"), most=2, latest=True)
    ] == [1196, 1198]


def test_old_events_that_say_nothing_more_than_the_records_are_removed(tmp_path) -> None:
    store = RunStore(tmp_path / "runs.sqlite")
    store.begin("a", tmp_path / "a", {})
    for i in range(100):
        store.add_metrics("a", [(i, "train_bpb", 1.0)])
    store.add_happening("a", 5, "changed", {"lr": 0.1})
    last = store.last_event()
    assert store.prune_events(last - 10) > 80
    kinds = [event.kind for event in store.events(run="a")]
    assert (
        kinds.count("changed") == 1 and 5 < kinds.count("metrics") < 12 and len(store.series("a", "train_bpb")) == 100
    )
    assert store.last_event() == last
