"""Experts and transformer together: two routes to the same logits, gradients, and no way for the future to leak."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.decoding.session import Session
from bit_transformer.errors import ConfigError
from bit_transformer.evaluation.metrics import Protocol, bits_per_byte, byte_costs, default_protocol
from bit_transformer.experts.bank import pack_units
from bit_transformer.experts.feature_cache import corpus_features
from bit_transformer.experts.passes import FeatureReader
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.mixer import ExpertMixer
from bit_transformer.nn.patching import pack_patches, tree_nodes
from tests.conftest import TEXT, random_model

SMALL = {"buckets": 1024, "history": 4096}
SHAPES = [
    {"patch_bits": 8, "max_seq_len": 512},
    {"patch_bits": 1, "max_seq_len": 256},
    {"patch_bits": 4, "max_seq_len": 256},
    {"patch_bits": 9, "parity": True, "max_seq_len": 360},
    {"patch_bits": 12, "max_seq_len": 480},
    {"patch_bits": 3, "parity": True, "max_seq_len": 360},
]


def taught(**fields: object) -> BitTransformerLM:
    """A random model whose bank knows some text."""
    model = random_model(**{"experts": SMALL, **fields})
    bits = bytes_to_bits(TEXT[:1500], parity=model.config.parity)
    model.bank.read(pack_units(bits, model.config.unit_bits), model.bank.stream(), learn=True, wanted=False)
    return model


def test_the_mixer_is_its_formula() -> None:
    torch.manual_seed(0)
    B, N, P, D, F = 2, 3, 4, 6, 5
    mixer = ExpertMixer(D, P, F, 1 / 12).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_()
    h = torch.randn(B, N, D, dtype=torch.float64)
    said = torch.randint(-127, 128, (B, N, P, F), dtype=torch.int8)
    patch = torch.randint(0, 1 << P, (B, N))
    got = mixer(h, said, tree_nodes(patch, P))
    for b in range(B):
        for n in range(N):
            for j in range(P):
                node = 1 << j | int(patch[b, n]) >> (P - j)
                expected = 0.0
                for f in range(F):
                    weight = mixer.by_node[node, f].item() + sum(
                        mixer.gate[j * F + f, d].item() * h[b, n, d].item() for d in range(D)
                    )
                    expected += weight * int(said[b, n, j, f]) / 12
                assert got[b, n, j].item() == pytest.approx(expected, abs=1e-12)
    h.requires_grad_()
    node = tree_nodes(patch, P)

    def mixed(h: torch.Tensor, gate: torch.Tensor, by_node: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(mixer, {"gate": gate, "by_node": by_node}, (h, said, node))

    assert torch.autograd.gradcheck(mixed, (h, mixer.gate, mixer.by_node))


def test_an_untrained_model_is_the_banks_own_mixture() -> None:
    model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, patch_bits=8, experts=SMALL)
    corpus = bytes_corpus(TEXT[:3000])
    costs = np.concatenate(list(byte_costs(model, corpus, default_protocol(model))))
    bank = model.bank.copy()
    units = np.frombuffer(TEXT[:3000], np.uint8)
    logit = bank.read(units, bank.stream(), learn=True)[..., -1] / 12
    bits = np.unpackbits(units).reshape(-1, 8)
    expected = np.logaddexp(0, np.where(bits, -logit, logit)).sum(1) / math.log(2)
    np.testing.assert_allclose(costs, expected, rtol=1e-4, atol=1e-5)
    assert costs[2000:].mean() < 1 < costs[:60].mean()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_chunks_and_nodes_give_what_one_forward_gives(shape: dict) -> None:
    model = taught(**shape)
    P = shape["patch_bits"]
    bits = bytes_to_bits(np.frombuffer(TEXT[700:770], np.uint8), parity=model.config.parity)
    other = bytes_to_bits(np.frombuffer(TEXT[33:103], np.uint8), parity=model.config.parity)
    x_BT = torch.from_numpy(np.stack((bits, other)))[:, : shape["max_seq_len"] - 5]
    full, _ = model(x_BT)
    session, pieces, at = Session(model, 2), [], 0
    for size in (1, 7, 3, 8, 16, 9, 100, 50, 500):
        if at < x_BT.shape[1]:
            pieces.append(session.step(x_BT[:, at : at + size]))
            at += size
    torch.testing.assert_close(torch.cat(pieces, 1), full, atol=2e-4, rtol=1e-4)
    session = Session(model, 2)
    N = min(40, x_BT.shape[1] // P)
    patch_BN, all_BT = pack_patches(x_BT[:, : N * P], P), model.all_bit_logits(x_BT)
    for n in range(N):
        node_BP = tree_nodes(patch_BN[:, n], P)
        path_BP = torch.from_numpy(session.node_logits()).gather(1, node_BP)
        torch.testing.assert_close(path_BP, all_BT[:, n * P : (n + 1) * P], atol=2e-4, rtol=1e-4)
        session.advance(patch_BN[:, n : n + 1])


@pytest.mark.parametrize("shape", SHAPES[:2] + SHAPES[3:4], ids=str)
def test_the_future_moves_no_logit(shape: dict) -> None:
    model = taught(**shape)
    bits = torch.from_numpy(bytes_to_bits(np.frombuffer(TEXT[700:728], np.uint8), parity=model.config.parity))[None]
    here = 100
    scrambled = bits.clone()
    scrambled[:, here:] = 1 - scrambled[:, here:]
    one, other = model(bits)[0], model(scrambled)[0]
    assert torch.equal(one[:, :here], other[:, :here])  # logits[:, t] predict bit t + 1
    assert not torch.allclose(one[:, here:], other[:, here:])


@pytest.mark.parametrize("learning", ["static", "online", "online+mixer"])
def test_the_future_moves_no_earlier_cost(learning: str) -> None:
    model = taught(patch_bits=8, max_seq_len=128)
    text = np.frombuffer(TEXT[:400], np.uint8)
    scrambled = text.copy()
    scrambled[300:] = np.random.default_rng(0).permutation(scrambled[300:])
    how = default_protocol(model, learning=learning)
    runs = [np.concatenate(list(byte_costs(model, bytes_corpus(t.tobytes()), how, batch=4))) for t in (text, scrambled)]
    np.testing.assert_array_equal(runs[0][:300], runs[1][:300])
    assert (runs[0][310:] != runs[1][310:]).any()


def test_protocols_learn_what_they_say_and_leave_the_model_as_it_was() -> None:
    model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, patch_bits=8, max_seq_len=256, experts=SMALL)
    model.bank.read(np.frombuffer(TEXT[:1500], np.uint8), model.bank.stream(), learn=True, wanted=False)
    corpus = bytes_corpus((b"quite other words, jumping over zebras; " * 60)[:2000])
    before, weights = model.bank.digest(), {name: t.clone() for name, t in model.state_dict().items()}
    bpb = {how: bits_per_byte(model, corpus, default_protocol(model, learning=how), batch=2).bpb
           for how in ("static", "online", "online+mixer")}  # fmt: skip
    assert model.bank.digest() == before
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert bpb["online"] < 0.9 * bpb["static"]
    assert bpb["online+mixer"] != bpb["online"]
    assert "online (weights static" in str(default_protocol(model))
    with pytest.raises(ConfigError, match="needs experts"):
        default_protocol(random_model(), learning="online")
    with pytest.raises(ConfigError, match="one of static, online"):
        default_protocol(model, learning="sometimes")


def test_costs_do_not_depend_on_windows_being_scored_together() -> None:
    model = taught(patch_bits=8, max_seq_len=128)
    corpus = bytes_corpus(TEXT[:1000])
    for learning in ("static", "online"):
        how = Protocol(16, 4, learning)  # type: ignore[arg-type]
        one, many = [np.concatenate(list(byte_costs(model, corpus, how, batch=b))) for b in (1, 32)]
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-5)


def test_a_reader_gives_what_the_cache_holds() -> None:
    model = taught(patch_bits=8)
    corpus = bytes_corpus(TEXT[:5000])
    kept = corpus_features(corpus, model.config, limit=1 << 30)
    fresh = BitTransformerLM(model.config)
    reader = FeatureReader(corpus, model.config, fresh.bank, learn=True)
    for offset, length in ((0, 64), (32, 64), (90, 10), (1000, 300), (4900, 200)):
        expected = kept.read(offset * 8, min(length, 5000 - offset) * 8)
        got = reader.read(offset, length)
        assert got.shape == (length * 8, model.bank.features)
        np.testing.assert_array_equal(got[: len(expected)], expected)
        assert not got[len(expected) :].any()


def test_without_experts_nothing_changes() -> None:
    """The same weights, the same logits: the experts are beside the trunk, not in it."""
    without = random_model(patch_bits=8)
    with_experts = BitTransformerLM(**{**without.config.model_dump(), "experts": SMALL}).eval()
    missing = with_experts.load_state_dict(without.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"bank.learned", "mixer.by_node", "mixer.gate"}
    bits = torch.from_numpy(bytes_to_bits(np.frombuffer(TEXT[:40], np.uint8)))[None]
    with torch.no_grad():
        with_experts.mixer.by_node.zero_()  # type: ignore[union-attr]
    torch.testing.assert_close(with_experts(bits)[0], without(bits)[0])
    assert Session(without).experts is None and not without.has_bank
    empty = Corpus([])
    with pytest.raises(Exception, match="no bytes to score"):
        list(byte_costs(with_experts, empty, default_protocol(with_experts)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_learned_while_decoding_is_what_online_evaluation_learned(shape: dict) -> None:
    model = taught(**shape)
    unit = model.config.align_bytes
    data = TEXT[300 : 300 + 40 // unit * unit]
    reader = FeatureReader(bytes_corpus(data), model.config, model.bank.copy(), learn=True)
    reader.read(0, len(data))
    bits = torch.from_numpy(bytes_to_bits(np.frombuffer(data, np.uint8), parity=model.config.parity))
    patch_BN = pack_patches(bits[None], model.config.patch_bits)
    session = Session(model)
    assert session.experts is not None
    session.experts.learn()
    for n in range(patch_BN.shape[1]):
        session.node_logits()  # to look ahead changes nothing
        session.feed(patch_BN[:, n : n + 1], long=True)
    (learned,) = session.experts.banks
    assert learned.count == reader.bank.count > model.bank.count
    assert learned.digest() == reader.bank.digest() != model.bank.digest()


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_unit_read_bit_by_bit_is_the_unit_read_at_once(shape: dict, learn: bool) -> None:
    model = taught(**shape)
    bank, stepped = model.bank.copy(), model.bank.copy()
    bits = bytes_to_bits(np.frombuffer(TEXT[300:360], np.uint8), parity=model.config.parity)
    U = bank.unit_bits
    units = pack_units(bits[: len(bits) // U * U], U)
    want = bank.read(units, bank.stream(), learn=learn)
    stream, got = stepped.stream(), []
    for unit in units.tolist():
        opened = stepped.open_unit(stream, learn=learn)
        for j in range(U):
            got.append(opened.predict_bit())
            opened.learn_bit(unit >> (U - 1 - j) & 1)
        opened.close()
    np.testing.assert_array_equal(np.stack(got).reshape(want.shape), want)
    assert stepped.digest() == bank.digest() and (stepped.digest() != model.bank.digest()) == learn
