"""What the experts say of every bit of a corpus, made in one pass in order, so that windows may be drawn in any.

The features of a position come from what was before it alone: the bank reads the corpus once from its start, predicts each bit
and then learns from it. Those of small corpora stay in memory. Others are kept on disk, a byte each, with the bank as it stands at
the end; a pass that was stopped goes on where it last saved, and a cache is used again only for the very bytes it was made from.
For corpora whose features would not fit, or whose pass would take most of the time, `StreamedWindows` makes them as training goes.
"""

# Shapes: B windows, T bits, L bytes, N units, U bits of a unit, F features.
from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import ModelConfig
from bit_transformer.data.sources import Corpus
from bit_transformer.data.windows import Batch, SamplerState, epoch_key
from bit_transformer.errors import BitStreamError, CheckpointError
from bit_transformer.experts.bank import STATE_VERSION, ExpertBank, Features, feature_count, memory_bytes, pack_units
from bit_transformer.experts.kernels import Stream
from bit_transformer.experts.sketch import WINDOW, Sketch, empty, joined, sketched
from bit_transformer.tensor_file import prefixed, read_tensors, under, write_tensors

CACHE_VARIABLE = "BTLM_CACHE_DIR"
WHOLE = 27_720  # bytes that are whole units of any size: the least common multiple of 1 .. 12
PIECE = 28 * WHOLE  # bytes read at a time
MEMORY = 1 << 28  # features of this many bytes or less are not worth a file: some seconds make them
SAVE_SECONDS = 30.0
PASS_RATE = 400_000  # bytes a second that a pass makes at least; for deciding, not for measuring

Say = Callable[[str], None]
Passed = Callable[[int, int], None]


def cache_folder() -> Path:
    """Where features are kept: `BTLM_CACHE_DIR`, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bit-transformer" / "features"


def corpus_units(corpus: Corpus, offset: int, length: int, model: ModelConfig) -> NDArray[Any]:
    """Bytes of a corpus as the units that a model's experts read; `offset` is at the start of one."""
    data = corpus.read(offset, length)
    if model.unit_bits == model.byte_bits and not model.parity:
        return data
    return pack_units(bytes_to_bits(data, parity=model.parity), model.unit_bits)


def feature_bytes(corpus: Corpus, model: ModelConfig) -> int:
    """How large a corpus's features are."""
    return len(corpus) * model.byte_bits * feature_count(model)


def corpus_sketch(corpus: Corpus) -> Sketch:
    """By which it is known whether experts have learned from a corpus."""
    found = empty()
    for offset in range(0, len(corpus), PIECE):
        found = sketched(np.asarray(corpus.read(offset, PIECE + WINDOW - 1)), found)
    return found


def window_sketch(bits_NT: Tensor) -> Sketch:
    """The same of windows that are given as bits."""
    found = empty()
    for row in np.packbits(bits_NT.cpu().numpy().astype(np.uint8), axis=1):
        found = sketched(row, found)
    return found


class CorpusFeatures:
    """Features of all bits of a corpus, in memory or mapped.

    Attributes:
        bank: as it stands after the corpus.
        made: whether a pass was needed.
    """

    def __init__(self, features_TF: Features, bank: ExpertBank, made: bool) -> None:
        self.bank, self.made = bank, made
        self._features_TF = features_TF

    def read(self, bit: int, length: int) -> Features:
        """Features of `length` bits: (T, F)."""
        return self._features_TF[bit : bit + length]


