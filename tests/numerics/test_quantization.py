"""Weights of 8 and 4 bits: against a slow reference, between engines, in training, in files, and in compressed streams."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import math

import numpy as np
import pytest
import torch

from bit_transformer import (
    BitTransformerLM,
    convert_qat,
    expand_model,
    generate_bytes,
    load_checkpoint,
    losses,
    prepare_qat,
    quantize_dynamic,
    quantize_weights,
    save_checkpoint,
    train_loop,
)
from bit_transformer.compression.codec import ModelCoder
from bit_transformer.compression.files import compress_stream, decompress_stream
from bit_transformer.config import Sampling, TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.decoding import Session, integer_kernels
from bit_transformer.diffusion import diffusion_inference
from bit_transformer.errors import CheckpointError, ConfigError
from bit_transformer.nn.patching import pack_patches
from bit_transformer.nn.quantized import QuantizedTensor, Rounding, packed, restored, unpacked
from bit_transformer.quantization import is_quantized
from bit_transformer.tensor_file import read_tensors, write_tensors
from bit_transformer.training import Trainer, build_windows
from tests.conftest import TEXT, prose, random_bits, random_model
from tests.reference import quantized as reference

SHAPE = {"d_model": 64, "nhead": 2, "dim_feedforward": 96, "max_seq_len": 512}
KINDS = {
    "int8": lambda model: quantize_weights(model),
    "int4": lambda model: quantize_weights(model, bits=4),
    "dynamic": lambda model: quantize_dynamic(model),
}


@pytest.mark.parametrize("bits, group", [(8, 64), (8, 32), (4, 32)])
def test_rounding_is_the_reference(bits: int, group: int):
    weight = torch.randn(5, 128) * torch.logspace(-8, 4, 5)[:, None]
    weight[3, :64] = 0
    codes, scales = Rounding(bits, group).integers(weight)
    assert np.array_equal(
        restored(codes, scales).numpy().astype(np.float64), reference.rounded(weight.numpy(), bits, group)
    )
    assert codes.dtype == torch.int8 and scales.dtype == torch.float16


def test_four_bits_are_packed_two_a_byte_and_the_closest_scale_is_never_worse():
    codes = torch.randint(-8, 8, (7, 64), dtype=torch.int8)
    assert packed(codes).shape == (7, 32) and torch.equal(unpacked(packed(codes)), codes)
    weight, rounding = torch.randn(40, 64), Rounding(4, 32)
    plain, close = (restored(*rounding.integers(weight, closest=which)) for which in (False, True))
    errors = [(made - weight).square().view(40, 2, 32).sum(-1) for made in (plain, close)]
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all() and errors[1].sum() < 0.95 * errors[0].sum()


def test_large_weights_are_rounded_in_pieces(monkeypatch):
    weight = torch.randn(50, 64)
    whole = Rounding(8, 32).integers(weight)
    monkeypatch.setattr("bit_transformer.nn.quantized._PIECE", 640)
    assert all(torch.equal(a, b) for a, b in zip(whole, Rounding(8, 32).integers(weight), strict=True))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("levels", [32767, 127])
def test_integer_products_equal_the_reference_bit_for_bit(bits: int, levels: int):
    random = np.random.default_rng(0)
    low, high = (-127, 128) if bits == 8 else (-8, 8)
    codes = random.integers(low, high, (2, 24, 96)).astype(np.int8)
    scales = random.standard_normal((2, 24, 3)).astype(np.float32)
    x = (random.standard_normal((3, 96)) * 4).astype(np.float32)
    x[1] = 0
    x[2, 0] = 32767  # the largest sums there can be
    codes[1, 0] = low
    tiles = integer_kernels.tiles_of(codes, scales, bits, levels)
    y, room = np.empty((3, 24), np.float32), (np.zeros(288, np.int16), np.zeros(9, np.int32), np.zeros(3, np.float32))
    for layer in range(2):
        integer_kernels.product(x, tiles, layer, y, *room)
        assert not y[1].any()
        for b in (0, 2):
            assert np.array_equal(y[b], reference.product(x[b], codes[layer], scales[layer], levels))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"patch_bits": 1},
        {"reversible": True, "chunk_size": 128},
        {"experts": True, "patch_bits": 9, "parity": True, "max_seq_len": 576},
    ],
    ids=["plain", "flat", "reversible", "experts"],
)
def test_engines_agree_and_decoding_equals_the_whole_window(kind: str, fields: dict):
    model = KINDS[kind](random_model(**SHAPE | fields))
    P = model.config.patch_bits
    bits = random_bits(2, 32 * P)
    made = []
    for engine in ("torch", "portable"):
        session = Session(model, 2, engine=engine)
        session.advance(pack_patches(bits, P))
        made.append(session.node_logits()[:, 1:])
    size = np.abs(made[0]).max()
    # 16-bit inputs move a logit by 2^-15 of its largest part; 8-bit inputs are rounded alike by both, but for ties
    assert np.abs(made[0] - made[1]).max() < 1e-3 * size
    one = Session(model, 1, engine="portable")
    for patch in pack_patches(bits[:1], P)[0]:
        one.advance(patch.view(1, 1))
    assert np.array_equal(one.node_logits(), np.concatenate((one.node_logits()[:, :1], made[1][:1]), axis=1))


def test_all_large_weights_are_quantized_and_losses_stay_close():
    model = random_model(**SHAPE, experts=True, ngram_orders=(2, 3), ngram_rows=256)
    bits = random_bits(4, 512)
    before = model.nll(bits).mean()
    for kind, bound in (("int8", 0.01), ("dynamic", 0.02), ("int4", 0.2)):
        small = KINDS[kind](model)
        plain = [name for name, p in small.named_parameters() if not isinstance(p, QuantizedTensor)]
        assert plain == ["head.bias", "mixer.by_node"]
        assert is_quantized(small) and not small.training and small.bank is model.bank
        assert small.num_parameters() == model.num_parameters()
        assert abs(small.nll(bits).mean() - before) < bound * before
        assert torch.allclose(copy.deepcopy(small).nll(bits), small.nll(bits), atol=1e-6)
        assert torch.allclose(small.to("cpu").nll(bits), small.nll(bits), atol=1e-6)
        halves = copy.deepcopy(small).to(torch.bfloat16)
        assert halves.head.weight.dtype == torch.bfloat16 and abs(halves.nll(bits).mean() - before) < 0.3 * before


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_what_the_model_computes(kind: str, tmp_path):
    model = random_model(**SHAPE, experts=True, ngram_orders=(2, 3), ngram_rows=4096)
    model.learn(random_bits(2, 512))
    small, bits = KINDS[kind](model), random_bits(2, 512)
    sizes = [save_checkpoint(tmp_path / name, each).stat().st_size for name, each in (("a", model), ("b", small))]
    again = load_checkpoint(tmp_path / "b")
    assert again.rounding == small.rounding and torch.allclose(again.nll(bits), small.nll(bits), atol=1e-6)
    assert again.bank.digest() == model.bank.digest()
    saved = [
        sum(t.nbytes for n, t in read_tensors(tmp_path / n / "model.safetensors")[0].items() if "bank" not in n)
        for n in "ab"
    ]
    assert saved[1] < saved[0] * (0.17 if kind == "int4" else 0.28) and sizes[1] < sizes[0]
    prompt = generate_bytes(small, [b"ab"], 16, Sampling(seed=1))
    assert prompt == generate_bytes(again, [b"ab"], 16, Sampling(seed=1))


@pytest.mark.parametrize("damage", ["missing", "shape", "group"])
def test_damaged_quantized_files_are_refused(damage: str, tmp_path):
    save_checkpoint(tmp_path, quantize_weights(random_model(**SHAPE)))
    tensors, document = read_tensors(tmp_path / "model.safetensors")
    if damage == "missing":
        del tensors["head.weight.scales"]
    elif damage == "shape":
        tensors["head.weight.stored"] = tensors["head.weight.stored"][:, :32].contiguous()
    else:
        document["quantization"]["group"] = 0
    write_tensors(tmp_path / "model.safetensors", tensors, document)
    with pytest.raises(CheckpointError, match=r"Try an earlier file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activations", [False, True])
def test_training_sees_what_conversion_computes(bits: int, activations: bool):
    if activations and bits == 4:
        bits = 8
    model = random_model(**SHAPE, experts=True, ngram_orders=(2,), ngram_rows=64, reversible=True)
    names = list(model.state_dict())
    data = random_bits(2, 512)
    plain = model.nll(data)
    assert prepare_qat(model, bits=bits, activations=activations) is model and list(model.state_dict()) == names
    assert not torch.equal(model.nll(data), plain)
    converted = convert_qat(model)
    for (name, p), q in zip(model.named_parameters(), converted.parameters(), strict=True):
        assert torch.equal(
            q.restored() if isinstance(q, QuantizedTensor) else q,
            model.rounding(p) if isinstance(q, QuantizedTensor) else p,
        ), name
    assert torch.allclose(converted.nll(data), model.nll(data), atol=1e-6)
    if activations:
        return
    session = Session(model, 1, engine="portable")
    session.advance(pack_patches(data[:1, :256], 8))
    other = Session(convert_qat(model), 1, engine="portable")
    other.advance(pack_patches(data[:1, :256], 8))
    assert np.abs(session.node_logits() - other.node_logits())[:, 1:].max() < 0.05


def test_gradients_are_those_at_the_rounded_weights():
    model = random_model(**SHAPE, ngram_orders=(2,), ngram_rows=64)
    at_rounded, data = copy.deepcopy(model), random_bits(2, 512)
    rounding = Rounding(8, 32)
    prepare_qat(model, bits=8, group=32)
    with torch.no_grad():
        for name, parameter in at_rounded.named_parameters():
            if name != "head.bias":
                parameter.copy_(rounding(parameter))
    for each in (model, at_rounded):
        losses(each, data)[0].backward()
    for (name, p), q in zip(model.named_parameters(), at_rounded.parameters(), strict=True):
        assert torch.allclose(p.grad.to_dense(), q.grad.to_dense(), rtol=1e-6, atol=1e-9), name


def test_training_for_four_bits_beats_rounding_afterwards(tmp_path):
    shape = {"d_model": 32, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "ngram_orders": (), "ngram_words": False}
    data, held_out = prose(0, 2000), prose(1, 400)[:2048]
    bpb = {}
    for qat in (None, 4):
        torch.manual_seed(0)
        model = BitTransformerLM(**shape)
        train_loop(model, data, steps=120, batch_size=8, qat=qat)
        assert (model.rounding is None) == (qat is None)
        save_checkpoint(tmp_path, model)
        model = load_checkpoint(tmp_path)  # a file says for which bits it was trained
        small = quantize_weights(model, bits=4) if qat is None else convert_qat(model)
        bits = torch.from_numpy(np.unpackbits(np.frombuffer(held_out, np.uint8))).view(-1, 256)
        bpb[qat] = small.nll(bits).mean().item()
    assert bpb[4] < bpb[None]


def test_a_resumed_training_for_few_bits_is_the_uninterrupted_one(tmp_path):
    shape = {"d_model": 32, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "ngram_orders": (), "ngram_words": False}
    config = TrainConfig(steps=12, batch_size=4, qat=8, qat_after=0.5, keep_best=True, eval_every=0.25, eval_bytes=512)

    def trainer(observers=()):
        torch.manual_seed(0)
        model = BitTransformerLM(**shape)
        return Trainer(
            model, build_windows(model, TEXT[:8192], config), config, bytes_corpus(TEXT[8192:9216]), observers
        )

    def save(at):
        def observe(trainer, record):
            if record["step"] == at:
                trainer.save(tmp_path / f"{at}.safetensors")

        return observe

    whole = trainer([save(at) for at in (3, 6, 9)])
    whole.run()
    assert whole.progress.rounded and whole.progress.best_step > 6
    for at in (3, 6, 9):
        again = trainer()
        again.load(tmp_path / f"{at}.safetensors")
        assert (again.model.rounding is not None) == (at == 9)
        again.run()
        assert (
            again.progress.best_step == whole.progress.best_step and again.progress.best_bpb == whole.progress.best_bpb
        )
        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
        assert all(torch.equal(whole.best[name], again.best[name]) for name in whole.best)


def test_growing_keeps_the_rounding_and_short_trainings_are_rounded_too():
    model = prepare_qat(random_model(**SHAPE), bits=8)
    bits = random_bits(2, 256)
    larger = expand_model(model, num_layers=3)
    assert larger.rounding == model.rounding and torch.allclose(larger.nll(bits), model.nll(bits), atol=1e-5)
    for budget in ({"steps": 1}, {"steps": 4}, {"epochs": 0.02}):
        short = prepare_qat(random_model(**SHAPE), bits=8)  # of another training: for this one it begins anew
        train_loop(short, TEXT[:8192], batch_size=2, qat=4, **budget)
        assert short.rounding.bits == 4


def test_activations_that_are_tiny_or_not_finite():
    tiles = integer_kernels.tiles_of(np.ones((1, 8, 32), np.int8), np.ones((1, 8, 1), np.float32), 8)
    y, room = np.empty((4, 8), np.float32), (np.zeros(128, np.int16), np.zeros(4, np.int32), np.zeros(4, np.float32))
    x = np.zeros((4, 32), np.float32)
    x[1, 3], x[2, 3], x[3, 3] = 1e-38, np.inf, np.nan
    integer_kernels.product(x, tiles, 0, y, *room)
    assert not y[:2].any() and np.isnan(y[2:]).all()


def test_a_diffusion_model_can_be_quantized():
    model = random_model(**SHAPE, causal=False)
    small = quantize_weights(model, bits=4)
    made = diffusion_inference(small, random_bits(1, 256), steps=4)
    assert made.shape[-1] == 256


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_streams_are_golden(kind: str):
    """The same bytes on every machine; `scripts/processors` runs this as other processors would."""
    model, random = random_model(**SHAPE, ngram_orders=(2, 3), ngram_rows=256), np.random.default_rng(0)
    with torch.no_grad():  # PyTorch's own random numbers differ between processors
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(random.integers(-128, 129, parameter.shape) / 512))
    small = convert_qat(prepare_qat(model, bits=4 if kind == "int4" else 8, activations=kind == "dynamic"))
    made, plain = io.BytesIO(), io.BytesIO()
    compress_stream(io.BytesIO(TEXT[:600]), made, ModelCoder(small, 0), size=600, jobs=1, verify=False)
    decompress_stream(io.BytesIO(made.getvalue()), plain, lambda header: ModelCoder(small, 0), jobs=1)
    assert plain.getvalue() == TEXT[:600]
    assert hashlib.sha256(made.getvalue()).hexdigest()[:16] == GOLDEN[kind]


GOLDEN = {"int8": "0dac3114be5bcf77", "int4": "0b532d0048f5fca2", "dynamic": "598179ca466aa6d0"}


def test_what_cannot_be_is_said():
    model = random_model(**SHAPE)
    with pytest.raises(ConfigError, match=r"got bits=3; weights can have 8 or 4\. Try"):
        quantize_weights(model, bits=3)
    with pytest.raises(ConfigError, match=r"got groups of 48 weights; .* multiple of 32"):
        quantize_weights(model, bits=4, group=48)
    with pytest.raises(
        ConfigError, match=r"got groups of 64 weights, and trunk\.blocks\.0\.feed_forward\.out\.weight has 96 inputs"
    ):
        quantize_weights(model, group=64)
    with pytest.raises(ConfigError, match=r"has 24 inputs"):
        prepare_qat(random_model(), bits=4)
    with pytest.raises(ConfigError, match="quantized already"):
        quantize_weights(quantize_weights(model))
    with pytest.raises(ConfigError, match="quantized already"):
        convert_qat(quantize_weights(model))
    with pytest.raises(ConfigError, match=r"got groups of 33 weights; .*Try group=32"):
        quantize_weights(model, group=33)
    with pytest.raises(ConfigError, match="not prepared"):
        convert_qat(model)
    with pytest.raises(ConfigError, match="cannot be trained"):
        train_loop(quantize_weights(model), TEXT, steps=1)
    small = quantize_weights(model)
    before = small.head.weight.restored()
    with torch.no_grad():
        for write in (
            lambda q: q.zero_(),
            lambda q: q.__setitem__(0, 1.0),
            lambda q: torch.add(q, 1, out=q),
            lambda q: torch._foreach_mul_([q], 2),
            lambda q: torch.nn.Parameter(q),
            lambda q: q.copy_(quantize_weights(random_model(**SHAPE, num_layers=1), bits=4).head.weight),
        ):
            with pytest.raises(TypeError, match="cannot be trained or edited"):
                write(small.head.weight)
    assert torch.equal(small.head.weight.restored(), before)
    small.share_memory()
    assert torch.equal(small.head.weight.restored(), before)
    with torch.no_grad():
        broken = copy.deepcopy(model)
        broken.head.weight[3, 5] = math.inf
    with pytest.raises(ConfigError, match=r"weights in head\.weight that are NaN or infinite"):
        quantize_weights(broken)
    with pytest.raises(ConfigError, match="quantized model"):
        expand_model(small, num_layers=3)
    with pytest.raises(ConfigError, match="progressive and qat"):
        train_loop(model, TEXT, steps=1, qat=4, progressive=True)
    assert dataclasses.asdict(quantize_weights(model).rounding) == {"bits": 8, "group": 32, "activations": None}
