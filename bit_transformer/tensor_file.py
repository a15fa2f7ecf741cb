"""One safetensors file, all or nothing: tensors, a JSON document in the header, and a digest over every tensor.

Written to a temporary name and renamed, so that a reader sees the old file or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bit_transformer.errors import CheckpointError

FORMAT = "bit-transformer/1"


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


def prefixed(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as tensors whose names say what they belong to; they share memory."""
    return {f"{prefix}{name}": torch.from_numpy(array) for name, array in arrays.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a prefix, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
