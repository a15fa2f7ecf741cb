"""Packed banks: what comes out is what went in, whatever the bank has been through; and nothing else is taken for one."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
from bit_transformer.config import ExpertConfig
from bit_transformer.errors import CheckpointError, ConfigError
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.experts.packing import HEADER, RICH, SMALL
from bit_transformer.model import BANK, BitTransformerLM
from bit_transformer.tensor_file import read_tensors
from tests.conftest import ROOT, prose

SMALL_BANK = {"buckets": 1024, "history": 2048}


def bank_of(unit_bits: int = 8, text_bits: int | None = None, **fields: object) -> ExpertBank:
    return ExpertBank(ExpertConfig.of({**SMALL_BANK, **fields}), unit_bits, text_bits)


def units_of(kind: str, count: int, unit_bits: int, seed: int = 0) -> np.ndarray:
    """Text-like, with repeats; or random."""
    random = np.random.default_rng(seed)
    if kind == "random":
        return random.integers(0, 1 << unit_bits, count)
    text = np.frombuffer(prose(seed, count // 6 + 8)[:count], np.uint8).astype(np.uint16)
    return (text * 11) & ((1 << unit_bits) - 1)


def unpacked(bank: ExpertBank, packed: dict[str, np.ndarray] | None = None) -> ExpertBank:
    other = ExpertBank(bank.config, bank.unit_bits, bank.text_bits)
    other.load_state_dict(bank.packed() if packed is None else packed)
    return other


def assert_same(one: ExpertBank, other: ExpertBank) -> None:
    for name, table in one.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], table, err_msg=name)
        assert other.state_dict()[name].dtype == table.dtype
    assert one.digest() == other.digest()


@pytest.mark.parametrize("kind", ["text", "random"])
@pytest.mark.parametrize("count", [0, 1, 700, 9000], ids=["empty", "one", "some", "full"])
@pytest.mark.parametrize(
    ("unit_bits", "fields"),
    [
        (8, {"text_bits": 0, "sparse": ((2,), (2, 3)), "columns": (7,), "bit_orders": (12,)}),
        (9, {"text_bits": 1}),
        (8, {"text_bits": 0, "rich": True}),
        (12, {"orders": (1, 2), "match_order": 3}),
        (1, {"orders": (1, 2, 9), "match_order": 20}),
        (5, {"orders": (3,)}),
    ],
    ids=["bytes", "parity", "rich", "12-bit words", "single bits", "5-bit words"],
)
def test_tables_come_back_bit_for_bit(unit_bits: int, fields: dict, count: int, kind: str) -> None:
    bank = bank_of(unit_bits, **fields)
    units = units_of(kind, count, unit_bits)
    for part in np.array_split(units, 3):  # several streams
        bank.read(part, bank.stream(), learn=True, wanted=False)
    bank.note(np.arange(count).astype(np.uint8))
    before = bank.digest()
    packed = bank.packed()
    assert bank.digest() == before
    assert_same(bank, unpacked(bank, packed))
    assert bank.packed().keys() == packed.keys()
    assert all(np.array_equal(again, packed[name]) for name, again in bank.packed().items())  # as files are compared
    used = (bank.tables.slots.reshape(-1, 16) != 0).any(1).sum()
    assert len(packed["slots.checks"]) == used
    if count == 9000:
        assert used > len(bank.tables.slots) / 16 * (0.9 if kind == "random" and unit_bits > 5 else 0)


def test_a_packed_bank_predicts_and_learns_as_before() -> None:
    bank = bank_of(text_bits=0)
    bank.read(units_of("text", 3000, 8), bank.stream(), learn=True, wanted=False)
    other, more = unpacked(bank), units_of("text", 900, 8, seed=1)
    ours, theirs = bank.read(more, bank.stream(), learn=True), other.read(more, other.stream(), learn=True)
    np.testing.assert_array_equal(ours, theirs)
    assert_same(bank, other)


def test_a_merged_bank_and_one_in_the_middle_of_a_unit() -> None:
    one, other = bank_of(text_bits=0), bank_of(text_bits=0)
    for bank, seed, count in ((one, 0, 1500), (other, 1, 5000)):
        bank.read(units_of("text", count, 8, seed), bank.stream(), learn=True, wanted=False)
    one.merge(other)
    assert_same(one, unpacked(one))
    unit = one.open_unit(one.stream(), learn=True)
    for bit in (0, 1, 1):
        assert_same(one, unpacked(one))
        unit.predict_bit()
        unit.learn_bit(bit)
    assert_same(one, unpacked(one))


@pytest.mark.parametrize("seed", range(4))
def test_tables_that_no_learning_leads_to_come_back_too(seed: int) -> None:
    """Then packing does not pay, and loses nothing."""
    bank, random = bank_of(9), np.random.default_rng(seed)
    for table in bank.tables:
        view = table.reshape(-1).view(np.uint8)
        some = random.random(len(view)) < (1.0, 0.3, 0.01, 0.001)[seed]
        view[some] = random.integers(0, 256, some.sum())
    bank.tables.learned[0] = random.integers(0, 1 << 40)
    assert_same(bank, unpacked(bank))


def test_most_of_a_bank_is_not_stored() -> None:
    bank = ExpertBank(ExpertConfig(buckets=1 << 14, history=1 << 16), 8, 0)
    bank.read(np.frombuffer(prose(1, 6000), np.uint8), bank.stream(), learn=True, wanted=False)
    size = sum(table.nbytes for table in bank.packed().values())
    assert size < 0.15 * sum(table.nbytes for table in bank.state_dict().values())


def learned_bank() -> ExpertBank:
    bank = bank_of(text_bits=0)
    bank.read(units_of("text", 2000, 8), bank.stream(), learn=True, wanted=False)
    return bank


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (HEADER, lambda a: a + 1, r"form 2; form 1 is needed"),
        (HEADER, lambda a: a[:0], r"form 0; form 1 is needed"),
        (HEADER, lambda a: a[:4], r"0 elements for the bank's match; 32 are needed"),
        (HEADER, lambda a: a.astype(np.float64), r"float64 for packing; int64"),
        ("learned", lambda a: -a, r"learned; one number, 0 or more"),
        ("learned", lambda a: a.repeat(2), r"learned; one number"),
        ("slots.checks", lambda a: a[:-1], r"slots.sizes"),
        ("slots.checks", lambda a: a.astype(np.int16), r"int16 for slots.checks; uint8"),
        ("slots.sizes", lambda a: a[:-1], r"slots.sizes"),
        ("slots.sizes", lambda a: a[:, :1], r"slots.sizes"),
        ("slots.sizes", lambda a: a - [[1 << 62, 0]] * len(a), r"slots.sizes"),
        ("slots.sizes", lambda a: a + [[1 << 62, 0]] * len(a), r"slots.sizes"),
        ("slots.sizes", lambda a: a[::-1], r"slots.code"),
        ("slots.code", lambda a: a ^ 255, r"slots.code"),
        ("history", lambda a: a[:-9], r"for history"),
        ("history", lambda a: a ^ 85, r"zlib"),
        ("heads", lambda a: np.concatenate((a, a)), r"for heads.*end"),
        ("small", lambda a: a[:0], r"0 bytes for small"),
        ("heads", None, r"nothing for heads"),
    ],
)
def test_what_is_no_packed_bank_is_refused_and_changes_nothing(name: str, change: object, message: str) -> None:
    bank, other = learned_bank(), learned_bank()
    other.read(units_of("random", 300, 8), other.stream(), learn=True, wanted=False)
    packed, before = bank.packed(), other.digest()
    if change is None:
        del packed[name]
    else:
        packed[name] = change(packed[name])
    with pytest.raises(CheckpointError, match=message) as caught:
        other.load_state_dict(packed)
    assert "\n" not in str(caught.value) and "Try" in str(caught.value)
    assert other.digest() == before


def test_another_zlib_stream_of_any_size_is_refused() -> None:
    import zlib

    bank = learned_bank()
    for name in ("history", "heads", "small"):
        for size in (0, 10, 1 << 26):  # no more is unpacked than there is room for
            packed = bank.packed() | {name: np.frombuffer(bytearray(zlib.compress(bytes(size))), np.uint8)}
            with pytest.raises(CheckpointError, match=f"for {name}"):
                unpacked(bank, packed)


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_code_is_refused_or_is_another_bank(seed: int) -> None:
    """A file's checksum notices damage before. Here only nothing may be read or written beyond its place."""
    bank, random = learned_bank(), np.random.default_rng(seed)
    packed = bank.packed()
    name = ("slots.code", "slots.sizes", "slots.checks")[seed % 3]
    part = packed[name].reshape(-1).copy()
    for at in random.integers(0, len(part), 3):
        part[at] += random.integers(1, 50)
    packed[name] = part.reshape(packed[name].shape)
    try:
        other = unpacked(bank, packed)
    except CheckpointError:
        return
    assert_same(other, unpacked(other))


