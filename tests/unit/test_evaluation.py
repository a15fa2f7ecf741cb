from __future__ import annotations

import bz2
import lzma
import math
import zlib

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.evaluation.baselines import compressors_bpb
from bit_transformer.evaluation.metrics import Protocol, bits_per_byte, byte_costs, default_protocol, window_bytes
from tests.conftest import TEXT, random_model


def costs_one_window_at_a_time(model, data: bytes, protocol: Protocol) -> list[float]:
    """Every byte from the first window that holds it, each window alone."""
    out: list[float] = []
    start = 0
    while len(out) < len(data):
        window = data[start : start + protocol.window]
        bits = torch.from_numpy(bytes_to_bits(window, parity=model.config.parity))[None].long()
        z = model.all_bit_logits(bits)[0, :-1].double()
        nats = torch.nn.functional.binary_cross_entropy_with_logits(z, bits[0].double(), reduction="none")
        each = nats.view(len(window), -1).sum(1) / math.log(2)
        out += each[len(out) - start :].tolist()
        start += protocol.stride
    return out


@pytest.mark.parametrize(
    "shape",
    [
        {"patch_bits": 8, "max_seq_len": 128},
        {"patch_bits": 9, "parity": True, "max_seq_len": 144},
        {"patch_bits": 12, "max_seq_len": 120},
        {"patch_bits": 1, "max_seq_len": 128},
    ],
)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_every_byte_is_scored_once_from_its_first_window(shape, size, overlap):
    model = random_model(**shape)
    data = np.random.default_rng(size).bytes(size)
    protocol = default_protocol(model, overlap)
    with torch.no_grad():
        want = costs_one_window_at_a_time(model, data, protocol)
    got = np.concatenate(list(byte_costs(model, bytes_corpus(data), protocol, batch=3)))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    score = bits_per_byte(model, bytes_corpus(data), protocol)
    assert score.bytes == size and math.isclose(score.bpb, sum(want) / size, rel_tol=1e-4)


def test_parity_is_paid_for_but_not_counted_as_data():
    model = random_model(patch_bits=9, parity=True, max_seq_len=144)
    assert bits_per_byte(model, bytes_corpus(b"abc")).bytes == 3


def test_bytes_are_scored_as_they_are():
    model = random_model(max_seq_len=128)
    assert bits_per_byte(model, TEXT[:50]) == bits_per_byte(model, bytes_corpus(TEXT[:50]))
    with pytest.raises(BitStreamError, match="no bytes"):
        bits_per_byte(model, b"")


def test_the_protocol_says_what_was_done():
    text = str(Protocol(256, 64))
    assert "256" in text and "192" in text and "once" in text


def test_windows_hold_whole_bytes_and_patches():
    assert window_bytes(random_model(patch_bits=12, max_seq_len=132)) == 15
    with pytest.raises(ConfigError, match="first meet after 24"):
        window_bytes(random_model(patch_bits=12, max_seq_len=12))


def test_nothing_to_score_is_refused():
    with pytest.raises(BitStreamError, match="no bytes"):
        bits_per_byte(random_model(max_seq_len=64), Corpus([]))


def test_compressors_give_what_they_give_in_one_call(monkeypatch):
    monkeypatch.setattr("bit_transformer.evaluation.baselines.PIECE", 1000)
    got = compressors_bpb(bytes_corpus(TEXT))
    for name, size in (
        ("zlib -9", len(zlib.compress(TEXT, 9))),
        ("bz2 -9", len(bz2.compress(TEXT))),
        ("xz -9e", len(lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME))),
    ):
        assert math.isclose(got[name], 8 * size / len(TEXT), rel_tol=0.02)
