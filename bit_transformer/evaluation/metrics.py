"""Bits per byte: what a file costs under a model, every byte scored once.

The file is cut into windows that overlap: each window scores only the bytes that no earlier one scored, so all but the
first window's bytes have at least `context` bytes before them. More overlap costs more time and gives a lower, truer
figure; the protocol goes with every number.
"""

# Shapes: B batch, T bits, L bytes of a window.
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.data.sources import Corpus
from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.model import BitTransformerLM


@dataclass(frozen=True)
class Protocol:
    """How a file was scored.

    Attributes:
        window: bytes of a window.
        stride: bytes from one window to the next; the overlap is `window - stride`.
    """

    window: int
    stride: int

    def __str__(self) -> str:
        return (
            f"static weights, windows of {self.window} bytes every {self.stride}, every byte scored once with at least "
            f"{self.window - self.stride} bytes of context (the first {self.window} with less)"
        )


@dataclass(frozen=True)
class Score:
    """What some bytes cost: `bits` in all, over `bytes` data bytes."""

    bits: float
    bytes: int
    protocol: Protocol

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return self.bits / self.bytes


def window_bytes(model: BitTransformerLM, window_bits: int | None = None) -> int:
    """The longest window of whole bytes and whole patches.

    Raises:
        ConfigError: not one byte fits, or the window is longer than the model's.
    """
    c = model.config
    bits = window_bits or c.max_seq_len
    if bits > c.max_seq_len:
        raise ConfigError(f"window={bits} bits; at most model.max_seq_len={c.max_seq_len}. Try window={c.max_seq_len}")
    unit = c.align_bytes * c.byte_bits
    if bits < unit:
        raise ConfigError(
            f"window={bits} bits; bytes and patches first meet after {unit}. Try model.max_seq_len={16 * unit}"
        )
    return bits // unit * c.align_bytes


def default_protocol(model: BitTransformerLM, overlap: float = 0.5) -> Protocol:
    """Windows of the model's full length; each after the first scores its last `1 - overlap` share."""
    window = window_bytes(model)
    align = model.config.align_bytes
    return Protocol(window, max(align, round(window * (1 - overlap) / align) * align))


@torch.inference_mode()
def byte_costs(
    model: BitTransformerLM, corpus: Corpus, protocol: Protocol, *, batch: int = 32
) -> Iterator[NDArray[np.float64]]:
    """Bits that each byte of a corpus costs, in order, in pieces.

    Raises:
        BitStreamError: an empty corpus.
    """
    if not len(corpus):
        raise BitStreamError("got no bytes to score; at least one is needed. Try another file, or a larger holdout")
    was_training = model.training
    model.eval()
    try:
        starts = _starts(len(corpus), protocol)
        done = 0
        for first in range(0, len(starts), batch):
            group = starts[first : first + batch]
            windows = [corpus.read(start, protocol.window) for start in group]
            for start, cost in zip(group, _window_costs(model, windows), strict=True):
                fresh = cost[done - start :]
                done += len(fresh)
                yield fresh
    finally:
        model.train(was_training)


def _starts(size: int, protocol: Protocol) -> range:
    beyond_first = max(0, size - protocol.window)
    return range(0, -(-beyond_first // protocol.stride) * protocol.stride + 1, protocol.stride)


def _window_costs(model: BitTransformerLM, windows: list[NDArray[np.uint8]]) -> list[NDArray[np.float64]]:
    """Bits of each byte of each window; the last window may be shorter and is padded to whole patches."""
    c = model.config
    longest = max(len(w) for w in windows)
    block = np.zeros((len(windows), longest), dtype=np.uint8)
    for row, window in zip(block, windows, strict=True):
        row[: len(window)] = window
    bits = bytes_to_bits(block, parity=c.parity)
    pad = -bits.shape[1] % c.patch_bits
    bits_BT = torch.from_numpy(np.pad(bits, ((0, 0), (0, pad)))).to(model.head.weight.device)
    nats_BT = model.nll(bits_BT)[:, : longest * c.byte_bits].double()
    cost_BL = (nats_BT.view(len(windows), longest, c.byte_bits).sum(-1) / math.log(2)).cpu().numpy()
    return [row[: len(window)] for row, window in zip(cost_BL, windows, strict=True)]


def bits_per_byte(
    model: BitTransformerLM, corpus: Corpus, protocol: Protocol | None = None, *, batch: int = 32
) -> Score:
    """Score a corpus: every byte once, memory constant in its size."""
    how = protocol or default_protocol(model)
    total = sum(float(cost.sum()) for cost in byte_costs(model, corpus, how, batch=batch))
    return Score(total, len(corpus), how)
