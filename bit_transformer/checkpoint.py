"""Checkpoints: a model's weights, what its experts have learned, and its config, in one file.

`save_checkpoint` writes a model for use. The trainer saves what it needs to resume in another file of the same format.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bit_transformer.config import ModelConfig
from bit_transformer.errors import CheckpointError, ConfigError
from bit_transformer.experts import STATE_VERSION as BANK_VERSION
from bit_transformer.model import BANK, BitTransformerLM
from bit_transformer.quantization import described, flattened, take_quantized
from bit_transformer.tensor_file import prefixed, read_tensors, write_tensors

MODEL_FILE = "model.safetensors"


def save_checkpoint(
    path: str | Path,
    model: BitTransformerLM,
    *,
    weights: Mapping[str, Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model's weights and config to one file.

    Args:
        path: the file, or a folder for `model.safetensors`.
        weights: by name, used instead of the model's own.
        about: other facts for the header, such as the step; plain JSON.

    Raises:
        CheckpointError: the file could not be written. An existing file stays as it was.
    """
    target = _file(Path(path))
    tensors = {name: tensor.detach() for name, tensor in _tensors(model, weights or {}).items()}
    document = {"model": model.config.model_dump(mode="json"), "bank": BANK_VERSION, "about": dict(about or {})}
    if (rounding := described(model)) is not None:
        document["quantization"] = rounding
    write_tensors(target, flattened(tensors), document)
    return target


def _tensors(model: BitTransformerLM, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state dict, with other weights, and packed what its experts have learned."""
    if not (model.has_bank and model.bank.count) or any(name.startswith(BANK) for name in weights):
        return {**model.state_dict(), **weights}
    return {**model.weights(), **prefixed(BANK, model.bank.packed()), **weights}


def load_checkpoint(
    path: str | Path, *, device: torch.device | str = "cpu", config: ModelConfig | None = None
) -> BitTransformerLM:
    """Read a model, in evaluation mode.

    Args:
        path: the file, or its folder, such as a run folder.
        config: the expected shape, if any.

    Raises:
        CheckpointError: the file is missing or damaged, or has another shape.
    """
    source = _file(Path(path))
    weights, document = read_tensors(source)
    stored = _stored_config(document, source)
    if config is not None and config != stored:
        changed = [k for k in ModelConfig.model_fields if getattr(config, k) != getattr(stored, k)]
        first = changed[0]
        raise CheckpointError(
            f"{source}: got {first}={getattr(stored, first)}; {first}={getattr(config, first)} is needed. Try the checkpoint's "
            f"own config"
        )
    rounding = document.get("quantization") or {"trained": True}
    with nullcontext() if rounding.get("trained") else torch.device("meta"):  # no memory for weights in float32
        model = BitTransformerLM(stored)
    learned = any(name.startswith(BANK) for name in weights)
    if learned and document.get("bank") != BANK_VERSION:
        raise CheckpointError(
            f"{source}: got experts of format {document.get('bank')}; format {BANK_VERSION} is needed. Try the version that wrote it"
        )
    if "quantization" in document:
        try:
            weights = take_quantized(model, weights, rounding)
        except ConfigError as wrong:
            raise CheckpointError(f"{source}: {wrong}") from None
    load_weights(model, weights, source)
    return model.to(device).eval()


def read_config(path: str | Path) -> ModelConfig:
    """The config of the model in a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged, or contains no model.
    """
    source = _file(Path(path))
    return _stored_config(read_tensors(source)[1], source)


def _stored_config(document: Mapping[str, Any], source: Path) -> ModelConfig:
    try:
        return ModelConfig.of(document["model"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{source}: contains no model. Try the run's {MODEL_FILE}") from None
    except ConfigError as unknown:
        raise CheckpointError(
            f"{source}: was written by another version ({unknown}) Try the version that wrote it"
        ) from None


def load_weights(model: BitTransformerLM, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights into a model of the same shape, including what its experts have learned, if `weights` has it.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        assign = model.head.bias.is_meta
        missing, unexpected = model.load_state_dict(dict(weights), strict=False, assign=assign)
        wrong = [name for name in missing if not name.startswith(BANK)] + unexpected
        detail = f"only one of them has {wrong[0]}." if wrong else ""
        if assign:
            model.trunk.materialize()
    except RuntimeError as mismatch:
        detail = str(mismatch).splitlines()[1].strip() if "\n" in str(mismatch) else str(mismatch)
    if detail:
        raise CheckpointError(f"{source}: has another shape ({detail}) Try the config it was saved with")


def _file(path: Path) -> Path:
    return path if path.is_file() or path.suffix == ".safetensors" else path / MODEL_FILE
