"""Data made of numbers: how it is recognised, what is predicted of it, and what may not be asked for."""

from __future__ import annotations

import numpy as np
import pytest

from bit_transformer.coding import container
from bit_transformer.coding.filters import Numbers, number_kind, row_width
from bit_transformer.compression import compress_bytes, decompress_bytes
from bit_transformer.compression.codec import BankCoder
from bit_transformer.compression.profiles import RICH_NUMBERS, fields_of, filter_of, is_known, name_of, planned
from bit_transformer.config import ExpertConfig, ModelConfig
from bit_transformer.config.experts import KINDS
from bit_transformer.errors import CheckpointError, CompressedFileError, ConfigError
from bit_transformer.experts.bank import ExpertBank, restore_stream
from bit_transformer.experts.numbers import begin_number, note_number
from tests.reference.rich import Numbers as SlowNumbers

BYTES = {1: "u1", 2: "<i2", 4: ">i4"}


def sound(samples: int, channels: int = 1, loud: float = 8000.0, noise: float = 20.0, seed: int = 0) -> np.ndarray:
    """Resonances that noise rings, as in speech: (samples, channels)."""
    random = np.random.default_rng(seed)
    made = np.zeros((samples + 2, channels))
    for n in range(2, samples + 2):
        made[n] = 1.97 * made[n - 1] - 0.975 * made[n - 2] + random.normal(size=channels)
    return made[2:] * (loud / np.abs(made).max()) + noise * random.normal(size=(samples, channels)) / 20


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Red, green and blue of soft blobs, with noise: (rows, columns, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    shade = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 200) for a, b in random.uniform(0, rows, (12, 2)))
    made = 40 + 150 * np.minimum(shade, 1)[..., None] * [1, 0.8, 0.6] + 2 * random.normal(size=(rows, columns, 3))
    return made.clip(0, 255).astype(np.uint8)


