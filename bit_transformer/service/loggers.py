"""Where else a training's figures go: a file of JSON lines, TensorBoard, Trackio, Weights & Biases. The run store has them in any case.

Each log gets the figures of an update at most twice a second, and of every validation, the settings, and the result. A resumed training goes on with
the same log: what was logged after its checkpoint is taken back first, where the log allows that, so that no update is in it twice.

    jsonl         metrics.jsonl in the run folder, one object a line; the last is {"end": ...}
    tensorboard   event files in the run folder's `logs/tensorboard`
    trackio       its SQLite file in the folder that TRACKIO_DIR names, or where the library keeps it
    wandb         the run folder's `logs/wandb`; nothing leaves the machine unless WANDB_MODE says so

A log that fails is given up with a notice; the training goes on.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import math
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from bit_transformer.config.base import flat
from bit_transformer.extras import require
from bit_transformer.runs.store import Status
from bit_transformer.service.files import write_file
from bit_transformer.service.requests import LogName
from bit_transformer.training import Record, Trainer

JSONL_FILE, LOGS_FOLDER = "metrics.jsonl", "logs"
FOLDERS = (f"{LOGS_FOLDER}/tensorboard", f"{LOGS_FOLDER}/wandb")  # in a run folder
PROJECT = "bit-transformer"  # in Trackio and Weights & Biases
EVERY_SECONDS = 0.5
_MODULES: dict[str, str] = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
Figures = Mapping[str, float]


class Log(Protocol):
    """A log of one training."""

    def write(self, step: int, figures: Figures) -> None:
        """Log the figures of an update."""

    def end(self, about: Mapping[str, Any]) -> None:
        """Log how the training ended, and close."""


def check_logs(names: Sequence[LogName]) -> None:
    """Refuse a log whose library is missing, before anything is written.

    Raises:
        MissingExtra: it is not installed.
    """
    for name in names:
        if name in _MODULES:
            require(_MODULES[name], extra=name, purpose=f"log_to={name}")


class Logger:
    """An observer that passes records on to logs: of the first update, of one at most every half second, of validations and of the last.

    On an accelerator it waits for the device when it passes one on.

    Args:
        logs: by name.
        notice: told of a log that failed.
    """

    def __init__(self, logs: Mapping[str, Callable[[], Log]], notice: Callable[[str], None]) -> None:
        self.notice = notice
        self.logs: dict[str, Log] = {}
        self._last: float | None = None
        for name, begin in logs.items():
            with self._giving_up(name):
                self.logs[name] = begin()

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Log the record if it is time."""
        p = trainer.progress
        fresh = self._last is None or p.seconds - self._last >= EVERY_SECONDS
        if not self.logs or not (fresh or "val_bpb" in record or p.share >= 1):
            return
        self._last = p.seconds
        figures = {key: float(value) for key, value in record.items() if key != "step"}  # type: ignore[arg-type]
        for name, log in list(self.logs.items()):
            with self._giving_up(name):
                log.write(record["step"], figures)

    def end(self, status: Status, note: str, result: Mapping[str, Any] | None = None) -> None:
        """Say in all logs how the training ended, and close them."""
        for name, log in list(self.logs.items()):
            with self._giving_up(name):
                log.end({"status": status, "note": note, **(result or {})})
        self.logs = {}

    @contextlib.contextmanager
    def _giving_up(self, name: str) -> Iterator[None]:
        """Within: an error ends this log, and nothing else."""
        try:
            yield
        except Exception as failed:  # other people's libraries, full disks
            self.logs.pop(name, None)
            reason = next(iter(str(failed).splitlines()), "") or type(failed).__name__
            self.notice(f"the log {name} has ended: {reason}")


def open_logs(
    names: Sequence[LogName],
    folder: Path,
    run: str,
    settings: Mapping[str, Any],
    step: int,
    notice: Callable[[str], None],
) -> Logger:
    """The logs of a training.

    Args:
        settings: nested, of plain values: the hyperparameters.
        step: updates made before; what was logged of later ones is taken back.
    """
    kinds: dict[str, Callable[[], Log]] = {
        "jsonl": lambda: JsonLines(folder / JSONL_FILE, step),
        "tensorboard": lambda: TensorBoard(folder / LOGS_FOLDER / "tensorboard", settings, step),
        "trackio": lambda: Trackio(run, settings, step),
        "wandb": lambda: WeightsAndBiases(folder / LOGS_FOLDER, run, settings, step),
    }
    return Logger({name: kinds[name] for name in dict.fromkeys(names)}, notice)


