from __future__ import annotations

import threading

import pytest

from bit_transformer.errors import RunNotFound, StoreError
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
