"""What the contexts of a rich bank are made of: words, gaps between them, phrases, lines, kinds of characters, what followed last time.

After each unit `note_unit` advances the state of a stream's text, and before each `write_terms` says where it stands: a row of numbers, the
*terms*. A context is the hash of a few of them (`contexts.py`). No language is known here: a letter is an ASCII letter or any byte from 128.

Source: the kinds of contexts are those of PAQ8's word models and their successors, as described in Mahoney 2013, "Data Compression
Explained", section 4.3.5.
"""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np

from bit_transformer.compiled import inline, part
from bit_transformer.experts.layout import ABOVE_REACH, PLACE, age, mixed

SEEN_POSITION = 16  # where an entry of `Tables.seen` has its position, above the check
_CHECK = (1 << SEEN_POSITION) - 1
_UNITS = 9  # bits of a unit in `Tables.followed`
_COLUMNS = 255  # a column further right counts as this


class Text(IntEnum):
    """Rows of `Stream.text`: the state of a stream's text. Hashes are as of `joined`."""

    LETTERS = 0  # of the current word, made small, hashed; 0 outside a word
    WORD_1 = auto()  # the words before, latest first; outside a word, the latest word is the first
    WORD_2 = auto()
    WORD_3 = auto()
    WORD_4 = auto()
    GAP = auto()  # what stands after the latest word, hashed; 0 inside a word
    GAP_1 = auto()  # what stood before the latest word
    LENGTH = auto()  # letters of the latest word
    TAIL = auto()  # the last eight letters, of all words
    INITIALS = auto()  # first letters of the last eight words
    CAPITALS = auto()  # of the latest word: 1 if it begins with one, 2 if it has one later
    PHRASE = auto()  # as LETTERS and WORD, but only words with nothing but spaces between them
    PHRASE_1 = auto()
    PHRASE_2 = auto()
    GROUPS = auto()  # the last eight characters; small letters are alike, and capitals, and digits
    KINDS = auto()  # the last 21 characters: letter, sign, space, digit, control
    NIBBLES = auto()  # their upper halves; a space has 0
    CLASSES = auto()  # the last 16 characters, as of `_class`
    SMALL = auto()  # characters since the last capital, at most 255
    OPENED = auto()  # the bracket or quote that is open, or 0
    TITLE = auto()  # the first part of the line that ended with a colon
    LINE = auto()  # the current line so far, hashed
    LINE_BEGIN = auto()  # where it begins
    LINE_BEFORE = auto()  # where the line before begins
    LINE_WORD = auto()  # its first word
    LINE_FIRST = auto()  # its first character
    SENTENCE = auto()  # words since it began
    GONE = auto()  # how long ago the latest word was seen before
    FAR_MATCH = auto()  # of the longer match, as in `Stream.place`
    FAR_LENGTH = auto()
    # Of machine code (`instructions.py`):
    CODE_WAITS = auto()  # what the next byte is
    CODE_LEFT = auto()  # bytes of the immediate that are to come
    CODE_BYTES = auto()  # bytes of the instruction so far
    CODE_PREFIXES = auto()  # kinds of its prefixes
    CODE_VOTES = auto()  # for 64-bit code
    OPCODE = auto()  # with kinds of prefixes and its table; 0 before it is known
    MODRM = auto()  # the byte that says what the operands are, plus 1; 0 where there is none
    SIB = auto()  # the byte after it, plus 1
    INSTRUCTION = auto()  # its bytes so far, hashed
    INSTRUCTION_1 = auto()  # the instructions before, latest first
    INSTRUCTION_2 = auto()
    INSTRUCTION_3 = auto()
    FORM_1 = auto()  # the same without displacements and immediates
    FORM_2 = auto()
    FORM_3 = auto()
    OPCODES = auto()  # of the last four instructions
    # Of XML, HTML, JSON and tables (`markup.py`):
    MARKUP = auto()  # where the next byte stands
    PIECE = auto()  # what stands there so far, hashed
    QUOTE = auto()  # what ends the attribute's value
    ESCAPED = auto()  # whether the next byte of a string is escaped
    NAMED = auto()  # the attribute, or the last string of JSON, or of the field; hashed
    CLOSED = auto()  # the element that was closed last; in JSON the key before; in a table the field before
    JSON = auto()  # whether keys of JSON are open, not elements
    LINES = auto()  # since a name was closed, a first one opened, or a key of JSON came
    FIELD = auto()  # of the row, from 0
    DEPTH = auto()  # how many names are open
    OPEN = auto()  # PLACES rows, from here to the last: a name at depth d, hashed, has place d modulo PLACES; where none is open, fields have 1 and up


