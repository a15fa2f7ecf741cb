"""The portable engine: equal to the PyTorch path up to rounding, and equal to itself to the last bit."""

import hashlib
import math

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import Sampling
from bit_transformer.decoding import bit_loop, generate
from bit_transformer.decoding import portable_kernels as kernels
from bit_transformer.decoding.portable_engine import PortableEngine, exact_rotary
from bit_transformer.decoding.session import Codes, Session
from bit_transformer.decoding.torch_engine import TorchEngine
from bit_transformer.errors import ConfigError
from bit_transformer.experts.bank import curves, pack_units
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.position import rotary_table

TEXT = (
    b"It was the best of times, it was the worst of times; incomprehensibilities (antidisestablishmentarianism) ABOUND. "
    * 3
)

SHAPES = {
    "bytes": {"d_model": 32, "num_layers": 2, "ngram_orders": (2, 3), "ngram_words": True, "ngram_rows": 1024},
    "reversible": {"d_model": 32, "num_layers": 3, "reversible": True},
    "local": {"d_model": 32, "num_layers": 2, "chunk_size": 128},
    "parity": {
        "d_model": 32,
        "patch_bits": 9,
        "parity": True,
        "ngram_orders": (2,),
        "ngram_words": True,
        "ngram_rows": 1024,
    },
    "bits": {"d_model": 20, "patch_bits": 1},
    "threes": {"d_model": 36, "patch_bits": 3, "ngram_orders": (1, 2), "ngram_rows": 1024},
    "words": {"d_model": 16, "patch_bits": 12},
    "experts": {"d_model": 32, "ngram_words": True, "ngram_rows": 1024, "experts": {"buckets": 1024, "history": 1024}},
    "experts, half bytes": {
        "d_model": 32,
        "patch_bits": 4,
        "experts": {"buckets": 1024, "history": 1024, "orders": (1, 3)},
    },
}


def made(name: str, seed: int = 0) -> BitTransformerLM:
    """A model whose weights are sums of exact fractions, the same on every machine."""
    shape = {"nhead": 2, "num_layers": 1, "max_seq_len": 64 * SHAPES[name].get("patch_bits", 8), **SHAPES[name]}
    model = BitTransformerLM(**shape).eval()
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = random.integers(-128, 129, size=parameter.shape)
            parameter.copy_(torch.from_numpy(drawn.astype(np.float32) / 1024))
    return model


def patches(model: BitTransformerLM, rows: int) -> torch.Tensor:
    c = model.config
    bits = np.stack([bytes_to_bits(TEXT[7 * row :][:100], parity=c.parity) for row in range(rows)])
    whole = bits.shape[1] // c.patch_bits * c.patch_bits
    return torch.from_numpy(pack_units(bits[:, :whole], c.patch_bits).astype(np.int64))


@pytest.mark.parametrize("name", SHAPES)
def test_states_and_logits_are_those_of_the_modules(name):
    model = made(name)
    patch_BN = patches(model, 3)[:, :40]
    results = []
    with torch.inference_mode():
        for kind in (PortableEngine, TorchEngine):
            engine = kind(model, 3)
            first = engine.extend(torch.cat((torch.full((3, 1), model.trunk.start), patch_BN), dim=1))
            engine.forget(17)
            engine.select(np.array([2, 1, 1]))
            second = engine.extend(patch_BN[:, 3:9])
            features = None
            if model.mixer is not None:
                random = np.random.default_rng(1)
                shape = (3, 1 << model.config.patch_bits, model.mixer.features)
                features = random.integers(-36, 37, size=shape).astype(np.int8)
            results.append((first, second, torch.from_numpy(engine.node_logits(features)[:, 1:])))
            assert engine.length == 41 - 17 + 6
    for ours, theirs in zip(*results, strict=True):
        # A reversible trunk rounds to 2^-18, and a difference in the last place may round to its neighbour.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4 if model.config.reversible else 2e-5)


@pytest.mark.parametrize("name", ["bytes", "reversible", "local", "experts"])
def test_a_stream_is_the_same_to_the_last_bit_in_any_company(name):
    model = made(name)
    patch_BN = patches(model, 7)[:, :60]
    alone = [PortableEngine(model, 1).extend(patch_BN[row : row + 1])[0] for row in range(7)]
    for size in (2, 4, 5, 7):
        for row, state_ND in enumerate(PortableEngine(model, size).extend(patch_BN[:size])):
            assert torch.equal(state_ND, alone[row])
    pieces = PortableEngine(model, 1)
    parts = [pieces.extend(patch_BN[:1, begin:end]) for begin, end in ((0, 1), (1, 30), (30, 60))]
    assert torch.equal(torch.cat(parts, dim=1)[0], alone[0])


