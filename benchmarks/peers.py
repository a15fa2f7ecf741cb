"""The peer of the same shape: Hugging Face's GPT-2 over bytes."""

from __future__ import annotations

from typing import Any

from bit_transformer.extras import require


def gpt2_over_bytes(d_model: int, nhead: int, num_layers: int, context: int) -> Any:
    """`GPT2LMHeadModel` with a vocabulary of 256 and no dropout."""
    transformers = require("transformers", extra="bench", purpose="the comparison with GPT-2")
    transformers.utils.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=256,
        n_positions=context,
        n_embd=d_model,
        n_layer=num_layers,
        n_head=nhead,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)
