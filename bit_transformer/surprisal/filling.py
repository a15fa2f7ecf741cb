"""What may have been in a range whose bytes are lost: a beam search with the experts, forwards."""

# Shapes: W hypotheses, V = 256 bytes.
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import ConfigError, Give
from bit_transformer.experts.bank import FEATURE_ONE, ExpertBank
from bit_transformer.experts.layout import Stream
from bit_transformer.surprisal.reading import Bytes

WIDTH, MOST = 64, 1 << 14  # hypotheses that go on after each byte; fills in the end
LONGEST = 256
_BIT = 7 - np.arange(8)
_SYMBOL = np.arange(256)[:, None]
_NODE = (1 << np.arange(8)) | (_SYMBOL >> (8 - np.arange(8)))  # (V, 8): the node of each bit of each byte
_SIGN = np.where(_SYMBOL >> _BIT & 1, 1.0, -1.0)


def fills(data: Bytes, begin: int, end: int, bank: ExpertBank) -> Iterator[bytes]:
    """What may have been in `data[begin:end]`, the likeliest after what is before it first.

    Args:
        bank: about to read the data from its beginning; it learns what is before the range.

    Raises:
        ConfigError: a range that is too long.
    """
    if end - begin > LONGEST:
        raise ConfigError(
            f"got a lost range of {end - begin:,} bytes; at most {LONGEST} can be filled in",
            field="lost",
            tries=(Give("lost", f"{begin}:{begin + LONGEST}"),),
        )
    stream = bank.stream()
    bank.read(np.ascontiguousarray(data[:begin]), stream, learn=True, wanted=False)
    hypotheses: list[tuple[float, bytes, Stream]] = [(0.0, b"", stream)]
    for place in range(begin, end):
        log_WV = np.stack([_log_probabilities(bank, at) for _, _, at in hypotheses])
        log_WV += np.array([score for score, _, _ in hypotheses])[:, None]
        last = place == end - 1
        flat = log_WV.ravel()
        best = np.argsort(-flat, kind="stable")[: MOST if last else WIDTH]
        if last:
            for index in best.tolist():
                w, byte = divmod(index, 256)
                yield hypotheses[w][1] + bytes([byte])
            return
        made = []
        for index in best.tolist():
            w, byte = divmod(index, 256)
            after = Stream(*(array.copy() for array in hypotheses[w][2]))
            bank.read(np.array([byte], dtype=np.uint8), after, learn=False, wanted=False)
            made.append((float(flat[index]), hypotheses[w][1] + bytes([byte]), after))
        hypotheses = made


def _log_probabilities(bank: ExpertBank, stream: Stream) -> NDArray[np.float64]:
    """Logarithms of the probabilities of the next byte: (V,)."""
    logit = bank.nodes(Stream(*(array.copy() for array in stream)), 1, 8)[:, -1].astype(np.float64) / FEATURE_ONE
    made: NDArray[np.float64] = -np.logaddexp(0.0, -_SIGN * logit[_NODE]).sum(1)
    return made
