"""What every benchmark shares: interleaved timing, goals, a readable table and, last, one line of JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bit_transformer.data.sources import Corpus, Span, named_file, split, stdlib_files
from bit_transformer.errors import BitTransformerError
from bit_transformer.evaluation.significance import paired_test
from bit_transformer.service.provenance import machine

EXIT_INPUT, EXIT_GOAL_MISSED = 2, 3  # `btlm bench` passes them on


@dataclass
class Report:
    """Figures of one benchmark, and the goals some of them have.

    Attributes:
        goals: by figure, such as ">= 1.3", or ">= 0.5 and <= 1.5".
    """

    bench: str
    protocol: str
    goals: dict[str, str]
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[tuple[str, str]] = field(default_factory=list)

    def row(self, what: str, value: str) -> None:
        """A line of the table."""
        self.rows.append((what, value))

    def leave_out(self, *keys: str) -> None:
        """Say nothing of figures that a quick look cannot measure: after few updates, or on small batches, they are other quantities."""
        for key in keys:
            self.figures.pop(key, None)
            self.goals.pop(key, None)
        self.row("not measured with --quick", ", ".join(keys))

    def met(self) -> bool:
        """Whether every goal is."""
        return all(_holds(self.figures[key], goal) for key, goal in self.goals.items())

    def finish(self) -> int:
        """Print all; the exit code."""
        width = max((len(what) for what, _ in self.rows), default=0)
        print(f"\n{self.bench}: {self.protocol}\n")
        for what, value in self.rows:
            print(f"  {what:<{width}}  {value}")
        print()
        for key, value in self.figures.items():
            goal = self.goals.get(key)
            verdict = "" if goal is None else f"   goal {goal}: {'met' if _holds(value, goal) else 'MISSED'}"
            print(f"  {key:<{width}}  {value:.4g}{verdict}")
        line = {
            "bench": self.bench,
            "figures": self.figures,
            "rows": self.rows,
            "goals": self.goals,
            "met": self.met(),
            "protocol": self.protocol,
            "machine": machine(),
        }
        print(f"\n{json.dumps(line)}")
        return 0 if self.met() else EXIT_GOAL_MISSED


def _holds(value: float, goal: str) -> bool:
    bounds = [part.split() for part in goal.split(" and ")]
    return all(value >= float(bound) if sign == ">=" else value <= float(bound) for sign, bound in bounds)


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round, one after the other, after a round that does not count.

    Other work on the machine then falls on all of them, and a ratio within a round is fair.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for count in range(rounds + 1):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            if count:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """How many times faster, as the median over rounds, and the range that half of the rounds are in."""
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    if len(each) < 4:
        return statistics.median(each), each[0], each[-1]
    low, middle, high = statistics.quantiles(each, n=4)
    return middle, low, high


def paired(differences: list[float]) -> dict[str, float]:
    """The mean of paired differences, its 95 % interval by Student's t, and p by flipping signs, all of them."""
    found = paired_test(differences, [0.0] * len(differences))
    return {"difference": found.difference, "interval_low": found.low, "interval_high": found.high, "p": found.p}


def text_corpus() -> tuple[str, Corpus, Corpus]:
    """Tiny Shakespeare where it can be had, else Python's standard library: name, training part, held-out part."""
    try:
        path = named_file("tinyshakespeare")
    except BitTransformerError:
        return ("stdlib", *split(stdlib_files(), "file", 0.1))
    cut = int(path.stat().st_size * 0.9)
    return "tinyshakespeare", Corpus([Span(path, 0, cut)]), Corpus([Span(path, cut, path.stat().st_size)])


def run(main: Callable[[bool], int], about: str | None) -> None:
    """Parse `--quick`, run, exit; what cannot be is one line and exit code 2."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="within 45 seconds, with wider error")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    try:
        sys.exit(main(quick))
    except BitTransformerError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT)
