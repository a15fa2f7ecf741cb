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
    from bit_transformer.decoding import Session, generate, generate_bytes, infer_long, stream_bytes
    from bit_transformer.diffusion import diffusion_inference, likelihood_bound, repair
    from bit_transformer.distributed import make_pipeline, wrap_fsdp
    from bit_transformer.evaluation.metrics import bits_per_byte, surprise
    from bit_transformer.growth import expand_model
    from bit_transformer.memory import estimate_memory
    from bit_transformer.model import BitTransformerLM, set_dropout, set_sparse
    from bit_transformer.presets import preset
    from bit_transformer.quality.model import QualityModel
    from bit_transformer.quality.scoring import score_texts
    from bit_transformer.quantization import convert_qat, prepare_qat, quantize_dynamic, quantize_weights
    from bit_transformer.safety import SafetyGate, hil_safe_inference, safe_sample_with_retry
    from bit_transformer.surprisal.mapping import find_damage, surprise_map
    from bit_transformer.surprisal.proved import prove
    from bit_transformer.surprisal.reading import BankReader
    from bit_transformer.telemetry import (
        TelemetrySynthesizer,
        bit_negentropy,
        detect_metric_drift,
        lz_complexity,
        negentropy,
        symbiosis,
    )
    from bit_transformer.training import cpu_autocast, losses, train_loop

# Names load on first use, so that `btlm --help` need not wait for torch.
_HOME = {
    "BankReader": "surprisal.reading",
    "BitTransformerLM": "model",
    "DataConfig": "config",
    "ModelConfig": "config",
    "OptimConfig": "config",
    "QualityModel": "quality.model",
    "SafetyGate": "safety",
    "Sampling": "config",
    "Session": "decoding",
    "TelemetrySynthesizer": "telemetry",
    "TrainConfig": "config",
    "bit_negentropy": "telemetry",
    "bits_per_byte": "evaluation.metrics",
    "bits_to_bytes": "bit_io",
    "bits_to_text": "bit_io",
    "bytes_to_bits": "bit_io",
    "convert_qat": "quantization",
    "cpu_autocast": "training",
    "detect_metric_drift": "telemetry",
    "diffusion_inference": "diffusion",
    "estimate_memory": "memory",
    "expand_model": "growth",
    "find_damage": "surprisal.mapping",
    "generate": "decoding",
    "generate_bytes": "decoding",
    "hil_safe_inference": "safety",
    "infer_long": "decoding",
    "likelihood_bound": "diffusion",
    "load_checkpoint": "checkpoint",
    "losses": "training",
    "lz_complexity": "telemetry",
    "make_pipeline": "distributed",
    "negentropy": "telemetry",
    "prepare_qat": "quantization",
    "preset": "presets",
    "prove": "surprisal.proved",
    "quantize_dynamic": "quantization",
    "quantize_weights": "quantization",
    "repair": "diffusion",
    "safe_sample_with_retry": "safety",
    "save_checkpoint": "checkpoint",
    "score_texts": "quality.scoring",
    "set_dropout": "model",
    "set_sparse": "model",
    "stream_bytes": "decoding",
    "surprise": "evaluation.metrics",
    "surprise_map": "surprisal.mapping",
    "symbiosis": "telemetry",
    "text_to_bits": "bit_io",
    "train_loop": "training",
    "wrap_fsdp": "distributed",
}

__all__ = [
    "BankReader",
    "BitTransformerLM",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "QualityModel",
    "SafetyGate",
    "Sampling",
    "Session",
    "TelemetrySynthesizer",
    "TrainConfig",
    "bit_negentropy",
    "bits_per_byte",
    "bits_to_bytes",
    "bits_to_text",
    "bytes_to_bits",
    "convert_qat",
    "cpu_autocast",
    "detect_metric_drift",
    "diffusion_inference",
    "estimate_memory",
    "expand_model",
    "find_damage",
    "generate",
    "generate_bytes",
    "hil_safe_inference",
    "infer_long",
    "likelihood_bound",
    "load_checkpoint",
    "losses",
    "lz_complexity",
    "make_pipeline",
    "negentropy",
    "prepare_qat",
    "preset",
    "prove",
    "quantize_dynamic",
    "quantize_weights",
    "repair",
    "safe_sample_with_retry",
    "save_checkpoint",
    "score_texts",
    "set_dropout",
    "set_sparse",
    "stream_bytes",
    "surprise",
    "surprise_map",
    "symbiosis",
    "text_to_bits",
    "train_loop",
    "wrap_fsdp",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
