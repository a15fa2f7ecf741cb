"""What benchmarks share: verdicts are of what was measured alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness", ROOT / "benchmarks" / "harness.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["harness"]


def test_a_quick_look_gives_no_verdict_on_what_it_cannot_measure(harness: ModuleType, capsys) -> None:
    report = harness.Report("b", "p", {"ratio": "<= 0.35", "speed": ">= 1.3", "never": ">= 1"})
    report.figures = {"ratio": 0.72, "speed": 2.0}
    report.leave_out("ratio", "never")
    assert report.finish() == 0
    shown = capsys.readouterr().out
    said = json.loads(shown.splitlines()[-1])
    assert said["figures"] == {"speed": 2.0} and said["goals"] == {"speed": ">= 1.3"} and said["met"]
    assert "MISSED" not in shown and "not measured with --quick  ratio, never" in shown
    report.figures["speed"] = 1.0
    assert report.finish() == 3
