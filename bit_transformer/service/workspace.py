"""A workspace: the store of runs, the device that models run on, and the loaded models."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from bit_transformer.errors import Ask, CheckpointError, ConfigError, Give
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    import torch

    from bit_transformer.model import BitTransformerLM
    from bit_transformer.runs.store import RunStore
    from bit_transformer.safety import Calibration, Guard, Reference


class Workspace:
    """What operations share. Threads may use one together; but trainings, and scorings of diffusion models, draw from torch's one generator,
    so that only one of them at a time can be repeated to the last bit.

    Args:
        store: the SQLite file of run records.
        device: `auto` takes a CUDA device if there is one, else Apple's, else the CPU; or `cpu`, `cuda`, `cuda:1`, `mps`.
        keep: most models that stay loaded, the latest ones; each until its checkpoint changes.

    Raises:
        ConfigError: an unknown device.
    """

    def __init__(self, store: Path = DEFAULT_STORE, device: str = "auto", *, keep: int = 2) -> None:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ConfigError(f"device={device!r}; it must be auto, cpu, cuda, cuda:N or mps. Try auto", field="device")
        self.store_path, self.device_name, self.keep = Path(store), device, keep
        self._loaded: OrderedDict[tuple[Path, int, int], BitTransformerLM] = OrderedDict()
        self._lock = RLock()

    @property
    def store(self) -> RunStore:
        """The store of run records."""
        from bit_transformer.runs.store import RunStore

        return RunStore(self.store_path)

    @property
    def device(self) -> torch.device:
        """The device that models run on.

        Raises:
            ConfigError: this machine does not have it.
        """
        import torch

        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if self.device_name == "auto":
            return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
        kind, _, number = self.device_name.partition(":")
        if not there[kind] or int(number or 0) >= max(1, torch.cuda.device_count()):
            raise ConfigError(
                f"got device={self.device_name!r}, which this machine does not have. Try {', '.join(n for n in there if there[n])}",
                field="device",
            )
        return torch.device(self.device_name)

    def model_path(self, run: str) -> Path:
        """The checkpoint of a run folder, a checkpoint file, or a run's name in the store.

        Raises:
            CheckpointError: none of these, or a run without a checkpoint yet.
        """
        from bit_transformer.checkpoint import MODEL_FILE

        path = Path(run)
        if not path.exists():
            known = {r.id: r.folder for r in self.store.list_runs()}
            if run not in known:
                raise CheckpointError(
                    f"got run {run!r}; it must be a run folder, a checkpoint file, or a run in {self.store_path}",
                    field="run",
                    tries=(Ask("runs.list"),),
                )
            path = Path(known[run])
        path = path / MODEL_FILE if path.is_dir() else path
        if not path.is_file() and not path.with_name("config.json").is_file():
            raise CheckpointError(
                f"{path.parent}: holds no run and no {MODEL_FILE}",
                field="run",
                tries=("a run folder", Ask("runs.list")),
            )
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no checkpoint yet; the run has not reached its first one",
                field="run",
                tries=(Ask("resume", more=(Give("out", str(path.parent)),)),),
            )
        return path

    def check_order(self, operation: str, run: str, names: Sequence[str]) -> None:
        """Refuse a run and files in swapped order.

        Raises:
            ConfigError: the run names data, and one of the files names a run.
        """
        from bit_transformer.data.sources import is_corpus

        is_data = Path(run).exists() or run == "-" or is_corpus(run)
        if not is_data or self._names_a_run(run):
            return
        swapped = next((name for name in names if self._names_a_run(name)), None)
        if swapped is not None:
            rest = [name for name in names if name != swapped]
            raise ConfigError(
                f"got {run!r} as the run and {swapped!r} as a file; they look swapped",
                field="run",
                tries=(
                    Ask(
                        operation,
                        swapped,
                        (Give("name", run) if operation == "score" else Give("names", (run, *rest)),),
                    ),
                ),
            )

    def _names_a_run(self, text: str) -> bool:
        from bit_transformer.checkpoint import MODEL_FILE

        path = Path(text)
        if path.exists():
            return (path / MODEL_FILE).is_file() or (path.is_file() and path.suffix == ".safetensors")
        return any(run.id == text for run in self.store.list_runs())

    def model(self, run: str) -> BitTransformerLM:
        """The model of a run, in evaluation mode, on the workspace's device. It is shared: to change it, make a copy.

        Raises:
            CheckpointError: no such run, or a damaged checkpoint.
        """
        from bit_transformer.checkpoint import load_checkpoint

        path = self.model_path(run)
        stat = path.stat()
        key = (path.resolve(), stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if key not in self._loaded:
                for old in [old for old in self._loaded if old[0] == key[0]]:
                    del self._loaded[old]
                self._loaded[key] = load_checkpoint(path, device=self.device)
                while len(self._loaded) > max(1, self.keep):
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def guard(self, run: str, *, window: int = 0) -> Guard:
        """The calibrated gate of a run.

        Args:
            window: bytes judged at a time; 0: 256, or the longest that was calibrated.

        Raises:
            CheckpointError: the run was not calibrated, or for another model.
            ConfigError: a window that cannot be judged.
        """
        from bit_transformer.safety import Guard, SafetyGate

        calibration, reference = self.calibration(run)
        return Guard(SafetyGate.calibrated(calibration), reference, window)

    def calibration(self, run: str) -> tuple[Calibration, Reference]:
        """The calibration of a run, and its reference.

        Raises:
            CheckpointError: the run was not calibrated, or for another model.
        """
        from bit_transformer.safety import load_calibration
        from bit_transformer.safety.calibration import GATE_FILE

        path = self.model_path(run).with_name(GATE_FILE)
        if not path.is_file():
            raise CheckpointError(
                f"{path}: does not exist; the run was not calibrated", field="run", tries=(Ask("calibrate", run),)
            )
        model = self.model(run)
        return load_calibration(path, model.config, model.bank if model.config.experts else None)
