from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bits_to_bytes, bytes_to_bits, find_parity_errors, text_to_bits
from bit_transformer.config import Sampling
from bit_transformer.decoding.generation import generate, generate_bytes, infer_long, stream_bytes
from bit_transformer.decoding.session import Session
from bit_transformer.errors import BitStreamError, ParityError, StreamOverflow
from bit_transformer.model import BitTransformerLM
from bit_transformer.nn.position import rotary_table, rotate
from bit_transformer.restoration.beam import search
from tests.conftest import random_bits, random_model


def greedy_by_full_forwards(model: BitTransformerLM, bits: torch.Tensor, count: int) -> torch.Tensor:
    """The likeliest patch each time, by scoring all of them with whole forwards."""
    P = model.config.patch_bits
    start = bits.shape[1]
    while bits.shape[1] < start + count:
        known = bits.shape[1] % P
        ends = torch.tensor([[(v >> j) & 1 for j in range(P - known - 1, -1, -1)] for v in range(1 << (P - known))])
        tried = torch.cat((bits.expand(len(ends), -1), ends), dim=1)
        z = model.all_bit_logits(tried)[:, bits.shape[1] : -1]
        cost = torch.nn.functional.binary_cross_entropy_with_logits(z, ends.float(), reduction="none").sum(1)
        bits = tried[cost.argmin()][None]
    return bits[:, start : start + count]


@pytest.mark.parametrize(
    "shape",
    [{"patch_bits": 3, "max_seq_len": 60}, {"patch_bits": 8, "max_seq_len": 80}, {"patch_bits": 1, "max_seq_len": 40}],
)
@pytest.mark.parametrize("length", [0, 1, 7, 16])
def test_cached_greedy_generation_equals_full_forwards(shape, length):
    model = random_model(**shape)
    prompt = random_bits(1, max(length, 1))[:, :length]
    with torch.no_grad():
        want = greedy_by_full_forwards(model, prompt, 24) if length else greedy_by_full_forwards_from_nothing(model, 24)
    assert torch.equal(generate(model, prompt, 24, Sampling(temperature=0)).long(), want)


def greedy_by_full_forwards_from_nothing(model: BitTransformerLM, count: int) -> torch.Tensor:
    P = model.config.patch_bits
    leaves = torch.tensor([[(v >> j) & 1 for j in range(P - 1, -1, -1)] for v in range(1 << P)])
    cost = model.nll(leaves).sum(1)
    return torch.cat(
        (leaves[cost.argmin()][None], greedy_by_full_forwards(model, leaves[cost.argmin()][None], count)), 1
    )[:, :count]


def test_samples_follow_the_models_own_distribution():
    model = random_model(patch_bits=3, max_seq_len=30)
    prompt = random_bits(1, 6)
    drawn = generate(model, prompt.expand(20_000, -1), 3, Sampling(seed=1))
    counts = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1] * 2 + drawn[:, 2], minlength=8).double() / 20_000
    leaves = torch.tensor([[(v >> 2) & 1, (v >> 1) & 1, v & 1] for v in range(8)])
    nats = model.nll(torch.cat((prompt.expand(8, -1), leaves), 1))[:, 6:].sum(1)
    assert torch.allclose(counts, (-nats).exp().double(), atol=0.015)


def test_temperature_and_top_p_reshape_the_distribution():
    model = random_model(patch_bits=3, max_seq_len=30)
    prompt = random_bits(1, 6).expand(5_000, -1)
    leaves = torch.tensor([[(v >> 2) & 1, (v >> 1) & 1, v & 1] for v in range(8)])
    nats = model.nll(torch.cat((prompt[:8], leaves), 1))[:, 6:].sum(1).detach()
    cold = torch.softmax(-nats.double() / 0.5, 0)
    drawn = generate(model, prompt, 3, Sampling(seed=1, temperature=0.5))
    counts = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1] * 2 + drawn[:, 2], minlength=8).double() / 5_000
    assert torch.allclose(counts, cold, atol=0.03)
    order = nats.argsort()
    keep = order[: int(((-nats[order]).exp().cumsum(0) < 0.6).sum()) + 1].tolist()
    drawn = generate(model, prompt, 3, Sampling(seed=1, top_p=0.6))
    assert set((drawn[:, 0] * 4 + drawn[:, 1] * 2 + drawn[:, 2]).tolist()) == set(keep)


