"""Output of the command line: results go to standard output, progress and errors to standard error.

Exit codes: 0 done · 1 a fault of this program (with a traceback) · 2 invalid input (one line) · 3 a benchmark missed a
goal · 4 the gate blocked what was generated · 5 a repair that nothing proves · 130 interrupted; a training under way is saved.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.table import Table

from bit_transformer.errors import Advice, Ask, BitTransformerError, Cancelled, Give

if TYPE_CHECKING:
    from bit_transformer.service.evaluation import Comparison

EXIT_INPUT, EXIT_GOAL_MISSED, EXIT_BLOCKED, EXIT_UNPROVED, EXIT_INTERRUPTED = 2, 3, 4, 5, 130
COMMANDS = {  # operations that are verbs of other names here
    "train_further": "train --init RUN",
    "resume": "train --resume",
    "runs.list": "runs list",
    "runs.show": "runs show",
    "runs.compare": "runs compare",
    "runs.remove": "runs rm",
    "runs.stop": "runs stop",
    "runs.pause": "runs pause",
    "runs.continue": "runs continue",
    "runs.step": "runs step",
    "runs.change": "runs change",
    "runs.checkpoint": "runs checkpoint",
    "runs.branch": "runs branch",
    "runs.trigger": "runs trigger",
    "runs.untrigger": "runs untrigger",
    "jobs.list": "jobs",
    "hub.login": "hub login",
    "hub.push": "hub push",
    "hub.pull": "hub pull",
    "telemetry_of_run": "telemetry",
    "interpret": "explain",
    "explain_file": "explain",
    "repair_proved": "repair",
    "diagnose_error": "diagnose --log LOG",
    "diagnose_gate": "diagnose --gate",
}
ARGUMENTS = ("names", "path", "name", "data.corpora")  # fields that are arguments, and have no flag
FLAGS = {
    "run": "--model",
    "holes": "--hide",
    "bit_holes": "--hide-bits",
    "max_bytes": "--bytes",
    "data": "--text",
    "proofs": "--proof",
    "table": "--json-lines",
    "span": "--range",
    "train.workers": "--workers",
    "train.auto_batch": "--auto-batch",
}
WITHOUT = {"model.causal": "--diffusion", "private": "--public"}  # flags that turn a field off
SPARK = "▁▂▃▄▅▆▇█"


class _Console(Console):
    """Prints text unchanged, and raises an error if the reader of a pipe is gone."""

    def on_broken_pipe(self) -> None:
        """Raise the error instead of exiting with Rich's code 1."""
        raise BrokenPipeError


console = _Console(highlight=False, markup=False)
progress_console = _Console(stderr=True, highlight=False, markup=False)


