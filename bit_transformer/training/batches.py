"""Makes training windows from data, with the experts' features of their bits."""

# Shapes: N windows, T bits, F features of a bit.
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bit_transformer.config import ModelConfig, TrainConfig
from bit_transformer.data.sources import Corpus, bytes_corpus
from bit_transformer.data.windows import BitWindows, CorpusWindows, Windows
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.evaluation.metrics import window_bytes
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.experts.passes import (
    PASS_RATE,
    RICH_RATE,
    Passed,
    Say,
    corpus_sketch,
    feature_bytes,
    window_sketch,
)
from bit_transformer.experts.shards import sharded_features, sharded_window_features
from bit_transformer.experts.sketch import Sketch, known_fraction
from bit_transformer.model import BitTransformerLM
from bit_transformer.training.streamed import StreamedWindows


def build_windows(
    model: BitTransformerLM,
    data: Corpus | bytes | Tensor | Windows,
    config: TrainConfig,
    *,
    say: Say = lambda _: None,
    passed: Passed = lambda done, total: None,
) -> Windows:
    """Make windows that fit a model. If the model has experts, it gets the bank that has read the data.

    Args:
        say: called with messages about the experts and their cache.
        passed: called with the bytes that the experts have read so far, and their total.

    Raises:
        ConfigError: a window that is longer than the model's, or shorter than a byte; or more `train.workers` than there is data or memory for.
        BitStreamError: less data than one window, or invalid bits.
    """
    shape = model.config
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data)
    if isinstance(data, Tensor):
        longest = min(config.window or shape.max_seq_len, shape.max_seq_len)
        if data.ndim == 2 and (data.shape[1] > longest or data.shape[1] % shape.patch_bits):
            raise BitStreamError(
                f"got windows of {data.shape[1]} bits; at most {longest} and a multiple of patch_bits={shape.patch_bits} "
                f"is needed. Try bits[:, :{min(longest, data.shape[1]) // shape.patch_bits * shape.patch_bits}]"
            )
        if int((data > 1).sum()) or int((data < 0).sum()):
            raise BitStreamError("got values other than 0 and 1; bits are needed. Try bytes_to_bits for bytes")
        features_NTF = None
        if shape.experts and data.ndim == 2:
            start, keep = _known_before(model, partial(window_sketch, data), say)
            made_NTF, bank = sharded_window_features(data, shape, config.workers, start)
            model.bank = keep or bank
            features_NTF = torch.from_numpy(made_NTF)
        return BitWindows(data, byte_bits=shape.byte_bits, seed=config.seed, features_NTF=features_NTF)
    if isinstance(data, bytes):
        data = bytes_corpus(data)
    if isinstance(data, Corpus):
        size = window_bytes(model, config.window)
        data = data.aligned(shape.align_bytes)
        features = None
        if shape.experts and len(data) >= size:
            start, keep = _known_before(model, partial(corpus_sketch, data), say)
            if feature_bytes(data, shape) > config.feature_cache or pass_is_too_long(len(data), config, shape):
                say(
                    "the experts read the data during training: their features are too large to store, or a first pass would take too long"
                )
                if config.workers > 1:
                    say(f"train.workers={config.workers} is not used: during training the experts read with one thread")
                return StreamedWindows(
                    data, size, shape, streams=config.batch_size, seed=config.seed, start=start, keep=keep
                )
            features = sharded_features(
                data, shape, config.workers, start=start, limit=config.feature_cache, say=say, passed=passed
            )
            model.bank = keep or features.bank
        return CorpusWindows(
            data, size, parity=shape.parity, align=shape.align_bytes, seed=config.seed, features=features
        )
    if not hasattr(data, "draw"):
        raise ConfigError(f"got a {type(data).__name__} as data; a Corpus, bytes, bit windows or Windows is needed")
    return data


def _known_before(
    model: BitTransformerLM, sketch: Callable[[], Sketch], say: Say
) -> tuple[ExpertBank | None, ExpertBank | None]:
    """The bank that reads the data, starting from what it has learned; and the bank that the model keeps instead, or None.

    Experts keep learning, but not from data they have learned before: they would predict it too well, and the mixer would learn to trust
    them too much. If they know most of the data, an empty bank reads it for the training, and the model keeps its own.
    """
    if not (model.has_bank and model.bank.count):
        return None, None
    known = known_fraction(model.bank.sketch, sketch())
    if known > 0.5:
        say(
            "the experts have learned from these bytes before: new experts read them for this training; the model keeps its own"
        )
        return None, model.bank
    if known > 0.01:  # common phrases are in all data
        say(f"the experts have learned from {known:.0%} of these bytes before, and predict them better than new bytes")
    return model.bank, None


def pass_is_too_long(size: int, config: TrainConfig, model: ModelConfig) -> bool:
    """Whether a first pass over the data would take more than half of a budget in seconds."""
    rate = RICH_RATE if model.experts is not None and model.experts.rich else PASS_RATE
    return config.seconds is not None and size / (rate * config.workers) > config.seconds / 2
