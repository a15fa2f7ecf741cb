"""Finding and loading the model of a run, wherever it is named from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from bit_transformer.checkpoint import MODEL_FILE, load_checkpoint
from bit_transformer.data.sources import REGISTRY
from bit_transformer.errors import CheckpointError, ConfigError
from bit_transformer.model import BitTransformerLM
from bit_transformer.runs.store import RunStore
from bit_transformer.safety import Calibration, Guard, Reference, SafetyGate, load_calibration
from bit_transformer.safety.calibration import GATE_FILE
from bit_transformer.service import DEFAULT_STORE


def default_device() -> torch.device:
    """A CUDA device where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_path(run: str, store: Path) -> Path:
    """The checkpoint of a run folder, a checkpoint file, or a run's name in the store.

    Raises:
        CheckpointError: none of these, or a run without a checkpoint yet.
    """
    path = Path(run)
    if not path.exists():
        known = {r.id: r.folder for r in RunStore(store).list_runs()}
        if run not in known:
            raise CheckpointError(
                f"got run {run!r}; it must be a run folder, a checkpoint file, or a run in {store}. Try `btlm runs list`"
            )
        path = Path(known[run])
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file() and not path.with_name("config.json").is_file():
        raise CheckpointError(f"{path.parent}: holds no run and no {MODEL_FILE}. Try a run folder, or `btlm runs list`")
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no checkpoint yet; the run has not reached its first one. Try `btlm train --resume`"
        )
    return path


def check_order(verb: str, run: str, names: Sequence[str], store: Path = DEFAULT_STORE) -> None:
    """Refuse a run and files that were given the other way round.

    Raises:
        ConfigError: the run names data, and one of the files names a run. It gives the command in the right order.
    """
    is_data = Path(run).exists() or run in ("-", "stdlib", *REGISTRY)
    if not is_data or _names_a_run(run, store):
        return
    swapped = next((name for name in names if _names_a_run(name, store)), None)
    if swapped is not None:
        command = shlex.join(["btlm", verb, swapped, run, *(name for name in names if name != swapped)])
        raise ConfigError(f"got {run!r} as the run and {swapped!r} as a file; they look swapped. Try {command}")


def _names_a_run(text: str, store: Path) -> bool:
    path = Path(text)
    if path.exists():
        return (path / MODEL_FILE).is_file() or (path.is_file() and path.suffix == ".safetensors")
    return any(run.id == text for run in RunStore(store).list_runs())


def load_model(run: str, store: Path = DEFAULT_STORE) -> BitTransformerLM:
    """The model of a run, in evaluation mode, on the best device here.

    Raises:
        CheckpointError: no such run, or a damaged checkpoint.
    """
    return load_checkpoint(model_path(run, store), device=default_device())


def load_guard(model: BitTransformerLM, run: str, store: Path = DEFAULT_STORE, *, window: int = 0) -> Guard:
    """The calibrated gate of a run.

    Args:
        model: the run's, loaded.
        window: bytes that are judged at a time; 0: 256, or the longest that was calibrated.

    Raises:
        CheckpointError: the run was not calibrated, or for another model.
        ConfigError: a window that cannot be judged.
    """
    calibration, reference = load_run_calibration(model, run, store)
    return Guard(SafetyGate.calibrated(calibration), reference, window)


def load_run_calibration(
    model: BitTransformerLM, run: str, store: Path = DEFAULT_STORE
) -> tuple[Calibration, Reference]:
    """What is normal for a run, and its reference.

    Raises:
        CheckpointError: the run was not calibrated, or for another model.
    """
    path = model_path(run, store).with_name(GATE_FILE)
    if not path.is_file():
        raise CheckpointError(f"{path}: got no such file; the run was not calibrated. Try `btlm calibrate {run}`")
    return load_calibration(path, model.config, model.bank if model.config.experts else None)
