"""Costs of bytes, alternatives, damage: against second routes to the same numbers."""

from __future__ import annotations

import itertools
import math
import zlib

import numpy as np
import pytest

from bit_transformer.compression.profiles import BINARY, TEXT, bank_of
from bit_transformer.data.sources import stdlib_files
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.proof.edits import Edit
from bit_transformer.surprisal.alternatives import BEYOND, Alternatives, gains
from bit_transformer.surprisal.damage import Candidate, calibrated, candidates, damages, tried_of, uncalibrated
from bit_transformer.surprisal.filling import fills
from bit_transformer.surprisal.mapping import find_damage, judged, surprise_map
from bit_transformer.surprisal.opinion import Opinion
from bit_transformer.surprisal.proved import prove
from bit_transformer.surprisal.reading import BankReader, bit_costs_of, read_costs
from bit_transformer.surprisal.segments import segments_of

CODE = np.frombuffer(b"".join(path.read_bytes() for path in stdlib_files()[:40]), dtype=np.uint8)
SMALL = CODE[:6000]


def bank(profile: int = TEXT):
    return bank_of(profile, 0, 13, 14)


def test_costs_sum_to_the_length_of_the_code() -> None:
    code = bank().encode(SMALL, bank().stream())
    cost_N, cost_NU = read_costs(SMALL, bank(), bits=True)
    assert abs(float(cost_N.sum()) - 8 * len(code)) < 64
    assert np.allclose(cost_NU.sum(1, dtype=np.float64), cost_N, atol=0.05)  # bits are kept in float16


def test_probabilities_do_not_depend_on_pieces() -> None:
    whole, parts = bank(BINARY), bank(BINARY)
    stream = parts.stream()
    made = [parts.probabilities(SMALL[at : at + 700], stream, learn=True) for at in range(0, len(SMALL), 700)]
    assert np.array_equal(np.concatenate(made), whole.probabilities(SMALL, whole.stream(), learn=True))
    assert whole.digest() == parts.digest()


def test_probabilities_are_those_of_a_bank_that_is_read_bit_by_bit() -> None:
    one, other = bank(), bank()
    said = one.probabilities(SMALL[:300], one.stream(), learn=True)
    stream = other.stream()
    for byte, row in zip(SMALL[:300].tolist(), said.tolist(), strict=True):
        unit = other.open_unit(stream, learn=True)
        for depth in range(8):
            unit.predict_bit()
            assert int(unit._state[7 + 11]) == row[depth]  # what the coder takes, in 1/65536
            unit.learn_bit(byte >> (7 - depth) & 1)
        unit.close()


def test_variants_are_read_by_the_bank_as_it_is_at_their_place() -> None:
    draw = np.random.default_rng(0)
    begin = np.sort(draw.integers(0, len(SMALL) - 20, 25))
    new = draw.choice(SMALL, (25, 9))
    reader = bank()
    said = reader.variants(SMALL, reader.stream(), begin, np.arange(26) * 9, new.ravel(), learn=True)
    untouched = bank()
    untouched.read(SMALL, untouched.stream(), learn=True, wanted=False)
    assert reader.digest() == untouched.digest()
    for v, at in enumerate(begin.tolist()):
        alone = bank()
        stream = alone.stream()
        alone.read(SMALL[:at], stream, learn=True, wanted=False)
        assert np.array_equal(alone.probabilities(new[v], stream, learn=False), said[9 * v : 9 * v + 9])