def as_bytes(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Numbers in one of the kinds, three bytes too."""
    size = int(kind[-1])
    wide = numbers.astype(">i4" if kind[0] == ">" else "<i4").reshape(-1, 1).view(np.uint8)
    return np.ascontiguousarray(wide[:, 4 - size :] if kind[0] == ">" else wide[:, :size]).reshape(-1)


# ---- how it is recognised ----


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[-2] == "i" and kind != "i1"])
def test_the_kind_of_numbers_is_found(kind: str, channels: int) -> None:
    loud = 120.0 * 256.0 ** (int(kind[-1]) - 1)
    data = as_bytes(sound(9000, channels, loud, loud / 500), kind)
    for skipped in range(int(kind[-1])):
        moved = np.concatenate([np.zeros(skipped, np.uint8), data])
        found = number_kind(moved, 0)
        assert found is not None
        assert (found.kind, found.channels, found.begin) == (kind, channels, skipped)


def test_numbers_without_a_sign_are_told_from_those_with_one() -> None:
    around = sound(9000, 1, 3000.0)
    for kind, middle in (("<u2", 1 << 15), ("<i2", 0)):
        found = number_kind(as_bytes(around + middle, kind), 0)
        assert found is not None
        assert found.kind == kind


def test_colours_are_channels() -> None:
    data = picture(100, 120).reshape(-1)
    assert number_kind(data, 360) == Numbers(1, 3, 0, False, False)
    assert planned(data, "rich") == (RICH_NUMBERS, filter_of(Numbers(1, 3, 0, False, False)), 360)


def test_noise_text_and_short_data_are_no_numbers() -> None:
    random = np.random.default_rng(0)
    assert number_kind(random.integers(0, 256, 100_000).astype(np.uint8), 0) is None
    assert number_kind(np.frombuffer(b"The quick brown fox jumps over the lazy dog. " * 400, np.uint8), 0) is None
    assert number_kind(as_bytes(sound(2000), "<i2")[:4000], 0) is None
    assert number_kind(np.zeros(50_000, np.uint8), 0) is None


def test_what_a_header_says_of_numbers() -> None:
    for kind in KINDS:
        for channels in range(1, 5):
            for begin in range(int(kind[-1])):
                numbers = Numbers(int(kind[-1]), channels, begin, kind[0] == ">", kind[-2] == "i")
                filtered = filter_of(numbers)
                assert filtered < 256
                assert is_known(RICH_NUMBERS, filtered, 12)
                assert fields_of(filtered) == {"numbers": kind, "channels": channels, "numbers_begin": begin}
    for filtered in (14, 15, 16, 0x22, 0x36):  # no such kind; more bytes before the first than it has
        assert not is_known(RICH_NUMBERS, filtered, 0)
    assert is_known(0, 1, 7)
    assert name_of(RICH_NUMBERS, filter_of(Numbers(2, 1, 0, False, True))) == "rich experts of numbers (<i2)"
    assert name_of(RICH_NUMBERS, filter_of(Numbers(3, 2, 1, True, False))).endswith("(>u3 in 2 channels, after 1 byte)")
    assert name_of(0, 0) == "light experts of text"
    assert not is_known(0, 2, 0)
    assert not is_known(RICH_NUMBERS + 1, 0, 0)


def test_a_header_with_rows_of_broken_numbers_is_refused() -> None:
    frame = container.Frame(container.CODED, RICH_NUMBERS, 2, 7, 10, 10, 100, 50, bytes(8), bytes(8))
    with pytest.raises(CompressedFileError, match="contexts that this release does not know"):
        BankCoder().decode([(frame, bytes(50))])


# ---- what it gains ----


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<i3"])
def test_sound_costs_about_what_its_noise_does(kind: str) -> None:
    """An autoregressive process, rounded: its entropy is that of what cannot be predicted."""
    random, count, sigma = np.random.default_rng(1), 12_000, 60.0
    made = np.zeros(count + 2)
    for n in range(2, count + 2):
        made[n] = 1.8 * made[n - 1] - 0.9 * made[n - 2] + sigma * random.normal()
    data = as_bytes(np.rint(made[2:]), kind)
    floor = np.log2(sigma * np.sqrt(2 * np.pi * np.e))  # of a normal distribution, in bits a number
    packed = compress_bytes(data.tobytes(), experts="rich")
    assert decompress_bytes(packed) == data.tobytes()
    assert floor < 8 * len(packed) / count < floor + 0.35


def test_a_ramp_in_two_channels_is_nearly_free() -> None:
    steps = np.arange(8000)
    data = as_bytes(np.stack([steps * 3 % 20_000, 9000 - steps], 1), ">i2").tobytes()
    assert len(compress_bytes(data, experts="rich")) < len(data) / 60


def test_pictures_gain() -> None:
    data = picture(90, 100).reshape(-1)
    with_numbers = len(compress_bytes(data.tobytes(), experts="rich"))
    fields = {"orders": (1, 2, 3, 4, 5, 6, 8, 12), "rich": True, "words": False, "columns": (300,)}
    plain = ExpertBank(ExpertConfig.of({**fields, "buckets": 1 << 14, "history": 1 << 16}), 8)
    code = plain.encode(data, plain.stream())
    assert row_width(data) == 300
    assert code is not None
    assert with_numbers < 0.96 * len(code)


# ---- a bank of numbers is a bank ----


def bank_of(kind: str, channels: int = 1, columns: tuple[int, ...] = (), begin: int = 0) -> ExpertBank:
    fields = {"numbers": kind, "channels": channels, "numbers_begin": begin, "columns": columns}
    return ExpertBank(ExpertConfig.of({**fields, "rich": True, "buckets": 1024, "history": 1024}), 8, 0)


FORMS = [("<i2", 1, (), 0), (">u4", 2, (48,), 3), ("u1", 3, (30,), 0), ("<u3", 4, (), 1)]


@pytest.mark.parametrize("form", FORMS)
def test_streams_stop_anywhere_and_go_on(form: tuple) -> None:
    data = np.random.default_rng(0).integers(0, 256, 300).cumsum().astype(np.uint8)
    whole = bank_of(*form)
    expected = whole.read(data, whole.stream(), learn=True)
    for cut in (1, 149, 150, 151):
        first = bank_of(*form)
        stream = first.stream()
        begun = first.read(data[:cut], stream, learn=True)
        other, restored = first.copy(), first.stream()
        restore_stream(restored, {name: part.copy() for name, part in stream._asdict().items()})
        rest = other.read(data[cut:], restored, learn=True)
        np.testing.assert_array_equal(np.concatenate([begun, rest]), expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_ways_of_reading_agree(form: tuple) -> None:
    data = np.random.default_rng(1).integers(0, 256, 200).cumsum().astype(np.uint8)
    bank = bank_of(*form)
    bank.read(data, bank.stream(), learn=True, wanted=False)
    path, stream = bank.read(data, bank.stream(), learn=False), bank.stream()
    for n, byte in enumerate(data.tolist()):
        if n % 16 > 10:
            nodes = bank.nodes(stream, 1, 8)
            for j in range(8):
                np.testing.assert_array_equal(nodes[1 << j | byte >> (8 - j)], path[n, j])
        unit = bank.open_unit(stream, learn=False)
        for j in range(8):
            np.testing.assert_array_equal(unit.predict_bit(), path[n, j])
            unit.learn_bit(byte >> (7 - j) & 1)
        unit.close()


@pytest.mark.parametrize("form", FORMS)
def test_what_could_stand_there_leaves_the_stream_as_it_is(form: tuple) -> None:
    data = np.random.default_rng(2).integers(0, 256, 120).cumsum().astype(np.uint8)
    bank = bank_of(*form)
    bank.read(data, bank.stream(), learn=True, wanted=False)
    begins, starts = np.array([0, 51, 52, 120]), np.array([0, 2, 5, 8, 12])
    replaced = np.arange(12, dtype=np.uint8) * 17
    stream = bank.stream()
    got = bank.variants(data, stream, begins, starts, replaced, learn=False)
    for begin, start, end in zip(begins, starts[:-1], starts[1:], strict=True):
        apart = bank.stream()
        both = np.concatenate([data[:begin], replaced[start:end]])
        np.testing.assert_array_equal(bank.probabilities(both, apart, learn=False)[begin:], got[start:end])
    after = bank.stream()
    bank.read(data, after, learn=False, wanted=False)
    for name in ("place", "moments", "weights", "spreads", "errors", "near", "guesses"):
        np.testing.assert_array_equal(getattr(stream, name), getattr(after, name))


@pytest.mark.parametrize(
    ("kind", "channels", "columns"), [("<u4", 4, 16), ("u1", 3, 3), (">i2", 2, 2), ("<i2", 1, 0), ("u1", 3, 300)]
)
def test_long_streams_are_predicted_as_the_slow_twin_does(kind: str, channels: int, columns: int) -> None:
    """Numbers alone, without the bank: far beyond all rings, and with rows no longer than their channels."""
    bank = bank_of(kind, channels, (columns,) if columns else ())
    stream, slow = bank.stream(), SlowNumbers(kind, channels, 0, columns)
    data = np.random.default_rng(5).integers(0, 7, 4500).cumsum().astype(np.uint8)
    for unit in data.tolist():
        begin_number(bank.shape, stream)
        slow.terms()
        np.testing.assert_array_equal(stream.guesses, slow.guesses)
        np.testing.assert_array_equal(stream.wide, slow.scales)
        note_number(bank.shape, stream, unit)
        slow.note(unit)
        stream.recent[stream.place[0] & (len(stream.recent) - 1)] = unit
        stream.place[0] += 1


def test_streams_of_older_files_and_damaged_ones() -> None:
    for fields in ({}, {"rich": True}, {"rich": True, "markup": True}):
        stream = ExpertBank(ExpertConfig.of({**fields, "buckets": 1024, "history": 1024}), 8, 0).stream()
        restore_stream(stream, {name: getattr(stream, name) for name in ("place", "recent", "text")})
    bank = bank_of("<i2")
    for name, bad in (("spreads", np.nan), ("guesses", 1e12), ("moments", np.inf)):
        kept = {part: array.copy() for part, array in bank.stream()._asdict().items()}
        kept[name].reshape(-1)[0] = bad
        with pytest.raises(CheckpointError, match=f"a stream's {name} are damaged"):
            restore_stream(bank.stream(), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_come_back(kind: str) -> None:
    random = np.random.default_rng(3)
    hard = np.concatenate(
        [
            random.integers(0, 256, 400),
            np.zeros(200),
            np.full(100, 255),
            np.tile([255, 0, 0, 128], 60),
            np.arange(300) % 256,
        ]
    ).astype(np.uint8)
    for channels, columns, begin in ((1, (), 0), (3, (12 * int(kind[-1]),), 0), (4, (), int(kind[-1]) - 1)):
        bank = bank_of(kind, channels, columns, begin)
        made = np.concatenate([hard, random.integers(0, 4, 300).astype(np.uint8)])
        code = bank.encode(made, bank.stream())
        again = bank_of(kind, channels, columns, begin)
        assert code is not None
        np.testing.assert_array_equal(again.decode(code, len(made), again.stream()), made)
        assert all(np.isfinite(part).all() for part in bank.stream()._asdict().values())


def test_a_quiet_line_keeps_its_numbers_normal() -> None:
    """Errors of zero, a hundred thousand times: means do not fall to the smallest numbers, which processors may treat differently."""
    bank = bank_of("<i2")
    stream = bank.stream()
    bank.read(as_bytes(sound(300), "<i2"), stream, learn=True, wanted=False)
    bank.read(np.zeros(50_000, np.uint8), stream, learn=True, wanted=False)
    parts = (stream.moments, stream.weights, stream.spreads, stream.factor)
    assert all((np.abs(part[part != 0]) > 1e-250).all() for part in parts)


def test_a_model_takes_numbers() -> None:
    from bit_transformer.model import BitTransformerLM

    fields = {"numbers": "<i2", "rich": True, "buckets": 1024, "history": 1024}
    model = BitTransformerLM(ModelConfig.of({"d_model": 16, "nhead": 2, "num_layers": 1, "experts": fields}))
    assert model.bank is not None
    assert model.bank.shape.numbers.tolist() == [2, 1, 0, 128, 0]
    assert model.config.align_bytes == 2  # so that what is held out, and windows, begin where numbers do
    assert ModelConfig.of({"patch_bits": 4, "experts": {"numbers": "<u3", "rich": True}}).align_bytes == 3
    data = as_bytes(sound(600), "<i2").tobytes()
    packed = compress_bytes(data, model, frame_bytes=500)
    assert decompress_bytes(packed, model) == data


# ---- what may not be asked for ----


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"numbers": "<i2"}, "needs rich experts"),
        ({"numbers": "<f4", "rich": True}, "numbers"),
        ({"numbers": "i2", "rich": True}, "numbers"),
        ({"numbers": "<i2", "rich": True, "words": True}, "takes the place of words"),
        ({"numbers": "<i2", "rich": True, "markup": True}, "takes the place of markup"),
        ({"numbers": "<i2", "rich": True, "instructions": True}, "takes the place of instructions"),
        ({"numbers": "<i2", "rich": True, "numbers_begin": 2}, "less than the 2 bytes of a number"),
        ({"numbers_begin": 1, "rich": True}, "numbers_begin=1 needs numbers"),
        ({"channels": 2, "rich": True}, "channels=2 needs numbers"),
        ({"numbers": "<i2", "rich": True, "columns": (7,)}, r"of whole numbers='<i2', in bytes. Try columns=\(14,\)"),
        ({"channels": 5, "numbers": "u1", "rich": True}, "channels"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(fields: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ExpertConfig.of(fields)
