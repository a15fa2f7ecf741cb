"""Models by one number, the depth. Width, heads, tables and learning rates follow from it."""

from __future__ import annotations

from typing import Any

from bit_transformer.config import ModelConfig, OptimConfig
from bit_transformer.errors import ConfigError

_ANY_PATCH = 27_720  # the least common multiple of 1 .. 12: a window that fits any patch size

NAMED = {"tiny": 2, "small": 4, "medium": 8, "large": 12}


def of_depth(num_layers: int, *, patch_bits: int = 8, parity: bool = False) -> ModelConfig:
    """A model of `num_layers` layers. Width: 64 per layer, at least 128; heads of 64; windows of 256 bytes, 1,024 from 8 layers.

    N-gram embeddings of 2 to 5 patches are on if a patch has 6 bits or more, because contexts of a few bits help little. Word
    embeddings are on if a patch is a byte. Experts are on; their units are bytes, or patches that do not divide a byte.

    Raises:
        ConfigError: a depth below 1, or an invalid patch size.
    """
    width = max(128, 64 * num_layers)
    byte_bits = 9 if parity else 8
    window = 256 if num_layers < 8 else 1024
    bits = window * byte_bits
    words = patch_bits == byte_bits
    orders = (2, 3, 4, 5) if patch_bits >= 6 else ()
    dropout = (0.1, 0.1, 0.2, 0.3) if orders else ()
    return ModelConfig.of(
        {
            "d_model": width,
            "nhead": max(2, width // 64),
            "num_layers": num_layers,
            "patch_bits": patch_bits,
            "parity": parity,
            "max_seq_len": max(1, bits // patch_bits) * patch_bits,
            "ngram_orders": orders,
            "ngram_rows": 1 << 15,
            "ngram_words": words,
            "experts": {},
            "ngram_dropout": dropout + ((0.1, 0.1) if words else ()),
        }
    )


def preset(name: str = "small", **overrides: Any) -> ModelConfig:
    """A model by name (`tiny`, `small`, `medium`, `large`) or by depth (`"6"`).

    Args:
        overrides: fields to set to other values.

    Raises:
        ConfigError: no such preset, or invalid fields.
    """
    depth = NAMED.get(name) or (int(name) if name.isdecimal() else 0)
    if not 1 <= depth <= 64:
        raise ConfigError(f"got preset={name!r}; {', '.join(NAMED)} or a depth from 1 to 64 is needed. Try small")
    patches: dict[str, Any] = {key: overrides[key] for key in ("patch_bits", "parity") if key in overrides}
    checked = ModelConfig.of({**patches, "max_seq_len": _ANY_PATCH})
    fields = of_depth(depth, patch_bits=checked.patch_bits, parity=checked.parity).model_dump()
    if overrides.get("causal") is False:  # without what reads only the past; n-grams of both sides
        orders = (2, 3) if fields["ngram_orders"] else ()
        fields |= {
            "ngram_orders": orders,
            "ngram_words": False,
            "ngram_dropout": (0.2,) * 3 * len(orders),
            "experts": None,
        }
    if overrides.keys() & {"ngram_orders", "ngram_words"} and "ngram_dropout" not in overrides:
        del fields["ngram_dropout"]  # it has one value per context of the preset
    return ModelConfig.of(fields | overrides)


def optim_for(model: ModelConfig) -> OptimConfig:
    """Learning rates for a width: the defaults at width 128; AdamW's falls as 1 / sqrt(width)."""
    scale = (128 / model.d_model) ** 0.5
    return OptimConfig(lr=OptimConfig().lr * scale)