def test_gains_are_the_mean_of_both_ways_by_explicit_loops() -> None:
    data = SMALL[:1500]
    rows = [(0, 1, b"x"), (700, 1, b"\0"), (700, 2, b""), (700, 0, b"abc"), (1200, 5, b"hello"), (1499, 1, b"?")]
    rows += [(0, 0, b"#"), (0, 1, b""), (1500, 0, b"\n"), (1500, 0, b"xyz"), (1499, 1, b"")]  # at both ends
    found = gains(data, (bank(), bank()), Alternatives.of(rows))

    def one_way(data, begin: int, length: int, new: bytes) -> float:
        after = data[begin + length : begin + length + BEYOND]
        cost = []
        for instead in (np.frombuffer(new, dtype=np.uint8), data[begin : begin + length]):
            reader = bank()
            stream = reader.stream()
            reader.read(data[:begin], stream, learn=True, wanted=False)
            piece = np.concatenate((instead, after))
            cost.append(
                float(bit_costs_of(piece, reader.probabilities(piece, stream, learn=False)).sum(dtype=np.float64))
            )
        return cost[1] - cost[0]

    for (begin, length, new), gain in zip(rows, found.tolist(), strict=True):
        ahead = one_way(data, begin, length, new)
        back = one_way(data[::-1].copy(), len(data) - begin - length, length, new[::-1])
        assert gain == pytest.approx((ahead + back) / 2 * math.log(2), abs=1e-6)


def test_gains_do_not_depend_on_how_many_are_read_at_once(monkeypatch) -> None:
    place = np.arange(0, 3000, 7)
    flips = Alternatives.flips(SMALL, place)
    at_once = gains(SMALL, (bank(), bank()), flips)
    monkeypatch.setattr("bit_transformer.surprisal.alternatives.AT_ONCE", 400)
    assert np.allclose(
        at_once, gains(SMALL, (bank(), bank()), flips), rtol=0, atol=1e-9
    )  # sums of costs begin elsewhere


def test_a_file_read_from_its_end_has_both_costs_swapped() -> None:
    forwards, backwards = BankReader().costs(SMALL), BankReader().costs(SMALL[::-1].copy())
    assert np.array_equal(forwards.ahead, backwards.back[::-1]) and np.array_equal(forwards.back, backwards.ahead[::-1])
    assert np.array_equal(forwards.lower, np.minimum(forwards.ahead, forwards.back))


def test_what_was_read_before_makes_the_same_cheap() -> None:
    alone, after = BankReader().costs(SMALL), BankReader([CODE[:50_000]]).costs(SMALL)
    assert after.mean.mean() < 0.2 * alone.mean.mean()


def test_segments_are_named_and_cover_the_file() -> None:
    draw = np.random.default_rng(0)
    prose = b"It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. "
    parts = [
        ("text", prose * 40),
        ("zeros", bytes(4096)),
        ("compressed", draw.bytes(16_384)),
        ("markup", b"".join(b"<row id='%d'><name>item</name><size>%d</size></row>\n" % (i, i * i) for i in range(200))),
        ("table", b"".join(b"%d,%d,%d\n" % tuple(draw.integers(0, 99999, 3)) for _ in range(500))),
        ("code", CODE[200_000:208_000].tobytes()),
    ]
    data = np.frombuffer(b"".join(part for _, part in parts), dtype=np.uint8)
    found = segments_of(data, BankReader().costs(data))
    assert found[0].begin == 0 and found[-1].end == len(data)
    assert all(a.end == b.begin for a, b in itertools.pairwise(found))
    at = 0
    for kind, part in parts:
        middle = at + len(part) // 2
        here = next(s for s in found if s.begin <= middle < s.end)
        assert here.kind == kind or kind == "code", (kind, here)
        at += len(part)


def _planted() -> tuple[np.ndarray, list[tuple[int, str]]]:
    data = CODE[300_000:420_000].copy()
    draw = np.random.default_rng(1)
    at = {"flips": 11_000, "zeros": 30_000, "shifted": 60_000, "overwritten": 100_000}
    data[11_000] ^= 0x10
    data[30_000:30_200] = 0
    data[60_000:60_400] = np.packbits(np.roll(np.unpackbits(data[60_000:60_400]), 3))
    data[100_000:100_100] = draw.choice(data, 100)
    return data, [(begin, kind) for kind, begin in at.items()]


