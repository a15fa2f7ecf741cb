"""Models with weights of 8 or 4 bits.

    small = quantize_weights(model, bits=4)     # a quarter to an eighth of the bytes; same calls, same files
    small = quantize_dynamic(model)             # 8-bit weights, and 8-bit inputs of all matrices
    prepare_qat(model, bits=4)                  # train as before: the forward pass sees rounded weights
    small = convert_qat(model)                  # exactly the model that was trained

Everything large is quantized: the matrices of the blocks, embeddings, n-gram tables, the head, the mixer's gate. Biases and the mixer's weights
by node stay float32, and so do activations but for `quantize_dynamic`. Scales are float16, so groups of weights below 1e-5 lose precision. A
quantized model is saved, loaded, scored, sampled from and compressed with like any other; it cannot be trained. How weights are rounded is in
`nn/quantized.py`, decoding in `decoding/integer_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from bit_transformer.errors import ConfigError, Give
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.mixer import ExpertMixer
from bit_transformer.nn.patching import PrefixTreeHead
from bit_transformer.nn.quantized import Embedding, Linear, QuantizedTensor, Rounding

BITS = (8, 4)
GROUPS = {8: 64, 4: 32}  # weights that share a scale, unless a width is not a multiple of it
_ALREADY = "got a model that is quantized already. Try the model that it was made from"
STORED, SCALES = ".stored", ".scales"  # a quantized tensor in a file is two


def quantize_weights(model: BitTransformerLM, *, bits: int = 8, group: int | None = None) -> BitTransformerLM:
    """A copy of a model with 8-bit or 4-bit weights. It shares the bank of experts with the model.

    Args:
        group: how many weights of a row share a scale: a multiple of 32 that divides all widths. Default: 64 with 8 bits where it can be, else 32.

    Raises:
        ConfigError: bits other than 8 and 4, a group that does not divide the widths, or a model that is quantized already.
    """
    return _quantized(model, checked_rounding(model, bits, group), closest=True)


def quantize_dynamic(model: BitTransformerLM, *, group: int | None = None) -> BitTransformerLM:
    """A copy of a model with 8-bit weights, whose matrices also get 8-bit inputs. Inputs have one scale for each position, found as they come.

    Raises:
        ConfigError: as of `quantize_weights`.
    """
    plain = checked_rounding(model, 8, group)
    return _quantized(model, Rounding(8, plain.group, activations=8), closest=True)


def prepare_qat(
    model: BitTransformerLM, *, bits: int = 8, group: int | None = None, activations: bool = False
) -> BitTransformerLM:
    """Let a model's forward passes see rounded weights from now on, so that training adapts to them. Changes and returns the model.

    Gradients pass through the rounding. Weights, their names and optimizers stay as they are.

    Args:
        activations: also round the inputs of all matrices to 8 bits, as `quantize_dynamic` does.

    Raises:
        ConfigError: as of `quantize_weights`.
    """
    plain = checked_rounding(model, bits, group)
    set_rounding(model, Rounding(plain.bits, plain.group, 8 if activations else None))
    return model


def convert_qat(model: BitTransformerLM) -> BitTransformerLM:
    """The quantized model that a model prepared by `prepare_qat` has been computing.

    Raises:
        ConfigError: the model was not prepared.
    """
    if is_quantized(model):
        raise ConfigError(_ALREADY)
    if model.rounding is None:
        raise ConfigError(
            "got a model that was not prepared for quantization. Try prepare_qat before training, or quantize_weights"
        )
    return _quantized(model, model.rounding, closest=False)


def is_quantized(model: BitTransformerLM) -> bool:
    """Whether a model's weights are quantized."""
    return isinstance(model.head.weight, QuantizedTensor)


def check_trainable(model: BitTransformerLM) -> None:
    """Refuse to train a quantized model.

    Raises:
        ConfigError: it is quantized.
    """
    if is_quantized(model):
        raise ConfigError(
            "got a quantized model, which cannot be trained. Try the model that it was made from, with train.qat for weights that are rounded in training"
        )