def test_the_exponential_is_right_to_the_last_places():
    x = np.concatenate((-np.geomspace(1e-8, 87, 20_001), [0.0])).astype(np.float32)
    found = np.array([_exp(value) for value in x])
    exact = np.array([math.exp(float(value)) for value in x])
    assert np.abs(found / exact - 1).max() < 1.5 * 2.0**-23
    assert _exp(np.float32(0)) == 1
    assert 0 < _exp(np.float32(-1000)) < 1e-37
    assert math.isnan(_exp(np.float32("nan")))


@kernels.compiled
def _exp(x):
    return kernels.exp(x)


@kernels.compiled
def _dot(a, b, sums):
    return kernels.dot(a, b, sums)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 128, 130])
def test_dot_products_are_summed_in_the_documented_order(size):
    random = np.random.default_rng(size)
    a, b = (random.standard_normal(size).astype(np.float32) for _ in range(2))
    lanes = [np.float32(0)] * 16
    for i in range(size):
        lanes[i % 16] = np.float32(lanes[i % 16] + np.float32(a[i] * b[i]))
    for half in (8, 4, 2, 1):
        lanes = [np.float32(lanes[i] + lanes[i + half]) for i in range(half)]
    assert _dot(a, b, np.zeros(16, dtype=np.float32)) == lanes[0]


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_products_of_matrices_are_summed_in_the_documented_order(streams):
    random = np.random.default_rng(streams)
    x = random.standard_normal((streams, 21)).astype(np.float32)
    x[:, ::3] = 0
    weight = random.standard_normal((21, 19)).astype(np.float32)
    y, used = np.full((streams, 19), 7, dtype=np.float32), np.zeros(22, dtype=np.int64)
    if streams == 1:
        kernels.linear_one(x[0], weight, y[0], used)
    elif streams == 2:
        kernels.linear_two(*x, weight, *y, used)
    else:
        kernels.linear_four(*x, weight, *y, used)
    expected = np.zeros((streams, 19), dtype=np.float32)
    for b in range(streams):
        for i in range(21):
            for o in range(19):
                expected[b, o] = np.float32(expected[b, o] + np.float32(x[b, i] * weight[i, o]))
    assert np.array_equal(y, expected)


def test_rotary_positions_are_exact():
    table = exact_rotary(300, 64)
    assert table.dtype == np.float32
    assert np.abs(table - rotary_table(300, 64).numpy()).max() < 2.0**-24


