"""Bits per byte: the cost of a file under a model, with every byte scored once.

The file is cut into overlapping windows. Each window scores only the bytes that no earlier window scored, so all bytes after the
first window have at least as much context as the overlap. More overlap takes more time and gives a lower figure. The protocol is
reported with every figure.

The protocol also says what may learn from the file. `static`: nothing. `online`: the experts' tables learn each bit after it was
scored, as in any compressor, in a copy that is discarded at the end. `online+mixer`: the weights of mixer and head learn too, by
a gradient step after some windows (dynamic evaluation, Krause et al. 2018, arXiv:1709.07432).
"""

# Shapes: B batch, T bits, L bytes of a window, U bits of a byte, as the model reads it.
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import Corpus, as_corpus
from bit_transformer.diffusion.bound import Estimator, likelihood_bound
from bit_transformer.errors import ConfigError
from bit_transformer.evaluation.scorer import Score, check_filled, cost_of
from bit_transformer.experts.passes import FeatureReader, KeptFeatures
from bit_transformer.model import BitTransformerLM
from bit_transformer.pieces import BOUND_SAMPLES

Learning = Literal["static", "online", "online+mixer"]
ADAPT_RATE, ADAPT_WINDOWS = 1e-4, 8  # of online+mixer: AdamW's learning rate, and windows per step
_WHAT_LEARNS = {
    "static": "static weights",
    "online": "online (weights static, the experts' tables learn each bit after it is scored)",
    "online+mixer": f"online+mixer (experts' tables, mixer and head learn: AdamW, learning rate {ADAPT_RATE}, every {ADAPT_WINDOWS} windows)",
}


@dataclass(frozen=True)
class Protocol:
    """How a file was scored.

    Attributes:
        window: bytes per window.
        stride: bytes from one window to the next; the overlap is `window - stride`.
        learning: what learns from the data after it is scored.
        samples: for a diffusion model, whose likelihood is only bounded: samples per window; else 0.
    """

    window: int
    stride: int
    learning: Learning = "static"
    samples: int = 0

    def __str__(self) -> str:
        if self.samples:
            return (
                f"{_WHAT_LEARNS[self.learning]}, windows of {self.window} bytes without overlap, an upper bound from "
                f"{self.samples} samples per window"
            )
        return (
            f"{_WHAT_LEARNS[self.learning]}, windows of {self.window} bytes every {self.stride}, every byte scored once with at least "
            f"{self.window - self.stride} bytes of context (the first {self.window} with less)"
        )


def window_bytes(model: BitTransformerLM, window_bits: int | None = None) -> int:
    """Bytes of the longest window of whole bytes and whole patches.

    Raises:
        ConfigError: not one byte fits, or the window is longer than the model's.
    """
    c = model.config
    bits = window_bits or c.max_seq_len
    if bits > c.max_seq_len:
        raise ConfigError(
            f"got window={bits} bits; at most model.max_seq_len={c.max_seq_len} is needed. Try window={c.max_seq_len}"
        )
    unit = c.align_bytes * c.byte_bits
    if bits < unit:
        raise ConfigError(
            f"got window={bits} bits; whole bytes and whole patches first meet after {unit}. "
            f"Try model.max_seq_len={16 * unit}"
        )
    return bits // unit * c.align_bytes


def default_protocol(model: BitTransformerLM, overlap: float = 0.5, learning: str | None = None) -> Protocol:
    """Windows of the model's full length. A diffusion model scores them without overlap.

    Args:
        overlap: fraction of a window that is only context, in [0, 1).
        learning: what learns from the data. Default: `online` for a model with experts, else `static`.

    Raises:
        ConfigError: no such protocol, or one that learns for a model without experts.
    """
    chosen = learning or ("online" if model.config.experts else "static")
    if chosen not in get_args(Learning):
        raise ConfigError(f"got protocol={chosen!r}; one of {', '.join(get_args(Learning))} is needed. Try online")
    if chosen != "static" and not model.config.experts:
        raise ConfigError(f"got protocol={chosen!r}, which needs experts; the model has none. Try static")
    window = window_bytes(model)
    if not model.config.causal:
        return Protocol(window, window, "static", BOUND_SAMPLES)
    align = model.config.align_bytes
    return Protocol(window, max(align, round(window * (1 - overlap) / align) * align), chosen)  # type: ignore[arg-type]


def byte_costs(
    model: BitTransformerLM,
    corpus: Corpus,
    protocol: Protocol,
    *,
    batch: int = 32,
    features: KeptFeatures | None = None,
) -> Iterator[NDArray[np.float64]]:
    """The cost of each byte of a corpus in bits, in order, in pieces. Afterwards the model is as it was.

    Args:
        features: of the corpus by the model's bank, if they are known.

    Raises:
        BitStreamError: an empty corpus.
    """
    return (cost_LU.sum(-1) for cost_LU in bit_costs(model, corpus, protocol, batch=batch, features=features))


