"""What a CRC's arithmetic finds, against slow loops and brute force."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest

from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.proof import CRCS, Adler32, ByteSum, Crc, Edit, apply, flips
from bit_transformer.proof.checks import CrcKind
from bit_transformer.proof.linear import (
    bursts,
    changes,
    extra_bytes,
    flip_sets,
    lost_bytes,
    pair_limit,
    range_guesses,
)

PUBLISHED = {  # of "123456789": https://reveng.sourceforge.io/crc-catalogue/
    "crc8": 0xF4,
    "crc16-arc": 0xBB3D,
    "crc16-modbus": 0x4B37,
    "crc16-ccitt": 0x29B1,
    "crc16-xmodem": 0x31C3,
    "crc16-kermit": 0x2189,
    "crc16-x25": 0x906E,
    "crc32": 0xCBF43926,
    "crc32c": 0xE3069283,
    "crc32-bzip2": 0xFC891918,
    "crc32-mpeg2": 0x0376E6E7,
    "crc64-xz": 0x995DC9BBDF1939FA,
    "crc64-ecma": 0x6C40DF5F0B497347,
}
KINDS = [*CRCS.values(), CrcKind("mixed", 16, 0x1021, 0xB2AA, True, False, 0x1234)]


def bitwise(kind: CrcKind, data: bytes) -> int:
    """The definition: the register is shifted left, bit by bit."""
    register = kind.init
    for byte in data:
        for i in range(8):
            bit = byte >> (i if kind.refin else 7 - i) & 1
            top = register >> kind.width - 1 ^ bit
            register = (register << 1 & kind.mask) ^ (kind.poly if top else 0)
    if kind.refout:
        register = int(f"{register:0{kind.width}b}"[::-1], 2)
    return register ^ kind.xorout


def text(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(32, 127, size).astype(np.uint8).tobytes()


def damaged(size: int, flipped: int, seed: int) -> tuple[bytes, bytes, np.ndarray]:
    """A file, the same with flipped bits, and odds which know of them, but not for sure."""
    random = np.random.default_rng(seed)
    data, odds = text(size, seed), random.normal(-14, 4, (size, 8)).astype(np.float32)
    bits = random.choice(8 * size, flipped, replace=False)
    odds.reshape(-1)[bits] = random.normal(5, 4, flipped)
    return data, apply(data, flips(data, bits.tolist())), odds


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_crcs_are_those_that_are_published(kind: CrcKind) -> None:
    data = text(61)
    assert kind.of(data) == bitwise(kind, data)
    assert kind.of(b"123456789") == PUBLISHED.get(kind.name, bitwise(kind, b"123456789"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_key_of_a_bit_is_what_it_does_to_the_crc(kind: CrcKind) -> None:
    data = text(23)
    check = Crc(2, 21, kind=kind, known=kind.of(data[2:21]))
    keys, usable = check.keys(data)
    assert usable.all() and keys.shape == (19, 8)
    for bit in range(19 * 8):
        bad = apply(data, flips(data, [16 + bit]))
        assert kind.register(bitwise(kind, bad[2:21])) ^ kind.register(check.known) == keys.reshape(-1)[bit]
        assert check.target(bad) == keys.reshape(-1)[bit]


def test_keys_of_chosen_bits_are_those_of_all() -> None:
    odds = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    for kind in KINDS:
        check = Crc(3, 47, kind=kind)
        few, all_ = (changes(check, bytes(50), odds, widest=widest) for widest in (40, 1000))
        assert (few.keys_C == all_.keys_C[:40]).all() and (few.bits_C == all_.bits_C[:40]).all()


@pytest.mark.parametrize("flipped", [1, 2, 3, 4])
def test_flips_are_found(flipped: int) -> None:
    for seed in range(2):
        data, bad, odds = damaged(3000, flipped, seed)
        check = Crc(0, len(data), known=zlib.crc32(data))
        possible = changes(check, bad, odds)
        sets = flip_sets(
            possible,
            check.target(bad),
            flipped,
            table_pairs=1 << 17,
            probe_pairs=1 << 19,
            triple_pairs=1 << 19,
        )
        edits = possible.edits_of(sets.ranks_KS[0])
        assert edits is not None and apply(bad, edits) == data


def test_a_third_flip_is_found_wherever_it_is() -> None:
    data, bad, odds = damaged(3000, 2, 5)
    lowest = int(odds.argmin())
    bad = apply(bad, flips(bad, [lowest]))
    check = Crc(0, len(data), kind=CRCS["crc64-xz"], known=CRCS["crc64-xz"].of(data))
    possible = changes(check, bad, odds)
    sets = flip_sets(possible, check.target(bad), 3, triple_pairs=1000, bits=64)
    edits = possible.edits_of(sets.ranks_KS[0])
    assert edits is not None and apply(bad, edits) == data


def test_two_flips_are_found_without_odds() -> None:
    data = text(2000)
    bad = apply(data, flips(data, [77, 15001]))
    check = Crc(0, len(data), kind=CRCS["crc64-ecma"], known=CRCS["crc64-ecma"].of(data))
    possible = changes(check, bad, np.zeros((2000, 8), np.float32))
    sets = flip_sets(possible, check.target(bad), 2, bits=64)
    assert [possible.edits_of(ranks) for ranks in sets.ranks_KS] == [flips(bad, [77, 15001])]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("kept", [7, 40, 5000])
def test_the_kept_sets_are_the_best_of_all(size: int, kept: int) -> None:
    data, random = text(6), np.random.default_rng(size)
    check = Crc(0, 6, kind=CRCS["crc8"], known=0x5A)
    odds = np.round(random.normal(-5, 3, (6, 8)), 1).astype(np.float32)  # with ties
    possible = changes(check, data, odds)
    target = check.target(data)
    wanted = sorted(
        (
            sum(possible.odds_C[i] for i in ranks)
            for ranks in itertools.combinations(range(48), size)
            if np.bitwise_xor.reduce(possible.keys_C[list(ranks)]) == target
        ),
        reverse=True,
    )
    sets = flip_sets(possible, target, size, kept=kept, bits=8)
    assert len({tuple(sorted(ranks)) for ranks in sets.ranks_KS.tolist()}) == len(sets.odds_K)
    np.testing.assert_allclose(sets.odds_K, wanted[:kept])
    for ranks in sets.ranks_KS[:20]:
        edits = possible.edits_of(ranks)
        assert edits is not None and check.holds(apply(data, edits))


def test_pairs_are_cut_where_about_so_many_are_left() -> None:
    odds = -np.sort(np.random.default_rng(0).exponential(3, 2000))
    low = pair_limit(odds, 10_000)
    assert 9_800 < np.triu(odds[:, None] + odds >= low, 1).sum() <= 10_000


@pytest.mark.parametrize("flipped", [1, 2, 3])
def test_sums_are_solved_like_crcs(flipped: int) -> None:
    data, bad, odds = damaged(900, flipped, flipped)
    check = Adler32(0, len(data), known=zlib.adler32(data))
    possible = changes(check, bad, odds)
    sets = flip_sets(possible, check.target(bad), flipped, triple_pairs=1 << 18)
    found = [possible.edits_of(ranks) for ranks in sets.ranks_KS]
    assert all(edits and check.holds(apply(bad, edits)) for edits in found)
    assert any(edits and apply(bad, edits) == data for edits in found[:3])
    header = ByteSum(0, 16, form="hex")
    line = b":0300300002337A1E"
    assert header.name == "hex-sum" and ByteSum(0, len(line), form="hex").holds(line)


def test_edits_of_several_bytes_are_found_among_flips() -> None:
    data, bad, odds = damaged(500, 2, 1)
    bad = bad[:100] + b"\1\2\3" + bad[103:]
    edit = Edit(100, b"\1\2\3", data[100:103])
    check = Crc(0, 500, known=zlib.crc32(data))
    odds[100:103] = -20
    possible = changes(check, bad, odds, [(edit, 1.0), (Edit(7, b"", b"x"), 2.0)])
    sets = flip_sets(possible, check.target(bad), 3, triple_pairs=1 << 18)
    edits = possible.edits_of(sets.ranks_KS[0])
    assert edits is not None and edit in edits and apply(bad, edits) == data


@pytest.mark.parametrize("name", ["crc16-xmodem", "crc32", "crc32-bzip2", "crc64-xz"])
def test_overwritten_bytes_have_one_solution_at_each_place(name: str) -> None:
    kind, data = CRCS[name], text(200, 3)
    width = kind.width // 8
    check = Crc(10, 190, kind=kind, known=kind.of(data[10:190]))
    for at, new in ((10, b"\0" * width), (100, b"\xff" * (width - 1)), (190 - width, b"\x80" * width), (50, b"\7")):
        bad = data[:at] + new + data[at + len(new) :]
        found = bursts(check, bad)
        edits = [found.edit(bad, k) for k in range(len(found.offsets_K))]
        assert found.tried == 180 and len({edit.offset for edit in edits}) == len(edits) > 150
        assert all(check.holds(apply(bad, [edit])) for edit in edits)
        assert data in [apply(bad, [edit]) for edit in edits]
    cost = np.zeros(200)
    cost[50] = 30
    assert apply(bad, [bursts(check, bad, cost_N=cost, kept=5).edit(bad, 0)]) == data


@pytest.mark.parametrize("name", ["crc16-ccitt", "crc32", "crc32c", "crc64-ecma"])
def test_lost_and_doubled_bytes_are_found(name: str) -> None:
    kind, data = CRCS[name], text(300, 4)
    for at, size in ((5, 1), (120, 1), (294, 1), (60, 2)):
        bad = data[:at] + data[at + size :]
        check = Crc(5, 295 - size, kind=kind, known=kind.of(data[5:295]))
        found = lost_bytes(check, bad, size)
        assert data in [apply(bad, [edit]) for edit in found]
        assert all(check.after([edit]).holds(apply(bad, [edit])) for edit in found)
        fixed = Crc(5, 295, kind=kind, known=check.known, moves=False)
        assert [edit for edit in lost_bytes(fixed, bad, size) if apply(bad, [edit]) == data]
        more = data[:at] + data[at : at + size] * 2 + data[at + size :]
        check = Crc(5, 295 + size, kind=kind, known=kind.of(data[5:295]))
        found = extra_bytes(check, more, size)
        assert data in [apply(more, [edit]) for edit in found]
        assert all(check.after([edit]).holds(apply(more, [edit])) for edit in found)


def test_a_lost_range_is_solved_or_guessed() -> None:
    data = text(300, 6)
    check = Crc(0, 300, known=zlib.crc32(data))
    bad = data[:50] + b"????" + data[54:]
    assert [edit.new for edit, _ in range_guesses(check, bad, (50, 54))] == [data[50:54]]
    bad = data[:50] + bytes(20) + data[70:]
    nearly = bytearray(data[50:70])
    nearly[11] ^= 0x55
    for guess in (data[50:70], bytes(nearly)):
        assert [edit.new for edit, _ in range_guesses(check, bad, (50, 70), [text(20, 9), guess])] == [data[50:70]]
    with pytest.raises(BitStreamError, match="must be 20"):
        list(range_guesses(check, bad, (50, 70), [b"short"]))
    with pytest.raises(ConfigError, match="1 to 4"):
        flip_sets(changes(check, bad, np.zeros((300, 8), np.float32)), 0, 5)
