"""The bank against its slow twin, against itself by another route, and against cheating."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.errors import CheckpointError
from bit_transformer.experts.bank import ExpertBank, pack_units
from bit_transformer.experts.histories import NO_WAY, histories, sums, toward
from bit_transformer.experts.layout import ORDER, SPARSE, TERMS
from bit_transformer.experts.terms import Term
from tests.conftest import ROOT
from tests.reference.experts import NOTHING, SlowBank, after, fits, length
from tests.reference.rich import NAMES, SlowRich

TEXT = (
    b"the cat sat on the mat; The Cat sat on the hat. A cat and a mat! " * 3
    + bytes(range(256))
    + b"the cat sat on " * 6
)


def small_bank(**fields: object) -> ExpertBank:
    unit_bits = int(fields.pop("unit_bits", 8))  # type: ignore[call-overload]
    text = fields.pop("text_bits", 0)
    return ExpertBank(ExpertConfig.of({"buckets": 1024, "history": 1024, **fields}), unit_bits, text)  # type: ignore[arg-type]


def test_every_history_follows_the_rule() -> None:
    table, counts = histories().after, histories().counts
    known, todo = {0: NOTHING}, [0]
    while todo:
        number = todo.pop()
        for bit in (0, 1):
            follows, expected = int(table[number, bit]), after(known[number], bit)
            assert tuple(counts[follows]) == expected[:2]
            if follows not in known:
                known[follows] = expected
                todo.append(follows)
            assert known[follows] == expected
    assert len(known) == len(set(known.values())) > 200
    by_length = counts[sorted(known)].sum(1)
    assert (np.diff(by_length) >= 0).all()


@pytest.mark.parametrize(
    ("fields", "contexts", "units"),
    [
        (
            {"orders": (1, 2, 3, 6), "sparse": ((2,), (2, 3)), "columns": (7,), "bit_orders": (12,), "match_order": 4},
            [("order", n) for n in (1, 2, 3, 6)]
            + [
                ("word",),
                ("pair",),
                ("skip",),
                ("bits", 12),
                ("sparse", (2,)),
                ("sparse", (2, 3)),
                ("sparse", (7,)),
                ("sparse", (1, 7)),
            ],
            np.frombuffer(TEXT, np.uint8),
        ),
        (
            {"orders": (1, 2), "unit_bits": 12, "text_bits": None, "match_order": 3},
            [("order", 1), ("order", 2)],
            np.random.default_rng(0).integers(0, 1 << 12, 40).repeat(2)[:60].tolist() * 3,
        ),
        (
            {"orders": (1, 2, 9), "unit_bits": 1, "text_bits": None, "match_order": 20},
            [("order", 1), ("order", 2), ("order", 9)],
            np.unpackbits(np.frombuffer(TEXT[:90], np.uint8)),
        ),
        (
            {"orders": (2, 3), "text_bits": None, "match_order": 4},
            [("order", 2), ("order", 3)],
            np.frombuffer((TEXT[:400] + bytes(range(200)) + TEXT[:300]) * 2, np.uint8),
        ),
    ],
    ids=["bytes", "12-bit words", "single bits", "more units than the history holds"],
)
def test_features_are_the_slow_twins(fields: dict, contexts: list, units: np.ndarray) -> None:
    fields = dict(fields)
    bank = small_bank(**fields)
    made = bank.read(np.asarray(units), bank.stream(), learn=True)
    text = fields.get("text_bits", 0)
    slow = SlowBank(
        contexts, fields.get("unit_bits", 8), 1024, 1024, fields["match_order"], -1 if text is None else text
    )
    expected = np.array([slow.read(int(unit)) for unit in units])
    assert expected.std() > 1  # there is something to compare
    np.testing.assert_array_equal(made, expected)


VERSE = b"""First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved rather to die than to famish? (Aside: "No!") x = 3.14, y[2] = 40;
Resolved. resolved.\tThe end-of-line; caf\xc3\xa9 \xe2\x80\x94 na\xc3\xafve
"""
CODE = np.concatenate(
    [
        np.frombuffer(bytes.fromhex(known), np.uint8)
        for known in (
            "5589E583EC10C745FC01000000 E8100000000FB6450866B83412F7C1FF0000008B048D00104000",
            "488B05102000004889E5" * 18,  # now it is taken for 64-bit code
            "4C8D0C8500000000F3480F2AC0F645080166F7C134128B4424040F8410000000660F3A0FC108C8100000C3",
        )
    ]
    + [np.random.default_rng(5).integers(0, 256, 160, dtype=np.uint8)]
)
MARKUP = np.frombuffer(  # the parser has a twin test of its own, in test_markup.py
    b'<?xml version="1.0"?>\n<a x="1" y=\'b"<\'><b/><c  z="">t, u</c ><br>lost</d> <c>1</c></a>\n<!-- <b> --><<>x</> 1 < 2\n'
    b'{"k": [1, {"q\\"": "v\\\\", "n": null}], "m" : "x<y", "o": "cut\n}]]\n[1,{"z": 2<e>"f"</e>'
    b'\nid,name;w|v\n1,"two, 2"\t3\n2,two\t"4\n3',
    np.uint8,
)


def wave(kind: str) -> np.ndarray:
    """A smooth curve with noise, wide enough that the high byte moves; then the same number for a while, and noise."""
    rng, kind = np.random.default_rng(4), np.dtype(kind)
    t = np.arange(200 // kind.itemsize)
    span = 256.0**kind.itemsize
    curve = span * (0.4 * np.sin(t / 5) + 0.02 * rng.normal(size=len(t)) + 0.5 * (kind.kind == "u"))
    curve[len(t) // 2 : len(t) * 2 // 3] = curve[len(t) // 2]
    curve[-5:] = rng.uniform(0, span / 2, 5)
    return np.frombuffer(curve.astype(kind).tobytes(), np.uint8)


@pytest.mark.parametrize(
    ("fields", "units"),
    [
        ({"orders": (1, 2, 3, 4, 6)}, np.frombuffer(VERSE * 2 + TEXT[:60] + VERSE[:150], np.uint8)),
        (
            {"orders": (1, 2, 3), "text_bits": None, "columns": (12,)},
            (np.add.outer(np.arange(30) * 3, np.tile([40, 2, 200], 4)).reshape(-1) + np.arange(360) % 5) & 255,
        ),
        ({"orders": (1,), "columns": (1100,)}, np.frombuffer(b"x" * 1098 + b"\n" + VERSE[:150] * 2, np.uint8)),
        ({"orders": (1,), "text_bits": None, "columns": (1,)}, np.frombuffer(VERSE[:150], np.uint8)),
        (
            {"orders": (1, 2), "text_bits": None, "sparse": ((2, 9),)},
            np.frombuffer((VERSE[:90] + bytes(range(90))) * 2, np.uint8),
        ),
        (
            {"orders": (1, 2, 3), "unit_bits": 9, "text_bits": 1},
            np.frombuffer(VERSE[:260] * 2, np.uint8).astype(np.int64) * 2 + 1,
        ),
        ({"orders": (1, 2), "text_bits": None, "instructions": True}, CODE),
        ({"orders": (1,), "text_bits": 1, "unit_bits": 9, "instructions": True}, CODE[:200].astype(np.int64) * 2),
        ({"orders": (1, 2), "markup": True}, MARKUP),
        ({"orders": (1,), "text_bits": 1, "unit_bits": 9, "markup": True}, MARKUP[:200].astype(np.int64) * 2 + 1),
        ({"orders": (1,), "numbers": "<i2"}, wave("<i2")),
        ({"orders": (1,), "numbers": ">u2", "channels": 2, "numbers_begin": 1}, wave(">u2")),
        ({"orders": (1,), "numbers": "u1", "channels": 3, "columns": (24,)}, wave("u1")),
        ({"orders": (1,), "numbers": "<u2", "columns": (6,)}, wave("<u2")[:120]),
        ({"orders": (1,), "numbers": ">i3", "unit_bits": 9, "text_bits": 1}, wave(">i4")[:150].astype(np.int64) * 2),
        ({"orders": (1,), "numbers": "<i4", "columns": (40,)}, wave("<i4")),
    ],
    ids=[
        "text",
        "rows",
        "long lines",
        "rows of one",
        "records",
        "with parity",
        "machine code",
        "machine code with parity",
        "markup",
        "markup with parity",
        "sound",
        "two channels, high byte first",
        "pictures in three colours",
        "short rows",
        "three bytes with parity",
        "four bytes in rows",
    ],
)
def test_a_rich_bank_is_its_slow_twin(fields: dict, units: np.ndarray) -> None:
    fields = dict(fields)
    bank = small_bank(match_order=4, rich=True, **fields)
    slow = slow_rich(bank)
    made = bank.read(np.asarray(units), bank.stream(), learn=True)
    expected = np.array([slow.read(int(unit)) for unit in units])
    assert expected.std() > 1  # there is something to compare
    np.testing.assert_array_equal(made, expected)


def test_terms_are_numbered_as_the_format_says() -> None:
    assert {term.name.lower(): int(term) for term in Term} == {
        name: number for number, name in enumerate(NAMES) if number
    }
    text = (ROOT / "docs/format.md").read_text()
    assert all(f"`{name}`" in text for name in NAMES[1:] if not re.fullmatch(r"(word|phrase)_[2-4]", name))


def slow_rich(bank: ExpertBank) -> SlowRich:
    """The slow twin of a rich bank, empty."""
    kinds, names = {ORDER: "order", SPARSE: "sparse", TERMS: "terms"}, NAMES
    contexts: list[tuple] = []
    for kind, *rest in bank.shape.spec.tolist():
        some = tuple(x for x in rest if x)
        contexts.append(
            (kinds[kind], some[0] if kind == ORDER else tuple(names[x] for x in some) if kind == TERMS else some)
        )
    return SlowRich(
        contexts,
        bank.unit_bits,
        bank.config.buckets,
        bank.config.history,
        bank.config.match_order,
        bank.unit_bits - 8,
        bank.shape.direct.tolist(),
        bank.shape.width,
        bank.shape.instructions,
        bank.shape.markup,
        (bank.config.numbers, bank.config.channels, bank.config.numbers_begin) if bank.config.numbers else None,
    )


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=2, max_size=300), st.data())
def test_pieces_of_a_stream_give_what_the_whole_gives(data: bytes, draw: st.DataObject) -> None:
    units = np.frombuffer(data, np.uint8)
    rich = draw.draw(st.booleans())
    whole, pieces = small_bank(rich=rich), small_bank(rich=rich)
    expected = whole.read(units, whole.stream(), learn=True)
    cut = draw.draw(st.integers(0, len(units)))
    stream = pieces.stream()
    got = [pieces.read(units[:cut], stream, learn=True), pieces.read(units[cut:], stream, learn=True)]
    np.testing.assert_array_equal(np.concatenate(got), expected)
    assert whole.digest() == pieces.digest()


@pytest.mark.parametrize("rich", [False, True])
def test_the_future_moves_no_feature(rich: bool) -> None:
    units = np.frombuffer(TEXT, np.uint8)
    scrambled = units.copy()
    here = 150
    scrambled[here:] = np.random.default_rng(1).permutation(scrambled[here:])
    for learn in (True, False):
        a, b = small_bank(rich=rich), small_bank(rich=rich)
        for bank in (a, b):  # something is known before
            bank.read(units[:64], bank.stream(), learn=True, wanted=False)
        one, other = a.read(units, a.stream(), learn=learn), b.read(scrambled, b.stream(), learn=learn)
        np.testing.assert_array_equal(one[:here], other[:here])
        first_other = here + int(np.argmax(units[here:] != scrambled[here:]))
        bit = int(
            np.unpackbits(units[first_other : first_other + 1] ^ scrambled[first_other : first_other + 1]).argmax()
        )
        np.testing.assert_array_equal(one[first_other, : bit + 1], other[first_other, : bit + 1])
        assert (one[first_other + 1 :] != other[first_other + 1 :]).any()


@pytest.mark.parametrize("rich", [False, True])
def test_a_frozen_bank_stays_as_it_is(rich: bool) -> None:
    bank = small_bank(rich=rich)
    bank.read(np.frombuffer(TEXT, np.uint8), bank.stream(), learn=True, wanted=False)
    before = bank.digest()
    frozen = bank.read(np.frombuffer(TEXT[::-1], np.uint8), bank.stream(), learn=False)
    assert bank.digest() == before
    bank.nodes(bank.stream(), 1, 8)
    assert bank.digest() == before
    copy = bank.copy()
    copy.read(np.frombuffer(TEXT[::-1], np.uint8), copy.stream(), learn=True, wanted=False)
    assert bank.digest() == before != copy.digest()
    np.testing.assert_array_equal(frozen, bank.read(np.frombuffer(TEXT[::-1], np.uint8), bank.stream(), learn=False))


@pytest.mark.parametrize(
    ("patch_bits", "unit_bits", "rich"),
    [
        (8, 8, False),
        (1, 8, False),
        (4, 8, False),
        (9, 9, False),
        (3, 12, False),
        (12, 12, False),
        (8, 8, True),
        (3, 9, True),
    ],
)
def test_all_nodes_hold_what_the_path_holds(patch_bits: int, unit_bits: int, rich: bool) -> None:
    bank = small_bank(unit_bits=unit_bits, text_bits=None, orders=(1, 2, 3), rich=rich)
    units = np.random.default_rng(2).integers(0, 1 << unit_bits, 50) % 37
    bank.read(units, bank.stream(), learn=True, wanted=False)
    stream = bank.stream()
    path = bank.read(units, bank.stream(), learn=False)
    for n in range(30):
        for begin in range(0, unit_bits, patch_bits):
            prefix = int(units[n]) >> (unit_bits - begin)
            nodes = bank.nodes(stream, 1 << begin | prefix, patch_bits)
            patch = int(units[n]) >> (unit_bits - begin - patch_bits) & ((1 << patch_bits) - 1)
            for j in range(patch_bits):
                np.testing.assert_array_equal(nodes[1 << j | patch >> (patch_bits - j)], path[n, begin + j])
        bank.read(units[n : n + 1], stream, learn=False, wanted=False)


def cost(bank: ExpertBank, data: bytes) -> float:
    """Bits a byte under the bank's own mixture, learning on."""
    units = np.frombuffer(data, np.uint8)
    own = bank.copy()
    logit = own.read(units, own.stream(), learn=True)[..., -1] / 12
    bits = np.unpackbits(units).reshape(-1, 8)
    return float(np.logaddexp(0, np.where(bits, -logit, logit)).sum() / np.log(2) / len(units))