def checked_rounding(model: BitTransformerLM, bits: int, group: int | None = None) -> Rounding:
    """The rounding of that many bits that fits a model.

    Raises:
        ConfigError: as of `quantize_weights`.
    """
    if bits not in BITS:
        raise ConfigError(f"got bits={bits}; weights can have 8 or 4. Try bits=8", field="bits")
    if is_quantized(model):
        raise ConfigError(_ALREADY)
    widths = {name: weight.shape[1] for name, _, _, weight in _weights(model)}
    fits = next((size for size in (GROUPS[bits], 32) if all(width % size == 0 for width in widths.values())), None)
    chosen = group if group is not None else fits or 32
    wrong = next((name for name, width in widths.items() if chosen < 1 or width % chosen), None)
    if chosen % 32 or wrong is not None:
        which = f", and {wrong} has {widths[wrong]} inputs" if chosen % 32 == 0 and wrong is not None else ""
        raise ConfigError(
            f"got groups of {chosen} weights{which}; a group must be a multiple of 32 that divides all widths",
            field="group",
            tries=(Give("group", fits) if fits else "d_model and dim_feedforward that are multiples of 32",),
        )
    return Rounding(bits, chosen)


def set_rounding(model: BitTransformerLM, rounding: Rounding | None) -> None:
    """Set how all layers round their weights."""
    model.rounding = rounding
    for _, module, _, _ in _weights(model):
        module.rounding = rounding


def _weights(model: BitTransformerLM) -> Iterator[tuple[str, Any, str, Tensor]]:
    """What is quantized: full name, module, name within the module, weights."""
    for path, module in model.named_modules():
        if isinstance(module, Linear | Embedding | PrefixTreeHead | ExpertMixer):
            name = "gate" if isinstance(module, ExpertMixer) else "weight"
            yield f"{path}.{name}", module, name, getattr(module, name)


def _quantized(model: BitTransformerLM, rounding: Rounding, *, closest: bool) -> BitTransformerLM:
    made = BitTransformerLM(model.config).to(model.head.weight.device)
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(theirs[name])
        for path, module, name, weight in _weights(made):
            if not weight.isfinite().all():
                raise ConfigError(f"got weights in {path} that are NaN or infinite. Try an earlier checkpoint")
            _hold(module, name, QuantizedTensor.of(weight, rounding, closest=closest))
    set_rounding(made, rounding)
    if model.has_bank:
        made.bank = model.bank
    return made.requires_grad_(False).eval()


def _hold(module: nn.Module, name: str, weight: QuantizedTensor) -> None:
    setattr(module, name, nn.Parameter(weight, requires_grad=False))


# ---- files ----


def described(model: BitTransformerLM) -> dict[str, Any] | None:
    """How a model's weights are rounded, for a checkpoint's header; None: they are not."""
    if model.rounding is None:
        return None
    return {**asdict(model.rounding), "trained": not is_quantized(model)}


def flattened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, with each quantized one as two plain ones."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedTensor):
            plain |= {f"{name}{STORED}": tensor.stored, f"{name}{SCALES}": tensor.scales}
        else:
            plain[name] = tensor
    return plain


def take_quantized(model: BitTransformerLM, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Prepare a new model for what a file holds, as `described`. Returns the remaining tensors, to be loaded as usual.

    Raises:
        ConfigError: the file holds no such weights.
    """
    try:
        rounding = Rounding(about["bits"], about["group"], about["activations"])
        if not about["trained"]:
            rest = dict(tensors)
            for path, module, name, weight in list(_weights(model)):
                held = QuantizedTensor(rest.pop(f"{path}{STORED}"), rest.pop(f"{path}{SCALES}"), rounding.bits)
                fits = held.shape == weight.shape and held.scales.shape == (
                    len(weight),
                    weight.shape[1] // rounding.group,
                )
                if not fits or held.stored.dtype != (torch.int8 if rounding.bits == 8 else torch.uint8):
                    raise ConfigError(
                        f"got {path} of shape {tuple(held.shape)}; {tuple(weight.shape)} is needed. Try an earlier file"
                    )
                _hold(module, name, held)
                rest[path] = held
            tensors = rest
            model.requires_grad_(False)
    except (KeyError, TypeError, ZeroDivisionError):
        raise ConfigError("got quantized weights that are incomplete. Try an earlier file") from None
    set_rounding(model, rounding)
    return tensors
