"""The bank against its slow twin, against itself by another route, and against cheating."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.errors import CheckpointError
from bit_transformer.experts.bank import ExpertBank, pack_units
from bit_transformer.experts.histories import histories, sums
from tests.reference.experts import NOTHING, SlowBank, after

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


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=2, max_size=300), st.data())
def test_pieces_of_a_stream_give_what_the_whole_gives(data: bytes, draw: st.DataObject) -> None:
    units = np.frombuffer(data, np.uint8)
    whole, pieces = small_bank(), small_bank()
    expected = whole.read(units, whole.stream(), learn=True)
    cut = draw.draw(st.integers(0, len(units)))
    stream = pieces.stream()
    got = [pieces.read(units[:cut], stream, learn=True), pieces.read(units[cut:], stream, learn=True)]
    np.testing.assert_array_equal(np.concatenate(got), expected)
    assert whole.digest() == pieces.digest()


def test_the_future_moves_no_feature() -> None:
    units = np.frombuffer(TEXT, np.uint8)
    scrambled = units.copy()
    here = 150
    scrambled[here:] = np.random.default_rng(1).permutation(scrambled[here:])
    for learn in (True, False):
        a, b = small_bank(), small_bank()
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


def test_a_frozen_bank_stays_as_it_is() -> None:
    bank = small_bank()
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


@pytest.mark.parametrize(("patch_bits", "unit_bits"), [(8, 8), (1, 8), (4, 8), (9, 9), (3, 12), (12, 12)])
def test_all_nodes_hold_what_the_path_holds(patch_bits: int, unit_bits: int) -> None:
    bank = small_bank(unit_bits=unit_bits, text_bits=None, orders=(1, 2, 3))
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


def test_a_bank_merges_what_two_have_learned() -> None:
    rng = np.random.default_rng(3)
    words = [bytes(rng.integers(97, 123, rng.integers(3, 9)).tolist()) for _ in range(120)]

    def prose(count: int, some: list[bytes]) -> bytes:
        return b" ".join(some[i] for i in rng.integers(0, len(some), count))

    def taught(data: bytes) -> ExpertBank:
        bank = ExpertBank(ExpertConfig(buckets=1 << 14, history=1 << 14), 8, 0)
        bank.read(np.frombuffer(data, np.uint8), bank.stream(), learn=True, wanted=False)
        return bank

    one, other = taught(prose(800, words[:60])), taught(prose(800, words[60:]))
    test = prose(100, words)
    both = one.copy()
    both.merge(other)
    assert both.count == one.count + other.count
    assert cost(both, test) < 0.95 * min(cost(one, test), cost(other, test))
    empty = ExpertBank(ExpertConfig(buckets=1 << 14, history=1 << 14), 8, 0)
    alone = one.copy()
    alone.merge(empty)
    assert alone.digest() == one.digest()
    with pytest.raises(CheckpointError, match="different configurations"):
        one.merge(small_bank())


def test_sums_of_histories_keep_what_was_seen() -> None:
    table, counts = sums(), histories().counts
    assert (table[0, :251] == np.arange(251)).all()
    assert (table[:251, 0] == np.arange(251)).all()
    small = [i for i in range(251) if counts[i].sum() <= 2]
    for i in small:
        for j in small:
            assert tuple(counts[table[i, j]]) == tuple(counts[i] + counts[j])


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
