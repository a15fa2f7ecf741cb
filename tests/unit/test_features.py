"""The cache of features: used for the very data it was made from, made again otherwise, gone on with where it stopped."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bit_transformer import checkpoint
from bit_transformer.checkpoint import load_checkpoint, save_checkpoint
from bit_transformer.config import ExpertConfig, ModelConfig, Sampling, TrainConfig
from bit_transformer.data import sources
from bit_transformer.data.sources import Corpus, Span, bytes_corpus
from bit_transformer.decoding.generation import generate_bytes
from bit_transformer.errors import BitStreamError, CheckpointError, ConfigError
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol
from bit_transformer.experts import bank as bank_module
from bit_transformer.experts import feature_cache, passes
from bit_transformer.experts.bank import ExpertBank, memory_bytes, pack_units
from bit_transformer.experts.feature_cache import corpus_features
from bit_transformer.experts.passes import FeatureReader, corpus_sketch, feature_bytes
from bit_transformer.experts.sketch import KEPT, empty, known_fraction, sketched
from bit_transformer.model import BitTransformerLM
from bit_transformer.objectives import losses
from bit_transformer.tensor_file import prefixed, read_tensors, write_tensors
from bit_transformer.training import Record, StopTraining, Trainer, build_windows, train_loop
from bit_transformer.training.state import Progress
from bit_transformer.training.streamed import StreamedWindows
from bit_transformer.training.validation import Validation
from tests.conftest import TEXT, prose

SHAPE = ModelConfig(
    d_model=16, nhead=2, num_layers=1, max_seq_len=256, experts=ExpertConfig(buckets=1024, history=4096)
)


def corpus_of(path: Path, data: bytes) -> Corpus:
    path.write_bytes(data)
    sources._mapped.cache_clear()  # the file changed under its name
    return Corpus([Span(path, 0, len(data))])


def made(corpus: Corpus, folder: Path, said: list[str]) -> tuple[np.ndarray, bool, str]:
    found = corpus_features(corpus, SHAPE, limit=1 << 30, memory=0, folder=folder, say=said.append)
    return found.read(0, len(corpus) * 8).copy(), found.made, found.bank.digest()


def test_the_same_data_is_read_once(tmp_path: Path) -> None:
    corpus, said = corpus_of(tmp_path / "text", TEXT[:6000]), []
    first = made(corpus, tmp_path / "cache", said)
    assert "0.0 MB take 0.0 GB in" in said.pop()
    second = made(corpus, tmp_path / "cache", said)
    assert (first[1], second[1], said) == (True, False, [])
    np.testing.assert_array_equal(first[0], second[0])
    assert first[2] == second[2]
    bank = ExpertBank.of(SHAPE)
    expected = bank.read(np.frombuffer(TEXT[:6000], np.uint8), bank.stream(), learn=True)
    np.testing.assert_array_equal(first[0].reshape(expected.shape), expected)
    assert first[0].nbytes == feature_bytes(corpus, SHAPE)


def test_saves_of_a_pass_that_cost_much_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saves = [0.0], []

    def save(*parts: object) -> None:
        saves.append(now[0])
        now[0] += 10
        kept(*parts)

    def read(done: int, total: int) -> None:
        now[0] += 1  # a second a piece

    kept = feature_cache._save
    monkeypatch.setattr(feature_cache, "_save", save)
    monkeypatch.setattr(feature_cache, "PIECE", 10)
    monkeypatch.setattr(feature_cache, "time", SimpleNamespace(monotonic=lambda: now[0]))
    corpus = corpus_of(tmp_path / "text", TEXT[:6000])
    corpus_features(corpus, SHAPE, limit=1 << 30, memory=0, folder=tmp_path / "cache", passed=read)
    assert saves == [31, 242, 453, 630]  # after 30 s, then each 20 times its cost after the one before, and at the end


def test_validations_copy_the_bank_only_after_it_has_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BitTransformerLM(SHAPE)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    corpus, copied, plain = bytes_corpus(prose(5, 2000)), [], ExpertBank.copy
    model.bank.read(np.frombuffer(TEXT[:3000], np.uint8), model.bank.stream(), learn=True)
    monkeypatch.setattr(ExpertBank, "copy", lambda bank: copied.append(bank.count) or plain(bank))
    validation = Validation(corpus, TrainConfig(steps=1, keep_best=False))
    for learned in (3000, 3000, 5000, 5000):
        if learned > model.bank.count:
            model.bank.read(np.frombuffer(TEXT[3000:5000], np.uint8), model.bank.stream(), learn=True)
        _, bpb = validation.measure(model, Progress(), 4)
        with torch.no_grad():
            model.head.weight *= 1.1  # what is kept are features, not results
        known = bits_per_byte(model, corpus, default_protocol(model, overlap=0.0)).bpb
        assert bpb != known
        with torch.no_grad():
            model.head.weight /= 1.1
        assert bpb == pytest.approx(bits_per_byte(model, corpus, default_protocol(model, overlap=0.0)).bpb, abs=1e-6)
    assert sorted(copied) == [3000] * 5 + [5000] * 5  # 4 by the comparisons above, and one by validation


def test_a_stream_of_an_older_file_goes_on() -> None:
    bank = ExpertBank(ExpertConfig(rich=True, buckets=1024, history=1024), 8, 0)
    stream, units = bank.stream(), np.frombuffer(TEXT[:500], np.uint8)
    bank.read(units, stream, learn=True)
    kept = {name: part.copy() for name, part in stream._asdict().items()}
    assert not kept["text"][30:].any()  # of machine code; an older file has only these 30
    kept["text"] = kept["text"][:30]
    other, same = bank.stream(), bank.copy()
    bank_module.restore_stream(other, kept)
    expected = bank.read(units, stream, learn=True)
    np.testing.assert_array_equal(same.read(units, other, learn=True), expected)
    for damage in ({"text": np.zeros(99, np.int64)}, {"place": np.zeros(3, np.int64)}, {"recent": None}):
        parts = {name: part for name, part in {**kept, **damage}.items() if part is not None}
        with pytest.raises(CheckpointError, match=r"numbers of a stream's \w+; [\d,]+ are needed"):
            bank_module.restore_stream(bank.stream(), parts)


def test_changed_data_and_a_damaged_cache_are_made_again_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    made(corpus_of(tmp_path / "text", TEXT[:6000]), tmp_path / "cache", said)
    changed = TEXT[:5999] + b"!"
    corpus = corpus_of(tmp_path / "text", changed)
    again = made(corpus, tmp_path / "cache", said)
    assert again[1] and len(said) == 2  # kept by content: other data is another file
    file = max((tmp_path / "cache").glob("*.features"), key=lambda path: path.stat().st_mtime_ns)
    damaged = bytearray(file.read_bytes())
    damaged[777] ^= 1
    file.write_bytes(damaged)
    repaired = made(corpus, tmp_path / "cache", said)
    assert repaired[1] and "do not match their checksum; computing them again" in said[2]
    np.testing.assert_array_equal(repaired[0], again[0])
    state = file.with_suffix(".safetensors")
    state.write_bytes(b"nonsense")
    assert made(corpus, tmp_path / "cache", said)[1] and "cannot be used" in said[4]
    assert len(said) == 6


def test_a_disk_that_is_too_small_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BitStreamError, match=r"GB are needed, 0.0 GB are free.*train.feature_cache=0"):
        corpus_features(bytes_corpus(TEXT[:5000]), SHAPE, limit=1 << 30, memory=0, folder=tmp_path)


def test_a_stopped_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "PIECE", 768)
    monkeypatch.setattr(feature_cache, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(feature_cache, "SAVE_SHARE", float("inf"))
    corpus, said = corpus_of(tmp_path / "text", TEXT[:6000]), []
    whole = made(corpus, tmp_path / "whole", said)
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus_features(corpus, SHAPE, limit=1 << 30, memory=0, folder=tmp_path / "cache", passed=stop)
    assert calls == [768, 1536, 2304, 3072]
    rest: list[int] = []
    found = corpus_features(
        corpus, SHAPE, limit=1 << 30, memory=0, folder=tmp_path / "cache", passed=lambda done, _: rest.append(done)
    )
    assert rest[0] in (3072, 3840) and rest[-1] == 6000  # the last piece was perhaps not saved
    np.testing.assert_array_equal(found.read(0, 48_000), whole[0])
    assert found.bank.digest() == whole[2]


def test_old_caches_make_room(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    corpus = corpus_of(tmp_path / "first", TEXT[:2000])
    corpus_features(corpus, SHAPE, limit=1 << 30, memory=0, folder=folder)
    each = sum(file.stat().st_size for file in folder.iterdir())
    limit, made = int(2.2 * each), []
    for index, name in enumerate(("a", "b", "c")):
        corpus = corpus_of(tmp_path / name, TEXT[index:2000])
        corpus_features(corpus, SHAPE, limit=limit, memory=0, folder=folder)
        newest = max(folder.glob("*.features"), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (index, index))
        made.append(newest)
    assert set(folder.glob("*.features")) == set(made[-2:])
    assert len(list(folder.glob("*.features"))) == len(list(folder.glob("*.safetensors"))) == 2


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BitStreamError, match=r"could not be written.*BTLM_CACHE_DIR"):
        corpus_features(bytes_corpus(TEXT[:500]), SHAPE, limit=1 << 30, memory=0, folder=tmp_path / "file")


def test_streamed_windows_learn_in_order_and_go_on_where_they_stood() -> None:
    corpus = bytes_corpus(TEXT[:4100])
    windows = StreamedWindows(corpus, 32, SHAPE, streams=4, seed=1)
    assert len(windows) == 4100 // 4 // 32 * 4
    drawn = [windows.draw(4) for _ in range(5)]
    kept_state, kept = windows.state_dict(), {name: t.clone() for name, t in windows.tensors().items()}
    # The same by hand: one bank, four streams in turn.
    bank = ExpertBank.of(SHAPE)
    streams = [bank.stream() for _ in range(4)]
    for batch in drawn:
        for row, said, stream in zip(batch.bits_BT, batch.features_BTF, streams, strict=True):
            expected = bank.read(np.packbits(row.numpy()), stream, learn=True)
            np.testing.assert_array_equal(said.numpy().reshape(expected.shape), expected)
    assert bank.digest() == windows.bank.digest()
    goes_on = StreamedWindows(corpus, 32, SHAPE, streams=4, seed=1)
    goes_on.load_state_dict(kept_state, kept)
    for turn in range(60):  # over the end of an epoch, where the bank starts again
        one, other = windows.draw(4), goes_on.draw(4)
        assert torch.equal(one.bits_BT, other.bits_BT) and torch.equal(one.features_BTF, other.features_BTF)
        if turn == 30:  # early in an epoch, when the bank of the one before knows more
            state, tensors = windows.state_dict(), {name: t.clone() for name, t in windows.tensors().items()}
            goes_on = StreamedWindows(corpus, 32, SHAPE, streams=4, seed=1)
            goes_on.load_state_dict(state, tensors)
            assert windows.drawn < windows.per_stream // 2 and goes_on.bank.digest() == windows.bank.digest()
    assert windows.epoch == 2
    with pytest.raises(BitStreamError, match=r"for 400 streams.*batch_size"):
        StreamedWindows(corpus, 32, SHAPE, streams=400)


def test_training_from_streams_and_from_the_cache_both_beat_the_trunk_alone() -> None:
    held = bytes_corpus(TEXT[20_000:22_000])
    bpb = {}
    for name, cache, experts in (
        ("cached", 1 << 30, SHAPE.experts),
        ("streamed", 0, SHAPE.experts),
        ("alone", 0, None),
    ):
        torch.manual_seed(0)
        model = BitTransformerLM(SHAPE, experts=experts)
        train_loop(model, TEXT[:20_000], steps=15, batch_size=4, feature_cache=cache, amp=False)
        bpb[name] = bits_per_byte(model, held).bpb
    assert max(bpb["cached"], bpb["streamed"]) < 0.5 * bpb["alone"]


def test_one_cache_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "text", TEXT[:3000])
    corpus_features(corpus, SHAPE, limit=1 << 30, memory=0, folder=tmp_path / "cache")
    (lock,) = (tmp_path / "cache").glob("*.lock")
    said: list[str] = []
    with lock.open("w") as file:
        assert feature_cache._lock(file, wait=False)
        waiting = threading.Thread(target=lambda: made(corpus, tmp_path / "cache", said))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and "waiting for it" in said[0]
        feature_cache._make_room(tmp_path / "cache", 0, keep=tmp_path / "another")
        assert list((tmp_path / "cache").glob("*.features"))  # not under the hands of who makes it
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.parametrize("patch_bits", [5, 8, 10, 12])
def test_units_of_any_size_go_on_from_piece_to_piece(patch_bits: int, tmp_path: Path) -> None:
    """Pieces of a pass, and of a reader, hold whole units."""
    shape = ModelConfig(
        patch_bits=patch_bits,
        max_seq_len=60 * patch_bits,
        experts=ExpertConfig(buckets=1024, history=4096, orders=(1, 2), match_order=20),
    )
    data = bytes_corpus(np.random.default_rng(0).integers(0, 7, 820_000, dtype=np.uint8).tobytes()).aligned(
        shape.align_bytes
    )
    assert len(data) > passes.PIECE
    bank = ExpertBank.of(shape)
    units = pack_units(np.unpackbits(data.read(0, len(data))), shape.unit_bits)
    whole = bank.read(units, bank.stream(), learn=True).reshape(-1, bank.features)
    for memory in (0, 1 << 40):
        found = corpus_features(data, shape, limit=1 << 40, memory=memory, folder=tmp_path)
        np.testing.assert_array_equal(found.read(0, len(data) * 8), whole)
        assert found.bank.digest() == bank.digest()
    reader = FeatureReader(data, shape, ExpertBank.of(shape), learn=True)
    for offset in range(0, 150_000, 750):
        np.testing.assert_array_equal(reader.read(offset, 1500), whole[offset * 8 : (offset + 1500) * 8])
    for offset in (200_001, 700_005, 819_000):  # far beyond what was read
        there = min(1500, len(data) - offset) * 8
        np.testing.assert_array_equal(reader.read(offset, 1500)[:there], whole[offset * 8 :][:there])


def test_windows_start_where_units_do() -> None:
    shape = ModelConfig(patch_bits=4, experts=ExpertConfig(buckets=1024, history=4096, unit_bits=12))
    assert shape.align_bytes == 3
    model = BitTransformerLM(shape, max_seq_len=240, d_model=16, nhead=2, num_layers=1)
    for cache in (0, 1 << 30):
        train_loop(model, TEXT[:5000], steps=2, batch_size=4, feature_cache=cache, amp=False)
    assert bits_per_byte(model, bytes_corpus(TEXT[:1000])).bpb < 16


@pytest.mark.parametrize("cache", ["file", "memory", "streams"])
def test_a_resumed_training_is_bit_equal(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cache == "file":
        monkeypatch.setattr(feature_cache, "MEMORY", 0)
        monkeypatch.setenv("BTLM_CACHE_DIR", str(tmp_path / "cache"))
    limit = 0 if cache == "streams" else 1 << 30
    config = TrainConfig.of({"steps": 12, "batch_size": 4, "feature_cache": limit})

    def trainer() -> Trainer:
        torch.manual_seed(0)
        model = BitTransformerLM(SHAPE, dropout=0.1)
        return Trainer(model, build_windows(model, TEXT[:8000], config), config)

    whole = trainer()
    whole.run()
    first = trainer()

    def stop(trainer: Trainer, record: Record) -> None:
        if record["step"] == 5:
            raise StopTraining

    first.observers = [stop]
    first.run()
    first.save(tmp_path / "t.safetensors")
    if cache == "file":
        assert list((tmp_path / "cache").glob("*.features"))
        shutil.rmtree(tmp_path / "cache")  # others needed the room
    second = trainer()
    second.load(tmp_path / "t.safetensors")
    second.run()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    assert whole.model.bank.digest() == second.model.bank.digest()


def test_windows_of_bits_are_streams_of_their_own() -> None:
    bits = torch.randint(0, 2, (6, 64), generator=torch.Generator().manual_seed(0))
    model = BitTransformerLM(SHAPE)
    windows = build_windows(model, bits, TrainConfig(steps=1))
    batch = windows.draw(6)
    assert batch.features_BTF is not None and batch.features_BTF.shape == (6, 64, model.bank.features)
    assert model.bank.count == 48
    with pytest.raises(BitStreamError, match=r"unit of 8 bits.*bits\[:, :56\]"):
        build_windows(BitTransformerLM(SHAPE, patch_bits=4), bits[:, :60], TrainConfig(steps=1))


def test_generation_learns_from_what_it_is_told_to() -> None:
    model = BitTransformerLM(SHAPE)  # untrained: the bank's own mixture
    prompt = b"xylophones are quiet; " * 12
    before = model.bank.digest()
    said = {
        learn: generate_bytes(model, [prompt, b"ab"], 22, Sampling(temperature=0, learn=learn))
        for learn in ("nothing", "prompt", "all")
    }
    assert model.bank.digest() == before
    assert said["prompt"][0] == said["all"][0] == prompt[:22]
    assert said["nothing"][0] != prompt[:22]
    assert said["prompt"][1] != prompt[:22]  # streams do not teach one another
    alone = generate_bytes(model, [prompt], 22, Sampling(temperature=0, learn="prompt"))
    assert alone[0] == said["prompt"][0]


def test_a_stream_shorter_than_the_longest_context_is_read() -> None:
    bank = ExpertBank.of(SHAPE)
    assert bank.read(np.array([65]), bank.stream(), learn=True).shape == (1, 8, bank.features)
    model = BitTransformerLM(SHAPE)
    assert bits_per_byte(model, bytes_corpus(b"a")).bpb == pytest.approx(8, abs=0.1)


def test_more_memory_than_there_is_is_refused_before_it_is_taken() -> None:
    huge = ModelConfig(patch_bits=8, experts=ExpertConfig(buckets=1 << 40))
    assert memory_bytes(huge) > 1 << 47
    with pytest.raises(ConfigError, match=r"GB are free. Try experts.buckets=\d+"):
        ExpertBank.of(huge)
    small = memory_bytes(SHAPE)
    taken = sum(table.nbytes for table in ExpertBank.of(SHAPE).tables)
    assert abs(small - taken) < 0.1 * taken


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"experts": {"buckets": 1000}},
            r"buckets=1000 must be a power of two, 1,024 or more. Try experts.buckets=1024",
        ),
        ({"experts": {"history": 5000}}, r"history=5000 must be a power of two.* Try experts.history=4096"),
        ({"experts": {"orders": (2, 1)}}, r"must ascend without repeats.* Try experts.orders=\(1, 2\)"),
        ({"experts": {"order": 3}}, r"Did you mean 'orders'"),
        ({"experts": {"orders": ()}}, r"no contexts.*Try"),
        ({"experts": {"sparse": ((),)}}, r"groups of one to four"),
        ({"experts": {"bit_orders": (64,)}}, r"must not exceed 63"),
        ({"experts": {"unit_bits": 9}}, r"unit_bits=9 must be a multiple of patch_bits=8.* Try experts.unit_bits=8"),
        (
            {"experts": {"words": True}, "patch_bits": 12, "max_seq_len": 1200},
            r"words=True goes with units of one byte",
        ),
        ({"experts": True, "causal": False}, r"goes with causal=True; got causal=False. Try experts=False"),
    ],
)
def test_experts_that_cannot_be_are_one_line(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig.of({"patch_bits": 8, **fields})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_carries_the_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    model = BitTransformerLM(SHAPE)
    model.bank.read(np.frombuffer(TEXT[:999], np.uint8), model.bank.stream(), learn=True, wanted=False)
    save_checkpoint(tmp_path / "m.safetensors", model)
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.bank.digest() == model.bank.digest()
    other = BitTransformerLM(SHAPE, patch_bits=4)
    with pytest.raises(CheckpointError, match="got patch_bits=8; patch_bits=4 is needed"):
        load_checkpoint(tmp_path / "m.safetensors", config=other.config)
    assert checkpoint.BANK_VERSION == bank_module.STATE_VERSION
    monkeypatch.setattr(checkpoint, "BANK_VERSION", 0)
    with pytest.raises(CheckpointError, match="got experts of format 1; format 0 is needed"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_training_a_loaded_model_further_keeps_what_its_experts_know(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BitTransformerLM(SHAPE)
    train_loop(model, prose(1, 3000), steps=30, batch_size=4, amp=False)
    loaded = load_checkpoint(save_checkpoint(tmp_path, model))
    held, count = bytes_corpus(prose(2, 300)), loaded.bank.count
    before = bits_per_byte(loaded, held).bpb
    train_loop(loaded, fresh := prose(4, 300), steps=1, batch_size=4, amp=False, optim={"lr": 0.0, "matrix_lr": 0.0})
    assert loaded.bank.count == count + len(fresh)
    assert bits_per_byte(loaded, held).bpb < before  # they have read more; a new bank costs half a bit here
    again = model.bank.copy()
    again.read(np.frombuffer(fresh, np.uint8), again.stream(), learn=True, wanted=False)
    assert again.digest() == loaded.bank.digest()


@pytest.mark.parametrize("cache", [1 << 30, 0], ids=["cached", "streamed"])
def test_experts_do_not_read_twice_what_they_are_trained_on(cache: int, tmp_path: Path) -> None:
    data, said = prose(1, 2000), []
    # As streams they have learned from what was drawn, so that takes an epoch.
    config = TrainConfig.of({"steps": 2 if cache else 100, "batch_size": 4, "feature_cache": cache})
    model = BitTransformerLM(SHAPE)
    Trainer(model, first := build_windows(model, data, config), config).run()
    loaded = load_checkpoint(save_checkpoint(tmp_path, model))
    known = loaded.bank.digest()
    again = build_windows(loaded, data, config, say=said.append)
    assert any(text.startswith("the experts have learned from these bytes before") for text in said)
    first.load_state_dict(again.state_dict(), again.tensors())
    assert torch.equal(again.draw(4).features_BTF, first.draw(4).features_BTF)  # as of experts that know nothing
    trainer = Trainer(loaded, again, config)
    trainer.run()
    assert loaded.bank.digest() == known


def test_data_is_recognised_wherever_it_stands_and_however_it_came() -> None:
    text = prose(1, 4000)
    corpus = bytes_corpus(text)
    whole = corpus_sketch(corpus)
    assert (
        known_fraction(whole, corpus_sketch(corpus.without(corpus.thinned(1000, 64)))) > 0.85
    )  # but for windows over its holes
    assert known_fraction(whole, corpus_sketch(bytes_corpus(b"a new beginning; " + text[1001:9000]))) > 0.99
    assert known_fraction(whole, corpus_sketch(bytes_corpus(prose(2, 4000)))) < 0.01
    half = corpus_sketch(bytes_corpus(text[:14_000] + prose(3, 2000)))
    assert known_fraction(whole, half) == pytest.approx(0.5, abs=0.02)
    model = BitTransformerLM(SHAPE)
    bits = torch.from_numpy(np.unpackbits(np.frombuffer(text[:9600], np.uint8))).view(-1, 256)
    model.learn(bits)
    said: list[str] = []
    build_windows(model, bits, TrainConfig(steps=1), say=said.append)
    assert "learned from these bytes before" in said[0] and model.bank.count == 9600
    large = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)
    first, second = sketched(large[:2_000_000], empty()), sketched(large[1_000_003:], empty())
    assert len(first) == len(second) == KEPT
    assert known_fraction(first, second) == pytest.approx(
        0.5, abs=4 * 0.5 / (KEPT / 2) ** 0.5
    )  # a sample of some 16,000


def test_a_large_cache_tells_what_was_known_before(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "text", prose(5, 1000))
    start = ExpertBank.of(SHAPE)
    start.read(np.frombuffer(prose(6, 1000), np.uint8), start.stream(), learn=True, wanted=False)
    known = start.digest()
    found = [
        corpus_features(corpus, SHAPE, start=bank, limit=1 << 30, memory=0, folder=tmp_path / "cache")
        for bank in (None, start, start)
    ]
    assert [f.made for f in found] == [True, True, False] and start.digest() == known
    assert not np.array_equal(found[0].read(0, 8000), found[1].read(0, 8000))
    assert found[1].bank.digest() == found[2].bank.digest() and found[1].bank.count == 1000 * 7 - 1 + 1000 * 7 - 1


def test_a_state_dict_carries_what_the_experts_know() -> None:
    model, other = BitTransformerLM(SHAPE), BitTransformerLM(SHAPE)
    other.load_state_dict(model.state_dict())  # nothing was learned yet
    assert not other.has_bank
    model.learn(torch.from_numpy(np.unpackbits(np.frombuffer(TEXT[:960], np.uint8))).view(30, 256))
    assert model.bank.count == 960
    state = model.state_dict()
    other.load_state_dict(state)
    assert other.bank.digest() == model.bank.digest() and other.bank is not model.bank
    other.learn(torch.zeros(1, 8, dtype=torch.uint8))
    assert other.bank.digest() != model.bank.digest()  # a copy
    with pytest.raises(RuntimeError, match=r"Missing key.*bank\.learned"):
        other.load_state_dict(model.weights())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bank\."):
        BitTransformerLM(SHAPE, experts=None).load_state_dict(state)
    with pytest.raises(BitStreamError, match=r"experts' unit of 8 is needed. Try bits\[:, :8\]"):
        model.learn(torch.zeros(1, 12, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="without experts"):
        BitTransformerLM(SHAPE, experts=None).learn(torch.zeros(1, 8, dtype=torch.uint8))


def test_a_loop_of_ones_own_teaches_the_experts() -> None:
    torch.manual_seed(0)
    model = BitTransformerLM(SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    windows = torch.from_numpy(np.unpackbits(np.frombuffer(prose(1, 1700)[:11_200], np.uint8))).view(-1, 256)
    for bits in windows.split(10):
        loss, _ = losses(model, bits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.learn(bits)
    held = bytes_corpus(prose(2, 300))
    taught, weights = bits_per_byte(model, held).bpb, model.weights()
    untaught = BitTransformerLM(SHAPE)
    untaught.load_state_dict(weights, strict=False)
    assert taught < bits_per_byte(untaught, held).bpb - 0.5


def test_the_state_of_a_cache_is_packed_and_an_older_one_is_used(tmp_path: Path) -> None:
    corpus, said = corpus_of(tmp_path / "text", TEXT[:6000]), []
    first = made(corpus, tmp_path / "cache", said)
    (state,) = (tmp_path / "cache").glob("*.safetensors")
    tensors, document = read_tensors(state)
    assert "bank.slots" not in tensors and state.stat().st_size < memory_bytes(SHAPE) // feature_cache.PACKED
    bank = ExpertBank.of(SHAPE)
    bank.load_state_dict(feature_cache.tables("bank.", tensors))
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("stream.")}
    write_tensors(state, prefixed("bank.", bank.state_dict()) | kept, document)
    said.clear()
    again = made(corpus, tmp_path / "cache", said)
    assert (again[1], again[2], said) == (False, first[2], [])


@pytest.mark.parametrize("part", ["stream.place", "bank.slots.code", "stream.recent"])
def test_a_cache_that_lacks_a_part_is_made_again_from_what_was_known(tmp_path: Path, part: str) -> None:
    corpus = corpus_of(tmp_path / "text", prose(5, 1000))
    start = ExpertBank.of(SHAPE)
    start.read(np.frombuffer(prose(6, 500), np.uint8), start.stream(), learn=True, wanted=False)
    found, said = [], []
    for _ in range(2):
        found.append(
            corpus_features(
                corpus, SHAPE, start=start, limit=1 << 30, memory=0, folder=tmp_path / "cache", say=said.append
            )
        )
        (state,) = (tmp_path / "cache").glob("*.safetensors")
        tensors, document = read_tensors(state)
        if part == "stream.recent":
            tensors[part] = tensors[part][:5]
        else:
            del tensors[part]
        write_tensors(state, tensors, document)
    assert found[1].made and "cannot be used" in said[1]
    np.testing.assert_array_equal(found[0].read(0, 8000), found[1].read(0, 8000))
    assert found[0].bank.digest() == found[1].bank.digest()


def test_streams_are_saved_packed() -> None:
    windows = StreamedWindows(bytes_corpus(TEXT[:4100]), 32, SHAPE, streams=4, seed=1)
    for _ in range(windows.per_stream + 2):  # into the second epoch
        windows.draw(4)
    tensors = windows.tensors()
    assert {"bank.packing", "finished.packing"} <= tensors.keys() and "bank.slots" not in tensors
    assert sum(tensor.nbytes for tensor in tensors.values()) < 0.6 * memory_bytes(SHAPE)
    goes_on = StreamedWindows(bytes_corpus(TEXT[:4100]), 32, SHAPE, streams=4, seed=1)
    older = {name: tensor for name, tensor in tensors.items() if name.startswith("stream.")}
    for name, bank in (("bank.", windows._bank), ("finished.", windows._finished)):
        older |= prefixed(name, bank.state_dict())  # as older files have them
    for kept in (tensors, older):
        goes_on.load_state_dict(windows.state_dict(), kept)
        assert goes_on._bank.digest() == windows._bank.digest()
        assert goes_on._finished.digest() == windows._finished.digest()
