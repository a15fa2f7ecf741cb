"""Grows a model and its optimizers without changing what the model computes, and gives the stages of a growing training.

Depth: new blocks are added on top. Their last projections are zero, so they add nothing until they are trained. Width: new
channels are zero at every position. Norms then divide by a smaller root mean square, and the old columns of the matrices that
read the stream are scaled to compensate. New columns that read the new channels are random, new rows that write them are zero,
so gradients reach both. Heads keep their width, because rotary frequencies depend on it.

Sources: Chen et al. 2016, arXiv:1511.05641 (Net2Net); Gong et al. 2019 (stacking); Yao et al. 2024, arXiv:2305.02869 (masked growth);
Du et al. 2024, arXiv:2405.15319 (new layers as copies of the stack below).
"""

# Shapes: R rows and C columns of a parameter.
from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bit_transformer.config import ModelConfig
from bit_transformer.errors import Ask, ConfigError, Give
from bit_transformer.model import BitTransformerLM
from bit_transformer.quantization import check_trainable, checked_rounding, set_rounding

GROWS = ("d_model", "num_layers", "nhead", "dim_feedforward", "max_seq_len")


def expand_model(
    model: BitTransformerLM,
    *,
    d_model: int | None = None,
    num_layers: int | None = None,
    nhead: int | None = None,
    dim_feedforward: int | None = None,
    max_seq_len: int | None = None,
) -> BitTransformerLM:
    """A larger model that computes the same function: exactly for depth and window, up to rounding for width.

    Args:
        d_model: width; nhead follows, because heads keep their width.
        dim_feedforward: Default: follows d_model if the model's does.
        max_seq_len: longest window, in bits.

    Returns:
        a new model that shares only the experts' bank, in the same mode and dtype and on the same device.

    Raises:
        ConfigError: a smaller size, heads of another width, or invalid sizes.
    """
    given = {
        "d_model": d_model,
        "num_layers": num_layers,
        "nhead": nhead,
        "dim_feedforward": dim_feedforward,
        "max_seq_len": max_seq_len,
    }
    return expand_to(
        model, grown_config(model.config, {name: value for name, value in given.items() if value is not None})
    )


