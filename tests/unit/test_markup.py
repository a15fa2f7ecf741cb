"""The parser of markup knows what is open, also in text that is not well formed."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from functools import reduce

import numpy as np
import pytest

from bit_transformer.compiled import compiled
from bit_transformer.config import ExpertConfig
from bit_transformer.errors import ConfigError
from bit_transformer.experts.markup import CONTENT, INSIDE, STRING, VALUE, note_markup, write_markup_terms
from bit_transformer.experts.terms import PLACES, TEXT_ROWS, Term, Text, joined
from tests.reference.experts import MASK
from tests.reference.rich import Markup


@compiled
def _joined(a, b):
    return joined(a, b)


def named(name: str | bytes) -> int:
    data = name if isinstance(name, bytes) else name.encode()
    return int(reduce(_joined, data, np.int64(0)))


class Parsed:
    """The state of the parser after each byte: `at(i)` are the terms of byte i."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        text, terms = np.zeros(TEXT_ROWS, np.int64), np.zeros(len(Term) + 1, np.int64)
        self.rows, before = [], 0
        for c in data:
            write_markup_terms(text, terms)
            self.rows.append((terms.copy(), int(text[Text.DEPTH])))
            note_markup(text, c, before)
            before = c

    def at(self, mark: bytes) -> dict[str, int]:
        """The terms of the byte after a mark, which occurs once."""
        assert self.data.count(mark) == 1
        terms, depth = self.rows[self.data.index(mark) + len(mark)]
        return {term.name.lower(): int(terms[term]) for term in Term} | {"depth": depth}


def test_open_elements_are_those_of_an_xml_reader() -> None:
    document = (
        b'<?xml version="1.0"?><!DOCTYPE r><r>text<a k="v &gt; w"><b/>one<c>two</c></a><!-- no comment --><a>three'
        b"<b><c>deep</c></b>after</a>end</r>"
    )
    parsed = Parsed(document + b"\n")
    stack: list[str] = []
    reader = ET.XMLPullParser(["start", "end"])
    depths = []
    for c in document:
        reader.feed(bytes([c]))
        for event, element in reader.read_events():
            if event == "start":
                stack.append(element.tag)
            else:
                stack.pop()
        depths.append((len(stack), stack[-1] if stack else None, stack[-2] if len(stack) > 1 else None))
    compared = 0
    for i, (depth, element, parent) in enumerate(depths):
        terms, found = parsed.rows[i + 1]
        if terms[Term.MARKUP] == CONTENT and element is not None:
            compared += 1
            assert found == depth
            assert terms[Term.ELEMENT] == named(element)
            assert terms[Term.PARENT] == (named(parent) if parent else 0)
    assert compared == 40


def test_an_attribute_is_known_in_its_value() -> None:
    parsed = Parsed(b'<a href = "x">one</a><b  class=\'y\' id="z" >')
    inside = parsed.at(b'"x')
    assert (inside["markup"], inside["element"], inside["piece"]) == (VALUE, named("a"), named("x"))
    assert inside["named"] != parsed.at(b"'y")["named"] == named("class=")
    assert parsed.at(b'"z')["named"] == named("id=")
    assert parsed.at(b'z" ')["markup"] == INSIDE
    assert parsed.at(b"</")["piece"] == 0
    assert parsed.at(b"</a>")["closed"] == named("a")


def test_elements_that_are_never_closed_do_no_harm() -> None:
    parsed = Parsed(b"<p>one<br>two<img src='x'>three</p>four</q>five<p>six<" + b"x" * 9 + b">seven!")
    assert parsed.at(b"three")["element"] == named("img")
    assert parsed.at(b"</p>four")["depth"] == 0
    assert parsed.at(b"</q>five")["depth"] == 0  # nothing of that name was open
    assert parsed.at(b"seven")["element"] == named("x" * 9)


def test_deep_elements_push_out_the_outermost() -> None:
    deep = b"".join(b"<e%d>" % i for i in range(40))
    closings = b"".join(b"</e%d>" % i for i in reversed(range(40)))
    parsed = Parsed(deep + closings + b"!")
    terms, depth = parsed.rows[-1]
    assert depth == 40 - PLACES  # the other closings found nothing
    terms, depth = parsed.rows[len(deep) + len(b"</e39>")]
    assert (depth, terms[Term.ELEMENT], terms[Term.PARENT]) == (39, named("e38"), named("e37"))


