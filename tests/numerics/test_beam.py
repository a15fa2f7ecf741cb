"""The beam search against all that may have been sent, and caches whose streams change places against fresh ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits, find_parity_errors
from bit_transformer.config import TrainConfig
from bit_transformer.decoding.session import Session
from bit_transformer.errors import Cancelled
from bit_transformer.model import BitTransformerLM, set_dropout
from bit_transformer.restoration.beam import search
from bit_transformer.restoration.streams import repair_bits
from bit_transformer.training import train_loop
from tests.conftest import TEXT, random_bits, random_model

EXPERTS = {"experts": {"buckets": 1024, "history": 1024}}


@pytest.mark.parametrize("patch_bits, fields", [(1, {}), (2, {}), (2, {"reversible": True})])
def test_a_beam_that_holds_all_finds_the_likeliest(patch_bits: int, fields: dict[str, object]) -> None:
    model = random_model(patch_bits=patch_bits, max_seq_len=8, **fields)
    received, rate = np.array([1, 0, 0, 1, 1, 0], dtype=np.uint8), 0.2
    all_sent = torch.tensor(list(itertools.product((0, 1), repeat=6)))
    with torch.no_grad():
        cost = model.nll(all_sent).sum(1).double().numpy()
    flips = (all_sent.numpy() != received).sum(1)
    cost -= flips * math.log(rate) + (6 - flips) * math.log(1 - rate)
    found = search(model, received, rate, beam=64)
    assert found.bits.tolist() == all_sent[cost.argmin()].tolist()
    assert found.doubt.shape == (6 // patch_bits,) and ((found.doubt >= 0) & (found.doubt <= 1)).all()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reversible": True},
        {"chunk_size": 32},
        {"ngram_orders": (2, 3), "ngram_rows": 64, "ngram_words": True},
        EXPERTS,
    ],
)
def test_streams_that_change_places_go_on_as_if_they_had_stood_there(fields: dict[str, object]) -> None:
    model = random_model(max_seq_len=160, **fields)
    bits, more = random_bits(4, 80), random_bits(4, 40, seed=1)
    row = np.array([2, 0, 2, 3])
    with torch.inference_mode():
        session = Session(model, 4)
        session.step(bits)
        session.select(row)
        got = session.step(more)
        again = Session(model, 4)
        again.step(bits[row])
        want = again.step(more)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=[False, True], ids=["bytes", "parity"])
def taught(request) -> BitTransformerLM:
    torch.manual_seed(0)
    parity = request.param
    width = 9 if parity else 8
    model = BitTransformerLM(
        d_model=32, nhead=2, num_layers=1, max_seq_len=64 * width, patch_bits=width, parity=parity, **EXPERTS
    )
    train_loop(model, TEXT[:8192], TrainConfig(steps=40, batch_size=8, amp=False))
    return model.eval()


def test_flipped_bits_of_a_long_text_are_set_right_in_segments(taught: BitTransformerLM) -> None:
    parity = taught.config.parity
    clean = bytes_to_bits(TEXT[:1500], parity=parity)
    flips = np.random.default_rng(0).random(clean.shape) < 0.01
    told: list[tuple[int, int]] = []
    for rate in (0.01, None):
        mended = repair_bits(taught, clean ^ flips, rate=rate, on_progress=lambda *at: told.append(at))
        assert (mended.bits != clean).sum() <= 0.1 * flips.sum()
        assert abs(mended.rate - 0.01) < 0.005 and mended.doubt.shape == (1500,)
        if parity:
            assert len(find_parity_errors(mended.bits)) == 0
    assert told[-1][0] == told[-1][1] < 1500 / 2  # several segments at once
    assert (repair_bits(taught, clean, rate=0.001).bits == clean).all()
    set_dropout(taught, 0.5)
    again = [repair_bits(taught.train(), clean ^ flips, rate=0.01).bits for _ in range(2)]
    assert (again[0] == again[1]).all() and (again[0] != clean).sum() <= 0.1 * flips.sum()
    taught.eval()


@pytest.mark.parametrize("fields", [{}, EXPERTS])
def test_threads_share_the_segments_and_change_nothing(fields: dict[str, object]) -> None:
    model = random_model(max_seq_len=8 * 24, **fields)
    received = bytes_to_bits(TEXT[:900])  # three segments
    one = search(model, received, 0.01)
    torch.set_num_threads(2)
    two = search(model, received, 0.01)
    assert np.array_equal(one.bits, two.bits) and np.array_equal(one.doubt, two.doubt)

    def stop(done: int, total: int) -> None:
        raise Cancelled("asked to")

    with pytest.raises(Cancelled, match="asked to"):
        search(model, received, 0.01, on_patch=stop)