PLACES = 32
TEXT_ROWS = Text.OPEN + PLACES


class Term(IntEnum):
    """What a context can be made of."""

    UNIT_1 = 1  # the latest units
    UNIT_2 = auto()
    UNIT_3 = auto()
    TOKEN = auto()  # the current word or gap
    WORD = auto()  # the current word; 0 outside
    WORD_1 = auto()
    WORD_2 = auto()
    WORD_3 = auto()
    WORD_4 = auto()
    GAP = auto()
    GAP_1 = auto()
    PHRASE = auto()
    PHRASE_1 = auto()
    PHRASE_2 = auto()
    TITLE = auto()
    SINCE = auto()  # how long ago the word was seen, log 2
    PLACE = auto()  # the kilobyte
    LENGTH = auto()  # letters of the current word so far
    COMPLETE = auto()  # 1: what there is of the word was a whole word before; 2: no word
    ENDING = auto()  # the last three letters of the current word
    LETTERS_4 = auto()
    LETTERS_6 = auto()
    GROUPS_2 = auto()
    GROUPS_4 = auto()
    GROUPS_8 = auto()
    NIBBLES_3 = auto()
    NIBBLES_8 = auto()
    KINDS_3 = auto()
    KINDS_10 = auto()
    SMALL = auto()
    OPENED = auto()
    FOLLOWER = auto()  # the unit that followed the token last time
    FOLLOWERS = auto()  # the last two times
    LINE = auto()
    COLUMN = auto()
    ABOVE = auto()  # the unit above, in the line before
    LINE_LENGTH = auto()  # of the line before
    LINE_BEGIN = auto()
    LINE_FIRST = auto()
    LINE_WORD = auto()
    NEXT_WORD = auto()  # the word that followed the word before, last time
    NEXT_WORD_2 = auto()  # the time before
    NEXT_PAIR = auto()  # the word that followed the two words before, last time
    SENTENCE = auto()
    CAPITALS = auto()
    CLASSES_2 = auto()
    CLASSES_16 = auto()
    INITIALS_3 = auto()
    AFTER_1 = auto()  # the two units that followed the latest unit, the last times
    AFTER_2 = auto()  # the two that followed the latest two units
    PHASE_4 = auto()  # the position, modulo 4
    ABOVE_1 = auto()  # the unit above, in the row before; units left and right of it
    ABOVE_LEFT = auto()
    ABOVE_RIGHT = auto()
    SLOPE_1 = auto()  # what a straight plane makes of the units left, above, and above left
    SLOPE_2 = auto()  # the same with the units two places left
    PHASE_2 = auto()
    SLOPE_16 = auto()  # the same of numbers of two bytes, low byte first, at even positions
    MEAN_16 = auto()  # the mean of the numbers left and above
    CODE_AT = auto()  # of machine code: what the unit is in its instruction
    CODE_BYTES = auto()  # bytes of the instruction so far, at most 15
    OPCODE = auto()
    INSTRUCTION = auto()  # its bytes so far
    INSTRUCTION_1 = auto()  # the instructions before
    INSTRUCTION_2 = auto()
    INSTRUCTION_3 = auto()
    FORM = auto()  # what is known of the instruction but for displacement and immediate
    FORM_1 = auto()
    FORM_2 = auto()
    FORM_3 = auto()
    OPCODES_1 = auto()  # the opcodes before
    OPCODES_2 = auto()
    OPCODES_4 = auto()
    MARKUP = auto()  # of XML, HTML, JSON and tables: where the unit stands
    ELEMENT = auto()  # the innermost open element; in JSON the key; in a table the number of the field
    PARENT = auto()  # the one around it; in a table the same field of the row before
    CLOSED = auto()  # the element that was closed last; in JSON the key before; in a table the field before
    NAMED = auto()  # the attribute; in JSON the last string; in a table what stood in quotes
    PIECE = auto()  # what stands there so far
    NUMBER_BYTE = auto()  # of data made of numbers: which byte of the number
    CHANNEL = auto()
    EXPECTED_1 = auto()  # the byte, as of each prediction and the bytes of the number before
    EXPECTED_2 = auto()
    EXPECTED_3 = auto()
    EXPECTED_4 = auto()
    EXPECTED_PART = auto()  # the first, in quarters, rounded down
    SPREAD = auto()  # how large the first prediction's errors are, as a logarithm
    SPREAD_LONG = auto()  # over a longer time
    DISAGREED = auto()  # how far the first two predictions lie apart, as a logarithm