def expand_to(model: BitTransformerLM, grown: ModelConfig) -> BitTransformerLM:
    """`expand_model` to a shape from `grown_config`."""
    check_trainable(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        larger = BitTransformerLM(grown).to(model.head.weight)
    state = larger.weights()
    with torch.no_grad():
        for name, tensor in model.weights().items():
            state[name].copy_(place(name, tensor, state[name], model.config, grown, 1))
        for index in range(model.config.num_layers, grown.num_layers):
            for part in ("attend.query_key_value", "feed_forward.expand"):
                below = state[f"trunk.blocks.{index - model.config.num_layers}.{part}.weight"]
                state[f"trunk.blocks.{index}.{part}.weight"].copy_(below)
    if model.has_bank:
        larger.bank = model.bank
    if model.rounding is not None:
        checked_rounding(larger, model.rounding.bits, model.rounding.group)
        set_rounding(larger, model.rounding)
    return larger.train(model.training)


def grown_config(config: ModelConfig, sizes: Mapping[str, int]) -> ModelConfig:
    """The shape of a model after growth.

    Raises:
        ConfigError: as `expand_model`.
    """
    head = config.d_model // config.nhead
    width = sizes.get("d_model", config.d_model)
    heads = sizes.get("nhead", width // head)
    if heads * head != width:
        raise ConfigError(
            f"got d_model={width} and nhead={heads}; heads must stay {head} wide, because rotary frequencies depend on it. "
            f"Try d_model={max(1, width // head) * head}, nhead={max(1, width // head)}"
        )
    grown = ModelConfig.of({**config.model_dump(), **sizes, "nhead": heads})
    for name in GROWS:
        before, after = (
            getattr(config, name) or config.feedforward_width,
            getattr(grown, name) or grown.feedforward_width,
        )
        if after < before:
            raise ConfigError(
                f"{name}={after} is less than the model's {before}; expand_model only grows",
                field=name,
                tries=(Give(name, before), Ask("distill")),
            )
    return grown


def smaller_config(config: ModelConfig, sizes: Mapping[str, int]) -> ModelConfig:
    """The shape of a student.

    Args:
        sizes: fields to set. Default: half the depth and half the width, with heads of the same width.

    Raises:
        ConfigError: invalid sizes.
    """
    head, ratio = config.d_model // config.nhead, config.feedforward_width / config.d_model
    width = sizes.get("d_model", sizes.get("nhead", max(1, config.nhead // 2)) * head)
    layers = sizes.get("num_layers", max(1, config.num_layers // 2))
    fields = {
        "d_model": width,
        "nhead": max(1, width // head),
        "num_layers": layers,
        "checkpoint_every": min(config.checkpoint_every, max(1, layers)),
        "dim_feedforward": None if config.dim_feedforward is None else max(1, round(ratio * width)),
    }
    return ModelConfig.of({**config.model_dump(), **fields, **sizes})


def place(name: str, old: Tensor, fresh: Tensor, before: ModelConfig, after: ModelConfig, power: int) -> Tensor:
    """A parameter of the larger model: the smaller model's values in their place, fresh values elsewhere.

    Args:
        power: 1 for weights; for moments see `training/growing.py`.
    """
    D, wider = before.d_model, after.d_model
    made = fresh.clone()
    if name in ("head.bias", "mixer.by_node"):
        return old.clone()
    if name.startswith(("trunk.embed.", "trunk.phase.", "trunk.level.", "trunk.ngrams.")):
        made[:, D:] = 0.0
        made[:, :D] = old
        return made
    reads_stream = not name.endswith("out.weight")
    scale = math.sqrt(D / wider) ** power if reads_stream else 1.0
    if name.endswith("query_key_value.weight"):
        made.view(3, wider, wider)[:, :D, :D] = old.view(3, D, D) * scale
        return made
    made[: old.shape[0], : old.shape[1]] = old * scale
    return made


def _window_costs(config: ModelConfig) -> bool:
    """Whether attention takes at least two fifths of a block's operations, so that half the window saves a fifth."""
    if config.chunk_size:
        return False
    keys = config.max_patches / 2 if config.causal else config.max_patches
    matrices = 2 * (4 * config.d_model + 2 * config.feedforward_width)  # per channel
    return 4 * keys >= 0.4 * (matrices + 4 * keys)


def stages(target: ModelConfig, *, context: bool = True) -> list[ModelConfig]:
    """The shapes of a training that grows to a target.

    It starts with a quarter of the depth and half the width, then doubles depth and width in turn. The window starts at half if
    that saves a fifth of the operations; otherwise a shorter window only removes context to learn from (`docs/LOG.md`).

    Args:
        context: whether the window may grow.
    """
    heads, unit = target.nhead, target.align_bytes * target.byte_bits
    head = target.d_model // heads
    half = target.max_seq_len // 2 // unit * unit
    sizes = {
        "num_layers": max(1, target.num_layers // 4),
        "nhead": max(1, heads // 2),
        "max_seq_len": half if context and half >= unit and _window_costs(target) else target.max_seq_len,
    }
    ratio = target.feedforward_width / target.d_model

    def shape() -> ModelConfig:
        width = sizes["nhead"] * head
        inner = None if target.dim_feedforward is None else max(1, round(ratio * width))
        fields = {**target.model_dump(), **sizes, "d_model": width, "dim_feedforward": inner}
        fields["checkpoint_every"] = min(target.checkpoint_every, sizes["num_layers"])
        return ModelConfig.of(fields)

    found = [shape()]
    while found[-1] != target:
        for name, goal in (("num_layers", target.num_layers), ("nhead", heads), ("max_seq_len", target.max_seq_len)):
            if sizes[name] < goal:
                sizes[name] = min(goal, 2 * sizes[name]) if name == "num_layers" else goal
                found.append(shape())
    return found
