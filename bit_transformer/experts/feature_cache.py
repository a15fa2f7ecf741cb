"""Features of every bit of a corpus, computed in one pass in order and stored, so that windows can be drawn in any order.

Small corpora keep theirs in memory. For others they are stored on disk, one byte each, with the final state of the bank. An interrupted
pass resumes from its last save, and a cache is reused only for exactly the same bytes.
"""

# Shapes: T bits, F features.
from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bit_transformer.config import ModelConfig
from bit_transformer.config.experts import NEWER
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import BitStreamError, CheckpointError
from bit_transformer.experts.bank import STATE_VERSION, ExpertBank, Features, memory_bytes, restore_stream
from bit_transformer.experts.layout import Stream
from bit_transformer.experts.passes import PIECE, Passed, Say, begin_with, corpus_sketch, corpus_units, feature_bytes
from bit_transformer.experts.sketch import joined
from bit_transformer.tensor_file import prefixed, read_tensors, under, write_tensors

CACHE_VARIABLE = "BTLM_CACHE_DIR"
MEMORY = 1 << 28  # features of at most this many bytes are not stored: they take only seconds to compute
SAVE_SECONDS = 30.0
SAVE_SHARE = 0.05  # a save takes at most this part of the time until the next: a large bank's takes ten seconds
PACKED = 3  # a bank in a file takes at most about 1 / this of its memory


def cache_folder() -> Path:
    """The cache folder: `BTLM_CACHE_DIR`, else in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bit-transformer" / "features"


class CorpusFeatures:
    """Features of all bits of a corpus, in memory or memory-mapped.

    Attributes:
        bank: its state after the corpus.
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
    whole: Corpus | None = None,
    say: Say = lambda _: None,
    passed: Passed = lambda done, total: None,
) -> CorpusFeatures:
    """The features of a corpus: from the cache if it has them for exactly these bytes, else computed.

    Args:
        start: the bank from before the corpus, which is not changed. Default: an empty one.
        limit: most bytes of the cache folder; least recently used features are removed.
        folder: the cache. Default: the user's.
        memory: features of at most this many bytes are computed in memory, without the cache. Default: `MEMORY`.
        whole: the corpus of which this is a part, if it is one; for the message.
        say: called with a message about what is stored, or if an existing cache cannot be used.
        passed: called with the bytes done so far, and their total.

    Raises:
        BitStreamError: writing to the disk failed.
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
            made = _complete(corpus, whole or corpus, model, bank, path, limit, say, passed)
            os.utime(path)
            shape = (len(corpus) * model.byte_bits, bank.features)
            features_TF = np.memmap(path, dtype=np.int8, mode="r", shape=shape)
    except (OSError, CheckpointError) as refused:
        reason = refused.strerror if isinstance(refused, OSError) and refused.strerror else str(refused)
        raise BitStreamError(
            f"{folder}: the experts' features could not be written ({reason}). Try another folder in {CACHE_VARIABLE}, or "
            f"train.feature_cache=0 to compute them during training"
        ) from refused
    bank.sketch = sketch
    return CorpusFeatures(features_TF, bank, made)


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Allow one process at a time; others wait, and then find the work done."""
    with path.with_suffix(".lock").open("w") as file:
        if not _lock(file, wait=False):
            say("another training is computing the same features; waiting for it")
            _lock(file, wait=True)
        yield


def _lock(file: IO[str], *, wait: bool) -> bool:
    """Try to take the lock; returns whether it was taken. Closing the file releases it."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: trainings that start together there may write the same cache twice
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _complete(
    corpus: Corpus,
    whole: Corpus,
    model: ModelConfig,
    bank: ExpertBank,
    path: Path,
    limit: int,
    say: Say,
    passed: Passed,
) -> bool:
    """Compute what is missing of a cache; returns whether anything was."""
    state = path.with_suffix(".safetensors")
    document: dict[str, Any] = {"done": 0, "sums": []}
    stream = None
    if state.exists():
        stream, document = _found(state, path, bank, document, say)
    if document["done"] == len(corpus):
        return False
    needed = feature_bytes(corpus, model) + memory_bytes(model) // PACKED
    _make_room(path.parent, limit - feature_bytes(corpus, model), keep=path)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    if not document["done"]:
        size = feature_bytes(whole, model)
        say(f"the experts' features of these {len(whole) / 1e6:.1f} MB take {size / 1e9:.1f} GB in {path.parent}")
    _pass(corpus, model, bank, stream or bank.stream(), document, path, state, passed)
    _make_room(path.parent, limit, keep=path)
    return True


def _key(model: ModelConfig) -> str:
    assert model.experts is not None
    # Older caches do not know of these fields.
    unset = set(NEWER) - set(model.experts.newer())
    known = model.experts.model_dump_json(exclude=unset)
    return f"{known} {model.unit_bits} {model.parity} {model.expert_words}"


def _content(corpus: Corpus) -> str:
    digest = hashlib.sha256()
    for offset in range(0, len(corpus), PIECE):
        digest.update(np.ascontiguousarray(corpus.read(offset, PIECE)).data)
    return digest.hexdigest()


def _found(
    state: Path, path: Path, bank: ExpertBank, fresh: dict[str, Any], say: Say
) -> tuple[Stream | None, dict[str, Any]]:
    """The stream and progress of an earlier pass, if its files are intact."""
    try:
        tensors, document = read_tensors(state)
        with path.open("rb") as file:
            for size, expected in document["sums"]:
                if zlib.crc32(file.read(size)) != expected:
                    say("the cached features do not match their checksum; computing them again")
                    return None, fresh
        stream = bank.stream()
        restore_stream(stream, tables("stream.", tensors))
        bank.load_state_dict(tables("bank.", tensors))  # last: an error leaves the bank as it is
    except (CheckpointError, OSError, KeyError, ValueError) as damaged:
        say(f"the cached features cannot be used ({damaged}); computing them again")
        return None, fresh
    return stream, document


def tables(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors whose names start with a prefix, as arrays, by the rest of their names."""
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
    """Continue a pass from the document's position, saving now and then."""
    saved, cost = time.monotonic(), 0.0
    if not document["done"]:
        path.unlink(missing_ok=True)  # processes that have an old file of this name open keep it
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
            began = time.monotonic()
            if began - saved > max(SAVE_SECONDS, cost / SAVE_SHARE) or document["done"] == len(corpus):
                file.flush()
                os.fsync(file.fileno())
                _save(state, bank, stream, document)
                saved = time.monotonic()
                cost = saved - began


def _save(state: Path, bank: ExpertBank, stream: Stream, document: dict[str, Any]) -> None:
    tensors = prefixed("bank.", bank.packed()) | prefixed("stream.", stream._asdict())
    write_tensors(state, tensors, document)


def _make_room(folder: Path, room: int, *, keep: Path) -> None:
    """Remove the least recently used features until the rest fit. Processes that have them open keep them."""
    for path in sorted(folder.glob("*.features"), key=lambda path: path.stat().st_mtime, reverse=True):
        state = path.with_suffix(".safetensors")
        room -= sum(file.stat().st_size for file in (path, state) if file.exists())
        if room >= 0 or path == keep:
            continue
        with path.with_suffix(".lock").open("w") as file:
            if _lock(file, wait=False):  # else it is being written
                path.unlink(missing_ok=True)
                state.unlink(missing_ok=True)
