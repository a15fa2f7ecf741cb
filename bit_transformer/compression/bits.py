"""Run-length coding of rows of bits, and models that read such rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bit_transformer.bit_io import Bits, as_bits
from bit_transformer.coding.run_lengths import compress_row, decompress_row
from bit_transformer.errors import BitStreamError

if TYPE_CHECKING:
    from torch import Tensor

    from bit_transformer.model import BitTransformerLM, ModelOutput


def compress_bits(bits_BT: Tensor | NDArray[Any]) -> list[bytes]:
    """Code each row of bits by its run lengths, or packed into bytes where that is shorter.

    Args:
        bits_BT: zeros and ones, (B, T); T may be 0.

    Returns:
        one code per row; at most 9 bytes longer than the bits packed into bytes.

    Raises:
        BitStreamError: another shape, or other values.
    """
    rows = np.asarray(bits_BT)
    if rows.ndim != 2:
        raise BitStreamError(f"got bits of shape {rows.shape}; (rows, bits) is needed. Try bits[None]")
    return [compress_row(as_bits(row)) for row in rows]


def decompress_bits(codes: Sequence[bytes]) -> Bits:
    """The inverse of `compress_bits`: (B, T).

    Raises:
        BitStreamError: damaged codes, or rows of different lengths.
    """
    rows = [decompress_row(code) for code in codes]
    if len({len(row) for row in rows}) > 1:
        raise BitStreamError(
            f"got rows of {sorted({len(row) for row in rows})} bits; one length is needed. Try decompress_bits([code]) for each"
        )
    return np.stack(rows) if rows else np.empty((0, 0), dtype=np.uint8)


def forward_compressed(model: BitTransformerLM, codes: Sequence[bytes]) -> ModelOutput:
    """`model(bits)` for rows that `compress_bits` coded.

    Raises:
        BitStreamError: as of `decompress_bits` and of the model.
    """
    output: ModelOutput = model(decompress_bits(codes))
    return output
