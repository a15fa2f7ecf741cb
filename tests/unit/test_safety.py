"""The gate, what it is calibrated on, and generation behind it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bit_transformer.bit_io import bits_to_bytes, bytes_to_bits
from bit_transformer.config import ModelConfig, Sampling
from bit_transformer.data.sources import Corpus, bytes_corpus, stdlib_files, whole_files
from bit_transformer.decoding.generation import generate_bytes, stream_bytes
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError, SafetyRejection
from bit_transformer.experts.passes import corpus_units
from bit_transformer.model import BitTransformerLM
from bit_transformer.safety import (
    Calibration,
    Guard,
    Reference,
    SafetyGate,
    Vitals,
    calibrate,
    hil_safe_inference,
    load_calibration,
    safe_sample_with_retry,
    save_calibration,
    stream_guarded,
)
from bit_transformer.safety.calibration import MOST_COPIED, QUANTILES, block_shares, conformal_limits, least_windows
from bit_transformer.safety.guarded import COOLER, WARMER, _again
from bit_transformer.telemetry import bit_negentropy, lz_complexity, symbiosis
from bit_transformer.tensor_file import read_tensors, write_tensors
from tests.conftest import random_model

GOOD = Vitals(K=0.3, C=0.7, S=0.8, size=256)
LOOP = replace(GOOD, C=0.1)
FOREIGN = replace(GOOD, S=0.2)


def words(size: int, seed: int = 0) -> bytes:
    """Text of invented words, all different from sentence to sentence."""
    random = np.random.default_rng(seed)
    syllables = ["ba", "do", "ki", "lu", "me", "na", "po", "ra", "si", "tu", "ven", "wal", "xor", "yen", "zim"]
    lexicon = ["".join(np.random.default_rng(i).choice(syllables, 1 + i % 3)) for i in range(300)]
    text = " ".join(lexicon[min(299, int(random.pareto(1.1) * 8))] for _ in range(size // 3))
    return text.encode()[:size]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return bytes_corpus(words(400_000))


@pytest.fixture(scope="module")
def eight() -> ModelConfig:
    return ModelConfig(patch_bits=8)


@pytest.fixture(scope="module")
def calibrated(corpus: Corpus, eight: ModelConfig) -> tuple[Calibration, Reference]:
    reference = Reference.fit(corpus.part(0, 100_000), eight)
    found = calibrate(reference, corpus.part(100_000, 400_000), eight, alpha=0.02, lengths=(32, 64, 256))
    return found, reference


# ---- shown ----


def test_gates_references_and_calibrations_are_shown_in_one_line(calibrated):
    found, reference = calibrated
    assert repr(SafetyGate()) == "SafetyGate(c_floor=0.3, s_floor=0.5, most_copied=64.0, decay=0.9, burn_in=10)"
    shape = "alpha=0.02, 3 lengths from 32 to 256 bytes, patch_bits=8, byte_bits=8, unit_bits=8"
    assert repr(found) == f"Calibration({shape})"
    assert repr(SafetyGate.calibrated(found)) == f"SafetyGate(calibration=Calibration({shape}), decay=0.0, burn_in=0)"
    assert repr(reference) == "Reference(100,000 units of 8 bits read, 4 contexts, byte_bits=8)"
    shown = repr(Guard(SafetyGate.calibrated(found), reference))
    assert shown.endswith(f"reference={reference!r}, window=256)") and "\n" not in shown


# ---- the gate ----


def test_floors_block_and_say_which():
    gate = SafetyGate(burn_in=0, decay=0)
    assert gate.update(GOOD).allow
    blocked = gate.update(LOOP)
    assert not blocked.allow and [str(reason) for reason in blocked.reasons] == ["C 0.100 is below its floor 0.300"]
    assert blocked.window == 1 and blocked.margin == pytest.approx(-0.2)
    both = gate.update(replace(LOOP, S=0.1))
    assert [reason.kind for reason in both.reasons] == ["C below", "S below"]
    (reason,) = gate.update(replace(GOOD, copied=514.0, period=257.0)).reasons
    assert str(reason) == "771 bytes are 3.0 times the same 257; a loop may copy 64" and reason.kind == "repeats"
    assert gate.update(replace(GOOD, copied=60.0, period=5.0)).allow


def test_averages_decay_as_they_say():
    gate = SafetyGate(decay=0.75, burn_in=0)
    smooth = None
    for value in (0.9, 0.5, 0.1, 0.1, 0.1):
        smooth = value if smooth is None else 0.75 * smooth + 0.25 * value
        assert gate.update(replace(GOOD, C=value)).smoothed["C"] == pytest.approx(smooth)


def test_burning_in_allows_what_is_low_and_says_so():
    gate = SafetyGate(burn_in=2, decay=0)
    first = gate.update(LOOP)
    assert first.allow and "burn-in" in str(first.reasons[0])
    gate.update(LOOP)
    assert not gate.update(LOOP).allow


def test_streams_do_not_mix():
    gate = SafetyGate(decay=0.5, burn_in=1)
    decisions = gate.update_batch([GOOD, LOOP])
    assert [d.stream for d in decisions] == [0, 1] and all(d.allow for d in decisions)
    assert [d.allow for d in gate.update_batch([GOOD, LOOP])] == [True, False]
    assert gate.update(GOOD, stream=7).window == 0
    gate.reset()
    assert gate.update(LOOP, stream=1).allow


def test_a_gate_that_goes_on_from_its_state_decides_alike():
    values = [replace(GOOD, C=c, S=s) for c, s in np.random.default_rng(0).random((30, 2))]
    whole, first, second = (SafetyGate(decay=0.8, burn_in=3) for _ in range(3))
    expected = [whole.update(v, stream=i % 3) for i, v in enumerate(values)]
    for i, v in enumerate(values[:17]):
        first.update(v, stream=i % 3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(v, stream=(17 + i) % 3) for i, v in enumerate(values[17:])] == expected[17:]
    with pytest.raises(ConfigError, match="invalid gate state"):
        second.load_state_dict({"0": {"C": 1}})


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, K=math.nan),
        replace(GOOD, C=math.nan),
        replace(GOOD, S=1.5),
        replace(GOOD, copied=math.nan),
        replace(GOOD, copied=-1.0),
        None,
        "text",
    ],
)
def test_the_gate_never_fails_open_and_goes_on(bad):
    gate = SafetyGate(burn_in=0)
    decision = gate.update(bad)
    assert not decision.allow and decision.reasons and decision.margin == -math.inf
    assert gate.update(GOOD).allow and gate.update(GOOD).allow  # no average began with what was not measured
    gate = SafetyGate(burn_in=1, decay=0)
    gate.update(bad)
    assert gate.update(LOOP).allow and not gate.update(LOOP).allow  # the burn-in is of windows that were measured


def test_what_is_no_number_inside_the_gate_does_not_open_it(calibrated):
    for state in (
        {"C": math.nan, "S": math.nan, "windows": 5, "averaged": 5},
        {"C": 1e9, "S": 0.9, "windows": 0, "averaged": 0},
        {"C": 0.5, "S": 0.9, "windows": -50, "averaged": -50},
        {"C": "0.5", "S": 0.9, "windows": 1, "averaged": 1},
        {"D": 0.5},
    ):
        with pytest.raises(ConfigError, match="invalid gate state"):
            SafetyGate().load_state_dict({"0": state})
    found = calibrated[0]
    for name in ("limits", "medians", "quantiles", "noise"):
        with pytest.raises(ConfigError, match=r"leave \[0, 1\]"):
            replace(found, **{name: np.full_like(getattr(found, name), math.nan)})
    with pytest.raises(ConfigError, match="do not fit together"):
        replace(found, limits=found.limits[:1])
    with pytest.raises(ConfigError, match="must ascend"):
        replace(found, lengths=found.lengths[::-1].copy())
    broken = replace(found)
    object.__setattr__(broken, "limits", np.full_like(found.limits, math.nan))
    assert not SafetyGate.calibrated(broken).update(replace(GOOD, S=0.0)).allow


def test_an_error_inside_blocks_and_says_so(monkeypatch, calibrated):
    gate = SafetyGate.calibrated(calibrated[0])
    monkeypatch.setattr(Calibration, "limits_at", lambda *_: 1 / 0)
    decision = gate.update(GOOD)
    assert not decision.allow and "ZeroDivisionError" in str(decision.reasons[0])
    assert "Blocked" in gate.explain()


def test_wrong_parity_blocks_from_the_first_window_on():
    decision = SafetyGate().update(replace(GOOD, odd_bytes=1))
    assert not decision.allow and "parity is wrong in 1 bytes" in str(decision.reasons[0])
    assert decision.margin < 0


def test_explanations_name_window_metric_and_remedy(calibrated):
    gate = SafetyGate(burn_in=0, decay=0)
    assert gate.explain() == "No window has been judged yet."
    gate.update(GOOD)
    assert gate.explain().startswith("Allowed: window 1, 256 bytes.")
    blocked = gate.update(LOOP, stream=3)
    text = gate.explain(blocked)
    assert (
        "Blocked: window 1 of stream 4, 256 bytes." in text
        and "repeats itself" in text
        and "Try a higher temperature" in text
    )
    gate = SafetyGate.calibrated(calibrated[0])
    gate.update(FOREIGN)
    assert (
        "unlike the reference" in gate.explain()
        and "Reference windows of this length with a lower value" in gate.explain()
    )


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"c_floor": 1.1}, "c_floor=1.1; it must be in [0, 1]. Try 0.3"),
        ({"s_floor": -0.1}, "s_floor=-0.1"),
        ({"c_floor": math.nan}, "c_floor=nan"),
        ({"decay": 1.0}, "decay=1.0; it must be in [0, 1)"),
        ({"burn_in": -1}, "burn_in=-1"),
        ({"most_copied": math.nan}, "most_copied=nan; it must be 0 or more bytes. Try 64"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ConfigError) as refused:
        SafetyGate(**fields)
    assert said in str(refused.value)


# ---- the reference ----


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(patch_bits=8),
        ModelConfig(patch_bits=1),
        ModelConfig(patch_bits=9, parity=True, max_seq_len=1008),
        ModelConfig(patch_bits=12, max_seq_len=1008),
    ],
)
def test_a_reference_likes_what_it_read_and_not_noise(config: ModelConfig, corpus: Corpus):
    reference = Reference.fit(corpus.part(0, 60_000), config)
    like = corpus.read(200_000, 300)
    noise = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8)
    bits = bytes_to_bits(np.stack((like, noise)), parity=config.parity)
    read, foreign = reference.measure(bits)
    assert read.S > 0.6 > 0.5 > foreign.S
    assert read.size == 300 and read.odd_bytes == 0
    assert bit_negentropy(bits)[0] == read.K and lz_complexity(bits)[0] == read.C
    assert symbiosis(torch.from_numpy(bits), reference.probabilities(bits))[0] == read.S
    assert 0.96 < foreign.C <= 1 and foreign.K < 0.05


def test_windows_are_measured_each_by_itself(calibrated, corpus: Corpus):
    reference = calibrated[1]
    rows = np.stack([corpus.read(at, 100) for at in (0, 5000, 150_000)])
    together = reference.measure(bytes_to_bits(rows))
    assert together == [reference.measure(bytes_to_bits(row[None]))[0] for row in rows]
    with pytest.raises(BitStreamError, match="no window"):
        reference.measure(np.zeros((0, 64), dtype=np.uint8))


def test_parity_is_counted():
    config = ModelConfig(patch_bits=9, parity=True, max_seq_len=1008)
    reference = Reference.fit(bytes_corpus(words(5000)), config)
    bits = bytes_to_bits(words(64), parity=True).copy()
    bits[[8, 44]] ^= 1
    assert reference.measure(bits[None])[0].odd_bytes == 2


# ---- calibration ----


def test_false_alarms_are_as_many_as_asked(calibrated, corpus: Corpus, eight: ModelConfig):
    """Within four standard deviations of calibration and count together, also between the lengths that were measured."""
    found, reference = calibrated
    fresh = bytes_corpus(words(400_000, seed=5))
    gate = SafetyGate.calibrated(found)
    for size in (32, 45, 64, 128, 256):
        count = min(2000, len(fresh) // size)
        rows = np.stack([fresh.read(i * size, size) for i in range(count)])
        alarms = np.mean([not gate.update(v).allow for v in reference.measure(bytes_to_bits(rows))])
        scored = found.windows.min() * 0.75
        deviation = math.sqrt(0.02 * 0.98 * (1 / count + 1 / scored))
        assert abs(alarms - 0.02) < 4 * deviation, (size, alarms)


def test_what_is_degenerate_is_blocked_and_named(calibrated, corpus: Corpus):
    found, reference = calibrated
    gate = SafetyGate.calibrated(found)
    text = corpus.read(300_000, 256)
    random = np.random.default_rng(1)
    kinds = {
        "repetitive": [np.resize(text[:9], 256), np.full(256, 32, dtype=np.uint8)],
        "noise": [random.integers(0, 256, 256, dtype=np.uint8)],
        "off-domain": [random.permutation(text), np.arange(0, 256, dtype=np.uint8) % 251],
        "typical": [text],
    }
    for kind, rows in kinds.items():
        for row in rows:
            (vitals,) = reference.measure(bytes_to_bits(row[None]))
            assert found.kind(vitals) == kind, vitals
            assert gate.update(vitals).allow == (kind == "typical")


@pytest.fixture(scope="module")
def coder() -> tuple[BitTransformerLM, Reference, Corpus]:
    """A model that says what its experts say, which have read a megabyte of code; and other code."""
    files = [path for path in stdlib_files() if path.stat().st_size < 40_000]  # no tables
    corpus = whole_files(files[i] for i in np.random.default_rng(0).permutation(len(files)))
    torch.manual_seed(0)
    experts = {"orders": (1, 2, 3, 4, 6), "buckets": 1 << 16, "history": 1 << 20}
    model = BitTransformerLM(d_model=32, nhead=1, num_layers=1, patch_bits=8, max_seq_len=2048, experts=experts).eval()
    model.bank.read(corpus_units(corpus, 0, 1_000_000, model.config), model.bank.stream(), learn=True, wanted=False)
    return model, Reference(model.bank, 8), corpus.part(1_000_000, 2_000_000)


def test_a_models_own_samples_pass(coder):
    """What it says at the temperatures in use is likelier than text, and as varied. A ceiling of S stopped a quarter of it at 0.7.

    Of 100 windows at a temperature at most 2 alpha = 0.04 may be stopped, and three binomial deviations of so many,
    3 sqrt(0.04 x 0.96 / 100) = 0.059.
    """
    model, reference, rest = coder
    found = calibrate(reference, rest, model.config, alpha=0.02, lengths=(256,), most=2000)
    prompts = [rest.read(i * 4000, 64).tobytes() for i in range(100)]
    for temperature in (0.7, 1.0):
        drawn = generate_bytes(model, prompts, 256, Sampling(temperature=temperature, seed=1))
        gate = SafetyGate.calibrated(found)
        vitals = reference.measure(np.stack([bytes_to_bits(text) for text in drawn]))
        assert np.mean([not gate.update(v).allow for v in vitals]) < 0.04 + 0.059


def test_likelier_than_all_text_is_no_reason_to_block(calibrated):
    found, _ = calibrated
    decision = SafetyGate.calibrated(found).update(replace(GOOD, C=found.medians_at(256).c_floor, S=0.99))
    assert decision.allow and decision.margin == pytest.approx(1.0)


def test_the_band_holds_the_false_alarms_of_other_texts_of_the_kind():
    """Texts whose windows go by chapters, each with a mean of its own; calibrated on one, judged on the next, 60 times.

    95 of 100 lie inside; 60 independent pairs may fall short by 2.3 sqrt(0.95 x 0.05 / 60) = 0.065. Two binomial deviations of as many windows
    hold less than half of them: that is what the band was.
    """
    random = np.random.default_rng(0)
    inside, narrow = [], []
    for _ in range(60):
        texts = []
        for _ in range(2):
            chapters = random.normal(0, 1, (40, 1)) + random.normal(0, 1, (40, 50))
            texts.append(np.column_stack((0.5 + chapters.ravel() / 20, np.full(2000, 0.7), np.zeros(2000))))
        limits, _ = conformal_limits(random.permutation(texts[0]), 0.05)
        shares = block_shares(texts[0], 0.05, random)[None]
        one = np.ones((1, 3, QUANTILES)) / 2
        found = Calibration(
            0.05, np.array([64.0]), np.array([2000.0]), limits[None], limits[None], one, one, shares, 8, 8, 8
        )
        share = (texts[1][:, :2] < limits[:2]).any(1).mean()
        low, high = found.alarms(0)
        inside.append(low <= share <= high)
        narrow.append(abs(share - 0.05) <= 2 * math.sqrt(0.05 * 0.95 / 1500))
    assert np.mean(inside) >= 0.95 - 0.065 and np.mean(narrow) < 0.5
    assert replace(found, shares=np.zeros((1, 0))).alarms(0) == (0.0, 1.0)


def test_floors_rise_with_length_and_lie_between_those_measured(calibrated):
    found, _ = calibrated
    (c32, s32, most32), (c45, s45, most45), (c64, s64, most64) = (found.limits_at(n) for n in (32, 45, 64))
    assert s32 < s45 < s64 and min(most32, most64) <= most45 <= max(most32, most64)
    assert min(c32, c64) <= c45 <= max(c32, c64)
    share = (math.log(45) - math.log(32)) / math.log(2)
    assert s45 == pytest.approx((1 - share) * s32 + share * s64)
    assert found.limits_at(256) == tuple(found.limits[-1])
    for size in (31, 257, 5000):  # nothing was measured there
        with pytest.raises(BitStreamError, match="it must have 32 to 256, which were calibrated"):
            found.limits_at(size)
        decision = SafetyGate.calibrated(found).update(replace(GOOD, size=size))
        assert not decision.allow and "it must have 32 to 256" in str(decision.reasons[0])


def test_too_small_a_reference_is_refused_with_what_is_needed(calibrated, corpus: Corpus, eight: ModelConfig):
    needed = least_windows(0.01)
    assert needed == 132
    with pytest.raises(BitStreamError, match=f"needs {needed} windows, {needed * 32:,} bytes"):
        calibrate(calibrated[1], corpus.part(0, needed * 32 - 1), eight, alpha=0.01)
    enough = calibrate(calibrated[1], corpus.part(0, needed * 64), eight, alpha=0.01)
    assert enough.lengths.tolist() == [32, 64]  # the longer ones are left out
    for alpha in (0.0, 0.5, -1, math.nan):
        with pytest.raises(ConfigError, match="alpha="):
            calibrate(calibrated[1], corpus, eight, alpha=alpha)
    for lengths in ((), (64, 32), (4, 32)):
        with pytest.raises(ConfigError, match="lengths="):
            calibrate(calibrated[1], corpus, eight, lengths=lengths)


@pytest.mark.parametrize("of_model", [False, True])
def test_a_calibration_comes_back_as_it_was(tmp_path, calibrated, eight: ModelConfig, of_model: bool):
    found, reference = calibrated
    path = tmp_path / "gate.safetensors"
    save_calibration(path, found, reference, of_model=of_model)
    again, ours = load_calibration(path, eight, reference.bank if of_model else None)
    for name in ("lengths", "windows", "limits", "medians", "quantiles", "noise", "shares"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert (again.alpha, again.patch_bits) == (found.alpha, 8)
    bits = bytes_to_bits(words(64))[None]
    assert ours.measure(bits) == reference.measure(bits)


def test_a_file_from_before_loops_were_watched_is_loaded_without_its_ceiling(tmp_path, calibrated, eight: ModelConfig):
    found, reference = calibrated
    path = tmp_path / "gate.safetensors"
    save_calibration(path, found, reference, of_model=True)
    tensors, document = read_tensors(path)
    del tensors["shares"], document["limits"]
    tensors["limits"][:, 2], tensors["medians"][:, 2] = 0.8, 0.7  # of S
    write_tensors(path, tensors, document)
    again, _ = load_calibration(path, eight, reference.bank)
    assert np.array_equal(again.limits[:, :2], found.limits[:, :2]) and (again.limits[:, 2] == MOST_COPIED).all()
    decision = SafetyGate.calibrated(again).update(replace(GOOD, C=found.medians_at(256).c_floor, S=0.99))
    assert decision.allow and decision.margin == pytest.approx(1.0) and again.alarms(0) == (0.0, 1.0)


def test_another_models_calibration_is_refused(tmp_path, calibrated, eight: ModelConfig, corpus: Corpus):
    found, reference = calibrated
    path = tmp_path / "gate.safetensors"
    save_calibration(path, found, reference, of_model=False)
    with pytest.raises(CheckpointError, match="patch_bits=8; the model has 4"):
        load_calibration(path, ModelConfig(patch_bits=4), None)
    with pytest.raises(CheckpointError, match="byte_bits=8; the model has 9"):
        load_calibration(path, ModelConfig(patch_bits=8, parity=True), None)
    save_calibration(path, found, reference, of_model=True)
    other = reference.bank.copy()
    other.read(np.arange(100), other.stream(), learn=True)
    for bank in (other, None):
        with pytest.raises(CheckpointError, match="another state"):
            load_calibration(path, eight, bank)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        load_calibration(path, eight, None)


# ---- generation behind the gate ----


def guard(calibrated, window: int = 64) -> Guard:
    return Guard(SafetyGate.calibrated(calibrated[0]), calibrated[1], window)


def lenient(calibrated, window: int = 64) -> Guard:
    return Guard(SafetyGate(0.0, 0.0, decay=0, burn_in=0), calibrated[1], window)


def test_allowed_output_is_what_it_would_be_without_a_gate(calibrated):
    model = random_model(max_seq_len=512)
    sampling = Sampling(seed=3)
    pieces = list(stream_guarded(model, b"start", 150, lenient(calibrated), sampling))
    assert [len(piece.data) for piece in pieces] == [64, 64, 22]
    assert b"".join(p.data for p in pieces) == b"".join(stream_bytes(model, b"start", 150, sampling))
    assert [p.decision.window for p in pieces] == [0, 1, 2]


def test_a_short_remainder_is_judged_with_the_end_of_what_was_before(calibrated):
    found = replace(calibrated[0], limits=np.tile([0.0, 0.0, 64.0], (3, 1)))
    everything = Guard(SafetyGate.calibrated(found), calibrated[1], 64)
    pieces = list(stream_guarded(random_model(max_seq_len=512), b"", 70, everything, Sampling(seed=3)))
    assert [len(p.data) for p in pieces] == [64, 6]
    assert pieces[-1].decision.vitals.size == 32


def test_the_first_blocked_window_ends_it(calibrated):
    pieces = list(stream_guarded(random_model(max_seq_len=512), b"x", 300, guard(calibrated), Sampling(seed=1)))
    assert pieces[-1].data == b"" and not pieces[-1].decision.allow and len(pieces) == 1
    sample = safe_sample_with_retry(
        random_model(max_seq_len=512), b"x", 300, guard(calibrated), Sampling(seed=1), retries=2
    )
    assert sample.data == b"" and not sample.complete and sample.retries == 2


def test_a_blocked_window_is_drawn_again_and_the_rest_goes_on(calibrated, monkeypatch):
    """The gate says no to the second window once."""
    model = random_model(max_seq_len=512)
    strict = lenient(calibrated)
    seen = []

    def check(self, bits, stream=0, before=None):
        seen.append(bits_to_bytes(bits))
        vitals = LOOP if len(seen) == 2 else GOOD
        return SafetyGate(burn_in=0, decay=0).update(vitals)

    monkeypatch.setattr(Guard, "check", check)
    pieces = list(stream_guarded(model, b"go", 192, strict, Sampling(seed=5), retries=3))
    assert [p.decision.window for p in pieces] == [0, 1, 2]
    assert [p.retries for p in pieces] == [0, 1, 0] and all(p.decision.allow for p in pieces)
    assert seen[1] != seen[2] and pieces[1].data == seen[2]
    assert sum(len(p.data) for p in pieces) == 192
    plain = b"".join(stream_bytes(model, b"go", 192, Sampling(seed=5)))
    assert pieces[0].data == plain[:64] and seen[1] == plain[64:128]


def test_retries_are_warmer_after_loops_and_cooler_after_foreign_text():
    gate = SafetyGate(burn_in=0, decay=0)
    how = Sampling(temperature=0.8, seed=1)
    assert _again(how, gate.update(LOOP), 0).temperature == pytest.approx(0.8 * WARMER)
    assert _again(how, gate.update(replace(GOOD, copied=514.0, period=257.0)), 0).temperature == pytest.approx(
        0.8 * WARMER
    )
    assert _again(how, gate.update(FOREIGN), 0).temperature == pytest.approx(0.8 * COOLER)
    assert _again(Sampling(temperature=0), gate.update(LOOP), 0).temperature > 0.4
    assert _again(Sampling(temperature=0.2), gate.update(FOREIGN), 0).temperature < 0.2
    assert _again(how, gate.update(None), 0).temperature == 0.8
    assert _again(how, gate.update(LOOP), 0).seed != _again(how, gate.update(LOOP), 1).seed != 1


def test_windows_begin_where_units_do(corpus: Corpus, monkeypatch):
    """Words of 12 bits: three bytes are two of them, and out of step they are another language."""
    config = ModelConfig(patch_bits=12, max_seq_len=1008)
    reference = Reference.fit(corpus.part(0, 60_000), config)
    found = calibrate(reference, corpus.part(60_000, 400_000), config, alpha=0.02, lengths=(33, 66, 258))
    gate = SafetyGate.calibrated(found)
    assert Guard(gate, reference).window == 255 and reference.align_bytes == 3
    with pytest.raises(ConfigError, match="window=128 bytes; the gate judges 33 to 258, a multiple of 3"):
        Guard(gate, reference, 128)
    model = random_model(patch_bits=12, max_seq_len=1008)
    lenient_12 = Guard(SafetyGate(0.0, 0.0, decay=0, burn_in=0), reference, 66)
    seen = []
    check = Guard.check

    def watched(self, bits, stream=0, before=None):
        seen.append(bits_to_bytes(bits))
        return check(self, bits, stream, before)

    prompt = b"12 45 78"  # two bytes beyond whole units
    monkeypatch.setattr(Guard, "check", watched)
    pieces = list(stream_guarded(model, prompt, 150, lenient_12, Sampling(seed=1)))
    text = b"".join(piece.data for piece in pieces)
    assert len(text) == 150 and text == b"".join(stream_bytes(model, prompt, 150, Sampling(seed=1)))
    whole = prompt[6:] + text
    assert seen == [whole[:66], whole[66:132], whole[132:152]]


def test_parity_that_is_not_enforced_is_not_let_through(corpus: Corpus):
    config = ModelConfig(patch_bits=9, parity=True, max_seq_len=1008)
    reference = Reference.fit(corpus.part(0, 60_000), config)
    found = calibrate(reference, corpus.part(60_000, 200_000), config, alpha=0.02, lengths=(32, 64))
    behind = Guard(SafetyGate.calibrated(found), reference)
    model = random_model(patch_bits=9, parity=True, max_seq_len=1008)
    with pytest.raises(ConfigError, match="Try force_parity=True"):
        stream_guarded(model, b"", 64, behind, Sampling(force_parity=False))
    prompt = torch.zeros(1, 0, dtype=torch.uint8)
    with pytest.raises(SafetyRejection, match="parity is wrong in"):
        hil_safe_inference(model, prompt, 9 * 64, behind, Sampling(force_parity=False, seed=1))
    good = torch.from_numpy(bytes_to_bits(corpus.read(300_000, 64), parity=True).copy())
    assert behind.check(good).allow
    assert "window 2, 64 bytes" in behind.gate.explain()  # parity bits do not count
    good[17] ^= 1
    blocked = behind.check(good)
    assert not blocked.allow and blocked.margin == -math.inf


def test_a_bad_stretch_of_a_long_continuation_is_blocked(calibrated, corpus: Corpus, monkeypatch):
    """Each window is judged, not their average."""
    text = corpus.read(300_000, 640).copy()
    text[256:320] = 65
    monkeypatch.setattr(
        "bit_transformer.safety.guarded.infer_long", lambda *_: torch.from_numpy(bytes_to_bits(text))[None]
    )
    prompt = torch.zeros(1, 0, dtype=torch.uint8)
    model = random_model(max_seq_len=512)
    with pytest.raises(SafetyRejection) as refused:
        hil_safe_inference(model, prompt, 8 * 640, guard(calibrated))
    assert refused.value.decision.window == 4 and "window 5 of stream 0" in str(refused.value)
    asked: list[int] = []
    _, decisions = hil_safe_inference(
        model, prompt, 8 * 640, guard(calibrated), ask=lambda d: asked.append(d.window) or True
    )
    assert len(decisions) == 10 and 4 in asked


def test_any_failure_to_measure_blocks(calibrated, monkeypatch):
    def broken(self, bits, before=None):
        raise MemoryError("no memory")

    monkeypatch.setattr(Reference, "measure", broken)
    decision = lenient(calibrated).check(torch.ones(64, dtype=torch.uint8))
    assert not decision.allow and "MemoryError" in str(decision.reasons[0])


def test_alpha_is_kept_however_few_windows_are_asked_for(calibrated, corpus: Corpus, eight: ModelConfig):
    found = calibrate(calibrated[1], corpus, eight, alpha=0.02, lengths=(32,), most=5)
    assert found.windows.tolist() == [least_windows(0.02)]


def test_a_person_may_let_through_what_the_gate_blocks(calibrated):
    model = random_model(max_seq_len=512)
    prompt = torch.from_numpy(bytes_to_bits(b"ab"))[None].repeat(2, 1)
    with pytest.raises(SafetyRejection) as refused:
        hil_safe_inference(model, prompt, 512, guard(calibrated), Sampling(seed=1))
    assert not refused.value.decision.allow and "stream 0" in str(refused.value)
    asked = []
    bits, decisions = hil_safe_inference(
        model, prompt, 512, guard(calibrated), Sampling(seed=1), ask=lambda d: asked.append(d) or True
    )
    assert bits.shape == (2, 512) and asked == decisions and len(asked) == 2
    with pytest.raises(SafetyRejection):
        hil_safe_inference(model, prompt, 512, guard(calibrated), Sampling(seed=1), ask=lambda d: d.stream == 0)


def test_a_models_nan_is_an_error_and_no_output(calibrated):
    model = random_model(max_seq_len=512)
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(BitStreamError, match="NaN"):
        next(stream_guarded(model, b"", 64, lenient(calibrated)))


def test_what_cannot_be_judged_is_refused_or_blocked(calibrated):
    for window in (16, 512):
        with pytest.raises(ConfigError, match=f"window={window} bytes; the gate judges 32 to 256"):
            guard(calibrated, window)
    assert guard(calibrated, 0).window == 256
    with pytest.raises(ConfigError, match="got 20 bytes to generate"):
        stream_guarded(random_model(max_seq_len=512), b"", 20, guard(calibrated))
    with pytest.raises(ConfigError, match=r"decay=0\.9 and burn_in=10"):
        Guard(SafetyGate(), calibrated[1])
    with pytest.raises(ConfigError, match="learn='prompt' with retries"):
        stream_guarded(random_model(max_seq_len=512), b"", 64, guard(calibrated), Sampling(learn="prompt"), retries=1)
    assert not lenient(calibrated).check(torch.full((64,), 2)).allow
    assert not lenient(calibrated).check(torch.ones(1, dtype=torch.uint8)).allow
    assert not guard(calibrated).check(torch.ones(64, dtype=torch.uint8)).allow
