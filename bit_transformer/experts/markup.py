"""XML, HTML, JSON and tables of text as a rich bank sees them: what is open, and what stands there so far.

What is open is a stack of names: of elements in XML and HTML, of keys in JSON. Outside of them, text is taken for a table: rows of fields, as in CSV.
The parser follows the text from byte to byte, without knowing what it is, and never fails. A closing tag closes the nearest element of its name; one
that closes nothing is passed over, so elements that are never closed, as in HTML, do no harm. It does not look inside comments, declarations and
processing instructions, which end for it at the first `>`, and knows no quotes in tables.
"""

from __future__ import annotations

import numpy as np

from bit_transformer.compiled import compiled, inline
from bit_transformer.experts.terms import Term, Text, joined

# Where the next byte stands: outside of all that follows; in the name of an opening tag; in a closing tag; after the name of an opening tag; in a
# quoted value of an attribute; in a tag of another kind; in a string of JSON.
CONTENT, NAME, CLOSING, INSIDE, VALUE, OTHER, STRING = range(7)
DEPTH = 32  # open names that are remembered, the innermost; the place of the first is free


@compiled
def note_markup(text, c, before):
    """Advance the parser by a byte, given the one before it."""
    state, piece = text[Text.MARKUP], text[Text.PIECE]
    text[Text.PIECE] = joined(piece, c)
    if c == 60 and state != STRING and state != OTHER:  # <, also where it may not stand: so a lost parser finds its way
        if text[Text.JSON]:
            text[Text.JSON], text[Text.DEPTH] = 0, 0
        _go(text, NAME)
    elif state == CONTENT:
        if text[Text.DEPTH] == 0:
            _note_field(text, c, piece)
        if text[Text.DEPTH] == 0 or text[Text.JSON]:
            _note_json(text, c)
    elif state == NAME:
        if piece == 0 and (c == 47 or c == 33 or c == 63):  # / ! ?
            _go(text, CLOSING if c == 47 else OTHER)
        elif c <= 32 or c == 47 or c == 62:
            _open(text, piece)
            _go(text, CONTENT if c == 62 else INSIDE)
    elif state == CLOSING:
        if c == 62:
            _close(text, piece)
            _go(text, CONTENT)
    elif state == INSIDE:
        if c == 62:
            if before == 47:
                _close(text, text[Text.OPEN + text[Text.DEPTH] % DEPTH])
            _go(text, CONTENT)
        elif c == 34 or c == 39:
            text[Text.NAMED], text[Text.QUOTE] = piece, c
            _go(text, VALUE)
        elif c <= 32:
            _go(text, INSIDE)
    elif state == VALUE:
        if c == text[Text.QUOTE]:
            _go(text, INSIDE)
    elif state == OTHER:
        if c == 62:
            _go(text, CONTENT)
    elif text[Text.QUOTE]:  # after a backslash
        text[Text.QUOTE] = 0
    elif c == 92:
        text[Text.QUOTE] = c
    elif c == 34 or c == 10:
        text[Text.NAMED] = piece
        _go(text, CONTENT)


@compiled
def _note_field(text, c, piece):
    """A byte of a row, of which the place of open names holds the fields."""
    if c == 44 or c == 59 or c == 9 or c == 124 or c == 10:  # , ; tab | newline
        text[_above(text)], text[Text.CLOSED] = piece, piece
        text[Text.FIELD] = 0 if c == 10 else text[Text.FIELD] + 1
        _go(text, CONTENT)


@inline
def _above(text):
    """Where the field above is. From the 31st on all share a place."""
    return Text.OPEN + min(text[Text.FIELD] + 1, DEPTH - 1)


@compiled
def _note_json(text, c):
    """A byte of JSON that is in no string. The innermost name is the key of the current value, or 0 before it is known."""
    top = Text.OPEN + text[Text.DEPTH] % DEPTH
    if c == 123 or c == 91:  # { [
        _open(text, 0)
        text[Text.JSON], text[Text.CLOSED] = 1, 0
        _go(text, CONTENT)
    elif text[Text.JSON]:
        if c == 34:
            text[Text.QUOTE] = 0
            _go(text, STRING)
        elif c == 58:  # :
            text[top] = text[Text.NAMED]
            _go(text, CONTENT)
        elif c == 44:
            text[Text.CLOSED], text[top] = text[top], 0
            _go(text, CONTENT)
        elif c == 125 or c == 93:
            text[Text.DEPTH] -= 1
            text[Text.JSON] = np.int64(text[Text.DEPTH] > 0)
            _go(text, CONTENT)


@inline
def _go(text, state):
    text[Text.MARKUP], text[Text.PIECE] = state, 0


@inline
def _open(text, name):
    text[Text.DEPTH] += 1
    text[Text.OPEN + text[Text.DEPTH] % DEPTH], text[Text.NAMED] = name, 0


@compiled
def _close(text, name):
    """Close the innermost element of this name, if there is one."""
    depth = text[Text.DEPTH]
    for back in range(min(depth, DEPTH)):
        if text[Text.OPEN + (depth - back) % DEPTH] == name:
            text[Text.DEPTH], text[Text.CLOSED], text[Text.NAMED] = depth - back - 1, name, 0
            return


@compiled
def write_markup_terms(text, terms):
    """Write the terms of the next byte."""
    depth = text[Text.DEPTH]
    terms[Term.MARKUP] = text[Text.MARKUP]
    if depth:
        terms[Term.ELEMENT] = text[Text.OPEN + depth % DEPTH]
        terms[Term.PARENT] = text[Text.OPEN + (depth - 1) % DEPTH] if depth > 1 else 0
    else:
        terms[Term.ELEMENT], terms[Term.PARENT] = text[Text.FIELD], text[_above(text)]
    terms[Term.CLOSED], terms[Term.NAMED] = text[Text.CLOSED], text[Text.NAMED]
    terms[Term.PIECE] = text[Text.PIECE]
