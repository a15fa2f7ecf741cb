"""The models that ours is compared with, against slow references in explicit loops."""

# Shapes: B windows, N tokens, V values.
from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import TrainConfig
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.evaluation.scorer import cost_of
from bit_transformer.objectives import NextBit
from bit_transformer.peers.byte_softmax import ByteSoftmaxLM, ByteTrainer, NextByte, bit_logits_of
from bit_transformer.peers.context_counts import ContextCounts
from bit_transformer.peers.tokens import ByteVocabulary
from bit_transformer.training import build_windows
from tests.conftest import TEXT

SMALL = {"d_model": 16, "nhead": 2, "num_layers": 1, "max_seq_len": 256, "patch_bits": 8}


def test_a_softmax_over_bytes_is_split_into_its_bits():
    random = np.random.default_rng(0)
    logit_BNV = torch.from_numpy(random.normal(0, 3, (2, 5, 256)))
    byte_BN = torch.from_numpy(random.integers(0, 256, (2, 5)))
    z_BNP = bit_logits_of(logit_BNV, byte_BN)
    for b in range(2):
        for n in range(5):
            chance_V = torch.softmax(logit_BNV[b, n], 0)
            for place in range(8):
                shift = 8 - place
                prefix = byte_BN[b, n].item() >> shift
                inside = [v for v in range(256) if v >> shift == prefix]
                ones = [v for v in inside if v >> (shift - 1) & 1]
                expected = sum(chance_V[v].item() for v in ones) / sum(chance_V[v].item() for v in inside)
                assert torch.sigmoid(z_BNP[b, n, place]).item() == pytest.approx(expected, rel=1e-9)


def trained_softmax() -> ByteSoftmaxLM:
    torch.manual_seed(0)
    model = ByteSoftmaxLM(**SMALL)
    config = TrainConfig(steps=20, batch_size=4)
    trainer = ByteTrainer(model, build_windows(model, TEXT, config), config)
    before = bits_per_byte(model, TEXT[:512]).bpb
    trainer.run()
    assert before == pytest.approx(8.0) and bits_per_byte(model, TEXT[:512]).bpb < 7.5
    return model