def corpus_features(
    corpus: Corpus,
    model: ModelConfig,
    *,
    start: ExpertBank | None = None,
    limit: int,
    folder: Path | None = None,
    memory: int | None = None,
    say: Say = lambda _: None,
    passed: Passed = lambda done, total: None,
) -> CorpusFeatures:
    """The features of a corpus: from the cache where they are there for these very bytes, else made now.

    Args:
        start: what is known before the corpus; it stays as it is. Not given: nothing.
        limit: bytes that the cache folder may hold; those used longest ago go.
        folder: the cache; the user's if not given.
        memory: features of so many bytes or less are made in memory, without the cache; `MEMORY` if not given.
        say: told when a cache that is there cannot be used.
        passed: told how many bytes of how many are done.

    Raises:
        BitStreamError: the disk refused.
        ConfigError: the bank needs more memory than there is.
    """
    bank = begin_with(start, model)
    sketch = joined(bank.sketch, corpus_sketch(corpus))
    if feature_bytes(corpus, model) <= (MEMORY if memory is None else memory):
        stream, parts = bank.stream(), []
        for offset in range(0, len(corpus), PIECE):
            parts.append(bank.read(corpus_units(corpus, offset, PIECE, model), stream, learn=True))
            passed(min(len(corpus), offset + PIECE), len(corpus))
        bank.sketch = sketch
        return CorpusFeatures(np.concatenate(parts).reshape(-1, bank.features), bank, made=True)
    folder = folder or cache_folder()
    known = f" {bank.digest()}" if bank.count else ""
    stem = hashlib.sha256(f"{STATE_VERSION} {_key(model)} {_content(corpus)}{known}".encode()).hexdigest()[:24]
    path = folder / f"{stem}.features"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path, say):
            made = _complete(corpus, model, bank, path, limit, say, passed)
            os.utime(path)
            shape = (len(corpus) * model.byte_bits, bank.features)
            features_TF = np.memmap(path, dtype=np.int8, mode="r", shape=shape)
    except (OSError, CheckpointError) as refused:
        reason = refused.strerror if isinstance(refused, OSError) and refused.strerror else str(refused)
        raise BitStreamError(
            f"{folder}: the experts' features could not be written ({reason}). Try another folder in {CACHE_VARIABLE}, or "
            f"train.feature_cache=0 to make them while training"
        ) from refused
    bank.sketch = sketch
    return CorpusFeatures(features_TF, bank, made)


def begin_with(start: ExpertBank | None, model: ModelConfig) -> ExpertBank:
    """A bank to learn in: a copy of one that knows something, or an empty one."""
    return ExpertBank.of(model) if start is None else start.copy()


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """One process at a time; another waits, and then finds the work done."""
    with path.with_suffix(".lock").open("w") as file:
        if not _lock(file, wait=False):
            say("another training is making the same features; this one waits for them")
            _lock(file, wait=True)
        yield