GOLDEN = {
    "bytes": "1b1715af0e789d36",
    "reversible": "4f2a45744e2010d8",
    "local": "1eb719f273305814",
    "parity": "abaf3f24cbd10225",
    "experts": "a1d3d62595936b3a",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bits_are_those_of_every_other_machine(name):
    """The digest of states and logits, which was computed with SSE2, AVX2 and AVX512 code and is the same for all."""
    model = made(name)
    session = Session(model, 2, engine="portable")
    if session.experts is not None:
        session.experts.learn()
    c = model.config
    rows = np.stack([bytes_to_bits(TEXT[row:][:150], parity=c.parity) for row in (0, 40)])
    unit_NB = np.ascontiguousarray(pack_units(rows, session.unit_bits).T.astype(np.int64))
    logits = session.run(unit_NB, wanted=True)
    found = hashlib.sha256(logits.tobytes())
    found.update(session.state_BD.numpy().tobytes())
    assert found.hexdigest()[:16] == GOLDEN[name]


def test_the_experts_tables_are_those_of_every_other_machine():
    found = hashlib.sha256()
    for table in curves():
        found.update(np.ascontiguousarray(table).tobytes())
    assert found.hexdigest()[:16] == "f1c80e54201188fe"


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_over_units_predicts_as_step_by_step(name):
    model = made(name)
    c = model.config
    whole = 40 * c.align_bytes
    bits_BT = np.stack([bytes_to_bits(TEXT[row:][:whole], parity=c.parity) for row in (0, 40)])[:, : c.max_seq_len]
    session = Session(model, 2, engine="portable")
    U = session.unit_bits
    bits_BT = bits_BT[:, : bits_BT.shape[1] // U * U]
    unit_NB = np.ascontiguousarray(pack_units(bits_BT, U).T.astype(np.int64))
    ran = session.run(unit_NB, wanted=True).transpose(2, 0, 1).reshape(2, -1)
    with torch.inference_mode():
        stepped = model.all_bit_logits(torch.from_numpy(bits_BT))[:, :-1].numpy()
        again = Session(model, 2, engine="portable").step(bits_BT)
    assert np.abs(ran - stepped).max() < (2e-3 if c.reversible else 2e-4)
    assert np.abs(again[:, :-1, 1].numpy() - ran[:, 1:]).max() < (2e-3 if c.reversible else 2e-4)


@pytest.mark.parametrize("name", ["bytes", "experts", "experts, half bytes", "bits"])
@pytest.mark.parametrize("learn", ["nothing", "prompt", "all"])
def test_what_is_drawn_in_a_loop_is_what_is_drawn_patch_by_patch(name, learn):
    model = made(name)
    if learn == "all" or (learn == "prompt" and model.config.experts is None):
        return  # patch by patch, experts learn a unit when it is complete; the loop learns each bit
    how = Sampling(seed=3, learn=learn)
    prompts = torch.from_numpy(np.stack([bytes_to_bits(TEXT[:5]), bytes_to_bits(TEXT[20:25])]))
    fast = generate(model, prompts, 8 * 40, how, long=True, engine="portable")
    slow = generate(model, prompts, 8 * 40, how, long=True, engine="torch")
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("name", SHAPES)
def test_codes_are_read_back_and_are_as_long_as_the_bits_cost(name):
    model = made(name)
    c = model.config
    rows = [bytes_to_bits(TEXT[row:][:size], parity=c.parity) for row, size in ((0, 240), (9, 120), (50, 36))]
    coded, counts = _coded(model, rows)
    costs = []
    for b, bits in enumerate(rows):
        code = coded[b]
        assert code is not None
        session = _session(model, 1)
        unit_N1 = np.ascontiguousarray(pack_units(bits[None], session.unit_bits).T.astype(np.int64))
        z = session.run(unit_N1, wanted=True).reshape(-1).astype(np.float64)[: len(bits)]
        bit_cost = np.minimum(np.logaddexp(0, np.where(bits, -z, z)) / math.log(2), 16)  # no probability is below 2^-16
        if c.parity:
            bit_cost = bit_cost.reshape(-1, 9)[:, :8]
        costs.append(bit_cost.sum() / 8)
        assert costs[-1] - 2 < len(code) < costs[-1] * 1.002 + 4
    session = _session(model, 3)
    unit_NB = np.zeros((int(max(counts)), 3), dtype=np.int64)
    codes = Codes.to_read([code for code in coded if code is not None], parity=c.parity)
    session.run(unit_NB, bit_loop.DECODED, counts=counts, codes=codes)
    for b, bits in enumerate(rows):
        assert np.array_equal(unit_NB[: counts[b], b], pack_units(bits, session.unit_bits))


def _session(model: BitTransformerLM, batch: int) -> Session:
    session = Session(model, batch, engine="portable")
    if session.experts is not None:
        session.experts.learn()
    return session


def _coded(model, rows):
    session = _session(model, len(rows))
    units = [pack_units(bits, session.unit_bits) for bits in rows]
    counts = np.array([len(unit_N) for unit_N in units])
    unit_NB = np.zeros((int(counts.max()), len(rows)), dtype=np.int64)
    for b, unit_N in enumerate(units):
        unit_NB[: len(unit_N), b] = unit_N
    codes = Codes.to_write([len(bits) for bits in rows], parity=model.config.parity)
    session.run(unit_NB, bit_loop.ENCODED, counts=counts, codes=codes)
    return codes.written(), counts


def test_what_is_learned_while_decoding_is_what_reading_learns():
    model = made("experts")
    data = np.frombuffer(TEXT, dtype=np.uint8)
    read = model.bank.copy()
    read.read(data, read.stream(), learn=True)
    coded, counts = _coded(model, [bytes_to_bits(TEXT)])
    session = _session(model, 1)
    unit_N1 = np.zeros((len(data), 1), dtype=np.int64)
    session.run(unit_N1, bit_loop.DECODED, counts=counts, codes=Codes.to_read(coded))
    assert session.experts is not None
    assert session.experts.banks[0].digest() == read.digest()
    assert model.bank.count == 0


def test_a_weight_that_changes_is_seen_by_the_next_session():
    model = made("bytes")
    before = Session(model, engine="portable").node_logits()
    with torch.no_grad():
        model.head.bias.add_(1)
    assert np.allclose(Session(model, engine="portable").node_logits(), before + 1)


def test_the_engine_refuses_what_it_cannot_run():
    model = made("bits")
    with pytest.raises(ConfigError, match="portable"):
        Session(model.double(), engine="portable")
    assert isinstance(Session(model.double()).engine, TorchEngine)
    with pytest.raises(ConfigError, match="single-stream"):
        Session(model, engine="single-stream")
