from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bit_transformer import bit_io
from bit_transformer.errors import BitStreamError, ParityError


def bits_by_hand(data: bytes, parity: bool) -> list[int]:
    out: list[int] = []
    for byte in data:
        eight = [int(c) for c in f"{byte:08b}"]
        out += eight + ([sum(eight) % 2] if parity else [])
    return out


@given(st.binary(max_size=200), st.booleans())
def test_bits_are_those_written_by_hand_and_go_back(data, parity):
    bits = bit_io.bytes_to_bits(data, parity=parity)
    assert bits.tolist() == bits_by_hand(data, parity)
    assert bit_io.bits_to_bytes(bits, parity=parity) == data


@given(st.text(max_size=100), st.booleans())
def test_text_goes_there_and_back(text, parity):
    bits = bit_io.text_to_bits(text, parity=parity)
    assert bits.dtype == np.uint8 and bits.tolist() == bit_io.bytes_to_bits(text.encode(), parity=parity).tolist()
    for form in (bits, bits.tolist(), torch.from_numpy(bits), torch.from_numpy(bits).bool()):
        assert bit_io.bits_to_text(form, parity=parity) == text


def test_rows_of_bytes_become_rows_of_bits():
    block = np.arange(6, dtype=np.uint8).reshape(2, 3)
    bits = bit_io.bytes_to_bits(block, parity=True)
    assert bits.shape == (2, 27)
    assert bits[1].tolist() == bits_by_hand(bytes([3, 4, 5]), True)


@given(st.binary(min_size=1, max_size=60), st.data())
def test_any_flipped_bit_is_located(data, draw):
    bits = bit_io.bytes_to_bits(data, parity=True)
    place = draw.draw(st.integers(0, len(bits) - 1))
    bits[place] ^= 1
    assert bit_io.find_parity_errors(bits).tolist() == [place // 9]
    with pytest.raises(ParityError) as caught:
        bit_io.bits_to_bytes(bits, parity=True)
    assert caught.value.offsets == (place // 9,)
    assert len(str(caught.value).splitlines()) == 1


def test_parity_policies():
    bits = bit_io.bytes_to_bits(b"abc", parity=True)
    bits[9 + 8] ^= 1  # the parity bit of b
    assert bit_io.bits_to_bytes(bits, parity=True, on_error="keep") == b"abc"
    assert bit_io.bits_to_bytes(bits, parity=True, on_error="replace") == b"a?c"
    assert bit_io.bits_to_bytes(bits, parity=True, on_error="drop") == b"ac"
    assert bit_io.repair_parity(bits).tolist() == bits_by_hand(b"abc", True)


def test_text_policies():
    bits = bit_io.bytes_to_bits(b"a\xffb")
    assert bit_io.bits_to_text(bits) == "a�b"
    assert bit_io.bits_to_text(bits, on_text_error="ignore") == "ab"
    assert bit_io.bits_to_text(bits, on_text_error="backslashreplace") == "a\\xffb"
    with pytest.raises(BitStreamError, match="offset 1"):
        bit_io.bits_to_text(bits, on_text_error="strict")


@given(st.lists(st.integers(0, 1), max_size=50))
def test_any_number_of_bits_packs(bits):
    packed, count = bit_io.pack_bits(bits)
    assert len(packed) == -(-len(bits) // 8)
    assert bit_io.unpack_bits(packed, count).tolist() == bits


@pytest.mark.parametrize(
    ("bits", "text"),
    [([0, 1, 2, 0, 0, 0, 0, 0], "value 2"), ([0.5] * 8, "value 0.5"), ([-1] * 8, "value -1"), ([1] * 7, "7 bits")],
)
def test_what_is_no_byte_is_refused(bits, text):
    with pytest.raises(BitStreamError, match=text):
        bit_io.bits_to_bytes(bits)


def test_two_axes_and_too_few_bytes_are_refused():
    with pytest.raises(BitStreamError, match="shape"):
        bit_io.bits_to_bytes(np.zeros((2, 8), dtype=np.uint8))
    with pytest.raises(BitStreamError, match="at most 8 bits"):
        bit_io.unpack_bits(b"a", 9)
    with pytest.raises(BitStreamError, match="9 each"):
        bit_io.find_parity_errors([0] * 8)