class JsonLines:
    """A file with one JSON object a line: {"step": 1, "train_bpb": 7.9, ...}; the last is {"end": {"status": "finished", ...}}."""

    def __init__(self, path: Path, step: int) -> None:
        if step and path.is_file():
            write_file(path, b"".join(_until(path, step)))
        self._file: IO[bytes] = path.open("ab" if step else "wb")

    def write(self, step: int, figures: Figures) -> None:
        """Append a line; what is no number becomes null."""
        self._append({"step": step, **_plain(figures)})

    def end(self, about: Mapping[str, Any]) -> None:
        """Append the last line and close the file."""
        self._append({"end": _plain(about)})
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, with null for numbers that JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def _until(path: Path, step: int) -> Iterator[bytes]:
    """The lines of updates up to one. The last line may be cut."""
    with path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if line.endswith(b"\n") and isinstance(found, dict) and found.get("step", step + 1) <= step:
                    yield line


class TensorBoard:
    """Event files for TensorBoard, with the settings as text and as hyperparameters."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        writers = require("torch.utils.tensorboard", extra="tensorboard", purpose="log_to=tensorboard")
        # TensorBoard itself leaves out what older files hold from this update on.
        self._writer: Any = writers.SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._settings = settings
        if not step:
            self._writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```")

    def write(self, step: int, figures: Figures) -> None:
        """Add the figures as scalars."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, about: Mapping[str, Any]) -> None:
        """Add the hyperparameters with the result, and close."""
        plain = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in flat("", self._settings)
        }
        numbers = {f"result/{key}": value for key, value in about.items() if isinstance(value, int | float)}
        self._writer.add_text("end", json.dumps(dict(about)))
        self._writer.add_hparams(plain, numbers, run_name=".")
        self._writer.close()


class Trackio:
    """A run of Trackio, in the project `bit-transformer`: on this machine, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say otherwise."""

    def __init__(self, run: str, settings: Mapping[str, Any], step: int) -> None:
        self._library: Any = require("trackio", extra="trackio", purpose="log_to=trackio")
        if step:
            _forget(run, step)
        with contextlib.redirect_stdout(io.StringIO()):  # it greets
            # In a context of its own: this run is not the current one of whoever else uses the library here.
            self._run: Any = contextvars.copy_context().run(
                self._library.init,
                project=PROJECT,
                name=run,
                config=dict(settings),
                resume="allow" if step else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, figures: Figures) -> None:
        """Log the figures; its thread writes them."""
        self._run.log(dict(figures), step=step)

    def end(self, about: Mapping[str, Any]) -> None:
        """Log the result as an alert, and wait until all is written."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.alert(str(about["status"]), json.dumps(dict(about)), level=self._library.AlertLevel.INFO)
            self._run.finish()


def _forget(run: str, step: int) -> None:
    """Take back what Trackio has of the latest run of a name after an update."""
    storage: Any = require("trackio.sqlite_storage", extra="trackio", purpose="log_to=trackio").SQLiteStorage
    latest = storage.get_latest_run_record_by_name(PROJECT, run)
    if latest is None:
        return
    with contextlib.closing(sqlite3.connect(storage.get_project_db_path(PROJECT))) as database, database:
        database.execute("DELETE FROM metrics WHERE run_id = ? AND step > ?", (latest["id"], step))


class WeightsAndBiases:
    """A run of Weights & Biases, in the project `bit-transformer`. Without WANDB_MODE in the environment nothing leaves this machine; `wandb sync` sends
    it. A resumed training is another part of the same run, whose updates after the checkpoint stay in the earlier part."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any], step: int) -> None:
        library: Any = require("wandb", extra="wandb", purpose="log_to=wandb")
        identity = folder / "wandb" / "run-id"
        if not step or not identity.is_file():
            identity.parent.mkdir(parents=True, exist_ok=True)
            write_file(identity, secrets.token_hex(4).encode())
        self._run: Any = library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run,
            id=identity.read_text(),
            resume="allow" if step else None,
            config=dict(settings),
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            settings=library.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )

    def write(self, step: int, figures: Figures) -> None:
        """Log the figures."""
        self._run.log(dict(figures), step=step)

    def end(self, about: Mapping[str, Any]) -> None:
        """Put the result into the summary, and finish."""
        self._run.summary.update(dict(about))
        self._run.finish(exit_code=int(about["status"] == "failed"))