def _lock(file: IO[str], *, wait: bool) -> bool:
    """Whether the lock could be had; it goes when the file is closed."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: trainings that begin together there may write one cache twice
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _complete(
    corpus: Corpus, model: ModelConfig, bank: ExpertBank, path: Path, limit: int, say: Say, passed: Passed
) -> bool:
    """Make what is missing of a cache; whether anything was."""
    state = path.with_suffix(".safetensors")
    document: dict[str, Any] = {"done": 0, "sums": []}
    stream = None
    if state.exists():
        stream, document = _found(state, path, bank, document, say)
    if document["done"] == len(corpus):
        return False
    needed = feature_bytes(corpus, model) + memory_bytes(model)
    _make_room(path.parent, limit - needed, keep=path)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    if not document["done"]:
        say(f"what the experts say of these {len(corpus) / 1e6:.1f} MB takes {needed / 1e9:.1f} GB in {path.parent}")
    _pass(corpus, model, bank, stream or bank.stream(), document, path, state, passed)
    return True


def _key(model: ModelConfig) -> str:
    assert model.experts is not None
    return f"{model.experts.model_dump_json()} {model.unit_bits} {model.parity} {model.expert_words}"


def _content(corpus: Corpus) -> str:
    digest = hashlib.sha256()
    for offset in range(0, len(corpus), PIECE):
        digest.update(np.ascontiguousarray(corpus.read(offset, PIECE)).data)
    return digest.hexdigest()


def _found(
    state: Path, path: Path, bank: ExpertBank, fresh: dict[str, Any], say: Say
) -> tuple[Stream | None, dict[str, Any]]:
    """What an earlier pass left, if it can be trusted: where its stream stands, and how far it came."""
    try:
        tensors, document = read_tensors(state)
        with path.open("rb") as file:
            for size, expected in document["sums"]:
                if zlib.crc32(file.read(size)) != expected:
                    say("the cached features do not match their data (checksum); they are made again")
                    return None, fresh
        bank.load_state_dict(_tables("bank.", tensors))
        parts = {name: part.copy() for name, part in _tables("stream.", tensors).items()}
    except (CheckpointError, OSError, KeyError) as damaged:
        say(f"the cached features cannot be used ({damaged}); they are made again")
        return None, fresh
    return Stream(**parts), document


def _tables(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in under(prefix, tensors).items()}


def _pass(
    corpus: Corpus,
    model: ModelConfig,
    bank: ExpertBank,
    stream: Stream,
    document: dict[str, Any],
    path: Path,
    state: Path,
    passed: Passed,
) -> None:
    """Read on from where the document says, saving now and then."""
    saved = time.monotonic()
    if not document["done"]:
        path.unlink(missing_ok=True)  # who has an old file of this name open keeps it
    with path.open("r+b" if document["done"] else "wb") as file:
        file.seek(sum(size for size, _ in document["sums"]))
        file.truncate()
        while document["done"] < len(corpus):
            units = corpus_units(corpus, document["done"], PIECE, model)
            made = bank.read(units, stream, learn=True).data.cast("B")
            file.write(made)
            document["sums"].append((len(made), zlib.crc32(made)))
            document["done"] = min(len(corpus), document["done"] + PIECE)
            passed(document["done"], len(corpus))
            if time.monotonic() - saved > SAVE_SECONDS or document["done"] == len(corpus):
                file.flush()
                os.fsync(file.fileno())
                _save(state, bank, stream, document)
                saved = time.monotonic()


def _save(state: Path, bank: ExpertBank, stream: Stream, document: dict[str, Any]) -> None:
    tensors = prefixed("bank.", bank.state_dict()) | prefixed("stream.", stream._asdict())
    write_tensors(state, tensors, document)


def _make_room(folder: Path, room: int, *, keep: Path) -> None:
    """Remove the features that were used longest ago, until the rest fit. Who has them open keeps them."""
    for path in sorted(folder.glob("*.features"), key=lambda path: path.stat().st_mtime, reverse=True):
        state = path.with_suffix(".safetensors")
        room -= sum(file.stat().st_size for file in (path, state) if file.exists())
        if room >= 0 or path == keep:
            continue
        with path.with_suffix(".lock").open("w") as file:
            if _lock(file, wait=False):  # else it is being made
                path.unlink(missing_ok=True)
                state.unlink(missing_ok=True)


class FeatureReader:
    """Features of a corpus from its start on, for windows that come in order and overlap; memory is constant.

    Args:
        bank: what is known before the corpus; taught if `learn`.
    """

    def __init__(self, corpus: Corpus, model: ModelConfig, bank: ExpertBank, *, learn: bool) -> None:
        self.corpus, self.model, self.bank, self.learn = corpus, model, bank, learn
        self._stream = bank.stream()
        self._begin, self._done = 0, 0  # bytes: what is kept, and what was read
        self._kept: Features = np.empty((0, bank.features), dtype=np.int8)

    def read(self, offset: int, length: int) -> Features:
        """Features of the bits of bytes [offset, offset + length), zeros beyond the end: (T, F). Offsets never fall."""
        width = self.model.byte_bits
        stop = min(offset + length, len(self.corpus))
        parts = [self._kept[(offset - self._begin) * width :]]  # what no later window needs goes
        while self._done < stop:
            units = corpus_units(self.corpus, self._done, 2 * WHOLE, self.model)
            made = self.bank.read(units, self._stream, learn=self.learn)
            parts.append(made.reshape(-1, self.bank.features))
            self._done = min(len(self.corpus), self._done + 2 * WHOLE)
        self._kept, self._begin = np.concatenate(parts) if len(parts) > 1 else parts[0], offset
        wanted = self._kept[: length * width]
        return np.pad(wanted, ((0, length * width - len(wanted)), (0, 0)))


class StreamedWindows:
    """Windows whose features are made as they are drawn: for corpora whose features no disk should hold.

    The corpus is cut into as many regions as a batch has windows. Every draw takes the next window of each region, so each
    row of the batches is one stream, read in order; all teach one bank. An epoch starts with the bank as it was before the corpus, so
    that no byte is predicted by what was learned from it.

    Args:
        streams: windows of every draw.
        start: what is known before the corpus; not given: nothing.
        keep: the bank that the model keeps, where it knows the corpus already; else it gets this training's.
    """

    def __init__(
        self,
        corpus: Corpus,
        window_bytes: int,
        model: ModelConfig,
        *,
        streams: int,
        seed: int = 0,
        start: ExpertBank | None = None,
        keep: ExpertBank | None = None,
    ) -> None:
        self.corpus, self.window_bytes, self.model = corpus.aligned(model.align_bytes), window_bytes, model
        self.count, self.seed = streams, seed
        self.per_stream = len(self.corpus) // streams // window_bytes
        if not self.per_stream:
            raise BitStreamError(
                f"got {len(self.corpus)} bytes to train on as {streams} streams; at least {streams * window_bytes} are needed. "
                f"Try a smaller train.batch_size, or a larger train.feature_cache"
            )
        self.epoch, self.drawn = 0, 0
        self._finished: ExpertBank | None = None
        self._start, self._keep = start, keep
        self._begin()

    def _begin(self) -> None:
        self._bank = begin_with(self._start, self.model)
        self._streams = [self._bank.stream() for _ in range(self.count)]

    @property
    def bank(self) -> ExpertBank:
        """The one that has learned more: this epoch's, or that of the epoch before; or the one that the model keeps."""
        if self._keep is not None:
            return self._keep
        if self._finished is not None and self._finished.count > self._bank.count:
            return self._finished
        return self._bank

    def __len__(self) -> int:
        return self.per_stream * self.count

    def draw(self, count: int) -> Batch:
        """The next window of every stream."""
        assert count == self.count
        if self.drawn == self.per_stream:
            self.epoch, self.drawn, self._finished = self.epoch + 1, 0, self._bank
            self._begin()
        room = len(self.corpus) - self.count * self.per_stream * self.window_bytes
        shift = epoch_key(self.seed, self.epoch) % (room // self.model.align_bytes + 1) * self.model.align_bytes
        rows, features = [], []
        for index, stream in enumerate(self._streams):
            offset = shift + (index * self.per_stream + self.drawn) * self.window_bytes
            units = corpus_units(self.corpus, offset, self.window_bytes, self.model)
            made = self._bank.read(units, stream, learn=True)
            before = min(offset, WINDOW - 1)  # so that what stands across two windows is noted too
            data = self.corpus.read(offset - before, before + self.window_bytes)
            self._bank.note(data)
            rows.append(bytes_to_bits(data[before:], parity=self.model.parity))
            features.append(made.reshape(-1, self._bank.features))
        self.drawn += 1
        return Batch(torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(features)))

    def state_dict(self) -> SamplerState:
        """Where it stands, but for what `tensors` gives."""
        return {"epoch": self.epoch, "drawn": self.drawn}

    def tensors(self) -> dict[str, Tensor]:
        """What the bank has learned, and where its streams stand."""
        kept = prefixed("bank.", self._bank.state_dict())
        if self._finished is not None:
            kept |= prefixed("finished.", self._finished.state_dict())
        for index, stream in enumerate(self._streams):
            kept |= prefixed(f"stream.{index}.", stream._asdict())
        return kept

    def load_state_dict(self, state: SamplerState, tensors: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.epoch, self.drawn = state["epoch"], state["drawn"]
        self._begin()
        self._bank.load_state_dict(_tables("bank.", tensors))
        self._finished = None
        if finished := _tables("finished.", tensors):
            self._finished = ExpertBank.of(self.model)
            self._finished.load_state_dict(finished)
        for index, stream in enumerate(self._streams):
            for name, part in stream._asdict().items():
                part[...] = tensors[f"stream.{index}.{name}"].cpu().numpy()


def window_features(
    bits_NT: Tensor, model: ModelConfig, start: ExpertBank | None = None
) -> tuple[Features, ExpertBank]:
    """Features of windows that are given as bits, every row a stream of its own, in order: features_NTF and the bank.

    Raises:
        BitStreamError: rows that are no whole units.
    """
    N, T = bits_NT.shape
    if T % model.unit_bits:
        raise BitStreamError(
            f"got windows of {T} bits; with experts a multiple of their unit of {model.unit_bits} bits is needed. "
            f"Try bits[:, :{T // model.unit_bits * model.unit_bits}]"
        )
    bank = begin_with(start, model)
    bank.sketch = joined(bank.sketch, window_sketch(bits_NT))
    made = [
        bank.read(unit_N, bank.stream(), learn=True) for unit_N in pack_units(bits_NT.cpu().numpy(), model.unit_bits)
    ]
    return np.stack(made).reshape(N, T, bank.features), bank
