"""The model against float64 loops, and against itself by other routes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.decoding.session import Session
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.attention import attend
from bit_transformer.nn.block import SquaredReLU
from bit_transformer.nn.norm import RMSNorm
from bit_transformer.nn.patching import PrefixTreeHead, leaf_log_probs, pack_patches, tree_nodes
from bit_transformer.nn.position import rotary_table, rotate
from tests.conftest import TEXT, random_bits, random_model
from tests.reference import model as reference

SHAPES = [
    {"patch_bits": 1, "max_seq_len": 40},
    {"patch_bits": 1, "max_seq_len": 45, "parity": True, "ngram_orders": (4, 9), "ngram_rows": 64},
    {"patch_bits": 3, "max_seq_len": 36},
    {"patch_bits": 8, "max_seq_len": 64, "ngram_orders": (1, 2, 5), "ngram_rows": 128},
    {"patch_bits": 9, "max_seq_len": 72, "parity": True, "ngram_words": True, "ngram_rows": 64},
    {"patch_bits": 12, "max_seq_len": 96, "num_layers": 1},
    {"patch_bits": 8, "max_seq_len": 96, "reversible": True, "num_layers": 3},
    {"patch_bits": 1, "max_seq_len": 40, "reversible": True, "chunk_size": 7},
    {"patch_bits": 8, "max_seq_len": 136, "chunk_size": 32},
    {"patch_bits": 3, "max_seq_len": 36, "chunk_size": 3},
    {"patch_bits": 9, "max_seq_len": 90, "parity": True, "chunk_size": 45, "use_checkpoint": True},
]


def tolerance(model: BitTransformerLM) -> float:
    """In float32. Of reversible trunks: two sums that differ in the last bit may be rounded to neighbours on the grid."""
    return 1e-4 if model.config.reversible else 1e-5


@torch.no_grad()
def assert_stepping_equals_one_forward(
    model: BitTransformerLM, bits_BT: torch.Tensor, chunk: int, engine: str = "torch"
) -> None:
    session = Session(model.eval(), len(bits_BT), engine=engine)
    pieces = [session.step(part) for part in bits_BT.split(chunk, dim=1)]
    assert_close(torch.cat(pieces, dim=1), model(bits_BT).logits, rtol=1e-5, atol=tolerance(model))


def in_float64(model: BitTransformerLM) -> BitTransformerLM:
    model = model.double()
    model.trunk.rotary_NK2 = rotary_table(model.config.max_patches + 1, model.config.d_model // model.config.nhead)
    return model


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_logits_match_the_loops(shape):
    model = in_float64(random_model(**shape))
    for length in {
        1,
        model.config.patch_bits,
        model.config.patch_bits + 1,
        model.config.max_seq_len - 1,
        model.config.max_seq_len,
    }:
        bits_BT = random_bits(1, length, seed=length)
        want = reference.all_bit_logits(model, bits_BT[0].tolist())
        got = model.all_bit_logits(bits_BT)[0]
        assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_stays_close_to_the_loops(shape):
    model = random_model(**shape)
    bits_BT = random_bits(1, model.config.max_seq_len)
    want = torch.tensor(reference.all_bit_logits(model, bits_BT[0].tolist()))
    assert_close(model.all_bit_logits(bits_BT)[0].double(), want.double(), rtol=1e-4, atol=tolerance(model))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_likelihood_matches_the_loops(shape):
    model = in_float64(random_model(**shape))
    bits_BT = random_bits(1, model.config.max_seq_len)
    want = torch.tensor(reference.nll(model, bits_BT[0].tolist()), dtype=torch.float64)
    assert_close(model.nll(bits_BT)[0], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_match_finite_differences_of_the_loops(shape):
    model = in_float64(random_model(**{**shape, "num_layers": 1}))
    bits_BT = random_bits(1, 2 * model.config.patch_bits * model.config.phases)[:, : model.config.max_seq_len]
    bits_BT = bits_BT[:, : bits_BT.shape[1] // model.config.patch_bits * model.config.patch_bits]
    model.nll(bits_BT).sum().backward()
    generator = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        places = np.argwhere(grad.abs().numpy() > 1e-3)
        for place in generator.permutation(places)[:2]:
            place = tuple(place)
            values = []
            for shift in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter[place] += shift
                    values.append(sum(reference.nll(model, bits_BT[0].tolist())))
                    parameter[place] -= shift
            numeric = (values[0] - values[1]) / 2e-5
            assert math.isclose(numeric, grad[place].item(), rel_tol=1e-4, abs_tol=1e-6), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 100])
@pytest.mark.parametrize("engine", ["torch", "portable"])
def test_stepping_in_any_chunks_equals_one_forward(shape, chunk, engine):
    model = random_model(**shape)
    bits_BT = random_bits(3, model.config.max_seq_len)
    assert_stepping_equals_one_forward(model, bits_BT, chunk, engine)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_prefix_gives_the_same_logits_whatever_follows(shape):
    model = random_model(**shape)
    bits_BT = random_bits(2, model.config.max_seq_len)
    with torch.no_grad():
        whole = model(bits_BT).logits
        for length in range(1, model.config.max_seq_len, 7):
            assert_close(model(bits_BT[:, :length]).logits, whole[:, :length], rtol=1e-5, atol=tolerance(model))


@pytest.mark.parametrize("patch_bits", [1, 2, 5, 8, 9, 12])
def test_probabilities_of_all_patches_sum_to_one(patch_bits):
    head = PrefixTreeHead(16, patch_bits)
    torch.nn.init.normal_(head.weight, std=3)
    h_BD = torch.randn(4, 16)
    log_BV = leaf_log_probs(head(h_BD).detach().numpy())
    np.testing.assert_allclose(np.exp(log_BV).sum(-1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("patch_bits", [1, 3, 8])
def test_leaf_probabilities_are_the_products_of_their_bits(patch_bits):
    head = PrefixTreeHead(8, patch_bits).double()
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    h_1D = torch.randn(1, 8, dtype=torch.float64)
    leaves = leaf_log_probs(head(h_1D).detach().numpy())[0]
    for value, bits in enumerate(itertools.product((0, 1), repeat=patch_bits)):
        want = 0.0
        for j, bit in enumerate(bits):
            node = (1 << j) | reference.patch_value(list(bits[:j]))
            z = (head.weight[node] @ h_1D[0] + head.bias[node]).item()
            want += -math.log1p(math.exp(-z if bit else z))
        assert math.isclose(leaves[value], want, rel_tol=1e-12)


def test_patches_pack_and_unpack():
    for patch_bits in range(1, 13):
        bits_BT = random_bits(2, patch_bits * 7)
        patch_BN = pack_patches(bits_BT, patch_bits)
        assert patch_BN.tolist() == [
            [reference.patch_value(row[n * patch_bits : (n + 1) * patch_bits]) for n in range(7)]
            for row in bits_BT.tolist()
        ]
        for node_P, patch in zip(tree_nodes(patch_BN, patch_bits)[0].tolist(), patch_BN[0].tolist(), strict=True):
            assert node_P == [(1 << j) | (patch >> (patch_bits - j)) for j in range(patch_bits)]


@pytest.mark.parametrize(("H", "N", "K"), [(1, 1, 8), (3, 7, 8), (2, 33, 16)])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 8, 33])
def test_attention_matches_the_loops_whole_and_from_a_cache(H, N, K, window):
    q, k, v = (torch.randn(2, H, N, K, dtype=torch.float64) for _ in range(3))
    want = torch.stack(
        [
            torch.stack([torch.from_numpy(reference.causal_attention(*head, window)) for head in heads])
            for heads in (((q[b, h].numpy(), k[b, h].numpy(), v[b, h].numpy()) for h in range(H)) for b in range(2))
        ]
    )
    assert_close(attend(q, k, v, window), want, rtol=1e-12, atol=1e-12)
    for begin in range(N):
        oldest = 0 if window is None else max(0, begin - window + 1)  # what a rolling cache still has
        got = attend(q[:, :, begin:], k[:, :, oldest:], v[:, :, oldest:], window)
        assert_close(got, want[:, :, begin:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [1, 4, 9])
def test_gradients_of_local_attention_are_those_of_a_mask(window):
    q, k, v = (torch.randn(2, 2, 31, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    place = torch.arange(31)
    seen = (place[None] <= place[:, None]) & (place[None] > place[:, None] - window)
    weight = torch.randn(2, 2, 31, 8, dtype=torch.float64)
    want = torch.autograd.grad((scaled_dot_product_attention(q, k, v, attn_mask=seen) * weight).sum(), (q, k, v))
    got = torch.autograd.grad((attend(q, k, v, window) * weight).sum(), (q, k, v))
    assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_rotation_depends_on_the_distance_alone():
    table = rotary_table(50, 16)
    q, k = torch.randn(1, 1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 1, 16, dtype=torch.float64)
    products = [(rotate(q, table[n + 7 : n + 8]) * rotate(k, table[n : n + 1])).sum().item() for n in (0, 3, 40)]
    assert max(products) - min(products) < 1e-12


def test_custom_backwards_pass_gradcheck():
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SquaredReLU.apply, (x,))
    assert torch.autograd.gradcheck(RMSNorm(), (x,))


def test_an_untrained_model_costs_eight_bits_a_byte_with_and_without_parity():
    corpus = bytes_corpus(TEXT[:2000])
    for shape, want in (({"patch_bits": 8}, 8.0), ({"patch_bits": 9, "parity": True, "max_seq_len": 1152}, 9.0)):
        model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, **shape)
        assert math.isclose(bits_per_byte(model, corpus, default_protocol(model)).bpb, want, rel_tol=1e-6)


def test_autocast_stays_near_float32():
    model = random_model(patch_bits=8, max_seq_len=64)
    bits_BT = random_bits(2, 64)
    with torch.no_grad():
        want = model.nll(bits_BT)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model.nll(bits_BT)
    assert (got.float() - want).abs().mean() < 0.05


def test_word_contexts_match_the_loops_on_text_and_on_noise():
    model = random_model(max_seq_len=1600, ngram_orders=(2, 3), ngram_words=True, ngram_rows=1 << 20)
    text = (
        "O Romeo, Romeo!  wherefore art thou... antidisestablishmentarianism  x -- 12 caf\u00e9 NA\u00cfVE.\n\n"
        + " " * 40
        + "end"
    )
    for data in (text.encode(), np.random.default_rng(0).bytes(200), b"a" * 50, b"  "):
        symbols = [256, *data]
        rows_NO = model.trunk.ngrams.rows_of(torch.tensor([[256] * model.trunk.ngrams.history + symbols]))[0]
        assert rows_NO.tolist() == [reference.ngram_rows(model, symbols[: n + 1]) for n in range(len(symbols))]


def test_word_contexts_ignore_case_and_place_and_see_the_word_before():
    model = random_model(max_seq_len=640, ngram_words=True, ngram_rows=1 << 20)

    def last_rows(text: str) -> list[int]:
        context = [256] * model.trunk.ngrams.history + list(text.encode())
        return model.trunk.ngrams.rows_of(torch.tensor([context]))[0, -1].tolist()

    word, pair = last_rows("to be or not")
    assert last_rows("whether 'tis nobler or NoT") == [word, pair]
    assert last_rows("is it not")[0] == word and last_rows("is it not")[1] != pair


def test_stepping_equals_one_forward_on_text():
    model = random_model(max_seq_len=8 * 120, ngram_orders=(2, 4), ngram_words=True, ngram_rows=256)
    bits_BT = torch.from_numpy(np.stack([bytes_to_bits(TEXT[i : i + 120]) for i in (0, 37)]))
    assert_stepping_equals_one_forward(model, bits_BT, chunk=8 * 7 + 3)