@inline
def joined(a, b):
    """A hash of two numbers, as a signed one."""
    return np.int64(mixed((np.uint64(a) ^ (np.uint64(b) + np.uint64(1))) * np.uint64(0xBF58476D1CE4E5B9)))


@inline
def slot_16(a):
    """The top 16 bits of a hash."""
    return np.int64(np.uint64(a) >> np.uint64(48))


@inline
def _log2(x):
    """Number of bits of a number."""
    count = 0
    while x > 0:
        count += 1
        x >>= 1
    return count


@inline
def _class(c):
    """The class of a character, 1 to 12."""
    if 97 <= c <= 122 or c >= 128:
        return 1
    if 65 <= c <= 90:
        return 2
    if 48 <= c <= 57:
        return 3
    if c == 32:
        return 4
    if c == 10 or c == 13:
        return 5
    if c == 33 or c == 46 or c == 63:
        return 6
    if c == 44 or c == 58 or c == 59:
        return 7
    if c == 34 or c == 39:
        return 8
    if c == 9:
        return 9
    if c < 32:
        return 10
    if c == 40 or c == 41 or c == 60 or c == 62 or c == 91 or c == 93 or c == 123 or c == 125:
        return 11
    return 12


@inline
def is_letter(c):
    """Whether a character, made small, belongs to a word."""
    return 97 <= c <= 122 or c >= 128


@inline
def _after(tables, stream, a):
    """Where `Tables.followed` has the latest one or two units; its first part is for tokens."""
    part = len(tables.followed) // 3
    return a * part + ((np.int64(age(stream, 1)) + (a - 1) * np.int64(age(stream, 2)) * 257) & (part - 1))


@part
def note_unit(shape, tables, stream, unit, learn):
    """Advance the text by a unit. Call before `Stream.place` advances, and before the unit is learned."""
    text, n = stream.text, stream.place[PLACE]
    c = unit >> shape.text_shift
    before = (np.int64(age(stream, 1)) - 1) >> shape.text_shift if n else np.int64(0)
    small = c + 32 if 65 <= c <= 90 else c
    letter, capital, digit, space = (
        is_letter(small),
        small != c,
        48 <= c <= 57,
        c == 32 or c == 10 or c == 9 or c == 13,
    )
    if learn:
        token = slot_16(text[Text.LETTERS] if text[Text.LETTERS] else text[Text.GAP])
        old = np.int64(tables.followed[token])
        tables.followed[token] = (old << _UNITS | unit) & ((1 << (2 * _UNITS)) - 1)
        for a in range(1, 3):
            after = _after(tables, stream, a)
            old = np.int64(tables.followed[after])
            tables.followed[after] = (old << _UNITS | unit) & ((1 << (2 * _UNITS)) - 1)
    group = c
    if letter and c < 128:
        group = np.int64(65 if capital else 97)
    elif digit:
        group = np.int64(48)
    elif c >= 128:
        group = c & 0xF0
    text[Text.GROUPS] = text[Text.GROUPS] << 8 | group
    text[Text.NIBBLES] = text[Text.NIBBLES] << 4 | (0 if c == 32 else c >> 4 & 15)
    text[Text.KINDS] = text[Text.KINDS] << 3 | (1 if letter else 3 if space else 4 if digit else 2 if c >= 32 else 5)
    text[Text.CLASSES] = text[Text.CLASSES] << 4 | _class(c)
    text[Text.SMALL] = 0 if capital else min(text[Text.SMALL] + 1, 255)
    if letter:
        if text[Text.LETTERS] == 0:
            text[Text.GAP_1], text[Text.GAP] = text[Text.GAP], 0
            text[Text.LENGTH], text[Text.CAPITALS] = 0, 0
            text[Text.INITIALS] = text[Text.INITIALS] << 8 | small
        text[Text.LETTERS] = joined(text[Text.LETTERS], small)
        text[Text.LENGTH] += 1
        text[Text.TAIL] = text[Text.TAIL] << 8 | small
        if capital:
            text[Text.CAPITALS] |= 2 if text[Text.LENGTH] > 1 else 1
        text[Text.PHRASE] = joined(text[Text.PHRASE], small)
    else:
        if text[Text.LETTERS]:
            _end_word(tables, text, learn)
        text[Text.GAP] = joined(text[Text.GAP], c)
        before_small = before + 32 if 65 <= before <= 90 else before
        quoted = before == 39 or before == 34
        if (c == 32 or c == 10) and (is_letter(before_small) or quoted):
            text[Text.PHRASE_2], text[Text.PHRASE_1] = text[Text.PHRASE_1], text[Text.PHRASE]
            text[Text.PHRASE] = 0
        elif not (c == 39 or c == 34 or (c == 10 and before == 32) or (c == 32 and before == 10)):
            text[Text.PHRASE_2], text[Text.PHRASE_1], text[Text.PHRASE] = 0, 0, 0
        if c == 33 or c == 46 or c == 63:
            text[Text.SENTENCE] = 0
        if c == 34 or c == 40 or c == 60 or c == 91 or c == 123:
            text[Text.OPENED] = c
        elif c == 39 or c == 41 or c == 62 or c == 93 or c == 125:
            text[Text.OPENED] = 0
    if n == text[Text.LINE_BEGIN]:
        text[Text.LINE_FIRST] = group
    if c == 10:
        if before == 58:
            text[Text.TITLE] = text[Text.LINE]
        text[Text.LINE_BEFORE], text[Text.LINE_BEGIN] = text[Text.LINE_BEGIN], n + 1
        text[Text.LINE], text[Text.LINE_WORD] = 0, 0
    else:
        text[Text.LINE] = joined(text[Text.LINE], c)