def bit_costs(
    model: BitTransformerLM,
    corpus: Corpus,
    protocol: Protocol,
    *,
    batch: int = 32,
    features: KeptFeatures | None = None,
) -> Iterator[NDArray[np.float64]]:
    """`byte_costs`, bit by bit: pieces of (L, U), of which a row sums to the cost of its byte."""
    check_filled(corpus)
    given, was_training = model, model.training
    model.eval()
    reader: FeatureReader | KeptFeatures | None = features
    adapt = None
    if model.config.experts and features is None:
        learn = protocol.learning != "static"
        reader = FeatureReader(corpus, model.config, model.bank.copy() if learn else model.bank, learn=learn)
    if protocol.learning == "online+mixer":
        batch = ADAPT_WINDOWS
        model = copy.deepcopy(model, {id(model.bank): model.bank})  # others may use this one meanwhile
        assert model.mixer is not None
        learners = [*model.mixer.parameters(), *model.head.parameters()]
        adapt = torch.optim.AdamW(learners, lr=ADAPT_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    try:
        starts = _starts(len(corpus), protocol)
        done = 0
        for first in range(0, len(starts), batch):
            group = starts[first : first + batch]
            windows = [corpus.read(start, protocol.window) for start in group]
            cost_BLU = _window_costs(model, windows, group, reader, adapt)
            for start, cost in zip(group, cost_BLU, strict=True):
                fresh = cost[done - start :]
                done += len(fresh)
                yield fresh
    finally:
        given.train(was_training)


def _starts(size: int, protocol: Protocol) -> range:
    beyond_first = max(0, size - protocol.window)
    return range(0, -(-beyond_first // protocol.stride) * protocol.stride + 1, protocol.stride)


def _window_costs(
    model: BitTransformerLM,
    windows: list[NDArray[np.uint8]],
    starts: range,
    reader: FeatureReader | KeptFeatures | None,
    adapt: torch.optim.Optimizer | None,
) -> list[NDArray[np.float64]]:
    """The cost of each bit of each window in bits, by byte. The last window may be shorter; it is padded to whole patches."""
    c = model.config
    device = model.head.weight.device
    longest = max(len(w) for w in windows)
    longest += -longest % c.align_bytes
    block = np.zeros((len(windows), longest), dtype=np.uint8)
    for row, window in zip(block, windows, strict=True):
        row[: len(window)] = window
    bits_BT = torch.from_numpy(bytes_to_bits(block, parity=c.parity)).to(device)
    features_BTF = None
    if reader is not None:
        features_BTF = torch.from_numpy(np.stack([reader.read(start, longest) for start in starts])).to(device)
    with torch.inference_mode(adapt is None), torch.set_grad_enabled(adapt is not None):
        nats_BT = model.nll(bits_BT, features_BTF)
    cost_BLU = nats_BT.detach().double().view(len(windows), longest, c.byte_bits) / math.log(2)
    if adapt is not None:
        model.zero_grad()
        scored = [row[: len(w) * c.byte_bits] for row, w in zip(nats_BT, windows, strict=True)]
        torch.cat(scored).mean().backward()  # type: ignore[no-untyped-call]
        adapt.step()
    return [row[: len(window)] for row, window in zip(cost_BLU.cpu().numpy(), windows, strict=True)]


@dataclass(frozen=True)
class ModelScorer:
    """A model as a `Scorer`. It scores every byte once, in constant memory.

    Attributes:
        batch: windows scored at once.
        features: of the corpus that is scored, by the model's bank, if they are known.
    """

    model: BitTransformerLM
    protocol: Protocol
    name: str = "this model"
    batch: int = 32
    features: KeptFeatures | None = None

    def scores(self, corpus: Corpus) -> Iterator[Score]:
        """A score after each batch of windows; for a diffusion model, whose bound is sampled, after each window."""
        if self.protocol.samples:
            yield from _bounds(self.model, corpus, self.protocol)
            return
        bits, done = 0.0, 0
        for cost in byte_costs(self.model, corpus, self.protocol, batch=self.batch, features=self.features):
            bits, done = bits + float(cost.sum()), done + len(cost)
            if done:
                yield Score(bits, done, self.protocol)


def surprise(
    model: BitTransformerLM, data: bytes | Corpus, protocol: Protocol | None = None, *, batch: int = 32
) -> NDArray[np.float64]:
    """What each byte of some data costs under a model, in bits: (bytes,). Their mean is `bits_per_byte`.

    Args:
        protocol: as of `bits_per_byte`.

    Raises:
        BitStreamError: no bytes.
        ConfigError: a diffusion model, which bounds the cost of windows, and of no single byte.
    """
    model.check_causal()
    return np.concatenate(list(byte_costs(model, as_corpus(data), protocol or default_protocol(model), batch=batch)))


def bits_per_byte(
    model: BitTransformerLM,
    data: Corpus | bytes,
    protocol: Protocol | None = None,
    *,
    batch: int = 32,
    scored: Callable[[Score], None] = lambda _: None,
) -> Score:
    """Score a corpus, or bytes. Every byte is scored once, in constant memory.

    Args:
        protocol: Default: `default_protocol`.
        batch: windows scored at once.
        scored: called with each score so far; it may raise an error to stop.

    Raises:
        BitStreamError: no bytes.
    """
    corpus = as_corpus(data)
    return cost_of(ModelScorer(model, protocol or default_protocol(model), batch=batch), corpus, scored)


def _bounds(model: BitTransformerLM, corpus: Corpus, how: Protocol) -> Iterator[Score]:
    """A diffusion model's bound, window by window."""
    check_filled(corpus)
    c = model.config
    bits, variance, done = 0.0, 0.0, 0
    for start in range(0, len(corpus), how.window):
        data = corpus.read(start, how.window)
        whole = np.pad(data, (0, -len(data) % c.align_bytes))  # the padding of the last unit counts too
        window_BT = torch.from_numpy(bytes_to_bits(whole, parity=c.parity).copy())[None]
        estimator: Estimator = "discrete" if c.noise == "hidden" else "continuous"  # far faster for flips
        found = likelihood_bound(model, window_BT, samples=how.samples, estimator=estimator, seed=start ^ len(corpus))
        bits, variance, done = bits + found.bits, variance + found.standard_error**2, done + len(data)
        yield Score(bits, done, how, math.sqrt(variance))