@contextmanager
def errors_in_one_line(as_json: bool = False) -> Iterator[None]:
    """Prints errors of this package as one line, with exit code 2; Ctrl-C exits with 130."""
    try:
        yield
    except Cancelled as error:
        print(f"btlm: {error}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BitTransformerError as error:
        refuse(type(error).__name__, error.said(partial(as_flags, command=_command)), as_json, error.field)
    except KeyboardInterrupt:
        print("btlm: interrupted; nothing was saved after the last checkpoint", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe is gone: `btlm runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        text = f"{error.filename or 'file'}: {error.strerror or error}. Try another path"
        refuse(type(error).__name__, text, as_json)


@dataclasses.dataclass
class _Command:
    """The command that runs.

    Attributes:
        options: its options; none where no command line was read.
        settings: whether its --set takes settings of model, train and data.
    """

    options: frozenset[str] = frozenset()
    settings: bool = True

    def says(self, field: str, value: Any) -> str | None:
        """How this command is given a field, or None if it cannot be given it."""
        fields = _fields()
        section, _, name = field.rpartition(".")
        flag = FLAGS.get(field, f"--{name.replace('_', '-')}")
        if field in WITHOUT and value is False and WITHOUT[field] in self.options:
            return WITHOUT[field]
        if flag in self.options and (field in FLAGS or section in ("", "distributed", *fields)):
            if value is not False:
                return _flag(flag, value)
            without = f"--no-{flag[2:]}"
            return without if without in self.options else f"leaving out {flag}"
        first = field.partition(".")[0]
        if first not in fields:  # it may be of a section without saying so: `d_model`, `lr`, `experts.buckets`
            section = next((at for at, names in fields.items() if first in names), "")
            field = f"{section}.{field}"
        return _setting(field, value) if self.settings and section and value is not None else None


_command = _Command()


def _fields() -> dict[str, Container[str]]:
    """Fields by section of settings."""
    from bit_transformer.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

    configs: dict[str, Any] = {
        "model": ModelConfig,
        "train": TrainConfig,
        "data": DataConfig,
        "train.optim": OptimConfig,
    }
    return {section: config.model_fields for section, config in configs.items()}


def note_command(options: Iterable[str], settings: bool) -> None:
    """From here on, advice is in the words of a command with these options.

    Args:
        settings: whether its --set takes settings of model, train and data.
    """
    _command.options, _command.settings = frozenset(options), settings


def as_flags(advice: Advice, command: _Command | None = None) -> str:
    """Advice in the words of the command line: of a command, or of any."""
    if isinstance(advice, Ask):
        words = [
            "btlm",
            *COMMANDS.get(advice.operation, advice.operation).split(),
            *([advice.run] if advice.run else []),
        ]
        for more in advice.more:
            flag = as_flags(more)
            words += [flag] if flag.startswith("--") else flag.split(" ")
        return f"`{' '.join(words)}`"
    if not isinstance(advice, Give):
        return advice
    if advice.field in ("settings", "train", "model") and isinstance(advice.value, dict):
        if advice.field == "settings":
            return " ".join(f"--set {name}={value:g}" for name, value in advice.value.items())
        from bit_transformer.config.base import flat

        return " ".join(_setting(name, value) for name, value in flat(advice.field, advice.value))
    if advice.field == "budget" and isinstance(advice.value, dict):
        return " ".join(f"--{name} {amount}" for name, amount in advice.value.items())
    if advice.value is False and advice.field in WITHOUT and command is None:
        return WITHOUT[advice.field]
    flag = FLAGS.get(advice.field, f"--{advice.field.replace('_', '-')}")
    if advice.field in ARGUMENTS:
        values = advice.value if isinstance(advice.value, tuple) else (advice.value,)
        return shlex.join(map(str, values))
    if command is not None and command.options:
        return command.says(advice.field, advice.value) or str(advice)
    if "." in advice.field and advice.field not in FLAGS:
        return _setting(advice.field, advice.value)
    return _flag(flag, advice.value)


def _flag(flag: str, value: Any) -> str:
    if value is None:
        return f"another {flag}"
    text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
    return flag if value is True else f"{flag} {shlex.quote(text)}"


def _setting(name: str, value: Any) -> str:
    """A setting with a value that TOML reads, for a shell."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"--set {shlex.quote(f'{name}={text}')}"


def refuse(kind: str, text: str, as_json: bool, field: str | None = None) -> NoReturn:
    """Print an error in one line, and exit with code 2."""
    if as_json:
        print(json.dumps({"error": kind, "message": text} | ({"field": field} if field else {})))
    print(f"btlm: {text}", file=sys.stderr)
    raise SystemExit(EXIT_INPUT) from None


def show_json(value: Any) -> None:
    """Print a result as one line of JSON."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    print(json.dumps(plain, default=dataclasses.asdict))


def table(title: str, *columns: str) -> Table:
    """An empty table. The first column is aligned left, the others right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return made


def gigabytes(count: int) -> str:
    """Bytes as GB, or MB where they are fewer."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def bpb(value: float | None) -> str:
    """Bits per byte to three places."""
    return "-" if value is None else f"{value:.3f}"


def show_comparison(found: Comparison, what: str) -> None:
    """Print a model next to compressors on the same bytes, best first."""
    made = table(f"\n{found.bytes:,} {what}", "coder", "bits per byte")
    for name, value in sorted({"this model": found.bpb, **found.compressors}.items(), key=lambda row: row[1]):
        ours = name == "this model"
        error = f" ± {found.standard_error:.3f}" if ours and found.standard_error else ""
        made.add_row(name, bpb(value) + error, style="bold" if ours else None)
    console.print(made)
    console.print(f"model: {found.protocol}; compressors start empty", style="dim", soft_wrap=True)


def show_stopped(done: int, total: int, what: str) -> None:
    """Print how far a stopped command came."""
    console.print(f"\nstopped after {done:,} of {total:,} bytes: {what}", soft_wrap=True)


def show_alerts(alerts: Sequence[tuple[int, str, str, float]]) -> None:
    """Print where metrics of a run drifted, if any did."""
    if not alerts:
        return
    made = table("\ndrift", "metric", "update", "detected by", "change")
    for step, metric, detector, size in alerts:
        made.add_row(metric, f"{step:,}", detector, f"{size:+.3f}")
    console.print(made)


def spark(values: Sequence[float], *, low: float = 0.0, high: float | None = None, width: int = 72) -> str:
    """Values as a line of bars; if there are too many, each bar is a mean of neighbours."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top = (max(means) if high is None else high) - low or 1.0
    return "".join(SPARK[max(0, min(len(SPARK) - 1, int((value - low) / top * len(SPARK))))] for value in means)