def test_seeds_repeat_and_differ():
    model = random_model(max_seq_len=256)
    one, two, other = (generate_bytes(model, [b"ab"], 20, Sampling(seed=s)) for s in (3, 3, 4))
    assert one == two != other


def test_a_batch_of_unequal_prompts_equals_each_alone():
    model = random_model(max_seq_len=512, ngram_orders=(2, 3), ngram_rows=64)
    prompts = [b"", b"a", b"hello", b"hello, world"]
    greedy = Sampling(temperature=0)
    together = generate_bytes(model, prompts, 12, greedy)
    assert together == [generate_bytes(model, [p], 12, greedy)[0] for p in prompts]
    assert all(len(out) == 12 for out in together)


@pytest.mark.parametrize("patch_bits", [1, 3, 9, 12, 6])
def test_forced_parity_makes_every_byte_decode(patch_bits):
    model = random_model(patch_bits=patch_bits, parity=True, max_seq_len=patch_bits * 120)
    out = generate(model, np.tile(text_to_bits("ab", parity=True), (3, 1)), 90, Sampling(seed=1))
    for row in out:
        assert len(bits_to_bytes(row, parity=True)) == 10
    free = generate(model, text_to_bits("ab", parity=True)[None], 900, Sampling(seed=1, force_parity=False), long=True)
    assert len(find_parity_errors(free[0])) > 0
    for text in generate_bytes(model, [b"x", b"long"], 30, Sampling(seed=2)):
        assert len(text) == 30


def test_parity_holds_when_a_prompt_ends_inside_a_byte():
    model = random_model(patch_bits=3, parity=True, max_seq_len=270)
    prompt = torch.from_numpy(text_to_bits("ab", parity=True)[None, :14])
    whole = torch.cat((prompt, generate(model, prompt, 90 - 14, Sampling(seed=1))), 1)
    assert len(find_parity_errors(whole[0])) == 0
    with pytest.raises(ParityError, match="repair_parity"):
        generate(model, prompt.clone().index_fill(1, torch.tensor([0]), 1), 9, Sampling(seed=1))


def test_stop_strings_end_a_stream_and_are_not_part_of_it():
    model = random_model(max_seq_len=512)
    free = generate_bytes(model, [b"q"], 60, Sampling(seed=5))[0]
    stop = free[30:33]
    want = free[: free.find(stop)]
    assert generate_bytes(model, [b"q"], 60, Sampling(seed=5), stop=[b"never!!", stop]) == [want]
    assert b"".join(stream_bytes(model, b"q", 60, Sampling(seed=5), stop=[b"never!!", stop])) == want


@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_a_stream_gives_what_a_batch_gives(count):
    model = random_model(max_seq_len=256, patch_bits=4)
    pieces = list(stream_bytes(model, b"q", count, Sampling(seed=5)))
    assert all(pieces)
    assert b"".join(pieces) == generate_bytes(model, [b"q"], count, Sampling(seed=5))[0]
    held = list(stream_bytes(model, b"q", count, Sampling(seed=5), stop=[b"absent text"]))
    assert b"".join(held) == b"".join(pieces)


def test_a_stop_string_beyond_the_last_byte_does_not_count():
    model = random_model(max_seq_len=512)
    free = generate_bytes(model, [b"q"], 40, Sampling(seed=5))[0]
    stop = [free[18:24]]
    for engine in ("portable", "torch"):
        assert generate_bytes(model, [b"q"], 20, Sampling(seed=5), stop=stop, engine=engine)[0] == free[:20]
        assert b"".join(stream_bytes(model, b"q", 20, Sampling(seed=5), stop=stop, engine=engine)) == free[:20]
        assert generate_bytes(model, [b"q"], 40, Sampling(seed=5), stop=stop, engine=engine)[0] == free[:18]


def test_no_ngram_comes_twice():
    model = random_model(max_seq_len=64)
    out = generate_bytes(model, [b"aaaa"], 300, Sampling(temperature=0, no_repeat_ngram=2))[0]
    pairs = [bytes(p) for p in zip(b"aaaa" + out, (b"aaaa" + out)[1:], strict=False)]
    assert len(pairs) - len(set(pairs)) == 2  # the prompt's own


