"""A call of every tool, for a home with the run `one` that is calibrated, and data of its kind."""

from __future__ import annotations

from typing import Any

Calls = dict[str, dict[str, Any]]


def reads(data: str) -> Calls:
    """Tools that only read."""
    return {
        "hardware": {},
        "suggest_config": {"measure": 0, "detail": "full"},
        "estimate_memory": {"preset": "tiny", "in_use": True, "batch": 4},
        "compare_settings": {"preset": "1", "seconds": 0},
        "list_runs": {"limit": 1},
        "show_run": {"run": "one", "detail": "full"},
        "tail_metrics": {"run": "one", "keys": ["train_bpb", "K"], "points": 5},
        "diagnose_run": {"run": "one"},
        "diagnose_error": {"log": "CUDA out of memory", "run": "one"},
        "explain_telemetry": {"K": 0.1, "C": 0.5},
        "measure_text": {"text": "some text that is short"},
        "drift": {"run": "one"},
        "gate_status": {"run": "one"},
        "diagnose_gate": {"run": "one", "windows": 2},
        "generate": {"run": "one", "prompt": "def ", "max_bytes": 32},
        "score": {"run": "one", "text": "def f(x):\n    return x\n" * 30},
        "evaluate": {"run": "one", "data": [data]},
        "plan_comparison": {},
        "test_significance": {"a": [1, 2], "b": [2, 1]},
        "draft_report": {"runs": ["one"], "detail": "full"},
        "corpora": {},
        "job": {"job": 1, "log": True},
    }


def writes(data: str) -> Calls:
    """Tools that write, and end well."""
    return {
        "export_run": {"run": "one"},
        "quantize_run": {"run": "one", "bits": 8, "name": "one-8"},
        "grow_run": {"run": "one", "name": "one-large", "model": {"num_layers": 2}},
        "compress": {"data": data, "run": "one"},
    }


def others(data: str) -> Calls:
    """The rest. `one` is not in training, so those that steer are refused, in one line."""
    return {
        "compare_runs": {"runs": ["one", "one-large"]},
        "add_data": {"text": "abc"},
        "start_run": {
            "name": "three",
            "data": [data],
            "preset": "1",
            "model": {"experts": None},
            "train": {"steps": 2, "batch_size": 2},
        },
        "pause_run": {"run": "one"},
        "stop_run": {"run": "one"},
        "change_run": {"run": "one", "settings": {"lr": 0.001}},
        "keep_checkpoint": {"run": "one"},
        "branch_run": {"run": "one", "name": "branch"},
        "resume_run": {"run": "one"},
        "calibrate_gate": {"run": "one", "alpha": 0.05, "data": [data]},
        "remove_run": {"run": "one"},
    }
