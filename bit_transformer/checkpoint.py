"""Checkpoints: one safetensors file each, written to a temporary name and renamed, with a digest over every tensor.

A file holds tensors and, in its header, a JSON document. `save_checkpoint` writes a model that others load; the trainer
keeps what it needs to go on in a file of the same kind. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bit_transformer.config import ModelConfig
from bit_transformer.errors import CheckpointError, ConfigError
from bit_transformer.model import BitTransformerLM

FORMAT = "bit-transformer/1"
MODEL_FILE = "model.safetensors"


def save_checkpoint(path: str | Path, model: BitTransformerLM, *, about: Mapping[str, Any] | None = None) -> Path:
    """Write a model's weights and config to one file.

    Args:
        path: the file, or a folder that gets a `model.safetensors`.
        about: further facts for the header, such as the step; plain JSON.

    Raises:
        CheckpointError: the disk refused; a file that was there before is untouched.
    """
    target = _file(Path(path))
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    write_tensors(target, weights, {"model": model.config.model_dump(mode="json"), "about": dict(about or {})})
    return target


def load_checkpoint(
    path: str | Path, *, device: torch.device | str = "cpu", config: ModelConfig | None = None
) -> BitTransformerLM:
    """Read a model, in evaluation mode.

    Args:
        path: the file, or the folder that holds it, such as a run's.
        config: the shape that is expected, if any.

    Raises:
        CheckpointError: no such file, a damaged one, or one of another shape.
    """
    source = _file(Path(path))
    weights, document = read_tensors(source, device=device)
    try:
        stored = ModelConfig.of(document["model"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{source}: holds no model. Try the run's {MODEL_FILE}") from None
    except ConfigError as unknown:
        raise CheckpointError(
            f"{source}: written by another version ({unknown}) Try the version that wrote it"
        ) from None
    if config is not None and config != stored:
        changed = [k for k in ModelConfig.model_fields if getattr(config, k) != getattr(stored, k)]
        first = changed[0]
        raise CheckpointError(
            f"{source}: its {first}={getattr(stored, first)} is not {getattr(config, first)}; the shapes must be equal. "
            f"Try the checkpoint's own config"
        )
    model = BitTransformerLM(stored)
    load_weights(model, weights, source)
    return model.to(device).eval()


def load_weights(model: BitTransformerLM, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights into a model of the same shape.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as mismatch:
        detail = str(mismatch).splitlines()[1].strip() if "\n" in str(mismatch) else str(mismatch)
        raise CheckpointError(f"{source}: is of another shape ({detail}) Try the config it was saved with") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document, all or nothing.

    Raises:
        CheckpointError: the disk refused; a file that was there before is untouched.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "sha256": tensors_digest(kept), "document": json.dumps(document)}
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, temporary, metadata=header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as refused:
        temporary.unlink(missing_ok=True)
        kept_note = "The one before is untouched." if path.exists() else "Nothing was written."
        raise CheckpointError(
            f"{path}: could not be written ({_reason(refused)}). {kept_note} Try freeing space"
        ) from refused
    except BaseException:  # an interrupt
        temporary.unlink(missing_ok=True)
        raise


def read_tensors(path: Path, *, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write_tensors`.

    Raises:
        CheckpointError: no such file, not of this format, or damaged.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: got no such file; a checkpoint is needed. Try a run folder, or `btlm runs list`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as broken:
        raise CheckpointError(
            f"{path}: is damaged or no checkpoint ({_reason(broken)}). Try an earlier one"
        ) from broken
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: has format {header.get('format')!r}, not {FORMAT!r}. Try one that btlm wrote")
    if tensors_digest(tensors) != header.get("sha256"):
        raise CheckpointError(f"{path}: is damaged: its tensors do not fit their checksum. Try an earlier one")
    try:
        document: dict[str, Any] = json.loads(header["document"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: is damaged: its header cannot be read. Try an earlier one") from None
    return {name: tensor.to(device) for name, tensor in tensors.items()}, document


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file(path: Path) -> Path:
    return path if path.is_file() or path.suffix == ".safetensors" else path / MODEL_FILE


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
