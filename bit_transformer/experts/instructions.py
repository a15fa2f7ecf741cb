"""x86 machine code as a rich bank sees it: where a byte stands in its instruction, and which instructions came before.

The parser follows instructions from byte to byte, without knowing where code begins: after data or a wrong guess it is in step again
within a few instructions. It reads 32-bit and 64-bit code, and tells which from the prefixes that it meets. It leaves out 16-bit code, addresses of eight
bytes (A0 to A3 in 64-bit code), and the suffix of 3DNow.

Source: the opcode maps of the "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2, appendix A.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bit_transformer.compiled import compiled, inline, part
from bit_transformer.experts.terms import Term, Text, joined

# What the next byte is. Of displacements and immediates there are four: with so many bytes left, 1 to 4. Of VEX, with so many bytes before the
# opcode, 1 to 3.
OPCODE, ESCAPED, ESCAPED_TWICE, MODRM, SIB, DISPLACEMENT, IMMEDIATE, VEX = 0, 1, 2, 3, 4, 5, 9, 13

# What an opcode says: bytes of its immediate in the low bits, and flags. An immediate of _OPERAND has four bytes, or two after the prefix 66.
_SIZE, _OPERAND, _MODRM, _PREFIX = 7, 8, 16, 32


def _opcodes(parts: dict[str, int]) -> NDArray[np.uint8]:
    """A table of what opcodes say, from ranges of them in hexadecimal."""
    table = np.zeros(256, dtype=np.uint8)
    for ranges, says in parts.items():
        for span in ranges.split():
            first, _, last = span.partition("-")
            table[int(first, 16) : int(last or first, 16) + 1] |= says
    return table


_ONE_BYTE = _opcodes(
    {
        "00-03 08-0B 10-13 18-1B 20-23 28-2B 30-33 38-3B 62-63 69 6B 80-8F C0-C1 C4-C7 D0-D3 D8-DF F6-F7 FE-FF": _MODRM,
        "04 0C 14 1C 24 2C 34 3C 6A-6B 70-7F 80 82-83 A8 B0-B7 C0-C1 C6 CD D4-D5 E0-E7 EB": 1,
        "C2 CA": 2,
        "C8": 3,
        "05 0D 15 1D 25 2D 35 3D 68-69 81 A9 B8-BF C7": _OPERAND,
        "A0-A3 E8-E9": 4,
        "9A EA": 6,
        "26 2E 36 3E 64-67 F0 F2-F3": _PREFIX,
    }
)
_TWO_BYTES = _opcodes(  # after 0F
    {
        "00-03 0D 10-2F 40-76 78-7F 90-9F A3-A5 AB-AF B0-C7 D0-FF": _MODRM,
        "70-73 A4 AC BA C2 C4-C6": 1,
        "80-8F": 4,
    }
)
_MOST_VOTES, _VOTES_OF_64_BITS = 255, 128
_MOST_PREFIXES = 5


@compiled
def note_instruction(text, c, before):
    """Advance the parser by a byte, given the one before it."""
    waits = text[Text.CODE_WAITS]
    text[Text.INSTRUCTION] = joined(text[Text.INSTRUCTION], c)
    text[Text.CODE_BYTES] += 1
    if waits == OPCODE:
        says = np.int64(_ONE_BYTE[c])
        long = text[Text.CODE_VOTES] >= _VOTES_OF_64_BITS
        if c == 0x0F:
            text[Text.CODE_WAITS] = ESCAPED
        elif long and (c == 0xC4 or c == 0xC5 or c == 0x62):
            text[Text.CODE_WAITS] = VEX if c == 0xC5 else VEX + 1 if c == 0xC4 else VEX + 2
            text[Text.CODE_LEFT] = np.int64(c == 0xC5)
        elif ((long and c & 0xF0 == 0x40) or says & _PREFIX) and text[Text.CODE_BYTES] <= _MOST_PREFIXES:
            # A context needs to know of prefixes that change what follows: words, repetitions, 64 bits, others.
            kind = 1 if c == 0x66 else 2 if c == 0xF2 else 4 if c == 0xF3 else 8 if c & 0xF8 == 0x48 else 16
            text[Text.CODE_PREFIXES] |= kind
        else:
            _vote(text, c, before)
            _begin_operands(text, 1, c, says)
    elif waits == ESCAPED:
        if c == 0x38 or c == 0x3A:
            text[Text.CODE_LEFT] = np.int64(c == 0x3A)
            text[Text.CODE_WAITS] = ESCAPED_TWICE
        else:
            _begin_operands(text, 2, c, np.int64(_TWO_BYTES[c]))
    elif waits == ESCAPED_TWICE:
        _begin_operands(text, 3, c, text[Text.CODE_LEFT] | _MODRM)
    elif waits == MODRM:
        text[Text.MODRM] = c + 1
        opcode = text[Text.OPCODE] & 0x3FF
        if opcode & 0x3FE == 0x1F6 and c & 0x30 == 0:  # TEST, alone among its group, has an immediate
            text[Text.CODE_LEFT] = 1 if opcode == 0x1F6 else 2 if text[Text.CODE_PREFIXES] & 1 else 4
        if c >> 6 != 3 and c & 7 == 4:
            text[Text.CODE_WAITS] = SIB
        else:
            _begin_displacement(text, c >> 6, c & 7)
    elif waits == SIB:
        text[Text.SIB] = c + 1
        _begin_displacement(text, (text[Text.MODRM] - 1) >> 6, c & 7)
    elif waits == DISPLACEMENT:
        _begin_immediate(text)
    elif waits < IMMEDIATE:
        text[Text.CODE_WAITS] = waits - 1
    elif waits >= VEX:
        if text[Text.CODE_LEFT] == 0:
            text[Text.CODE_LEFT] = c & 7  # which table the opcode is from: after 0F, 0F 38 or 0F 3A
        text[Text.CODE_WAITS] = waits - 1
        if waits == VEX:
            table = text[Text.CODE_LEFT]
            text[Text.CODE_WAITS], text[Text.CODE_LEFT] = ESCAPED if table == 1 else ESCAPED_TWICE, np.int64(table == 3)
    else:
        text[Text.CODE_LEFT] -= 1
        _begin_immediate(text)


@inline
def _vote(text, c, before):
    """MOV, LEA, TEST and operations with a byte stand after a REX prefix mostly in 64-bit code, and nearly never in 32-bit code."""
    if c == 0x8B or c == 0x89 or c == 0x8D or c == 0x83 or c == 0x85:
        votes = text[Text.CODE_VOTES]
        if before & 0xF8 == 0x48:
            text[Text.CODE_VOTES] = min(votes + 16, _MOST_VOTES)
        elif before & 0xF0 != 0x40:
            text[Text.CODE_VOTES] = max(votes - 1, 0)


@part
def _begin_operands(text, table, c, says):
    """After opcode c of a table: 1, 2 after 0F, 3 after 0F 38 or 0F 3A."""
    text[Text.OPCODE] = text[Text.CODE_PREFIXES] << 16 | table << 8 | c
    text[Text.CODE_LEFT] = says & _SIZE
    if says & _OPERAND:
        text[Text.CODE_LEFT] = 2 if text[Text.CODE_PREFIXES] & 1 else 4
        if table == 1 and c & 0xF8 == 0xB8 and text[Text.CODE_PREFIXES] & 8:
            text[Text.CODE_LEFT] = 8
    if says & _MODRM:
        text[Text.CODE_WAITS] = MODRM
    else:
        _begin_immediate(text)


@part
def _begin_displacement(text, mode, base):
    """After the bytes that say how memory is addressed."""
    size = 1 if mode == 1 else 4 if mode == 2 or (mode == 0 and base == 5) else 0
    if size:
        text[Text.CODE_WAITS] = DISPLACEMENT + size - 1
    else:
        _begin_immediate(text)


@part
def _begin_immediate(text):
    """Before the rest of an immediate; without one the instruction ends."""
    if text[Text.CODE_LEFT]:
        text[Text.CODE_WAITS] = IMMEDIATE + min(text[Text.CODE_LEFT], 4) - 1
        return
    text[Text.FORM_3], text[Text.FORM_2], text[Text.FORM_1] = text[Text.FORM_2], text[Text.FORM_1], _form(text)
    text[Text.OPCODES] = text[Text.OPCODES] << 16 | (text[Text.OPCODE] & 0xFFFF)
    text[Text.INSTRUCTION_3], text[Text.INSTRUCTION_2] = text[Text.INSTRUCTION_2], text[Text.INSTRUCTION_1]
    text[Text.INSTRUCTION_1], text[Text.INSTRUCTION] = text[Text.INSTRUCTION], 0
    text[Text.OPCODE], text[Text.MODRM], text[Text.SIB] = 0, 0, 0
    text[Text.CODE_WAITS], text[Text.CODE_BYTES], text[Text.CODE_PREFIXES] = OPCODE, 0, 0


@inline
def _form(text):
    """The current instruction without displacement and immediate."""
    return joined(joined(text[Text.OPCODE], text[Text.MODRM]), text[Text.SIB])


@part
def write_instruction_terms(text, terms):
    """Write the terms of the next byte."""
    terms[Term.CODE_AT], terms[Term.CODE_BYTES] = text[Text.CODE_WAITS], min(text[Text.CODE_BYTES], 15)
    terms[Term.OPCODE] = text[Text.OPCODE]
    terms[Term.INSTRUCTION] = text[Text.INSTRUCTION]
    for a in range(3):
        terms[Term.INSTRUCTION_1 + a] = text[Text.INSTRUCTION_1 + a]
        terms[Term.FORM_1 + a] = text[Text.FORM_1 + a]
    terms[Term.FORM] = joined(_form(text), text[Text.CODE_PREFIXES])
    opcodes = text[Text.OPCODES]
    terms[Term.OPCODES_1], terms[Term.OPCODES_2], terms[Term.OPCODES_4] = (
        opcodes & 0xFFFF,
        opcodes & 0xFFFFFFFF,
        opcodes,
    )