@pytest.mark.parametrize("rich", [False, True])
def test_a_bank_merges_what_two_have_learned(rich: bool) -> None:
    rng = np.random.default_rng(3)
    words = [bytes(rng.integers(97, 123, rng.integers(3, 9)).tolist()) for _ in range(120)]

    def prose(count: int, some: list[bytes]) -> bytes:
        return b" ".join(some[i] for i in rng.integers(0, len(some), count))

    def taught(data: bytes) -> ExpertBank:
        bank = ExpertBank(ExpertConfig(buckets=1 << 14, history=1 << 14, rich=rich), 8, 0)
        bank.read(np.frombuffer(data, np.uint8), bank.stream(), learn=True, wanted=False)
        return bank

    one, other = taught(prose(800, words[:60])), taught(prose(800, words[60:]))
    test = prose(100, words)
    both = one.copy()
    both.merge(other)
    assert both.count == one.count + other.count
    assert cost(both, test) < 0.95 * min(cost(one, test), cost(other, test))
    empty = ExpertBank(one.config, 8, 0)
    alone = one.copy()
    alone.merge(empty)
    assert alone.digest() == one.digest()
    alone.merge(one, since=one)
    assert alone.digest() == one.digest()
    if rich:  # what is found by a hash is found in the other bank's text
        words_seen = [bank.tables.seen for bank in (one, other, both)]
        assert all(((seen >> 16) < both.count).all() for seen in words_seen)
        assert ((words_seen[2] >> 16) >= one.count).sum() == (words_seen[1] != 0).sum()
    with pytest.raises(CheckpointError, match="different configurations"):
        one.merge(small_bank())


