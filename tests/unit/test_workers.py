"""Several readers of one corpus: each reads its part as if alone, what they have learned is merged, and they stop together."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bit_transformer.config import ExpertConfig, ModelConfig, TrainConfig
from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.data.windows import CorpusWindows
from bit_transformer.errors import BitStreamError, Cancelled, ConfigError
from bit_transformer.evaluation.metrics import bits_per_byte
from bit_transformer.experts import feature_cache, shards
from bit_transformer.experts.bank import ExpertBank, memory_bytes
from bit_transformer.experts.passes import corpus_units
from bit_transformer.experts.shards import JoinedFeatures, sharded_features
from bit_transformer.experts.sketch import known_fraction
from bit_transformer.model import BitTransformerLM
from bit_transformer.training import Record, StopTraining, Trainer, build_windows
from bit_transformer.training.streamed import StreamedWindows
from tests.conftest import TEXT, Done, prose

SHAPE = ModelConfig(
    d_model=16, nhead=2, num_layers=1, max_seq_len=256, experts=ExpertConfig(buckets=1024, history=4096)
)
PARITY = ModelConfig(**{**SHAPE.model_dump(), "parity": True, "patch_bits": 9, "max_seq_len": 270})
WORDS = ModelConfig(**{**SHAPE.model_dump(), "patch_bits": 12, "max_seq_len": 240})


def by_hand(
    corpus: Corpus, model: ModelConfig, workers: int, start: ExpertBank | None
) -> tuple[np.ndarray, ExpertBank]:
    """Features and bank of readers, one after the other."""
    align, size = model.align_bytes, len(corpus)
    cuts = [size * index // workers // align * align for index in range(workers)] + [size]
    features, banks = [], []
    for begin, stop in itertools.pairwise(cuts):
        bank = ExpertBank.of(model) if start is None else start.copy()
        units = corpus_units(corpus, begin, stop - begin, model)
        features.append(bank.read(units, bank.stream(), learn=True).reshape(-1, bank.features))
        banks.append(bank)
    for other in banks[1:]:
        banks[0].merge(other, since=start)
    return np.concatenate(features), banks[0]


def started(model: ModelConfig) -> ExpertBank:
    bank = ExpertBank.of(model)
    data = bytes_corpus(prose(9, 900)[:6000]).aligned(model.align_bytes)
    bank.read(corpus_units(data, 0, len(data), model), bank.stream(), learn=True, wanted=False)
    return bank


@pytest.mark.parametrize("memory", [0, 1 << 40], ids=["cached", "in memory"])
@pytest.mark.parametrize("model", [SHAPE, PARITY, WORDS], ids=["bytes", "parity", "12-bit words"])
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("known", [False, True], ids=["from nothing", "from a bank"])
def test_every_reader_reads_its_part_alone(
    tmp_path: Path, model: ModelConfig, workers: int, memory: int, known: bool
) -> None:
    corpus = bytes_corpus(prose(1, 1300)[:9001]).aligned(model.align_bytes)
    start = started(model) if known else None
    before = start.digest() if start else ""
    expected, bank = by_hand(corpus, model, workers, start)
    for again in (False, True):
        found = sharded_features(
            corpus, model, workers, start=start, limit=1 << 30, memory=memory, folder=tmp_path / "cache"
        )
        assert isinstance(found, JoinedFeatures) and found.made != (again and not memory)
        for begin, length in ((0, len(expected)), (len(expected) // 2 - 99, 333), (len(expected) - 7, 7), (5, 11)):
            np.testing.assert_array_equal(found.read(begin, length), expected[begin : begin + length])
        assert found.bank.digest() == bank.digest()
    assert start is None or start.digest() == before
    assert bank.count == len(corpus) * model.byte_bits // model.unit_bits + (start.count if start else 0)
    sketch = shards.corpus_features(corpus, model, limit=1 << 30, memory=1 << 40).bank.sketch
    assert known_fraction(found.bank.sketch, sketch) > 0.98  # all but what lies over a cut


def test_one_reader_is_the_pass_as_ever(tmp_path: Path) -> None:
    corpus = bytes_corpus(TEXT[:5000])
    one = sharded_features(corpus, SHAPE, 1, limit=1 << 30, memory=0, folder=tmp_path)
    expected, bank = by_hand(corpus, SHAPE, 1, None)
    np.testing.assert_array_equal(one.read(0, 40_000), expected)
    assert one.bank.digest() == bank.digest()


def test_more_readers_than_data_or_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = bytes_corpus(TEXT[:5000])
    with pytest.raises(ConfigError, match=r"workers=5 for 5,000 bytes; .* 1,024. Try train.workers=4") as caught:
        sharded_features(corpus, SHAPE, 5, limit=1 << 30)
    assert caught.value.field == "train.workers"
    with pytest.raises(ConfigError, match=r"workers=2 for 900 bytes.*Try train.workers=1"):
        sharded_features(corpus.part(0, 900), SHAPE, 2, limit=1 << 30)
    monkeypatch.setattr(shards, "free_memory", lambda: int(2.5 * memory_bytes(SHAPE)))
    with pytest.raises(ConfigError, match=r"whose experts need 0.0 GB; 0.0 GB are free. Try train.workers=2, or a"):
        sharded_features(corpus, SHAPE, 3, limit=1 << 30)
    model = BitTransformerLM(SHAPE)
    with pytest.raises(ConfigError, match=r"workers=9 for 6 windows.*Try train.workers=6"):
        build_windows(model, torch.zeros(6, 64, dtype=torch.uint8), TrainConfig(steps=1, workers=9))


def slow_pass(monkeypatch: pytest.MonkeyPatch, piece: int = 768) -> None:
    monkeypatch.setattr(feature_cache, "PIECE", piece)
    monkeypatch.setattr(feature_cache, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(feature_cache, "SAVE_SHARE", float("inf"))
    monkeypatch.setattr(shards, "LOOK", 0.01)


def pace(monkeypatch: pytest.MonkeyPatch, calls: list, most: int) -> None:
    """Readers begin their piece number n when the caller has heard n times of their progress, or `most` times; however busy the machine."""
    read = feature_cache.corpus_units

    def paced(corpus: Corpus, offset: int, length: int, model: ModelConfig) -> np.ndarray:
        until = time.monotonic() + 20
        while len(calls) < min(offset // feature_cache.PIECE, most) and time.monotonic() < until:
            time.sleep(0.001)
        return read(corpus, offset, length, model)

    monkeypatch.setattr(feature_cache, "corpus_units", paced)


def test_progress_is_of_all_readers_and_told_by_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_pass(monkeypatch)
    corpus, calls, said = bytes_corpus(prose(2, 1700)[:10_000]), [], []
    pace(monkeypatch, calls, 2)

    def passed(done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        calls.append((done, total))

    sharded_features(corpus, SHAPE, 4, limit=1 << 30, memory=0, folder=tmp_path, say=said.append, passed=passed)
    assert calls[-1] == (10_000, 10_000) and len(calls) > 1
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert len(said) == 1 and "features of these 0.0 MB take 0.0 GB" in said[0]


@pytest.mark.parametrize("when", [1, 3])
def test_readers_stop_together_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    slow_pass(monkeypatch)
    corpus, calls = bytes_corpus(prose(2, 5000)[:30_000]), []
    whole = sharded_features(corpus, SHAPE, 3, limit=1 << 30, memory=0, folder=tmp_path / "whole")
    pace(monkeypatch, calls, when)

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == when:
            raise Cancelled("stopped")

    threads = threading.active_count()
    with pytest.raises(Cancelled):
        sharded_features(corpus, SHAPE, 3, limit=1 << 30, memory=0, folder=tmp_path / "cache", passed=stop)
    assert len(calls) == when and threading.active_count() == threads
    rest: list[int] = []
    found = sharded_features(
        corpus, SHAPE, 3, limit=1 << 30, memory=0, folder=tmp_path / "cache", passed=lambda done, _: rest.append(done)
    )
    assert rest[-1] == 30_000
    np.testing.assert_array_equal(found.read(0, 240_000), whole.read(0, 240_000))
    assert found.bank.digest() == whole.bank.digest()


def test_a_reader_that_fails_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_pass(monkeypatch, 96)
    save, saves = feature_cache._save, []

    def full(state: Path, *others: object) -> None:
        saves.append(state)
        if len(saves) > 3:
            raise OSError(28, "No space left on device")
        save(state, *others)

    monkeypatch.setattr(feature_cache, "_save", full)
    corpus = bytes_corpus(prose(2, 5000)[:30_000])
    with pytest.raises(BitStreamError, match=r"could not be written \(No space left"):
        sharded_features(corpus, SHAPE, 3, limit=1 << 30, memory=0, folder=tmp_path)
    assert len(saves) < 30


def test_windows_over_a_cut_have_the_features_of_both_parts() -> None:
    model, data = BitTransformerLM(SHAPE), prose(3, 1000)[:6000]
    windows = build_windows(model, data, TrainConfig(steps=1, workers=3))
    expected, bank = by_hand(bytes_corpus(data), SHAPE, 3, None)
    assert isinstance(windows, CorpusWindows) and model.bank.digest() == bank.digest()
    rows = {expected[bit : bit + 256].tobytes() for bit in range(0, len(expected) - 255, 8)}
    batch = windows.draw(len(windows))
    assert batch.features_BTF is not None and all(row.numpy().tobytes() in rows for row in batch.features_BTF)


def test_rows_of_bits_are_shared_out() -> None:
    model, other = BitTransformerLM(SHAPE), BitTransformerLM(SHAPE)
    bits = torch.from_numpy(np.unpackbits(np.frombuffer(prose(4, 900)[:4992], np.uint8))).view(-1, 256)
    windows = build_windows(model, bits, TrainConfig(steps=1, workers=2))
    halves = [build_windows(BitTransformerLM(SHAPE), part, TrainConfig(steps=1)) for part in bits.tensor_split(2)]
    expected = torch.cat([half.features_NTF for half in halves])
    assert torch.equal(windows.features_NTF, expected)
    build_windows(other, bits, TrainConfig(steps=1))
    assert model.bank.count == other.bank.count
    np.testing.assert_array_equal(model.bank.tables.history, other.bank.tables.history)
    assert known_fraction(model.bank.sketch, other.bank.sketch) == 1


def test_experts_that_read_during_training_say_that_they_read_alone() -> None:
    said: list[str] = []
    config = TrainConfig.of({"steps": 1, "batch_size": 2, "workers": 2, "feature_cache": 0})
    windows = build_windows(BitTransformerLM(SHAPE), TEXT[:4000], config, say=said.append)
    assert isinstance(windows, StreamedWindows)
    assert said[-1].startswith("train.workers=2 is not used")
    budget = {"seconds": 0.015, "batch_size": 2}  # half of it is time for 3,000 bytes of one reader
    for workers, kind in ((1, StreamedWindows), (2, CorpusWindows)):
        config = TrainConfig.of({**budget, "workers": workers})
        assert isinstance(build_windows(BitTransformerLM(SHAPE), TEXT[:4000], config), kind)


def test_what_was_learned_before_is_not_learned_by_every_reader() -> None:
    """A model that is trained further, with several readers: its experts are no surer of what they knew."""
    old, new = prose(5, 2500), prose(6, 2500)
    model = BitTransformerLM(SHAPE, experts={"buckets": 1 << 14, "history": 1 << 16})
    build_windows(model, old, TrainConfig(steps=1))
    count, bank = model.bank.count, model.bank.copy()
    build_windows(model, new, TrainConfig(steps=1, workers=4))
    assert model.bank.count == count + len(new)
    bank.read(np.frombuffer(new, np.uint8), bank.stream(), learn=True, wanted=False)
    np.testing.assert_array_equal(model.bank.tables.history, bank.tables.history)
    alone, held = BitTransformerLM(model.config), bytes_corpus(prose(7, 400))
    alone.bank = bank
    assert abs(bits_per_byte(model, held).bpb - bits_per_byte(alone, held).bpb) < 0.05


def test_a_resumed_training_with_several_readers_is_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "MEMORY", 0)
    monkeypatch.setenv("BTLM_CACHE_DIR", str(tmp_path / "cache"))
    config = TrainConfig.of({"steps": 8, "batch_size": 4, "workers": 2, "amp": False})

    def trainer() -> Trainer:
        torch.manual_seed(0)
        model = BitTransformerLM(SHAPE)
        return Trainer(model, build_windows(model, TEXT[:8000], config), config)

    def stop(trainer: Trainer, record: Record) -> None:
        if record["step"] == 5:
            raise StopTraining

    whole, first = trainer(), trainer()
    whole.run()
    first.observers = [stop]
    first.run()
    first.save(tmp_path / "t.safetensors")
    second = trainer()
    second.load(tmp_path / "t.safetensors")
    second.run()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_the_command_takes_readers(btlm: Callable[..., Done], text_file: Path) -> None:
    small = ["--steps", 2, "--batch-size", 2, "--set", "model.experts.buckets=1024", "--set", "model.d_model=16"]
    small += ["--set", "model.nhead=2", "--set", "model.num_layers=1", "--eval-bytes", 500]
    done = btlm("train", text_file, "--out", "run", "--workers", 2, *small)
    assert done.returncode == 0, done.stderr
    refused = btlm("train", text_file, "--out", "other", "--workers", 99, *small)
    assert refused.returncode == 2 and "Try --workers " in refused.stderr and "\n" not in refused.stderr[:-1]
    refused = btlm("train", text_file, "--out", "other", "--workers", 0, *small)
    assert refused.returncode == 2 and "workers=0" in refused.stderr
    assert btlm("train", "--out", "run", "--resume", "--workers", 2).returncode == 2
