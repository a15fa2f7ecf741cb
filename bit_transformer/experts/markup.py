"""XML, HTML, JSON and tables of text as a rich bank sees them: what is open, and what stands there so far.

What is open is a stack of names: of elements in XML and HTML, of keys in JSON. Outside of them, text is taken for a table: rows of fields, as in CSV.
The parser follows the text from byte to byte, without knowing what it is, and never fails. A closing tag closes the innermost element of its name, and
one that closes nothing is passed over, so elements that are never closed do no harm in HTML. Any tag ends JSON.

A stray `[` or `<b` would leave a table unread for good. So what is open is forgotten after 64 lines in which nothing was closed and no key of JSON came.
Long lists of numbers, and long texts in an element, are forgotten too.

What it does not know: comments, declarations and processing instructions end at their first `>`; names that differ in capitals are different names; a
row ends at a newline also within quotes; brackets of JSON close each other whatever they are. Of more than 32 open names the outermost are lost, and the
places of those may still hold names that were closed.
"""

from __future__ import annotations

import numpy as np

from bit_transformer.compiled import compiled, inline, part
from bit_transformer.experts.terms import PLACES, Term, Text, is_letter, joined

# Where the next byte stands: outside of all that follows; in the name of an opening tag; in a closing tag; after the name of an opening tag; in a
# quoted value of an attribute; in a tag of another kind; in a string of JSON or of a table.
CONTENT, NAME, CLOSING, INSIDE, VALUE, OTHER, STRING = range(7)
MOST_LINES = 64


@compiled
def note_markup(text, c, before):
    """Advance the parser by a byte, given the one before it."""
    state, piece = text[Text.MARKUP], text[Text.PIECE]
    text[Text.PIECE] = joined(piece, c)
    if c == 10:
        text[Text.LINES] += 1
        if text[Text.LINES] >= MOST_LINES:
            text[Text.JSON], text[Text.DEPTH] = 0, 0
            state = CONTENT
    if state == NAME and piece == 0 and not _begins_tag(c):  # less than
        state = CONTENT
    text[Text.MARKUP] = state
    if c == 60 and state != STRING and state != OTHER:  # <
        _go(text, NAME)
    elif state == CONTENT:
        if text[Text.DEPTH] == 0:
            _note_field(text, c, piece)
        if text[Text.DEPTH] == 0 or text[Text.JSON]:
            _note_json(text, c, before)
    elif state == NAME:
        if piece == 0:
            if text[Text.JSON]:
                text[Text.JSON], text[Text.DEPTH] = 0, 0
            if c == 47 or c == 33 or c == 63:  # / ! ?
                _go(text, CLOSING if c == 47 else OTHER)
        elif c <= 32 or c == 47 or c == 62:
            _open(text, piece)
            _go(text, CONTENT if c == 62 else INSIDE)
    elif state == CLOSING:
        if c == 62:
            _close(text, piece)
            _go(text, CONTENT)
        elif c <= 32:
            text[Text.PIECE] = piece
    elif state == INSIDE:
        if c == 62:
            if before == 47:
                _close(text, text[_top(text)])
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
    elif c == 10:
        text[Text.NAMED] = piece
        _go(text, CONTENT)
        if text[Text.DEPTH] == 0:
            _note_field(text, c, 0)
    elif text[Text.ESCAPED]:
        text[Text.ESCAPED] = 0
    elif c == 92:  # backslash
        text[Text.ESCAPED] = 1
    elif c == 34:
        text[Text.NAMED] = piece
        _go(text, CONTENT)


@inline
def _begins_tag(c):
    """Whether `<` and this byte begin a tag."""
    return is_letter(c | 32) or c == 95 or c == 58 or c == 47 or c == 33 or c == 63  # _ : / ! ?


@part
def _note_field(text, c, piece):
    """A byte of a row. Where no name is open, their places hold the fields of the row before."""
    if c == 44 or c == 59 or c == 9 or c == 124 or c == 10:  # , ; tab | newline
        field = piece if piece else text[Text.NAMED]  # what stood in quotes
        text[_above(text)], text[Text.CLOSED], text[Text.NAMED] = field, field, 0
        text[Text.FIELD] = 0 if c == 10 else text[Text.FIELD] + 1
        text[Text.PIECE] = 0
    elif c == 34 and piece == 0:
        _begin_string(text)


@part
def _note_json(text, c, before):
    """A byte of JSON that is in no string; also the first bracket, which begins JSON. The innermost name is the key of the current value, or 0 before it is known."""
    if c == 123 or c == 91:  # { [
        _open(text, 0)
        text[Text.JSON], text[Text.CLOSED], text[Text.PIECE] = 1, 0, 0
    elif text[Text.JSON]:
        top = _top(text)
        if c == 34:
            _begin_string(text)
        elif c == 58:  # :
            if before == 34:  # a key, and no time of day
                text[Text.LINES] = 0
            text[top], text[Text.PIECE] = text[Text.NAMED], 0
        elif c == 44:
            text[Text.CLOSED], text[top], text[Text.PIECE] = text[top], 0, 0
        elif c == 125 or c == 93:
            text[Text.DEPTH] -= 1
            text[Text.JSON], text[Text.LINES], text[Text.PIECE] = np.int64(text[Text.DEPTH] > 0), 0, 0


@inline
def _go(text, state):
    text[Text.MARKUP], text[Text.PIECE] = state, 0


@inline
def _begin_string(text):
    text[Text.ESCAPED] = 0
    _go(text, STRING)


@inline
def _top(text):
    """The place of the innermost open name."""
    return Text.OPEN + text[Text.DEPTH] % PLACES


@inline
def _above(text):
    """The place of the field above."""
    return Text.OPEN + 1 + text[Text.FIELD] % (PLACES - 1)


@inline
def _open(text, name):
    text[Text.DEPTH] += 1
    text[_top(text)], text[Text.NAMED] = name, 0
    if text[Text.DEPTH] == 1:
        text[Text.LINES] = 0


@part
def _close(text, name):
    """Close the innermost element of this name, if there is one."""
    depth = text[Text.DEPTH]
    for back in range(min(depth, PLACES)):
        if text[Text.OPEN + (depth - back) % PLACES] == name:
            text[Text.DEPTH], text[Text.CLOSED], text[Text.NAMED], text[Text.LINES] = depth - back - 1, name, 0, 0
            return


@compiled
def write_markup_terms(text, terms):
    """Write the terms of the next byte."""
    depth = text[Text.DEPTH]
    terms[Term.MARKUP] = text[Text.MARKUP]
    if depth:
        terms[Term.ELEMENT] = text[_top(text)]
        terms[Term.PARENT] = text[Text.OPEN + (depth - 1) % PLACES] if depth > 1 else 0
    else:
        terms[Term.ELEMENT], terms[Term.PARENT] = text[Text.FIELD], text[_above(text)]
    terms[Term.CLOSED], terms[Term.NAMED] = text[Text.CLOSED], text[Text.NAMED]
    terms[Term.PIECE] = text[Text.PIECE]
