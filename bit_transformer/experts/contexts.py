"""Which contexts a bank has: one expert each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bit_transformer.config import ExpertConfig
from bit_transformer.experts.layout import (
    BITS,
    MAX_ARGUMENTS,
    ORDER,
    SPARSE,
    TERMS,
    TEXT,
    TEXT_PAIR,
    TEXT_SKIP,
    TEXT_WORD,
)
from bit_transformer.experts.terms import Term

# Of a rich bank of texts, beside orders. Each was kept because the bank codes better with it (docs/LOG.md).
WORDS = """
token
token word_1
letters_6
phrase phrase_1
phrase phrase_2
phrase phrase_1 phrase_2
gap title token
word unit_1 title
word since
word_1 gap since
place word
ending complete length
unit_1 word gap_1
unit_1 gap word_1
token word_1 word_2
token word_1 gap_1
token unit_1 word_2
token unit_1 word_3
token unit_1 word_4
token unit_1 word_1 word_4
token unit_1 word_1 word_3
token unit_1 word_2 word_3
opened word
groups_4
groups_4 unit_1 unit_2
kinds_10 unit_2 unit_3
word unit_1 kinds_3 small
complete length follower unit_1
follower unit_1 unit_2
follower groups_8
followers groups_4
line
above unit_1
above unit_1 column
line_length column unit_1
column unit_1
column kinds_3
column line_length
line_begin
line_first unit_1
line_word
line_word unit_1
column line_first groups_2
token next_word
token next_pair
token next_word next_word_2
gap gap_1 word_1 word_2
token capitals sentence
token above
unit_2 unit_3
token initials_3
token line_word
after_1 groups_4
after_2 unit_1 unit_2
classes_16
token word_1 title
"""

# Of a rich bank of other data: single units, and terms.
UNITS = """
2
3
4
2 3
1 3
2 4
1 4
3 4
1 2 4
4 8
5
6
1 5
8
1 8
4 5
12
2 3 4
7
16
1 6
2 6
3 5
1 3 5
1 2 3 5
"""
COMMON = """
token
after_1 unit_1
after_2 unit_1 unit_2
nibbles_8
groups_4
phase_4 unit_1
"""
RECORDS = (
    COMMON
    + """\
token word_1
letters_4
follower unit_1
kinds_10
opened unit_1
after_1 unit_1 unit_2
after_2 unit_1
after_2
after_1
nibbles_3 unit_1
nibbles_3 unit_2
kinds_3 unit_1
phase_4 unit_1 unit_2
phase_4 unit_3
token gap_1 unit_1
line
"""
)

# The same where the data has rows, as pictures have.
ROW_UNITS = """
2
3
4
2 3
1 3
2 4
"""
ROWS = (
    COMMON
    + """\
slope_1
slope_2
slope_1 unit_1
slope_2 unit_1
above_1 unit_1 unit_2
slope_16 phase_2
slope_16 unit_1 phase_2
slope_16 mean_16 phase_2 unit_1
slope_2 above_1 unit_1 phase_2
above_1 above_right unit_1
above_1 above_left unit_2
slope_2 above_1
slope_1 unit_2 above_right
mean_16 phase_2
mean_16 unit_1 phase_2
mean_16 phase_2 unit_1 unit_2
"""
)

# For numbers.
NUMBERS = """
expected_1 number_byte
expected_part number_byte
expected_1 spread number_byte
expected_2 spread number_byte
expected_1 expected_2 number_byte
expected_1 unit_1 number_byte
expected_1 expected_3 number_byte
expected_3 number_byte
expected_4 number_byte
expected_1 expected_4 unit_1 number_byte
"""
NUMBER_UNITS = """
2
2 3
"""
NUMBER_TERMS = """
after_1 unit_1
phase_4 unit_1
"""
NUMBER_ROWS = (
    NUMBER_TERMS
    + """\
slope_2 above_1
slope_1 unit_1
slope_2 unit_1
above_1 unit_1 unit_2
"""
)

# For machine code, before those of records.
INSTRUCTIONS = """
instruction
instruction instruction_1
instruction instruction_2
instruction instruction_3
instruction instruction_1 instruction_2
instruction form_1
instruction form_2
instruction form_1 form_2
instruction opcodes_2
instruction opcodes_4
form code_at
form code_at unit_1
form code_at opcodes_1
form code_at opcodes_4
form code_at form_2
form code_at form_1 form_2
form code_at form_1 form_2 form_3
code_at unit_1
code_at unit_1 unit_2
opcode code_at unit_1 opcodes_2
instruction_1 code_at unit_1
"""

# For XML, HTML, JSON and tables, before those of words.
MARKUP = """
markup element piece
markup element parent piece
markup element closed piece
markup element named piece
markup element unit_1
markup element unit_1 unit_2
markup element parent unit_1 unit_2
markup element token
markup element follower unit_1
markup element word_1 token
markup element line_word unit_1
"""


def contexts_of(config: ExpertConfig, words: bool) -> NDArray[np.int64]:
    """A kind and its arguments for each context: (K, 1 + MAX_ARGUMENTS).

    Args:
        words: whether units are bytes, which may be of a text.
    """
    rows: list[tuple[int, ...]] = [(ORDER, order) for order in config.orders]
    if words and not config.rich:
        rows += [(TEXT, kind) for kind in (TEXT_WORD, TEXT_PAIR, TEXT_SKIP)]
    rows += [(BITS, bits) for bits in config.bit_orders]
    rows += [(SPARSE, *ages) for ages in config.sparse]
    rows += [(SPARSE, *ages) for width in config.columns for ages in ((width,), (1, width))]
    if config.rich:
        first, units, terms = "", "", WORDS
        if config.instructions:
            first, units, terms = INSTRUCTIONS, UNITS, RECORDS
        elif config.markup:
            first = MARKUP
        elif config.numbers:
            first, units, terms = NUMBERS, NUMBER_UNITS, NUMBER_ROWS if config.columns else NUMBER_TERMS
        elif not words:
            units, terms = (ROW_UNITS, ROWS) if config.columns else (UNITS, RECORDS)
        rows += _of_terms(first) + [(SPARSE, *map(int, line.split())) for line in _lines(units)]
        if config.numbers or not (words or config.instructions):
            rows += [(SPARSE, *ages) for w in config.columns for ages in ((2, w), (w, w + 2), (1, w, w + 1), (2 * w,))]
        rows += _of_terms(terms)
    spec = np.zeros((len(rows), 1 + MAX_ARGUMENTS), dtype=np.int64)
    for line, row in zip(spec, rows, strict=True):
        line[: len(row)] = row
    return spec


def _of_terms(lines: str) -> list[tuple[int, ...]]:
    return [(TERMS, *(Term[name.upper()] for name in line.split())) for line in _lines(lines)]


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]
