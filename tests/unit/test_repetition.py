"""Loops over a whole stream: what is one, from when on it is stopped, and what is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.checkpoint import save_checkpoint
from bit_transformer.config import ModelConfig, Sampling
from bit_transformer.data.sources import bytes_corpus
from bit_transformer.errors import SafetyRejection
from bit_transformer.safety import (
    Guard,
    Reference,
    SafetyGate,
    calibrate,
    hil_safe_inference,
    repetition,
    safe_sample_with_retry,
    save_calibration,
)
from bit_transformer.safety.calibration import GATE_FILE
from bit_transformer.safety.repetition import FARTHEST, MEMORY, Loop, Repetition
from bit_transformer.service.operations import call
from bit_transformer.service.workspace import Workspace
from tests.conftest import random_model


def prose(size: int) -> bytes:
    """Words of random letters, from a vocabulary that is large enough for none to be said twice running by chance."""
    random = np.random.default_rng(0)
    vocabulary = ["".join(random.choice(list("etaoinshrdlu"), 1 + int(n))) for n in random.poisson(4, 3000)]
    return " ".join(vocabulary[i] for i in random.integers(0, 3000, size // 4)).encode()[:size]


TEXT = prose(400_000)
NONE = Loop(0.0, 0.0)


@pytest.fixture(scope="module")
def eight() -> ModelConfig:
    return ModelConfig(patch_bits=8)


@pytest.fixture(scope="module", params=[64, 256])
def guard(request: pytest.FixtureRequest, eight: ModelConfig) -> Guard:
    corpus = bytes_corpus(TEXT)
    reference = Reference.fit(corpus.part(0, 100_000), eight)
    found = calibrate(reference, corpus.part(100_000, 300_000), eight, alpha=0.01, lengths=(32, 64, 256), most=2000)
    return Guard(SafetyGate.calibrated(found), reference, request.param)


def loops(guard: Guard, stream: bytes) -> list[int]:
    """Where the windows end that are stopped for a loop, with all that came before let out."""
    stopped = []
    for begin, end in guard.spans(len(stream)):
        window, before = (torch.from_numpy(bytes_to_bits(part).copy()) for part in (stream[begin:end], stream[:begin]))
        decision = guard.check(window, before_T=before)
        if "repeats" in {reason.kind for reason in decision.reasons}:
            assert not decision.allow and decision.margin < 0
            stopped.append(end)
    return stopped


@pytest.mark.parametrize("period", [4, 7, 13, 32, 100, 257, 771, 1024, 4099, FARTHEST])
def test_a_loop_of_any_period_is_stopped_within_three_rounds_and_a_quotation_is_not(guard: Guard, period: int):
    """What goes out of a loop is less than three rounds, or 32 bytes, the shortest that the gate judges."""
    random = np.random.default_rng(period)
    for _ in range(2):
        at, lead = 300_000 + int(random.integers(0, 20_000)), int(random.integers(0, 700))
        told, said = TEXT[at : at + period], TEXT[at + 30_000 : at + 30_000 + lead]
        rounds = max(3, -(-(32 + guard.window) // period) + 1)
        stopped = loops(guard, said + told * rounds)
        # The window that is stopped did not go out: where it begins is how far the loop came.
        assert stopped and stopped[0] - guard.window - lead <= max(3 * period, 32)
        assert stopped[0] <= lead + 3 * period + guard.window
        if period >= 32:  # shorter ones are no quotations but words said twice
            fresh = TEXT[at + 50_000 : at + 51_000]
            assert not loops(guard, said + told + told + fresh)
            assert not loops(guard, said + told + fresh + told + fresh[::-1])


def test_the_end_of_the_third_round_is_seen_exactly():
    """A paragraph of 257 bytes: one round copies nothing, two copy one period, three two."""
    finds, told = Repetition(8, 8), TEXT[1000:1257]
    for rounds, loop in ((1, NONE), (2, NONE), (3, Loop(514, 257)), (100, Loop(99 * 257, 257))):
        stream = bytes_to_bits(TEXT[:400] + told * rounds)
        assert finds.longest(stream, 8 * 257) == loop
    assert finds.longest(bytes_to_bits(told * 3 + TEXT[2000:2600]), 8 * 100) == NONE  # it ended before


def test_a_loop_that_is_not_exact_is_one_too():
    """A byte in sixty differs each round."""
    told, random = np.frombuffer(TEXT[5000:5240], np.uint8), np.random.default_rng(0)
    rounds = np.tile(told, 4).copy()
    rounds[random.choice(len(rounds), len(rounds) // 60, replace=False)] ^= 1
    loop = Repetition(8, 8).longest(np.unpackbits(rounds), 8 * 240)
    assert loop.period == 240 and loop.copied > 1.5 * 240


def test_text_with_no_loop_has_none():
    noise = np.random.default_rng(0).integers(0, 256, MEMORY, dtype=np.uint8)
    assert Repetition(8, 8).longest(np.unpackbits(noise), 8 * MEMORY) == NONE
    once = TEXT[:20_000]
    assert Repetition(8, 8).longest(bytes_to_bits(once + once), 8 * 20_000).copied < 20_000


@pytest.mark.parametrize("byte_bits, unit_bits, width", [(8, 8, 8), (9, 9, 9), (8, 12, 4), (8, 7, 1), (9, 12, 3)])
def test_loops_of_whole_units_are_seen_in_units_of_any_width(byte_bits: int, unit_bits: int, width: int):
    finds = Repetition(byte_bits, unit_bits)
    assert finds.width == width
    bits = bytes_to_bits(TEXT[3000:3257] * 3, parity=byte_bits == 9)
    assert finds.longest(bits, len(bits)) == Loop(514, 257)
    assert finds.longest(bits[: len(bits) * 2 // 3], len(bits)) == NONE
    if width < 8:
        random_bits = np.random.default_rng(0).integers(0, 2, unit_bits * 101, dtype=np.uint8)
        loop = finds.longest(np.tile(random_bits, 3), unit_bits * 101)
        assert loop.period * byte_bits == pytest.approx(unit_bits * 101)


def test_windows_of_a_corpus_are_those_of_the_stream(monkeypatch):
    """Read in pieces, with what came before, as a guard sees it."""
    stream = TEXT[:3000] + TEXT[500:530] * 9 + TEXT[4000:9000] + b"-" * 90 + TEXT[9000:9700] * 3 + TEXT[10_000:12_000]
    starts = np.arange(0, len(stream) - 100, 100)
    finds = Repetition(8, 8)
    expected = [finds.longest(bytes_to_bits(stream[: at + 100]), 800).copied for at in starts]
    assert max(expected) == 2 * 700 and min(expected) == 0
    for piece in (4096, 1 << 20):
        monkeypatch.setattr(repetition, "PIECE", piece)
        (found,) = finds.of_windows(bytes_corpus(stream), [(starts, 100)])
        assert found.tolist() == expected
        (some,) = finds.of_windows(bytes_corpus(stream), [(starts[::7], 100)])
        assert some.tolist() == expected[::7]


def test_what_a_loop_does_is_said(guard: Guard):
    told = TEXT[1000:1257]
    bits = [torch.from_numpy(bytes_to_bits(part).copy()) for part in (told * 2, told)]
    if guard.window == 256:
        bits[1] = bits[1][:2048]
    else:
        bits = [torch.from_numpy(bytes_to_bits(part).copy()) for part in ((told * 3)[:-64], (told * 3)[-64:])]
    decision = guard.check(bits[1], before_T=bits[0])
    size = 770 if guard.window == 256 else 771
    (reason,) = (reason for reason in decision.reasons if reason.kind == "repeats")
    assert f"{size} bytes are 3.0 times the same 257" in str(reason)
    assert "the text is in a loop. Try a higher temperature" in guard.gate.explain(decision)


def test_a_loop_is_drawn_again_and_what_was_not_let_out_does_not_count(guard: Guard, monkeypatch):
    """The stream loops until it is asked again, then says something else. What was blocked is no part of what it said."""
    told, fresh = TEXT[1000:1257], TEXT[300_000:310_000]
    asked: list[bytes] = []

    def drawn(model: object, text: bytes, sampling: Sampling) -> Iterator[int]:
        asked.append(text)
        return iter((told * 20, fresh, fresh[5000:])[len(asked) - 1])

    monkeypatch.setattr("bit_transformer.safety.guarded._bytes", drawn)
    prompt = told * 5  # whose own loops are not the stream's
    sample = safe_sample_with_retry(random_model(max_seq_len=512), prompt, 2048, guard, Sampling(seed=1), retries=1)
    assert sample.complete and sample.retries == 1
    let_out = asked[1][len(prompt) :]
    assert (told * 3).startswith(let_out) and len(let_out) >= 2.5 * 257 - guard.window
    assert sample.data == (let_out + fresh[: guard.window] + fresh[5000:])[:2048]


def test_rows_of_a_batch_are_watched_each_by_itself(guard: Guard, monkeypatch):
    """The first row quotes, the second loops; neither prompt counts."""
    told = TEXT[1000:1640]
    rows = [told + told + TEXT[300_000:300_640], told * 3]
    batch = torch.from_numpy(np.stack([bytes_to_bits(row) for row in rows]))
    monkeypatch.setattr("bit_transformer.safety.guarded.infer_long", lambda *_: batch)
    prompts = torch.from_numpy(np.stack([bytes_to_bits(told)] * 2))
    with pytest.raises(SafetyRejection, match=r"of stream 1: .* bytes are .* times the same 640") as refused:
        hil_safe_inference(random_model(max_seq_len=512), prompts, 8 * 3 * 640, guard)
    assert {reason.kind for reason in refused.value.decision.reasons} == {"repeats"}


def test_a_file_that_goes_round_is_named_repetitive(tmp_path, eight: ModelConfig):
    """A paragraph of 257 bytes, 40 times, in windows of 64: from the third round on it goes round."""
    corpus = bytes_corpus(TEXT)
    reference = Reference.fit(corpus.part(0, 100_000), eight)
    found = calibrate(reference, corpus.part(100_000, 200_000), eight, alpha=0.01, lengths=(64,))
    save_checkpoint(tmp_path, random_model(max_seq_len=512))
    save_calibration(tmp_path / GATE_FILE, found, reference, of_model=False)
    (tmp_path / "text").write_bytes((TEXT[1000:1257] * 40)[: 64 * 160])
    kinds = [
        w.kind
        for w in call(
            "telemetry", {"name": str(tmp_path / "text"), "run": str(tmp_path), "window": 64}, Workspace()
        ).windows
    ]
    assert set(kinds[3 * 257 // 64 :]) == {"repetitive"} and kinds[: 2 * 257 // 64].count("repetitive") == 0


def test_tables_that_a_reference_has_pass_and_long_loops_do_not(eight: ModelConfig):
    """A rule of 100 bytes, "=-=~" again and again, every 2,000 bytes: of windows of 64 one in ten ends in it, which is more than alpha."""
    rule = b"\n" + b"=-=~" * 25 + b"\n"
    told = b"".join(TEXT[at : at + 1898] + rule for at in range(0, 300_000, 1898))
    corpus = bytes_corpus(told)
    reference = Reference.fit(corpus.part(0, 100_000), eight)
    found = calibrate(reference, corpus.part(100_000, 300_000), eight, alpha=0.01, lengths=(64, 256))
    guard = Guard(SafetyGate.calibrated(found), reference, 64)
    most = found.limits_at(64).most_copied
    assert 96 <= most < 200  # the rule copies 96
    assert not loops(guard, TEXT[5000:5100] + rule + TEXT[8000:8500])
    stopped = loops(guard, TEXT[350_000:350_257] * 4)
    assert stopped and stopped[0] <= 3 * 257 + 64