def test_the_byte_softmax_has_one_loss_by_two_routes():
    model = trained_softmax()
    bits_BT = torch.from_numpy(bytes_to_bits(np.frombuffer(TEXT[:64], dtype=np.uint8).reshape(2, 32)).copy())
    losses = []
    for objective in (NextByte(), NextBit()):
        model.zero_grad()
        loss = objective(model, bits_BT).loss
        loss.backward()
        losses.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (direct, grads), (by_bits, other_grads) = losses
    assert direct == pytest.approx(by_bits, rel=1e-5)
    for mine, theirs in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_the_byte_softmax_says_what_it_is_not():
    for wrong in ({"patch_bits": 4}, {"experts": True}, {"causal": False}):
        with pytest.raises(ConfigError, match="Try patch_bits=8"):
            ByteSoftmaxLM(**{**SMALL, **wrong})
    model = ByteSoftmaxLM(**SMALL)
    made = NextByte()(model, torch.zeros(1, 64, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="no logits of bits"):
        made.cost(torch.zeros(1))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_counts_equal_the_loops(order):
    training, scored = TEXT[:3000], TEXT[3000:3400] + bytes(range(250, 256))
    counts: list[dict[bytes, Counter[int]]] = []
    for k in range(order + 1):
        table: dict[bytes, Counter[int]] = defaultdict(Counter)
        for at in range(k, len(training)):
            table[training[at - k : at]][training[at]] += 1
        counts.append(table)

    def chance(context: bytes, value: int) -> float:
        p = 1 / 256
        for k in range(min(order, len(context)) + 1):
            seen = counts[k].get(context[len(context) - k :])
            if seen:
                p = (seen[value] + len(seen) * p) / (sum(seen.values()) + len(seen))
        return p

    model = ContextCounts(bytes_corpus(training), order)
    expected = [-math.log2(chance(scored[max(0, at - order) : at], scored[at])) for at in range(len(scored))]
    np.testing.assert_allclose(model.byte_costs(bytes_corpus(scored)), expected, rtol=1e-12)
    assert sum(chance(scored[:order], value) for value in range(256)) == pytest.approx(1)
    found = cost_of(model, bytes_corpus(scored))
    assert found.bits == pytest.approx(sum(expected)) and found.bytes == len(scored)
    with pytest.raises(ConfigError, match="0 to 6"):
        ContextCounts(bytes_corpus(training), 7)


def test_byte_pairs_give_back_any_bytes():
    pytest.importorskip("tokenizers")
    from bit_transformer.peers.tokens import PairVocabulary

    vocabulary = PairVocabulary.learned(bytes_corpus(TEXT), 300)
    assert vocabulary.size == 300
    for data in (TEXT[:5000], bytes(range(256)) * 300, "Größe, naïve, 日本".encode(), b"", b"\r\n\t  x"):
        tokens = vocabulary.encode(data)
        assert vocabulary.decode(tokens) == data
        assert vocabulary.lengths(tokens).sum() == len(data)
    assert len(vocabulary.encode(TEXT)) < 0.8 * len(TEXT)
    plain = ByteVocabulary()
    assert plain.decode(plain.encode(TEXT)) == TEXT and plain.lengths(plain.encode(TEXT)).sum() == len(TEXT)


@pytest.fixture(scope="module")
def gpt2():
    pytest.importorskip("transformers")
    from bit_transformer.peers.token_model import TokenModel

    torch.manual_seed(0)
    return TokenModel(ByteVocabulary(), d_model=16, nhead=2, num_layers=1, context=32).eval()


def test_every_token_is_scored_once_with_half_a_window_of_context(gpt2):
    from bit_transformer.peers.token_model import token_costs

    data = TEXT[:150]
    tokens = list(data)
    expected = []
    with torch.no_grad():
        for at in range(len(tokens)):
            first = 0 if at < 32 else (at - 16) // 16 * 16  # the window whose second half it is in
            row = torch.tensor([[gpt2.start, *tokens[first:at]]])
            logits = gpt2.inner(input_ids=row).logits[0, -1, :256].double()
            expected.append(-torch.log_softmax(logits, 0)[tokens[at]].item() / math.log(2))
    cost_L = np.concatenate(list(token_costs(gpt2, bytes_corpus(data))))
    np.testing.assert_allclose(cost_L, expected, rtol=1e-4)
    by_bit = np.concatenate(list(token_costs(gpt2, bytes_corpus(data), by_bit=True)))
    assert by_bit.shape == (150, 8)
    np.testing.assert_allclose(by_bit.sum(-1), cost_L, rtol=1e-4)
    assert F.cross_entropy(gpt2(torch.tensor([tokens[:32]]))[0], torch.tensor(tokens[:32])).item() == pytest.approx(
        np.mean(expected[:32]) * math.log(2), rel=1e-4
    )


@pytest.mark.parametrize("muon", [True, False])
def test_tokens_are_trained_under_a_budget_and_repeatably(gpt2, muon):
    from bit_transformer.peers.token_model import Point, TokenModel, TokenTraining

    tokens = ByteVocabulary().encode(TEXT)
    ends = []
    for _ in range(2):
        torch.manual_seed(1)
        model = TokenModel(ByteVocabulary(), d_model=16, nhead=2, num_layers=1, context=32)
        told: list[Point] = []
        config = TrainConfig(bytes=64 * 32 * 4, batch_size=4, eval_every=0.25, seed=3, optim={"muon": muon})
        training = TokenTraining(model, tokens, len(TEXT), config, bytes_corpus(TEXT[:256]), told=told.append)
        ends.append(training.run())
    assert ends[0].step == 64 and ends[0].bytes == 64 * 32 * 4
    assert [ends[0].train_bpb, ends[0].val_bpb] == [ends[1].train_bpb, ends[1].val_bpb]
    assert len([p for p in told if p.val_bpb is not None]) == 4 and told[-1].val_bpb < told[0].train_bpb - 1
    assert ends[0].flops == pytest.approx(64 * 4 * 32 * model.flops_per_token())
    clock = iter(range(100_000))
    timed = TrainConfig(seconds=50, batch_size=2)
    training = TokenTraining(model, tokens, len(TEXT), timed, spent=20.0, clock=lambda: float(next(clock)))
    assert training.run().seconds >= 50 and training.point.step < 30  # what preparing took counts
    with pytest.raises(BitStreamError, match="at least 64"):
        TokenTraining(model, tokens[:40], 40, config).run()


def test_operations_are_counted_as_in_the_matrices(gpt2):
    D, V, layers, context = 16, 257, 1, 32
    per_token = layers * (2 * (3 * D * D + D * D + 8 * D * D) + 2 * 2 * D * (context + 1) / 2) + 2 * D * V
    assert gpt2.flops_per_token() == 3 * per_token