def test_banks_of_other_sizes_are_refused() -> None:
    packed = learned_bank().packed()
    for other in (bank_of(9, text_bits=1), bank_of(text_bits=0, buckets=2048), bank_of(text_bits=0, history=4096)):
        with pytest.raises(CheckpointError, match=r"elements for the bank's .*Try the bank it was saved with"):
            other.load_state_dict(packed)


def test_a_checkpoint_holds_the_packed_bank_and_a_state_dict_the_tables(tmp_path: Path) -> None:
    model = BitTransformerLM(d_model=16, nhead=2, num_layers=1, experts=SMALL_BANK)
    names, _ = read_tensors(save_checkpoint(tmp_path / "empty.safetensors", model))
    assert [name for name in names if name.startswith(BANK)] == [f"{BANK}learned"]
    assert not load_checkpoint(tmp_path / "empty.safetensors").has_bank
    model.bank.read(units_of("text", 3000, 8), model.bank.stream(), learn=True, wanted=False)
    assert f"{BANK}slots" in model.state_dict()
    path = save_checkpoint(tmp_path / "model.safetensors", model)
    names, _ = read_tensors(path)
    assert f"{BANK}{HEADER}" in names and f"{BANK}slots" not in names
    assert_same(load_checkpoint(path).bank, model.bank)
    for other in (model, load_checkpoint(path)):
        save_checkpoint(tmp_path / "again.safetensors", other)
        assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    another = BitTransformerLM(model.config)
    another.learn(torch.zeros(1, 64, dtype=torch.uint8))
    save_checkpoint(path, model, weights=another.state_dict())  # given tables are written as they are
    assert_same(load_checkpoint(path).bank, another.bank)