def test_a_sum_of_histories_is_the_first_and_then_bits_that_lead_to_the_second() -> None:
    table, follows, way = sums(), histories().after, toward()
    assert (table[0, :251] == np.arange(251)).all()
    assert (table[:251, 0] == np.arange(251)).all()
    for bit in (0, 1):  # a run is one way only
        run, here = 0, np.arange(251)
        for _ in range(40):
            run, here = int(follows[run, bit]), follows[here, bit].astype(np.int64)
            np.testing.assert_array_equal(table[:251, run], here)
    ended: dict[int, list[np.ndarray]] = {}
    for count in range(7):
        for bits in itertools.product((0, 1), repeat=count):
            state, here = 0, np.arange(251)
            for bit in bits:
                state, here = int(follows[state, bit]), follows[here, bit].astype(np.int64)
            ended.setdefault(state, []).append(here)  # the shortest first
    for state, ways in ended.items():
        assert any((table[:251, state] == here).all() for here in ways)
    reached = way[0] != NO_WAY
    assert reached.sum() > 220
    assert (way[reached][:, reached] != NO_WAY).mean() > 0.2
    for begin, end in np.random.default_rng(0).integers(0, 251, (2000, 2)).tolist():
        if way[begin, end] != NO_WAY:
            steps, state = 0, begin
            while state != end and steps < 100:
                state, steps = int(follows[state, way[state, end]]), steps + 1
            assert state == end


