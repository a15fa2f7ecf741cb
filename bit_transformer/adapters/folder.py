"""The small files next to `model.safetensors` with which Hugging Face transformers loads a folder; written without that library.

`config.json` names classes in `modeling_bit_transformer.py`, which only imports them from this package. Its entry `model` is the same as
in the settings of a run, so one file serves both.
"""

from __future__ import annotations

import json
from typing import Any

from bit_transformer.config import ModelConfig

MODEL_TYPE = "bit_transformer"
CODE_FILE, TOKENIZER_FILE = "modeling_bit_transformer.py", "tokenizer_config.json"
CODE = '''"""Loads a BitTransformerLM into Hugging Face transformers. The classes are those of the installed package bit-transformer."""

from bit_transformer.adapters.bit_tokenizer import BitTokenizer
from bit_transformer.adapters.huggingface import BitTransformerConfig, BitTransformerForCausalLM

__all__ = ["BitTokenizer", "BitTransformerConfig", "BitTransformerForCausalLM"]
'''
_HERE = CODE_FILE.removesuffix(".py")
AUTO_MAP = {
    "AutoConfig": f"{_HERE}.BitTransformerConfig",
    "AutoModelForCausalLM": f"{_HERE}.BitTransformerForCausalLM",
}
TOKENIZER_MAP = {"AutoTokenizer": [f"{_HERE}.BitTokenizer", None]}


def start_token(model: ModelConfig) -> int:
    """The id of the start symbol. The ids before it are the 2^P patches."""
    return 1 << model.patch_bits


def derived(model: ModelConfig) -> dict[str, Any]:
    """What other programs look for in a config, under the names that they use."""
    start = start_token(model)
    return {
        "vocab_size": start + 1,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.nhead,
        "bos_token_id": start,
        "pad_token_id": start,
    }


def has_text(model: ModelConfig) -> bool:
    """Whether text can be cut into tokens: a byte must be a whole number of patches."""
    return model.causal and model.byte_bits % model.patch_bits == 0


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """Entries of `config.json` for transformers."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["BitTransformerForCausalLM"],
        "auto_map": AUTO_MAP,
        "dtype": "float32",
        "model": model.model_dump(mode="json"),
        **derived(model),
    }


def tokenizer_entries(model: ModelConfig) -> dict[str, Any]:
    """Entries of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "BitTokenizer",
        "auto_map": TOKENIZER_MAP,
        "patch_bits": model.patch_bits,
        "parity": model.parity,
        "model_max_length": model.max_patches,
    }


def code_files(model: ModelConfig) -> dict[str, bytes]:
    """The files besides `model.safetensors` and `config.json`, by name; none for diffusion models, which transformers cannot use."""
    if not model.causal:
        return {}
    files = {CODE_FILE: CODE.encode()}
    if has_text(model):
        files[TOKENIZER_FILE] = as_json(tokenizer_entries(model))
    return files


def as_json(document: dict[str, Any]) -> bytes:
    """A document as it stands in a file."""
    return f"{json.dumps(document, indent=2)}\n".encode()