def test_a_bank_of_an_older_file_is_packed_when_it_is_saved_again(tmp_path: Path) -> None:
    older = tmp_path / "older.safetensors"
    older.write_bytes(gzip.decompress((ROOT / "tests/golden/format-1-experts.safetensors.gz").read_bytes()))
    model = load_checkpoint(older)
    assert model.bank.count
    again = load_checkpoint(save_checkpoint(tmp_path / "newer.safetensors", model))
    assert_same(again.bank, model.bank)
    assert (tmp_path / "newer.safetensors").stat().st_size < 0.5 * older.stat().st_size


def test_small_tables_are_all_but_the_large_ones() -> None:
    tables = bank_of().tables
    assert {*SMALL, *RICH} == set(tables._fields) - {"slots", "history", "heads", "far_heads", "learned"}


@pytest.mark.parametrize(
    ("name", "value"), [("mixing", np.nan), ("blend", np.inf), ("run_logits", 13), ("visits", -1), ("refined", 2)]
)
def test_numbers_that_would_lead_the_loops_astray_are_refused(name: str, value: float) -> None:
    bank = bank_of(text_bits=0, rich=True)
    before = bank.digest()
    for state in (bank.state_dict(), None):
        broken = bank_of(text_bits=0, rich=True)
        getattr(broken.tables, name).reshape(-1)[77] = value
        with pytest.raises(CheckpointError, match=f"the experts' {name} are damaged"):
            bank.load_state_dict(broken.packed() if state is None else {**state, name: getattr(broken.tables, name)})
        assert bank.digest() == before


def test_a_rich_bank_has_units_of_a_byte() -> None:
    with pytest.raises(ConfigError, match="got rich experts for units of 12 bits"):
        bank_of(12, rich=True)
    with pytest.raises(ConfigError, match=r"got experts.rich=True for units of 12 bits"):
        BitTransformerLM(patch_bits=12, max_seq_len=120, experts={"rich": True})