def slots_of(bank: ExpertBank, k: int) -> np.ndarray:
    size = bank.config.buckets * 16
    return bank.tables.slots[k * size : (k + 1) * size].reshape(-1, 16)


@pytest.mark.parametrize("history", [4096, 1024], ids=["all fits", "older units are forgotten"])
def test_a_merged_bank_is_the_slow_twin_that_read_both(history: int) -> None:
    """Wherever only one way leads to what the other bank has seen; the units that matches are searched in, everywhere."""
    random = np.random.default_rng(5)
    words = [bytes(random.integers(97, 105, 4).tolist()) for _ in range(20)]
    texts = [b" ".join(words[i] for i in random.integers(0, 20, count)) for count in (150, 240)]
    fields = {"orders": (1, 2, 3), "match_order": 4, "buckets": 1 << 12, "history": history}
    banks = []
    slow = SlowBank([("order", n) for n in (1, 2, 3)], 8, 1 << 12, history, 4, -1)
    for text in texts:
        bank = small_bank(text_bits=None, **fields)
        bank.read(np.frombuffer(text, np.uint8), bank.stream(), learn=True, wanted=False)
        banks.append(bank)
        slow.units, slow.words, slow.match_length = [], [0, 0, 0], 0  # a new stream
        for unit in text:
            slow.read(unit)
    merged = banks[0].copy()
    merged.merge(banks[1])
    number = {state: index for index, state in enumerate(sorted(all_histories(), key=length))}
    counts, same, differ = histories().counts, 0, 0
    for k in range(3):
        mine, theirs = slots_of(merged, k), slots_of(banks[1], k)
        for place, (check, states) in slow.tables[k].items():
            near = [place, place ^ 1, place ^ 2]
            got = next((mine[at] for at in near if mine[at][0] == check and mine[at][1]), None)
            seen = next((theirs[at] for at in near if theirs[at][0] == check and theirs[at][1]), None)
            if got is None:
                continue
            for node in range(1, 16):
                expected, later = number[states[node]], 0 if seen is None else int(seen[node])
                if counts[later].min() == 0 and counts[later].max() < 40:  # nothing or a run
                    assert got[node] == expected
                    same += 1
                else:
                    differ += got[node] != expected
    assert same > 5000 and differ < 0.05 * same
    assert merged.count == len(slow.history)
    kept = min(history - 1, len(slow.history))
    at = np.arange(len(slow.history) - kept, len(slow.history))
    np.testing.assert_array_equal(merged.tables.history[at % history], np.array(slow.history)[at])
    for slot, position in slow.heads.items():
        if position > len(slow.history) - min(history, len(texts[1])) + 4:
            assert merged.tables.heads[slot] == position