def test_damage_against_an_intact_version_is_found_and_named() -> None:
    data, planted = _planted()
    before = CODE[300_000:420_000]
    reader = BankReader([before])
    clean = reader.costs(before)
    limits = calibrated([(before, clean, candidates(before, clean, reader.banks(before), tried_of(len(before))))], 10.0)
    costs = reader.costs(data)
    found = damages(candidates(data, costs, reader.banks(data), tried_of(len(data))), limits)
    assert len(found) == len(planted)
    for begin, kind in planted:
        here = next(d for d in found if abs(d.begin - begin) < 40)
        assert here.kind == kind and here.score > here.limit and here.bits > 10
    assert "3 bits too late" in next(d.text for d in found if d.kind == "shifted")
    assert next(d.text for d in found if d.kind == "zeros") == "all bytes are 0"


def test_no_more_alarms_than_allowed_in_the_reference_and_its_like() -> None:
    pieces = [CODE[begin : begin + 150_000] for begin in range(0, 600_000, 150_000)]
    known = []
    for i, piece in enumerate(pieces[:3]):
        reader = BankReader([*pieces[:i], *pieces[i + 1 : 3]])
        costs = reader.costs(piece)
        known.append((piece, costs, candidates(piece, costs, reader.banks(piece), tried_of(150_000))))
    limits = calibrated(known, 20.0)
    assert limits.false_alarms <= 20.0 and limits.between[0] <= limits.false_alarms <= limits.between[1]
    reader = BankReader(pieces[:3])
    costs = reader.costs(pieces[3])
    found = damages(candidates(pieces[3], costs, reader.banks(pieces[3]), tried_of(150_000)), limits)
    assert len(found) <= 4 * 20.0 * 0.15  # of another kind of code: not many more


def test_too_little_clean_data_for_so_few_alarms_says_how_many_can_be_known() -> None:
    with pytest.raises(BitStreamError, match="can only show 167 per megabyte or more"):
        find_damage(SMALL.tobytes(), [SMALL[:3000].tobytes(), SMALL[3000:].tobytes()], 1.0)


@pytest.mark.parametrize("size", [1077, 1097, 5000])
def test_an_intact_version_of_any_size_is_enough(size: int) -> None:
    """(1e6 / size) * size is less than 1e6 for many sizes."""
    whole = SMALL[:size]
    reader = BankReader([whole])
    found, limits = judged(whole, reader.costs(whole), reader, [(whole, reader)], 1.0, memorised=True)
    assert len(found) <= 1 and math.isnan(limits.false_alarms)


def test_without_clean_data_the_rate_is_not_known() -> None:
    found, limits = find_damage(_planted()[0].tobytes())
    assert math.isnan(limits.false_alarms) and limits.reference_bytes == 0
    assert {"shifted", "zeros"} <= {d.kind for d in found}


def test_an_interval_of_alarms_is_poissons() -> None:
    clean = [(CODE[:1_000_000][:100_000], BankReader().costs(SMALL), [])]
    made = [Candidate(i * 100, i * 100 + 1, "flip", 100.0 - i, 9.0, "flips", "") for i in range(60)]
    limits = calibrated([(np.zeros(1_000_000, dtype=np.uint8), clean[0][1], made)], 10.0)
    assert limits.false_alarms == 2.0  # the fifth of ten that flips may have
    low, high = limits.between
    assert low == pytest.approx(0.2422, abs=0.02) and high == pytest.approx(7.2247, abs=0.05)  # exact, of two events


def test_odds_and_the_judge_agree_on_single_flips_and_on_far_pairs() -> None:
    data = SMALL.copy()
    data[1000] ^= 4
    data[4000] ^= 64
    opinion = Opinion(data, BankReader())
    one, two = (Edit(at, bytes([data[at]]), bytes([data[at] ^ mask])) for at, mask in ((1000, 4), (4000, 64)))
    first, second, both, near = opinion.judge([[one], [two], [one, two], [one, Edit(1003, bytes([data[1003]]), b"~")]])
    assert opinion.odds_N8[1000, 5] == pytest.approx(first + opinion.prior, abs=1e-4)
    assert opinion.odds_N8[4000, 1] == pytest.approx(second + opinion.prior, abs=1e-4)
    assert both == pytest.approx(first + second) and first > 0 and near < first
    assert opinion.judge([]).shape == (0,)