def test_keys_of_json_are_known() -> None:
    value = {"name": "x, y: {", "list": [1, {"deep": 'quote " here', "other": None}], "last": 2.5}
    parsed = Parsed(json.dumps(value).encode() + b"\n")
    assert parsed.at(b'"x, y: {')["element"] == named("name")
    assert parsed.at(b'"x, y: {')["markup"] == STRING
    inner = parsed.at(b'quote \\" h')
    assert (inner["element"], inner["parent"], inner["markup"]) == (named("deep"), 0, STRING)  # an array has no key
    assert parsed.at(b"nul")["element"] == named("other")
    assert parsed.at(b"nul")["closed"] == named("deep")
    assert parsed.at(b"[1")["parent"] == named("list")
    assert parsed.at(b"2.")["closed"] == named("list")
    assert parsed.at(b"2.5}")["depth"] == 0


def test_a_table_has_fields_and_the_row_above() -> None:
    rows = [["name", "size", "kind"], ["one", "10", "dir"], ["two", "11", "file"]]
    written = io.StringIO()
    csv.writer(written, delimiter=";", lineterminator="\n").writerows(rows)
    parsed = Parsed(written.getvalue().encode() + b"!")
    at = parsed.at(b"two;1")
    assert (at["element"], at["parent"], at["closed"]) == (1, named("10"), named("two"))
    at = parsed.at(b"one;10;d")
    assert (at["element"], at["parent"], at["closed"]) == (2, named("kind"), named("10"))
    assert parsed.at(b"file\n")["element"] == 0


def test_a_field_may_stand_in_quotes() -> None:
    parsed = Parsed(b'one,"two, three",4\n5,"six",7\n8,"cut\n9,9!')
    at = parsed.at(b'5,"si')
    assert (at["element"], at["parent"], at["markup"]) == (1, named("two, three"), STRING)
    at = parsed.at(b'"six",')
    assert (at["element"], at["parent"], at["closed"]) == (2, named("4"), named("six"))
    assert parsed.at(b"9,")["element"] == 1  # a row ends within quotes too


@pytest.mark.parametrize(
    "stray", [b"1 < 2\n", b"I <3 x\n", b"# [ once\n", b"<br>\n", b"<b once\n", b"<! once\n", b'<a href="\n', b'"once\n']
)
def test_a_stray_sign_is_forgotten(stray: bytes) -> None:
    table = b"name,9,kind\n" * 70
    parsed = Parsed(stray + table + b'[1, {"key": "v"}]\n')
    at = parsed.at(b'"key": "')
    assert (at["element"], at["depth"], at["markup"]) == (named("key"), 2, STRING)
    rows = [terms for terms, _ in parsed.rows[len(stray) + 66 * 12 : len(stray) + 67 * 12]]
    assert [int(row[Term.ELEMENT]) for row in rows] == [0] * 5 + [1] * 2 + [2] * 5
    assert int(rows[5][Term.PARENT]) == named("9")


def test_a_lost_parser_finds_its_way() -> None:
    assert parsed_depth(b'{"never closed": [1, <a><b>') == 2  # elements, not keys
    assert parsed_depth(b'<a href="never closed <b><c>') == 3  # in place of a value there is a tag
    assert parsed_depth(b'{"a": "cut\n"b": [') == 2
    assert parsed_depth(b'{"a": [1, 2 < 3') == 2  # less than, no tag
    assert parsed_depth(b"<p>one</p >") == 0


@pytest.mark.parametrize("opened", [b"<b>", b"<b ", b"[", b'{"a":', b'<a href="'])
def test_what_is_open_is_forgotten_after_64_lines(opened: bytes) -> None:
    assert parsed_depth(opened + b"\n12:30" * 63) == 1
    lines = Parsed(opened + b"\n12:30" * 63 + b"\n!").rows
    assert lines[-1][1] == 0
    assert lines[-1][0][Term.MARKUP] == CONTENT


def test_only_what_closes_or_has_keys_is_a_sign() -> None:
    assert parsed_depth(b"<br>" + (b"\n1" * 50 + b"<br>") * 3 + b"\n1" * 20) == 0
    assert parsed_depth(b"[" + (b"\n1" * 50 + b"std::x") * 3) == 0
    assert parsed_depth(b"<a>" + (b"\n1" * 50 + b"<b/>") * 3) == 1
    assert parsed_depth(b"[" + b'\n"a":' * 150) == 1


