"""Checkpoints in parts, by `torch.distributed.checkpoint`: every rank writes what it holds, in the background, as safetensors.

A checkpoint is a folder `PREFIX-STEP` with a file for each rank, and `document.json`, which is written last, with SHA-256 of all files. A folder without it
is not a checkpoint. Any number of ranks can read it, and a process alone: each reads what it needs. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bit_transformer.distributed.world import World
from bit_transformer.distributed.wrapping import placed
from bit_transformer.errors import CheckpointError
from bit_transformer.tensor_file import reason

DOCUMENT = "document.json"


class PartWriter:
    """Writes a training's checkpoints in parts, one at a time, in the background. All ranks call its methods together.

    Args:
        folder: of the run. `prefix`: of the checkpoints' names.
        keep: how many complete checkpoints stay.
    """

    def __init__(self, folder: Path, prefix: str, world: World, *, keep: int = 2) -> None:
        self.folder, self.prefix, self.world, self.keep = folder, prefix, world, keep
        # Its own group: the background thread talks to the other ranks' while training does too.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=world.timeout))
        self._under_way: tuple[Path, Mapping[str, Any], Future[Any]] | None = None

    def write(self, step: int, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Begin a checkpoint, after the one before is complete. Tensors are copied first, so that training can go on.

        Raises:
            CheckpointError: the one before could not be written.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.finish()
        path = self.folder / f"{self.prefix}-{step:08d}"
        if self.world.is_main:
            shutil.rmtree(path, ignore_errors=True)
        self.world.meet()
        writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
        with _quiet():
            under_way = async_save(dict(tensors), storage_writer=writer, process_group=self._group)
        assert isinstance(under_way, Future)
        self._under_way = (path, document, under_way)

    def finish(self) -> None:
        """Wait until the checkpoint under way is complete on all ranks, and remove old ones.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._under_way is None:
            return
        path, document, under_way = self._under_way
        self._under_way = None
        try:
            under_way.result()
        except Exception as failed:
            raise CheckpointError(
                f"{self.world.name}{path}: could not be written ({reason(failed)}). Try freeing space"
            ) from failed
        if self.world.is_main:
            try:
                _seal(path, document)
            except OSError as failed:
                raise CheckpointError(
                    f"{self.world.name}{path}: could not be written ({reason(failed)}). Try freeing space"
                ) from failed
            kept = complete(self.folder, self.prefix)[-self.keep :]
            for old in part_folders(self.folder, self.prefix):
                if old not in kept:
                    shutil.rmtree(old, ignore_errors=True)
        self.world.meet()


def part_folders(folder: Path, prefix: str) -> list[Path]:
    """Folders of checkpoints, complete or not, oldest first."""
    return sorted(
        path for path in folder.glob(f"{prefix}-*") if path.is_dir() and path.name[len(prefix) + 1 :].isdigit()
    )


def complete(folder: Path, prefix: str) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    return [path for path in part_folders(folder, prefix) if (path / DOCUMENT).is_file()]


def read_parts(
    path: Path, like: Mapping[str, Tensor], world: World | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the document of a checkpoint in parts. Each rank reads what it holds of `like`; of other tensors everything.

    Args:
        like: parameters by name, see `laid_out`.

    Raises:
        CheckpointError: a checkpoint that is incomplete or damaged, or of another shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    document = _opened(path)
    reader = HuggingFaceStorageReader(str(path))
    try:
        found = reader.read_metadata().state_dict_metadata
        room = {
            name: torch.zeros(about.size, dtype=about.properties.dtype)
            for name, about in found.items()
            if isinstance(about, TensorStorageMetadata)
        }
        tensors = laid_out(room, like)
        with _quiet():
            load(tensors, storage_reader=reader)
    except Exception as failed:
        name = world.name if world else ""
        raise CheckpointError(
            f"{name}{path}: is damaged, or of another shape ({reason(failed)}). Try an earlier one"
        ) from failed
    return tensors, document


def laid_out(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint, each rank with the part that it holds of a parameter.

    Args:
        like: parameters by name. Tensors `PREFIX.NAME` and `PREFIX.NAME.KEY` of the shape of a parameter are laid out like it.
    """
    return {name: _like_its_parameter(name, tensor, like) for name, tensor in tensors.items()}


def _like_its_parameter(name: str, tensor: Tensor, like: Mapping[str, Tensor]) -> Tensor:
    parts = name.split(".")
    for end in (len(parts), len(parts) - 1):
        other = like.get(".".join(parts[1:end]))
        if other is not None and other.shape == tensor.shape:
            return placed(tensor, other)
    return tensor


def _seal(path: Path, document: Mapping[str, Any]) -> None:
    """Write the document, with the sums of all files: now the checkpoint is complete."""
    sums = {part.name: _sum(part) for part in sorted(path.glob("*.safetensors"))}
    temporary = path / f".{DOCUMENT}.tmp"
    with temporary.open("w") as file:
        json.dump({"files": sums, "document": document}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path / DOCUMENT)


def _opened(path: Path) -> dict[str, Any]:
    try:
        told = json.loads((path / DOCUMENT).read_text())
        wrong = next((name for name, expected in told["files"].items() if _sum(path / name) != expected), None)
        document: dict[str, Any] = told["document"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as broken:
        raise CheckpointError(f"{path}: is incomplete ({reason(broken)}). Try an earlier one") from broken
    if wrong is not None:
        raise CheckpointError(
            f"{path / wrong}: is damaged: what it holds does not fit its checksum. Try an earlier one"
        )
    return document


def _sum(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            found.update(piece)
    return found.hexdigest()


@contextlib.contextmanager
def _quiet() -> Any:
    """Without PyTorch's remarks on a process alone, and on storage formats."""
    log = logging.getLogger("torch.distributed.checkpoint")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(before)