def test_damage_is_looked_for_only_where_it_is_wanted() -> None:
    opinion = Opinion(SMALL, BankReader(), [(100, 200), (3000, 3050)])
    inside = np.isfinite(opinion.odds_N8).all(1)
    assert inside[100:200].all() and inside[3000:3050].all() and int(inside.sum()) == 150


@pytest.mark.parametrize("seed", range(3))
def test_two_flips_are_proved_by_a_crc_and_nothing_else_is_written(seed: int) -> None:
    draw = np.random.default_rng(seed)
    whole = CODE[500_000 + seed * 9000 :][:8000].tobytes()
    damaged = bytearray(whole)
    for bit in draw.choice(8 * len(whole), 2, replace=False).tolist():
        damaged[bit // 8] ^= 128 >> bit % 8
    found = prove(bytes(damaged), [f"crc32:{zlib.crc32(whole):08x}"])
    assert found.proved == whole and not found.ambiguous and found.solutions[0].probability > 0.99
    wrong = prove(bytes(damaged), [f"crc32:{zlib.crc32(whole) ^ 1:08x}"], seconds=5)
    assert wrong.proved is None


def test_bytes_that_fit_hold_already() -> None:
    found = prove(SMALL.tobytes(), [f"crc32:{zlib.crc32(SMALL.tobytes()):08x}"])
    assert found.already and found.proved == SMALL.tobytes() and not found.solutions


@pytest.mark.parametrize("at", [0, 2000, 3999])
def test_a_lost_byte_is_put_back_wherever_it_was(at: int) -> None:
    whole = CODE[600_000:604_000].tobytes()
    found = prove(whole[:at] + whole[at + 1 :], [f"crc32:{zlib.crc32(whole):08x}"])
    assert found.solutions[0].edits[0].new == whole[at : at + 1] and found.solutions[0].kind == "lost"
    assert found.proved in (whole, None)


def test_what_fits_a_lost_range_by_necessity_proves_nothing() -> None:
    """Four bytes can always be made to fit a CRC-32, whatever is wrong elsewhere."""
    whole = CODE[600_000:604_000].tobytes()
    damaged = whole[:3000] + b"~~~~" + whole[3004:]
    found = prove(damaged, [f"crc32:{zlib.crc32(whole):08x}"], lost=(10, 14))
    assert found.proved is None and found.solutions and found.unseen > 0.5


def test_a_lost_range_is_filled_in() -> None:
    line = b"The quick brown fox jumps over the lazy dog. "
    whole = line * 30
    damaged = whole[:600] + bytes(6) + whole[606:]
    found = prove(damaged, [f"crc32:{zlib.crc32(whole):08x}"], lost=(600, 606))
    assert found.solutions[0].edits[0].new == whole[600:606]
    first = next(fills(np.frombuffer(damaged, dtype=np.uint8), 600, 606, bank()))
    assert first == whole[600:606]
    with pytest.raises(ConfigError, match="at most 256"):
        next(fills(np.frombuffer(damaged, dtype=np.uint8), 600, 1000, bank()))
    with pytest.raises(BitStreamError, match="lost=1300:1400 of 1,350 bytes"):
        prove(damaged, ["crc32:00000000"], lost=(1300, 1400))


def test_a_map_of_bytes_has_costs_of_all_bits() -> None:
    found = surprise_map(SMALL.tobytes(), name="x.py")
    assert found.costs.shape == (6000,) and found.bit_costs.shape == (6000, 8)
    assert np.allclose(found.bit_costs.sum(1, dtype=np.float64), found.costs.astype(np.float64), atol=0.1)
    assert 0 < found.bpb < 8 and "forwards and backwards" in found.reader
    assert uncalibrated(BankReader().costs(SMALL[:10])).reference_bytes == 0
