"""What a PyTorch user tries first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bit_transformer import BitTransformerLM, bits_per_byte, losses, surprise
from bit_transformer.bit_io import bytes_to_bits, text_to_bits
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.nn.position import rotary_table, rotate
from bit_transformer.presets import preset
from tests.conftest import TEXT, random_bits, random_model

SMALL = {"buckets": 1024, "history": 4096}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_may_be_cast_and_says_about_the_same(dtype: torch.dtype) -> None:
    model, bits = random_model(patch_bits=8, max_seq_len=512), random_bits(2, 256)
    want = model(bits).logits
    cast = random_model(patch_bits=8, max_seq_len=512).to(dtype)
    got = cast(bits).logits
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)
    assert cast.trunk.rotary_NK2.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_rotary_positions_come_back_exact_from_half_precision() -> None:
    model = random_model(patch_bits=8, max_seq_len=512)
    before = model.trunk.rotary_NK2.clone()
    assert torch.equal(model.bfloat16().float().trunk.rotary_NK2, before)


def test_arrays_and_tensors_are_bits_alike() -> None:
    model = random_model(patch_bits=8, max_seq_len=512)
    array = np.asarray(bytes_to_bits(b"To be"))[None]
    assert torch.equal(model(array).logits, model(torch.from_numpy(array)).logits)
    assert torch.equal(losses(model, array)[0], losses(model, torch.from_numpy(array))[0])
    assert np.array_equal(np.asarray(text_to_bits("To be")), array[0])


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        (torch.zeros(64, dtype=torch.uint8), "bits must be (batch, length >= 1)"),
        (torch.full((2, 64), 2), "got the value 2 among the bits"),
        (torch.full((2, 64), -1), "got the value -1 among the bits"),
        (torch.zeros(2, 63, dtype=torch.uint8), "a multiple of patch_bits=8 is needed"),
    ],
    ids=["one dimension", "twos", "negative", "a partial patch"],
)
def test_losses_of_what_are_no_windows_of_bits_say_so(bits: torch.Tensor, says: str) -> None:
    for model in (random_model(patch_bits=8), random_model(patch_bits=8, causal=False)):
        with pytest.raises(BitStreamError) as refused:
            losses(model, bits)
        assert says in str(refused.value) and "\n" not in str(refused.value)


def test_bytes_can_be_scored_as_they_are() -> None:
    model = random_model(patch_bits=8, max_seq_len=512)
    assert bits_per_byte(model, TEXT[:700]) == bits_per_byte(model, bytes_corpus(TEXT[:700]))


@pytest.mark.parametrize("fields", [{}, {"experts": SMALL}], ids=str)
def test_surprise_is_what_each_byte_costs(fields: dict) -> None:
    model = random_model(patch_bits=8, max_seq_len=512, **fields)
    data = TEXT[:700]
    cost = surprise(model, data)
    assert cost.shape == (700,) and cost.dtype == np.float64 and (cost >= 0).all()
    assert cost.sum() / 700 == pytest.approx(bits_per_byte(model, data).bpb)
    with pytest.raises(ConfigError, match="diffusion"):
        surprise(random_model(causal=False), data)


def test_only_a_model_with_experts_has_a_bank() -> None:
    without, with_them = random_model(), random_model(patch_bits=8, experts=SMALL)
    assert not hasattr(without, "bank") and hasattr(with_them, "bank")
    with pytest.raises(ConfigError, match="has no bank"):
        _ = without.bank
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = without.no_such_thing


def test_a_preset_is_the_one_of_the_command_line() -> None:
    model = BitTransformerLM.of_preset("tiny", experts=None)
    assert model.config == preset("tiny", experts=None) and model.config.ngram_orders
    with pytest.raises(ConfigError, match="preset='huge'"):
        BitTransformerLM.of_preset("huge")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compilers_rotate_as_eager_mode_does(dtype: torch.dtype, monkeypatch) -> None:
    table = rotary_table(9, 8).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(2, 9, 3, 8, dtype=dtype, requires_grad=True)
    weight, found = torch.randn(2, 9, 3, 8, dtype=dtype), []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        y = rotate(x, table)
        found.append((y.detach(), *torch.autograd.grad((y * weight).sum(), x)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)