def test_a_repetition_penalty_lowers_repetition():
    model = random_model(max_seq_len=64)
    plain, penalised = (
        len(set(generate_bytes(model, [b"a"], 200, Sampling(seed=1, temperature=0.3, repetition_penalty=r))[0]))
        for r in (1.0, 50.0)
    )
    assert penalised > plain


def test_a_window_that_is_full_is_an_error_unless_it_may_slide():
    model = random_model(max_seq_len=64)
    prompt = random_bits(1, 40)
    with pytest.raises(BitStreamError, match="infer_long"):
        generate(model, prompt, 64)
    assert infer_long(model, prompt, 640, Sampling(seed=0)).shape == (1, 640)
    assert infer_long(model, random_bits(2, 999), 64, Sampling(seed=0)).shape == (2, 64)


def test_sliding_keeps_values_and_turns_keys_back():
    model = random_model(max_seq_len=80)
    with torch.no_grad():
        session = Session(model, 1, engine="torch")
        session.step(random_bits(1, 80))
        keys, values = (
            session.engine.cache.layers[1].key_BHSK.clone(),
            session.engine.cache.layers[1].value_BHSK.clone(),
        )
        session.slide(4)
    assert session.engine.cache.length == 7
    table = rotary_table(11, 12).float()
    layer = session.engine.cache.layers[1]
    for new in range(1, 7):
        old = new + 4
        unturned = rotate(
            keys[:, :, old : old + 1].transpose(1, 2), torch.stack((table[old, :, 0], -table[old, :, 1]), -1)[None]
        )
        want = rotate(unturned, table[new : new + 1]).transpose(1, 2)
        torch.testing.assert_close(layer.key_BHSK[:, :, new : new + 1], want, rtol=1e-4, atol=1e-5)
        assert torch.equal(layer.value_BHSK[:, :, new], values[:, :, old])
    assert torch.equal(layer.key_BHSK[:, :, 0], keys[:, :, 0])


def test_generation_reads_bits_alone():
    model = random_model(max_seq_len=64)
    for bad in (torch.full((1, 8), 2), torch.zeros(1, 8)):
        with pytest.raises(BitStreamError):
            model(bad)
    with pytest.raises(BitStreamError, match="at most max_seq_len=64"):
        model(random_bits(1, 65))
    assert generate_bytes(model, [], 3) == []


def test_a_trained_model_continues_what_it_knows():
    from bit_transformer.training import train_loop

    model = BitTransformerLM(d_model=48, nhead=2, num_layers=2, max_seq_len=512)
    train_loop(model, b"abcdefgh" * 400, steps=60, batch_size=8, amp=False)
    assert generate_bytes(model, [b"abcdefghabc"], 16, Sampling(temperature=0)) == [b"defghabcdefghabc"]
    assert math.isfinite(model(torch.from_numpy(bytes_to_bits(b"abc"))[None]).logits.sum().item())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    [
        "trunk.embed.weight",
        "trunk.blocks.1.attend.out.weight",
        "trunk.blocks.0.feed_forward.out.weight",
        "head.bias",
    ],
)
@pytest.mark.parametrize("reversible", [False, True])
def test_weights_that_are_no_numbers_are_an_error_in_any_batch(name, bad, reversible):
    model = random_model(max_seq_len=128, reversible=reversible)
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[-1] = bad  # of the embedding: of the start symbol
    for batch in (1, 2):
        with pytest.raises(BitStreamError, match="NaN or infinity among the model's logits"):
            generate(model, torch.zeros(batch, 8, dtype=torch.long), 64, Sampling(seed=1))
    with pytest.raises(BitStreamError, match="NaN or infinity"):
        search(model, bytes_to_bits(b"abc"), 0.01)


def test_values_beyond_a_reversible_trunks_range_are_an_error_in_any_batch():
    model = random_model(max_seq_len=128, reversible=True)
    prompt = torch.zeros(1, 8, dtype=torch.long)
    with torch.no_grad():  # below the limit of 4,096 each, though the root of their sum of squares is above it
        model.trunk.embed.weight.fill_(1500.0)
    for batch in (1, 2):
        assert generate(model, prompt.expand(batch, -1), 16, Sampling(seed=1)).shape == (batch, 16)
    with torch.no_grad():
        model.trunk.embed.weight.fill_(1e6)
    for batch in (1, 2):
        with pytest.raises(StreamOverflow, match=r"got values of 1e\+06 in the reversible trunk"):
            generate(model, prompt.expand(batch, -1), 16, Sampling(seed=1))