@inline
def _end_word(tables, text, learn):
    """The word before the current unit is complete."""
    word = text[Text.LETTERS]
    text[Text.WORD_4], text[Text.WORD_3] = text[Text.WORD_3], text[Text.WORD_2]
    text[Text.WORD_2], text[Text.WORD_1], text[Text.LETTERS] = text[Text.WORD_1], word, 0
    if text[Text.LINE_WORD] == 0:
        text[Text.LINE_WORD] = word
    text[Text.SENTENCE] += 1
    slot, check, now = slot_16(word), word >> 16 & _CHECK, tables.learned[0]
    entry = np.int64(tables.seen[slot])
    text[Text.GONE] = now - (entry >> SEEN_POSITION) if entry and entry & _CHECK == check else 0
    if learn:
        tables.seen[slot] = now << SEEN_POSITION | check
        rows = len(tables.next_words) // 3
        one, two = slot_16(text[Text.WORD_2]), slot_16(joined(text[Text.WORD_2], text[Text.WORD_3]))
        tables.next_words[rows + one] = tables.next_words[one]
        tables.next_words[one] = word
        tables.next_words[2 * rows + two] = word


@inline
def _pair(shape, stream, distance):
    """The number whose high byte is so many units back, and its low byte one more."""
    high, low = np.int64(age(stream, distance)), np.int64(age(stream, distance + 1))
    return max(high - 1, 0) >> shape.text_shift << 8 | max(low - 1, 0) >> shape.text_shift


