"""A run's model on tasks of the Language Model Evaluation Harness."""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bit_transformer.data.hub_sets import quiet
from bit_transformer.errors import BitTransformerError, ConfigError, Give, HubError
from bit_transformer.extras import require
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.requests import HarnessRequest
from bit_transformer.service.workspace import Workspace

RESAMPLED = 1000  # times, for standard errors that have no formula
SEED = 1234  # of drawn examples, as the harness's own command has it
TASK_NAME = re.compile(r"[\w.+-]{1,200}")


@dataclass(frozen=True)
class TaskScore:
    """A model on a task.

    Attributes:
        metrics: by name; `acc` and others that the task defines, `bits_per_byte`.
        errors: standard error of a metric, where there is one.
        documents: answered; `of`: in the task.
        version: of the task.
    """

    task: str
    metrics: dict[str, float]
    errors: dict[str, float]
    documents: int
    of: int
    version: str


@dataclass(frozen=True)
class Harness:
    """A model on tasks of the harness.

    Attributes:
        protocol: how texts are scored.
        harness: version of the library.
    """

    run: str
    tasks: list[TaskScore]
    protocol: str
    harness: str


def harness(request: HarnessRequest, workspace: Workspace, job: Job) -> Harness:
    """Ask a run's model what tasks of the harness ask: log-likelihoods over bytes, and generation.

    Tasks of a folder are files of YAML, which can name Python functions beside them: those are run. Other tasks are the library's own, whose data comes
    from the Hugging Face hub.

    Raises:
        CheckpointError: no such run.
        ConfigError: no such task, no such folder, or a task that this model cannot answer.
        HubError: a task's data cannot be loaded.
        MissingExtra: the harness is not installed.
    """
    library = require("lm_eval", extra="lm-eval", purpose="the evaluation harness")
    from bit_transformer.adapters.lm_eval import HarnessLM

    names = _tasks(request)
    model = workspace.model(request.run)
    tell = lambda done, total: job.tell(Reading(done, total, "harness: answered", "requests"))  # noqa: E731
    lm = HarnessLM(
        model=model,
        batch_size=request.batch,
        learning=request.learning,
        overlap=request.overlap,
        answered=tell,
    )
    evaluator = require("lm_eval.evaluator", extra="lm-eval", purpose="the evaluation harness")
    with job.cancellable(), _seeded(), _quiet():
        with _refusals(Exception):  # files of tasks, functions that they name, data in any format: anything is raised
            loaded = _loaded(request, names)
        for task in loaded["tasks"].values():
            if request.shots is not None:
                task.set_config(key="num_fewshot", value=request.shots)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        with _refusals(Exception):  # and functions of tasks
            found = evaluator.evaluate(lm, loaded, limit=request.limit, bootstrap_iters=RESAMPLED, log_samples=False)
    scores = [_score(task, values, found) for task, values in found["results"].items()]
    return Harness(request.run, scores, str(lm.protocol), str(library.__version__))


def _tasks(request: HarnessRequest) -> list[str]:
    """The names of the tasks that were asked for.

    Raises:
        ConfigError: neither tasks nor a folder, no such folder, or a name that is none.
    """
    if request.include is not None and not request.include.is_dir():
        raise ConfigError(
            f"got include={str(request.include)!r}; a folder with task files (.yaml) is needed",
            field="include",
            tries=(Give("include"),),
        )
    if not request.tasks and request.include is None:
        raise ConfigError(
            "got no tasks; names of tasks or a folder of task files is needed",
            field="tasks",
            tries=(Give("include", "my-tasks"), Give("tasks", "arc_easy")),
        )
    for name in request.tasks:
        if not TASK_NAME.fullmatch(name):
            raise ConfigError(
                f"got task {name[:80]!r}; the name of a task is needed, and no path",
                field="tasks",
                tries=(Give("include", "my-tasks"),),
            )
    return list(dict.fromkeys(request.tasks))


def _loaded(request: HarnessRequest, names: list[str]) -> Any:
    """The tasks, with their data.

    Raises:
        ConfigError: one of them is not there.
    """
    manager_of = require("lm_eval.tasks", extra="lm-eval", purpose="the evaluation harness").TaskManager
    folder = str(request.include) if request.include is not None else None
    own = manager_of(include_path=folder, include_defaults=False) if folder else None
    there = own.all_subtasks if own is not None else []
    if own is not None and (not names or set(names) <= set(own.all_tasks)):
        if not there:
            raise ConfigError(
                f"got include={folder!r}, which holds no task; a file .yaml with a key `task` is needed",
                field="include",
                tries=(Give("include"),),
            )
        return own.load(names or there)
    manager = manager_of(include_path=folder)
    missing = [name for name in names if name not in manager.all_tasks]
    if missing:
        import difflib

        near = difflib.get_close_matches(missing[0], manager.all_tasks, n=1)
        raise ConfigError(
            f"got task {missing[0]!r}; the harness has none of that name{f', nor {folder}' if folder else ''}",
            field="tasks",
            tries=(Give("tasks", near[0]) if near else Give("include", "my-tasks"),),
        )
    return manager.load(names)


def _score(task: str, values: Mapping[str, Any], found: Mapping[str, Any]) -> TaskScore:
    """The harness's record of a task as ours: its keys are METRIC,FILTER and METRIC_stderr,FILTER."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        name = metric if chosen in ("none", "") else f"{metric} ({chosen})"
        if metric.endswith("_stderr"):
            errors[name.replace("_stderr", "", 1)] = float(value)
        else:
            metrics[name] = float(value)
    counts = (found.get("n-samples") or {}).get(task) or {}
    version = str((found.get("versions") or {}).get(task, ""))
    return TaskScore(task, metrics, errors, int(counts.get("effective", 0)), int(counts.get("original", 0)), version)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within: the harness and the library of its data say nothing that is no error."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with quiet(require("datasets", extra="lm-eval", purpose="the evaluation harness")):
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _seeded() -> Iterator[None]:
    """Within: tasks that draw draw the same. Afterwards the generators are as they were."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


@contextmanager
def _refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Within: errors of some kinds, which the harness raises about tasks and their data, become one line."""
    try:
        yield
    except BitTransformerError:
        raise
    except ConnectionError as lost:
        raise HubError(
            f"the data of a task cannot be loaded ({_first_line(lost)})",
            tries=("again with a network", Give("include", "my-tasks")),
        ) from None
    except kinds as failed:
        raise ConfigError(
            f"a task cannot be answered ({_first_line(failed)}). Try another task", field="tasks"
        ) from failed


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200].rstrip(".")
