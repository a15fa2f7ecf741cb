"""Byte strings of any length through a diffusion model: holes, flips, continuations, the gate."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bits_to_bytes, bytes_to_bits, find_parity_errors
from bit_transformer.config import Sampling
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.decoding.generation import stream_bytes
from bit_transformer.diffusion import diffusion_inference
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.model import BitTransformerLM
from bit_transformer.restoration.streams import continued, fill_bits, hidden_bits, repair_bits, repair_pieces
from bit_transformer.safety import Guard, Reference, SafetyGate, safe_sample_with_retry
from bit_transformer.training import train_loop
from tests.conftest import at_most, random_model

CYCLE = b"abcdefghijklmnop"


@pytest.fixture(scope="module")
def cyclist() -> BitTransformerLM:
    """A model that has learned a cycle of sixteen letters."""
    torch.manual_seed(0)
    model = BitTransformerLM(d_model=48, nhead=2, num_layers=2, max_seq_len=256, causal=False)
    train_loop(model, bytes_corpus(CYCLE * 400), steps=250, batch_size=16, amp=False)
    return model


def test_holes_in_a_long_text_are_filled_in_window_by_window(cyclist: BitTransformerLM) -> None:
    text = CYCLE * 12  # six windows
    hidden = hidden_bits(len(text), 8, [(3, 9), (70, 78), (186, 192)], [(800, 803)])
    told: list[tuple[int, int]] = []
    known = bytes_to_bits(text) * ~hidden
    made = fill_bits(cyclist, known, hidden, on_window=lambda *at: told.append(at), temperature=0, order="confidence")
    assert bits_to_bytes(made) == text
    assert told[-1] == (20 * 8 + 3, 20 * 8 + 3) and len(told) >= 3
    same = [fill_bits(cyclist, known, hidden, seed=3) for _ in range(2)]
    assert (same[0] == same[1]).all() and (same[0][~hidden] == known[~hidden]).all()


@pytest.mark.parametrize(
    "patch_bits, parity, size", [(8, False, 37), (9, True, 37), (8, True, 37), (12, False, 37), (6, False, 5)]
)
def test_any_length_is_filled_in_and_repaired(patch_bits: int, parity: bool, size: int) -> None:
    model = random_model(causal=False, patch_bits=patch_bits, parity=parity, max_seq_len=144)
    data = bytes(range(60, 60 + size))
    width = model.config.byte_bits
    hidden = hidden_bits(size, width, [(0, 1), (size - 1, size)])
    made = fill_bits(model, bytes_to_bits(data, parity=parity), hidden, seed=1)
    assert bits_to_bytes(made, parity=parity)[1:-1] == data[1:-1]
    mended = repair_bits(model, bytes_to_bits(data, parity=parity), rate=1e-6)
    assert (len(mended.bits) == size * width and len(mended.flipped) == 0) or parity


@pytest.mark.parametrize("units", [1, 2])
def test_a_window_of_a_single_unit_is_enough(units: int) -> None:
    model = random_model(causal=False, patch_bits=8, parity=True, max_seq_len=72 * units)  # a unit is eight bytes
    data = bytes(range(60, 76))
    hidden = hidden_bits(16, 9, [(9, 10), (15, 16)])
    made = bits_to_bytes(fill_bits(model, bytes_to_bits(data, parity=True), hidden, seed=1), parity=True)
    assert made[:9] == data[:9] and made[10:15] == data[10:15]
    for size in (0, 3, 8, 13):
        pieces = list(islice(continued(model, data[:size], Sampling(seed=1)), 3))
        assert all(pieces) and len(b"".join(pieces)) >= 3
    scored = bits_per_byte(model, bytes_corpus(data[:5]))
    assert scored.bytes == 5 and scored.bits > 0  # what the unit takes beyond the end is counted


def test_the_surest_place_is_judged_by_what_is_free_there() -> None:
    model = random_model(causal=False, patch_bits=8, max_seq_len=16)
    known, fixed = torch.zeros(1, 16, dtype=torch.uint8), torch.zeros(1, 16, dtype=torch.bool)
    fixed[0, :8] = torch.tensor([1, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    with torch.no_grad():
        model.head.weight[1].zero_()
        model.head.bias[1] = 30.0  # the first bit is a one, whatever the rest: what is fixed is very unlikely
    calls: list[torch.Tensor] = []
    model.trunk.register_forward_pre_hook(lambda _, given: calls.append(given[0].clone()))
    diffusion_inference(model, known, fixed, order="confidence", seed=1)
    assert calls[1][0, 0] != model.trunk.start and calls[1][0, 1] == model.trunk.start  # two choices are surer than 256


def test_a_long_stream_is_repaired_in_windows_that_overlap(cyclist: BitTransformerLM) -> None:
    clean = bytes_to_bits(CYCLE * 50)
    flips = np.random.default_rng(1).random(clean.shape) < 0.01
    told: list[tuple[int, int]] = []
    for rate in (0.01, None):
        mended = repair_bits(cyclist, clean ^ flips, rate=rate, on_progress=lambda *at: told.append(at))
        assert (mended.bits != clean).sum() <= at_most(0.1, flips.sum())
        assert set(np.flatnonzero(flips)) >= set(mended.flipped) - set(np.flatnonzero(mended.bits != clean))
        assert mended.doubt.shape == (800,) and abs(mended.rate - 0.01) < 0.01
    assert told[-1] == (49, 49)


def test_a_prompt_is_continued_half_a_window_at_a_time(cyclist: BitTransformerLM) -> None:
    pieces = list(islice(continued(cyclist, CYCLE + b"abc", Sampling(temperature=0, seed=1)), 3))
    made = b"".join(pieces)
    right = sum(a == b for a, b in zip(CYCLE + b"abc" + made, CYCLE * 10, strict=False))
    assert right >= 0.9 * len(CYCLE + b"abc" + made) and [len(piece) for piece in pieces] == [16, 16, 16]
    with pytest.raises(ConfigError, match=r"top_p=0.5 needs an autoregressive model"):
        continued(cyclist, b"", Sampling(top_p=0.5))


def test_a_gate_stands_before_a_diffusion_too(cyclist: BitTransformerLM) -> None:
    reference = Reference.fit(bytes_corpus(CYCLE * 400), cyclist.config)
    wide = SafetyGate(c_floor=0.0, s_floor=0.0, decay=0, burn_in=0)
    sample = safe_sample_with_retry(cyclist, CYCLE, 40, Guard(wide, reference, window=20), Sampling(seed=1))
    assert sample.complete and len(sample.data) == 40
    narrow = SafetyGate(c_floor=1.0, s_floor=1.0, decay=0, burn_in=0)
    sample = safe_sample_with_retry(
        cyclist, CYCLE, 40, Guard(narrow, reference, window=20), Sampling(seed=1), retries=2
    )
    assert not sample.complete and sample.retries == 2 and sample.data == b""


@pytest.mark.parametrize("noise, order", [("hidden", "ancestral"), ("hidden", "confidence"), ("flips", "ancestral")])
@pytest.mark.parametrize("patch_bits", [9, 8])
def test_no_byte_of_what_is_drawn_has_wrong_parity(patch_bits: int, noise, order) -> None:
    model = random_model(causal=False, noise=noise, patch_bits=patch_bits, parity=True, max_seq_len=72 * 8)
    made = diffusion_inference(model, torch.zeros(128, 72 * 8, dtype=torch.uint8), steps=4, order=order, seed=1)
    assert len(find_parity_errors(made.flatten())) == 0
    loose = diffusion_inference(
        model, torch.zeros(4, 72 * 8, dtype=torch.uint8), steps=4, order=order, seed=1, force_parity=False
    )
    assert len(find_parity_errors(loose.flatten())) > 0


@pytest.mark.slow
@pytest.mark.parametrize("patch_bits", [9, 8])
def test_a_megabyte_has_no_byte_of_wrong_parity(patch_bits: int) -> None:
    model = random_model(causal=False, patch_bits=patch_bits, parity=True, max_seq_len=72 * 64)
    total = 0
    for seed in range(32):
        made = diffusion_inference(model, torch.zeros(64, 72 * 64, dtype=torch.uint8), steps=8, seed=seed)
        assert len(find_parity_errors(made.flatten())) == 0
        total += made.numel() // 9
    assert total >= 1 << 20


def test_what_cannot_be_is_refused() -> None:
    model, one_way = random_model(causal=False, max_seq_len=64), random_model(max_seq_len=64)
    for holes, bit_holes, said in (
        ([], [], "got nothing to fill in"),
        ([(5, 11)], [], r"got the hole 5:11; it must lie within bytes 0:10"),
        ([(5, 5)], [], "5:5; it must lie within bytes 0:10, and not be empty"),
        ([(-1, 5)], [], "-1:5"),
        ([], [(79, 81)], r"79:81; it must lie within bits 0:80"),
    ):
        with pytest.raises(BitStreamError, match=said):
            hidden_bits(10, 8, holes, bit_holes)
    bits = np.zeros(80, dtype=np.uint8)
    with pytest.raises(BitStreamError, match="both must be"):
        fill_bits(model, bits, np.zeros(79, dtype=bool))
    with pytest.raises(BitStreamError, match="got 4 bits; at least 8"):
        repair_bits(model, bits[:4])
    with pytest.raises(ConfigError, match="got an autoregressive model"):
        fill_bits(one_way, bits, bits == 0)
    for either in (model, one_way):
        with pytest.raises(ConfigError, match=r"rate=0.5; it must lie between 0 and 0.5"):
            repair_bits(either, bits, rate=0.5)
    with pytest.raises(ConfigError, match="got a diffusion model, which does not predict a next bit"):
        next(stream_bytes(model, b"abc", 5))


@pytest.fixture(scope="module")
def one_way() -> BitTransformerLM:
    """An autoregressive model that has learned the cycle."""
    torch.manual_seed(0)
    model = BitTransformerLM(d_model=48, nhead=2, num_layers=2, max_seq_len=256)
    train_loop(model, bytes_corpus(CYCLE * 400), steps=100, batch_size=16, amp=False)
    return model


@pytest.mark.parametrize("name", ["cyclist", "one_way"])
def test_a_stream_is_repaired_piece_by_piece(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    clean = bytes_to_bits(CYCLE * 40)
    received = clean ^ (np.random.default_rng(2).random(clean.shape) < 0.01)
    asked: list[tuple[int, int]] = []

    def read(begin: int, end: int) -> np.ndarray:
        asked.append((begin, end))
        return received[8 * begin : 8 * end]

    ((whole, rate),) = repair_pieces(model, read, 640, (0, 640))
    as_one = repair_bits(model, received)
    assert (whole.bits == as_one.bits).all() and (whole.doubt == as_one.doubt).all() and rate == as_one.rate
    asked.clear()
    told: list[tuple[int, int]] = []
    pieces = list(repair_pieces(model, read, 640, (30, 610), piece=150, on_progress=lambda *at: told.append(at)))
    assert [piece.begin for piece, _ in pieces] == [30, 180, 330, 480]
    assert all(len(piece.bits) == 8 * len(piece.doubt) for piece, _ in pieces)
    made = np.concatenate([piece.bits for piece, _ in pieces])
    wrong, flips = made != clean[240:4880], (received != clean)[240:4880]
    assert wrong.sum() <= at_most(0.1, flips.sum())  # also at the seams, where a piece sees beyond them
    assert told[-1] == (580, 580) and [done for done, _ in told] == sorted(done for done, _ in told)
    sizes = [end - begin for begin, end in asked[1:]]  # the first is for the rate
    assert max(sizes) <= 150 + 2 * 64 and len({rate for _, rate in pieces}) == 1


def test_a_range_is_widened_to_whole_units_and_no_further() -> None:
    model = random_model(patch_bits=12, max_seq_len=144)  # three bytes are two patches
    bits = bytes_to_bits(bytes(range(20)))
    read = lambda begin, end: bits[8 * begin : 8 * end]  # noqa: E731
    for span, begin, size in (((4, 5), 3, 3), ((0, 20), 0, 18), ((7, 19), 6, 12)):
        ((piece, _),) = repair_pieces(model, read, 20, span, 1e-6)
        assert (piece.begin, len(piece.bits)) == (begin, 8 * size)
    with pytest.raises(BitStreamError, match="got 2 bytes; at least 3 are needed"):
        next(repair_pieces(model, read, 20, (18, 20), 1e-6))