@part
def write_terms(shape, tables, stream):
    """Write the terms of the next unit."""
    text, terms, n = stream.text, stream.terms, stream.place[PLACE]
    word = text[Text.LETTERS]
    for a in range(3):
        terms[Term.UNIT_1 + a] = np.int64(age(stream, 1 + a))
        terms[Term.WORD_2 + a] = text[Text.WORD_2 + a]
    for a in range(3):
        terms[Term.PHRASE + a] = text[Text.PHRASE + a]
    terms[Term.WORD], terms[Term.WORD_1] = word, text[Text.WORD_1]
    terms[Term.GAP], terms[Term.GAP_1] = text[Text.GAP], text[Text.GAP_1]
    token = word if word else text[Text.GAP]
    terms[Term.TOKEN] = token
    terms[Term.TITLE] = text[Text.TITLE]
    if word:
        entry = np.int64(tables.seen[slot_16(word)])
        known = entry != 0 and entry & _CHECK == word >> 16 & _CHECK
        terms[Term.COMPLETE] = np.int64(known)
        terms[Term.SINCE] = _log2(tables.learned[0] - (entry >> SEEN_POSITION)) if known else 0
    else:
        terms[Term.COMPLETE] = 2
        terms[Term.SINCE] = 64 + _log2(text[Text.GONE])
    terms[Term.PLACE] = n >> 10
    length = text[Text.LENGTH] if word else np.int64(0)
    terms[Term.LENGTH] = length
    tail = text[Text.TAIL]
    terms[Term.ENDING] = tail & ((1 << (8 * min(length, 3))) - 1)
    terms[Term.LETTERS_4], terms[Term.LETTERS_6] = tail & 0xFFFFFFFF, tail & 0xFFFFFFFFFFFF
    groups, nibbles, kinds = text[Text.GROUPS], text[Text.NIBBLES], text[Text.KINDS]
    terms[Term.GROUPS_2], terms[Term.GROUPS_4], terms[Term.GROUPS_8] = groups & 0xFFFF, groups & 0xFFFFFFFF, groups
    terms[Term.NIBBLES_3], terms[Term.NIBBLES_8] = nibbles & 0xFFF, nibbles & 0xFFFFFFFF
    terms[Term.KINDS_3], terms[Term.KINDS_10] = kinds & 0x1FF, kinds & 0x3FFFFFFF
    terms[Term.SMALL], terms[Term.OPENED] = min(text[Text.SMALL], 63), text[Text.OPENED]
    followers = np.int64(tables.followed[slot_16(token)])
    terms[Term.FOLLOWER], terms[Term.FOLLOWERS] = followers & ((1 << _UNITS) - 1), followers
    column, above = n - text[Text.LINE_BEGIN], text[Text.LINE_BEFORE] + n - text[Text.LINE_BEGIN]
    terms[Term.LINE], terms[Term.COLUMN] = text[Text.LINE], min(column, _COLUMNS)
    terms[Term.ABOVE] = 0
    if above < text[Text.LINE_BEGIN] and n - above < ABOVE_REACH:
        terms[Term.ABOVE] = np.int64(age(stream, n - above))
    terms[Term.LINE_LENGTH] = min(text[Text.LINE_BEGIN] - text[Text.LINE_BEFORE], _COLUMNS)
    terms[Term.LINE_BEGIN], terms[Term.LINE_FIRST] = text[Text.LINE_BEGIN], text[Text.LINE_FIRST]
    terms[Term.LINE_WORD] = text[Text.LINE_WORD]
    rows, one = len(tables.next_words) // 3, slot_16(text[Text.WORD_1])
    terms[Term.NEXT_WORD], terms[Term.NEXT_WORD_2] = tables.next_words[one], tables.next_words[rows + one]
    terms[Term.NEXT_PAIR] = tables.next_words[2 * rows + slot_16(joined(text[Text.WORD_1], text[Text.WORD_2]))]
    terms[Term.SENTENCE], terms[Term.CAPITALS] = min(text[Text.SENTENCE], 7), text[Text.CAPITALS]
    terms[Term.CLASSES_2], terms[Term.CLASSES_16] = text[Text.CLASSES] & 0xFF, text[Text.CLASSES]
    terms[Term.INITIALS_3] = text[Text.INITIALS] & 0xFFFFFF
    terms[Term.PHASE_4] = n & 3
    if shape.width:
        w, mask = shape.width, (1 << shape.unit_bits) - 1
        up, left, right = np.int64(age(stream, w)), np.int64(age(stream, w + 1)), np.int64(age(stream, w - 1))
        terms[Term.ABOVE_1], terms[Term.ABOVE_LEFT], terms[Term.ABOVE_RIGHT] = up, left, right
        begun = n & 1
        left_16 = _pair(shape, stream, 1 + begun)
        up_16, corner_16 = _pair(shape, stream, w - 1 + begun), _pair(shape, stream, w + 1 + begun)
        terms[Term.SLOPE_16] = (left_16 + up_16 - corner_16) & 0xFFFF
        terms[Term.MEAN_16] = (left_16 + up_16) >> 1
        terms[Term.PHASE_2] = begun
        terms[Term.SLOPE_1] = (np.int64(age(stream, 1)) + up - left) & mask
        terms[Term.SLOPE_2] = (np.int64(age(stream, 2)) + up - np.int64(age(stream, w + 2))) & mask
    for a in range(1, 3):
        terms[Term.AFTER_1 + a - 1] = np.int64(tables.followed[_after(tables, stream, a)])
