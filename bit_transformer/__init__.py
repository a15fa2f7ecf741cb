"""BitTransformerLM: language modelling on bits. No tokenizer, any file, text or binary.

>>> from bit_transformer import BitTransformerLM, text_to_bits
>>> model = BitTransformerLM(d_model=64, nhead=2, num_layers=2)
>>> logits, telemetry = model(text_to_bits("To be")[None])
>>> logits.shape
torch.Size([1, 40, 2])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bit_transformer.bit_io import bits_to_bytes, bits_to_text, bytes_to_bits, text_to_bits
    from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
    from bit_transformer.config import DataConfig, ModelConfig, OptimConfig, Sampling, TrainConfig
    from bit_transformer.evaluation.metrics import bits_per_byte
    from bit_transformer.generation import generate, generate_bytes, infer_long, stream_bytes
    from bit_transformer.memory import estimate_memory
    from bit_transformer.model import BitTransformerLM, set_dropout
    from bit_transformer.presets import preset
    from bit_transformer.training import cpu_autocast, train_loop

# Names load on first use, so that `btlm --help` need not wait for torch.
_HOME = {
    "BitTransformerLM": "model",
    "DataConfig": "config",
    "ModelConfig": "config",
    "OptimConfig": "config",
    "Sampling": "config",
    "TrainConfig": "config",
    "bits_per_byte": "evaluation.metrics",
    "bits_to_bytes": "bit_io",
    "bits_to_text": "bit_io",
    "bytes_to_bits": "bit_io",
    "cpu_autocast": "training",
    "estimate_memory": "memory",
    "generate": "generation",
    "generate_bytes": "generation",
    "infer_long": "generation",
    "load_checkpoint": "checkpoint",
    "preset": "presets",
    "save_checkpoint": "checkpoint",
    "set_dropout": "model",
    "stream_bytes": "generation",
    "text_to_bits": "bit_io",
    "train_loop": "training",
}

__all__ = [
    "BitTransformerLM",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "Sampling",
    "TrainConfig",
    "bits_per_byte",
    "bits_to_bytes",
    "bits_to_text",
    "bytes_to_bits",
    "cpu_autocast",
    "estimate_memory",
    "generate",
    "generate_bytes",
    "infer_long",
    "load_checkpoint",
    "preset",
    "save_checkpoint",
    "set_dropout",
    "stream_bytes",
    "text_to_bits",
    "train_loop",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
