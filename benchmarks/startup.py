"""How long until it is there: importing every public name beyond importing torch, and `btlm --help`."""

from __future__ import annotations

import subprocess
import sys
import time

import harness

TORCH = "import torch"
OURS = "import torch, bit_transformer as b; [getattr(b, name) for name in b.__all__]"


def seconds(*command: str) -> float:
    """Wall-clock of a process of its own."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main(quick: bool) -> int:
    """Measure."""
    rounds = 3 if quick else 9
    report = harness.Report(
        "startup",
        f"fresh processes, {rounds} interleaved rounds, the fastest of each; import_extra_s loads every public name",
        {"import_extra_s": "<= 0.3", "help_s": "<= 0.5"},
    )
    times = harness.interleaved(
        {
            "import torch": lambda: subprocess.run([sys.executable, "-c", TORCH], check=True),
            "import torch and every public name": lambda: subprocess.run([sys.executable, "-c", OURS], check=True),
            "btlm --help": lambda: seconds(sys.executable, "-m", "bit_transformer.cli", "--help"),
        },
        rounds,
    )
    best = {name: min(each) for name, each in times.items()}
    for name, value in best.items():
        report.row(name, f"{value:.3f} s")
    report.figures = {
        "import_extra_s": best["import torch and every public name"] - best["import torch"],
        "help_s": best["btlm --help"],
    }
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
