"""Compression: files through the experts alone or through a model, and run lengths of bits.

>>> from bit_transformer.compression import compress_bytes, decompress_bytes
>>> packed = compress_bytes(b"to be, or not to be, " * 50)
>>> decompress_bytes(packed) == b"to be, or not to be, " * 50
True

Without a model nothing here imports torch.
"""

from bit_transformer.compression.bits import compress_bits as compress_bits
from bit_transformer.compression.bits import decompress_bits as decompress_bits
from bit_transformer.compression.bits import forward_compressed as forward_compressed
from bit_transformer.compression.files import compress_bytes as compress_bytes
from bit_transformer.compression.files import decompress_bytes as decompress_bytes
