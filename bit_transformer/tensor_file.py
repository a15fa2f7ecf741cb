"""One safetensors file, all or nothing: tensors, a JSON document in the header, and a digest over both.

Written to a temporary name and renamed, so that a reader sees the old file or the new one. Nothing is ever unpickled. What is written
follows from tensors and document alone: the header has a single entry, for several are written in no fixed order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bit_transformer.errors import Ask, CheckpointError

SEALED = "bit-transformer, sealed"  # the header's one entry: the digest, a space, the document
OLDER = {"format", "sha256", "document"}  # entries of "bit-transformer/1", whose digest does not cover the document

PICKLES = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".ckpt",
)  # what other programs call files that can run any code when they are read

_log = logging.getLogger(__name__)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document, all or nothing.

    Raises:
        CheckpointError: the disk refused; a file that was there before is untouched.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(document)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as of any new file; what safetensors makes is for its owner alone
        save_file(kept, temporary, metadata={SEALED: f"{_digest(text, kept)} {text}"})
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as refused:
        with contextlib.suppress(OSError):  # a disk that cannot be written refuses this too
            temporary.unlink(missing_ok=True)
        kept_note = "The one before is untouched." if path.exists() else "Nothing was written."
        raise CheckpointError(
            f"{path}: could not be written ({reason(refused)}). {kept_note} Try freeing space, or another folder"
        ) from refused
    except BaseException:  # an interrupt
        temporary.unlink(missing_ok=True)
        raise


def read_tensors(path: Path, *, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `write_tensors`. A file of the older format is read too, with a warning in the log.

    Raises:
        CheckpointError: no such file, not of this format, or damaged, be it by one bit.
    """
    if not path.is_file():
        others = pickles_in(path.parent)
        there = f"only {others[0]}, a pickle, which is never read" if others else "no such file"
        raise CheckpointError(f"{path}: got {there}; a checkpoint is needed", tries=("a run folder", Ask("runs.list")))
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as broken:
        if _is_pickle(path):
            raise CheckpointError(
                f"{path}: got a pickle, which could run any code; only safetensors are read. Try a checkpoint of btlm"
            ) from None
        raise CheckpointError(f"{path}: is damaged or no checkpoint ({reason(broken)}). Try an earlier one") from broken
    document = _document(header, tensors, path)
    return {name: tensor.to(device) for name, tensor in tensors.items()}, document


def pickles_in(folder: Path) -> list[str]:
    """Names of the files in a folder that other programs pickle, which nobody here reads."""
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in files if name.endswith(PICKLES) or name.startswith("pytorch_model"))


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do, plain or in PyTorch's archive."""
    try:
        with path.open("rb") as file:
            begin = file.read(2)
    except OSError:
        return False
    return begin == b"PK" or (begin[:1] == b"\x80" and begin[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _document(header: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The document of a file that is as it was written.

    Raises:
        CheckpointError: it is not.
    """
    older = header.keys() == OLDER and header["format"] == "bit-transformer/1"
    if not older and header.keys() != {SEALED}:
        raise CheckpointError(f"{path}: is damaged, or no file that btlm wrote. Try an earlier one")
    expected, _, text = header[SEALED].partition(" ") if not older else (header["sha256"], "", header["document"])
    if expected != (tensors_digest(tensors) if older else _digest(text, tensors)):
        raise CheckpointError(f"{path}: is damaged: what it holds does not fit its checksum. Try an earlier one")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: is damaged: its header cannot be read. Try an earlier one")
    if older:
        _log.warning("%s: is of an older format, whose settings no checksum protects. Saving it again would", path)
    return document


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the document as it is written, and the tensors."""
    return hashlib.sha256(f"{tensors_digest(tensors)} {text}".encode()).hexdigest()


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


def reason(error: BaseException) -> str:
    """Why something failed, in one line."""
    return (
        error.strerror
        if isinstance(error, OSError) and error.strerror
        else next(iter(str(error).splitlines()), type(error).__name__)
    )