def all_histories() -> set[tuple[int, int, int]]:
    """Every history within the bounds."""
    return {
        (zeros, ones, latest if zeros and ones else int(ones > 0))
        for zeros in range(41)
        for ones in range(41)
        for latest in (0, 1)
        if fits(zeros, ones)
    }


@pytest.mark.parametrize("history", [4096, 1024])
def test_banks_that_began_as_copies_of_one_do_not_learn_it_again(history: int) -> None:
    """A bank that goes on as two copies is, merged, close to the one that read all; with nothing read twice, it is the bank itself."""
    random = np.random.default_rng(6)
    words = [bytes(random.integers(97, 123, random.integers(3, 9)).tolist()) for _ in range(150)]
    texts = [b" ".join(words[i] for i in random.integers(0, 150, 300)) for _ in range(4)]
    fields = {"buckets": 1 << 12, "history": history}

    def read(bank: ExpertBank, text: bytes) -> ExpertBank:
        bank.read(np.frombuffer(text, np.uint8), bank.stream(), learn=True, wanted=False)
        return bank

    start = read(small_bank(**fields), texts[0])
    idle = start.copy()
    idle.merge(start, since=start)
    assert idle.digest() == start.digest()
    goes_on = start.copy()
    goes_on.merge(read(start.copy(), texts[1]), since=start)
    alone = read(start.copy(), texts[1])
    got, expected, begun = (bank.tables.slots[:-16].reshape(-1, 4, 16) for bank in (goes_on, alone, start))
    lost = (begun[..., 1:] != expected[..., 1:]) & (toward()[begun[..., 1:], expected[..., 1:]] == NO_WAY)
    given_up = ((begun[..., 1] > 0) & ((begun[..., 0] != expected[..., 0]) | lost.any(-1))).any(1)  # where contexts met
    assert 0 < given_up.mean() < 0.5
    np.testing.assert_array_equal(got[~given_up], expected[~given_up])
    for name in ("chance", "first", "match", "weights", "last", "maps", "history", "learned"):
        np.testing.assert_array_equal(getattr(goes_on.tables, name), getattr(alone.tables, name))
    merged = read(start.copy(), texts[1])
    merged.merge(read(start.copy(), texts[2]), since=start)
    both = read(read(start.copy(), texts[1]), texts[2])
    assert merged.count == both.count
    np.testing.assert_array_equal(merged.tables.history, both.tables.history)
    again = read(start.copy(), texts[1])
    again.merge(read(start.copy(), texts[2]))  # as if nothing was common
    assert cost(both, texts[3]) - 0.01 < cost(merged, texts[3]) < cost(both, texts[3]) + 0.04
    assert again.count == merged.count + start.count
    with pytest.raises(CheckpointError, match=r"since one with .*both must have learned more"):
        start.copy().merge(small_bank(**fields), since=start)


def test_a_bank_of_another_shape_is_refused() -> None:
    bytes_bank = ExpertBank.of(ModelConfig(patch_bits=8, experts=ExpertConfig(buckets=1024)))
    words_bank = ExpertBank.of(ModelConfig(patch_bits=12, max_seq_len=1200, experts=ExpertConfig(buckets=1024)))
    with pytest.raises(CheckpointError, match="units of 12 bits"):
        words_bank.load_state_dict(bytes_bank.state_dict())
    from bit_transformer.model import BitTransformerLM

    model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, patch_bits=8, experts={"buckets": 1024})
    with pytest.raises(CheckpointError, match=r"units of 12 bits.*Try ExpertBank.of"):
        model.bank = words_bank


def test_units_are_packed_first_bit_first() -> None:
    bits = np.array([1, 0, 1, 1, 0, 0, 1], dtype=np.uint8)
    assert pack_units(bits, 3).tolist() == [0b101, 0b100, 0b100]
    assert pack_units(torch.tensor([[1, 1], [0, 1]]).numpy(), 2).tolist() == [[3], [1]]