def test_tags_begin_with_names() -> None:
    for name in (b"DIV", b"_a", b":b", "\u00e9".encode()):
        assert Parsed(b"<" + name + b">x").rows[-1][0][Term.ELEMENT] == named(name)
    for stray in (b"1", b"<", b" ", b">", b"=", b"[", b"{"):
        assert parsed_depth(b"<" + stray) == (1 if stray in b"[{" else 0)
    assert Parsed(b"<a>{[x]}:,y").rows[-1][1] == 1  # no JSON in elements
    assert Parsed(b"<a><a>x</a>y").rows[-1][1] == 1
    assert Parsed(b'<a b="c > d" e>x').rows[-1][1] == 1


def test_long_lists_stay_open_as_long_as_there_is_a_sign() -> None:
    assert parsed_depth(b'{"a": [\n' + b'  {"b": 1},\n' * 200) == 2
    assert parsed_depth(b"{\n" + b'  "a": 1,\n' * 200) == 1
    assert parsed_depth(b"<r>\n" + b"<i>1</i>\n" * 200) == 1


def parsed_depth(data: bytes) -> int:
    return Parsed(data + b" ").rows[-1][1]


def test_open_names_are_the_last_rows() -> None:
    assert max(Text) == Text.OPEN
    assert TEXT_ROWS == Text.OPEN + PLACES


TRICKY = (
    b"<!-- a > b --><?x?>\n"
    + b",x" * 34
    + b'\n[ <5,"a'
    + b"\n12:30,7" * 70
    + b"\n"
    + b"".join(b"<i%d>" % (i % 39) for i in range(45))
    + b"</i38></i39></i1></i40>1,2\n<b"
    + b"\n1,2" * 66
    + b'1,2<DIV><_a><:b><\xc3\xa9>{[x]}:</DIV><a><a q="x > y"></a></a><b<c></c<d e<f></f>\n1" x,2\n"q\\\n"r",3\n[{'
    + b"\n" * 63
    + b'"k":1,"a""\n'
    + b"[" * 40
    + b"]" * 39
    + b'"m":'
    + b"\n1,2" * 70
    + b"<n>" * 40
    + b"\n" * 65
    + b"1,2" * 40
    + b"\n"
    + b"3,4" * 40
)


def drawn_signs(size: int) -> bytes:
    """Signs of markup without order, and now and then many newlines."""
    drawn = np.random.default_rng(2)
    words = [bytes([c]) for c in b"<>/!?\"'\\{}[]:,;|\t\n xyA_\xe9"] + [
        b"<a>",
        b"</a>",
        b"<b ",
        b"/>",
        b'"k":',
        b"\n" * 9,
        b'="',
        b"[{",
    ]
    parts = [words[i] for i in drawn.integers(0, len(words), size)]
    for place in drawn.integers(0, size, size // 400).tolist():
        parts[place] = b"\n" * 65
    return b"".join(parts)


@pytest.mark.parametrize("data", [TRICKY, drawn_signs(40_000)], ids=["tricky", "drawn"])
def test_the_parser_is_its_slow_twin(data: bytes) -> None:
    text, terms = np.zeros(TEXT_ROWS, np.int64), np.zeros(len(Term) + 1, np.int64)
    slow, before, seen = Markup(), 0, set()
    for c in data:
        note_markup(text, c, before)
        write_markup_terms(text, terms)
        slow.note(c, before)
        before = c
        made = {
            name: int(terms[Term[name.upper()]]) & MASK
            for name in ("markup", "element", "parent", "closed", "named", "piece")
        }
        assert made == slow.terms()
        assert text[Text.DEPTH] > 0 or not text[Text.JSON]
        seen.add((int(text[Text.MARKUP]), bool(text[Text.JSON]), bool(text[Text.DEPTH])))
    assert {state for state, _, _ in seen} == set(range(7))


@pytest.mark.parametrize(
    "fields",
    [
        {"markup": True},
        {"markup": True, "rich": True, "words": False},
        {"markup": True, "rich": True, "instructions": True},
    ],
)
def test_markup_needs_rich_words(fields: dict) -> None:
    with pytest.raises(ConfigError, match="markup=True"):
        ExpertConfig.of(fields)
