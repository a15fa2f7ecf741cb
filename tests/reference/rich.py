"""A rich bank again, slowly: dictionaries, Python's integers, float32 one operation at a time. Written from `docs/format.md`.

It goes on from the slow twin of a light bank: histories, buckets, hashes of orders and single units, and the near match are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tests.reference.experts import FOURTH, MASK, NOTHING, SECOND, SlowBank, after, mixed

F = np.float32
Row = np.ndarray  # of float32
DIRECT, FAR_ORDER = 6, 12
NAMES = [
    "-",
    "unit_1",
    "unit_2",
    "unit_3",
    "token",
    "word",
    "word_1",
    "word_2",
    "word_3",
    "word_4",
    "gap",
    "gap_1",
    "phrase",
    "phrase_1",
    "phrase_2",
    "title",
    "since",
    "place",
    "length",
    "complete",
    "ending",
    "letters_4",
    "letters_6",
    "groups_2",
    "groups_4",
    "groups_8",
    "nibbles_3",
    "nibbles_8",
    "kinds_3",
    "kinds_10",
    "small",
    "opened",
    "follower",
    "followers",
    "line",
    "column",
    "above",
    "line_length",
    "line_begin",
    "line_first",
    "line_word",
    "next_word",
    "next_word_2",
    "next_pair",
    "sentence",
    "capitals",
    "classes_2",
    "classes_16",
    "initials_3",
    "after_1",
    "after_2",
    "phase_4",
    "above_1",
    "above_left",
    "above_right",
    "slope_1",
    "slope_2",
    "phase_2",
    "slope_16",
    "mean_16",
    "code_at",
    "code_bytes",
    "opcode",
    "instruction",
    "instruction_1",
    "instruction_2",
    "instruction_3",
    "form",
    "form_1",
    "form_2",
    "form_3",
    "opcodes_1",
    "opcodes_2",
    "opcodes_4",
    "markup",
    "element",
    "parent",
    "closed",
    "named",
    "piece",
    "number_byte",
    "channel",
    "expected_1",
    "expected_2",
    "expected_3",
    "expected_4",
    "expected_part",
    "spread",
    "spread_long",
    "disagreed",
]  # by number
SETS = (512, 512, 256, 256, 512, 2048, 256, 64, 384, 4608)


def joined(a: int, b: int) -> int:
    return mixed((a ^ (b + 1 & MASK)) * SECOND & MASK)


def exact(x: float) -> np.float32:
    """To multiples of 2^-20."""
    return F(round(x * 2**20) / 2**20)


def clipped(z: np.float32) -> np.float32:
    return min(max(z, F(-11.99)), F(11.99))


def dot(weights: Row, inputs: Row) -> np.float32:
    """Sixteen sums, each over every 16th product; then halves are added. NumPy only multiplies and adds pairs here, in float32."""
    sums = np.zeros(16, dtype=F)
    for products in (weights * inputs).reshape(-1, 16):
        sums = sums + products
    half = 8
    while half:
        sums = sums[:half] + sums[half:]
        half //= 2
    return sums[0]


def character_class(c: int) -> int:
    if 97 <= c <= 122 or c >= 128:
        return 1
    kinds = ((65, 90, 2), (48, 57, 3), (32, 32, 4))
    for low, high, number in kinds:
        if low <= c <= high:
            return number
    for signs, number in (("\n\r", 5), ("!.?", 6), (",:;", 7), ("\"'", 8), ("\t", 9)):
        if chr(c) in signs:
            return number
    return 10 if c < 32 else 11 if chr(c) in "()<>[]{}" else 12


class Words:
    """The text of a stream: what terms are made of."""

    def __init__(self) -> None:
        self.letters: list[int] = []  # of the current word
        self.word = 0
        self.words = [0, 0, 0, 0]
        self.gap = self.gap_1 = 0
        self.length = self.capitals = 0
        self.all_letters: list[int] = []
        self.initials: list[int] = []
        self.phrase = [0, 0, 0]
        self.characters: list[int] = []
        self.small = 0
        self.opened = 0
        self.title = self.line = self.line_word = self.line_first = 0
        self.line_begin = self.line_before = 0
        self.sentence = self.gone = 0


def opcodes(spans: str) -> set[int]:
    found: set[int] = set()
    for span in spans.split():
        low, _, high = span.partition("-")
        found |= set(range(int(low, 16), int(high or low, 16) + 1))
    return found


WITH_MODRM = {
    1: opcodes("00-03 08-0B 10-13 18-1B 20-23 28-2B 30-33 38-3B 62-63 69 6B 80-8F C0-C1 C4-C7 D0-D3 D8-DF F6-F7 FE-FF"),
    2: opcodes("00-03 0D 10-2F 40-76 78-7F 90-9F A3-A5 AB-AF B0-C7 D0-FF"),
    3: opcodes("00-FF"),
}
IMMEDIATES = {
    1: {
        1: opcodes("04 0C 14 1C 24 2C 34 3C 6A-6B 70-7F 80 82-83 A8 B0-B7 C0-C1 C6 CD D4-D5 E0-E7 EB"),
        2: opcodes("C2 CA"),
        3: opcodes("C8"),
        4: opcodes("A0-A3 E8-E9"),
        6: opcodes("9A EA"),
        "v": opcodes("05 0D 15 1D 25 2D 35 3D 68-69 81 A9 B8-BF C7"),
    },
    2: {1: opcodes("70-73 A4 AC BA C2 C4-C6"), 4: opcodes("80-8F")},
}
PREFIXES = opcodes("26 2E 36 3E 64-67 F0 F2-F3")


class Instructions:
    """The parser of x86 code, written from the format page."""

    def __init__(self) -> None:
        self.votes = self.opcodes = 0
        self.last, self.forms = [0, 0, 0], [0, 0, 0]
        self.begin()

    def begin(self) -> None:
        self.waits, self.instruction, self.bytes, self.prefixes = 0, 0, 0, 0
        self.opcode, self.modrm, self.sib, self.left = 0, 0, 0, 0

    def form(self) -> int:
        return joined(joined(self.opcode, self.modrm), self.sib)

    def note(self, c: int, before: int) -> None:
        self.instruction = joined(self.instruction, c)
        self.bytes += 1
        if self.waits == 0:
            prefix = c in PREFIXES or (0x40 <= c <= 0x4F and self.votes >= 128)
            if c == 0x0F:
                self.waits = 1
            elif c in (0xC5, 0xC4, 0x62) and self.votes >= 128:
                self.waits, self.left = {0xC5: (13, 1), 0xC4: (14, 0), 0x62: (15, 0)}[c]
            elif prefix and self.bytes <= 5:
                self.prefixes |= {0x66: 1, 0xF2: 2, 0xF3: 4}.get(c, 8 if 0x48 <= c <= 0x4F else 16)
            else:
                if c in (0x83, 0x85, 0x89, 0x8B, 0x8D):
                    if 0x48 <= before <= 0x4F:
                        self.votes = min(self.votes + 16, 255)
                    elif not 0x40 <= before <= 0x4F:
                        self.votes = max(self.votes - 1, 0)
                self.after_opcode(1, c)
        elif self.waits == 1:
            if c in (0x38, 0x3A):
                self.waits, self.left = 2, int(c == 0x3A)
            else:
                self.after_opcode(2, c)
        elif self.waits == 2:
            self.after_opcode(3, c)
        elif self.waits == 3:
            self.modrm = c + 1
            if self.opcode & 0xFFFF in (0x1F6, 0x1F7) and c & 0x30 == 0:
                self.left = 1 if self.opcode & 1 == 0 else self.size_v()
            if c >> 6 != 3 and c & 7 == 4:
                self.waits = 4
            else:
                self.displacement(c & 7)
        elif self.waits == 4:
            self.sib = c + 1
            self.displacement(c & 7)
        elif self.waits == 5:
            self.immediate()
        elif self.waits <= 8:
            self.waits -= 1
        elif self.waits >= 13:
            self.left = self.left or c & 7
            self.waits -= 1
            if self.waits == 12:
                self.waits, self.left = 1 if self.left == 1 else 2, int(self.left == 3)
        else:
            self.left -= 1
            self.immediate()

    def size_v(self) -> int:
        return 2 if self.prefixes & 1 else 4

    def after_opcode(self, table: int, c: int) -> None:
        self.opcode = self.prefixes << 16 | table << 8 | c
        if table != 3:
            sizes = [size for size, some in IMMEDIATES[table].items() if c in some]
            self.left = self.size_v() if sizes == ["v"] else sizes[0] if sizes else 0
            if table == 1 and 0xB8 <= c <= 0xBF and self.prefixes & 8:
                self.left = 8
        if c in WITH_MODRM[table]:
            self.waits = 3
        else:
            self.immediate()

    def displacement(self, base: int) -> None:
        mode = (self.modrm - 1) >> 6
        size = {1: 1, 2: 4, 0: 4 if base == 5 else 0}.get(mode, 0)
        if size:
            self.waits = 4 + size
        else:
            self.immediate()

    def immediate(self) -> None:
        if self.left:
            self.waits = 8 + min(self.left, 4)
            return
        self.last, self.forms = [self.instruction, *self.last[:2]], [self.form(), *self.forms[:2]]
        self.opcodes = (self.opcodes << 16 | self.opcode & 0xFFFF) & MASK
        self.begin()

    def terms(self) -> dict[str, int]:
        made = {"code_at": self.waits, "code_bytes": min(self.bytes, 15), "opcode": self.opcode}
        made |= {"instruction": self.instruction, "form": joined(self.form(), self.prefixes)}
        for a in range(3):
            made |= {f"instruction_{a + 1}": self.last[a], f"form_{a + 1}": self.forms[a]}
        return made | {f"opcodes_{a}": self.opcodes & (1 << 16 * a) - 1 for a in (1, 2, 4)}


class Markup:
    """The parser of XML, HTML, JSON and tables, written from the format page."""

    def __init__(self) -> None:
        self.state = self.piece = self.depth = self.field = self.json = self.lines = 0
        self.quote = self.escaped = self.named = self.closed = 0
        self.places = [0] * 32

    def go(self, state: int) -> None:
        self.state, self.piece = state, 0

    def begin_string(self) -> None:
        self.escaped = 0
        self.go(6)

    def open(self, name: int) -> None:
        self.depth += 1
        self.places[self.depth % 32] = name
        self.named = 0
        if self.depth == 1:
            self.lines = 0

    def close(self, name: int) -> None:
        for d in range(self.depth, max(1, self.depth - 31) - 1, -1):
            if self.places[d % 32] == name:
                self.depth, self.closed, self.named, self.lines = d - 1, name, 0, 0
                return

    def note(self, code: int, before: int) -> None:
        c, p = chr(code), self.piece
        self.piece = joined(p, code)
        if c == "\n":
            self.lines += 1
            if self.lines >= 64:
                self.json = self.depth = self.state = 0
        if self.state == 1 and p == 0 and not (is_letter(lower(code)) or c in "_:/!?"):
            self.state = 0
        if c == "<" and self.state not in (5, 6):
            self.go(1)
            return
        steps = [self.content, self.name, self.closing, self.inside, self.value, self.other, self.string]
        steps[self.state](c, p, before)

    def in_field(self, c: str, p: int) -> None:
        if c in ",;\t|\n":
            self.places[1 + self.field % 31] = self.closed = p or self.named
            self.named = self.piece = 0
            self.field = 0 if c == "\n" else self.field + 1
        elif c == '"' and p == 0:
            self.begin_string()

    def content(self, c: str, p: int, before: int) -> None:
        if self.depth == 0:
            self.in_field(c, p)
        if self.depth == 0 or self.json:
            if c in "{[":
                self.open(0)
                self.json, self.closed, self.piece = 1, 0, 0
            elif self.json:
                self.in_json(c, before)

    def in_json(self, c: str, before: int) -> None:
        top = self.depth % 32
        if c == '"':
            self.begin_string()
        elif c == ":":
            self.lines = 0 if before == 34 else self.lines
            self.places[top], self.piece = self.named, 0
        elif c == ",":
            self.closed, self.places[top], self.piece = self.places[top], 0, 0
        elif c in "}]":
            self.depth -= 1
            self.json = int(self.depth != 0)
            self.lines = self.piece = 0

    def name(self, c: str, p: int, _before: int) -> None:
        if p == 0:
            if self.json:
                self.json = self.depth = 0
            if c in "/!?":
                self.go(2 if c == "/" else 5)
        elif c in "/>" or ord(c) <= 32:
            self.open(p)
            self.go(0 if c == ">" else 3)

    def closing(self, c: str, p: int, _before: int) -> None:
        if c == ">":
            self.close(p)
            self.go(0)
        elif ord(c) <= 32:
            self.piece = p

    def inside(self, c: str, p: int, before: int) -> None:
        if c == ">":
            if before == ord("/"):
                self.close(self.places[self.depth % 32])
            self.go(0)
        elif c in "\"'":
            self.named, self.quote = p, ord(c)
            self.go(4)
        elif ord(c) <= 32:
            self.go(3)

    def value(self, c: str, _p: int, _before: int) -> None:
        if ord(c) == self.quote:
            self.go(3)

    def other(self, c: str, _p: int, _before: int) -> None:
        if c == ">":
            self.go(0)

    def string(self, c: str, p: int, _before: int) -> None:
        if c == "\n":
            self.named = p
            self.go(0)
            if self.depth == 0:
                self.in_field(c, 0)
        elif self.escaped:
            self.escaped = 0
        elif c == "\\":
            self.escaped = 1
        elif c == '"':
            self.named = p
            self.go(0)

    def terms(self) -> dict[str, int]:
        above = self.places[1 + self.field % 31]
        parent = above if self.depth == 0 else 0 if self.depth == 1 else self.places[(self.depth - 1) % 32]
        element = self.places[self.depth % 32] if self.depth else self.field
        made = {"markup": self.state, "element": element, "parent": parent}
        return made | {"closed": self.closed, "named": self.named, "piece": self.piece}


def is_letter(c: int) -> bool:
    return 97 <= c <= 122 or c >= 128


def lower(c: int) -> int:
    return c + 32 if 65 <= c <= 90 else c


def group(c: int) -> int:
    if c >= 128:
        return c & 0xF0
    return 97 if 97 <= c <= 122 else 65 if 65 <= c <= 90 else 48 if 48 <= c <= 57 else c


def kind(c: int) -> int:
    if is_letter(lower(c)):
        return 1
    if c in (32, 10, 9, 13):
        return 3
    return 4 if 48 <= c <= 57 else 2 if c >= 32 else 5


def packed(numbers: list[int], bits: int, count: int) -> int:
    """The last numbers side by side."""
    value = 0
    for number in numbers[-count:]:
        value = value << bits | number
    return value


class Numbers:
    """What is predicted of data made of numbers. Values are kept as numbers without a sign, the bytes of the current one beside them."""

    def __init__(self, kind: str, channels: int, begin: int, width: int) -> None:
        self.size, self.big, self.signed, self.C = int(kind[-1]), kind[0] == ">", kind[-2] == "i", channels
        self.width = width // self.size
        self.current = [0] * ((self.size - begin) % self.size)  # bytes of a number that began before the stream
        self.values: list[int] = []
        self.first = 1 if begin == 0 else 0  # the channel of numbers goes on from the one before the stream
        self.errors: list[list[float]] = []
        self.sums = [[([[0.0] * n for _ in range(n)], [0.0] * n, [0.0] * n) for n in (24, 8)] for _ in range(channels)]
        self.spreads = [[256.0**self.size / 64] * 4 for _ in range(channels)]
        self.guesses = [0.0] * 4

    def value(self, data: list[int]) -> int:
        found = int.from_bytes(bytes(data), "big" if self.big else "little")
        return found ^ 1 << 8 * self.size - 1 if self.signed else found

    def back(self, d: int) -> float:
        """The number d before the current one; before the stream all bytes are 0."""
        return float(self.values[-d] if 0 < d <= len(self.values) else self.value([0] * self.size))

    def error(self, d: int, p: int) -> float:
        return self.errors[-d][p] if 0 < d <= len(self.errors) else 0.0

    def reach(self) -> list[int]:
        """How many numbers back the neighbours are."""
        C, found = self.C, []
        along = [(k, k * C) for k in range(2, 26)] + [(k + 0.5, k * C + c) for k in range(24) for c in range(1, C)]
        if not self.width:
            found = along
        else:
            for row in range(4):
                for column in range(-4, 5):
                    if row > 0 or column < -1:
                        found.append((row * row + column * column, row * self.width - column * C))
            for c in range(1, C):
                found += [(0.5, c), (1.6, c + C), (1.6, c + self.width), (2.1, c + C + self.width)]
            found = [(far, d) for far, d in found if d >= 1] + [(100 + far, d) for far, d in along]
        nearest: list[int] = []
        for _, d in sorted((far, d * self.size) for far, d in found):
            if d // self.size not in (C, *nearest):
                nearest.append(d // self.size)
        return nearest[:24]

    def terms(self) -> dict[str, int]:
        at = len(self.current)
        count = len(self.values) + self.first
        self.channel = c = count % self.C
        if at == 0:
            left = self.back(self.C)
            self.left, self.near = left, [self.back(d) - left for d in self.reach()]
            for r, (_, _, w) in enumerate(self.sums[c]):
                total = 0.0
                for a, b in zip(w, self.near, strict=False):
                    total += a * b
                self.guesses[r] = left + total if abs(total) < 256.0**self.size - 1.0 else left
            if self.width:
                up = self.back(self.width)
                self.guesses[2:] = [left + up - self.back(self.width + self.C), (left + up) * 0.5]
            else:
                self.guesses[2:] = [left, 2.0 * left - self.back(2 * self.C)]
            self.guesses = [min(max(g, 0.0), 256.0**self.size - 1.0) for g in self.guesses]
        known = self.current.copy()
        if self.big and self.signed and known:
            known[0] ^= 128
        so_far = int.from_bytes(bytes(known), "big" if self.big else "little")
        self.step = 256.0 ** (self.size - 1 - at if self.big else at)
        base = so_far * self.step * 256.0 if self.big else float(so_far)
        self.to_come = [(g - base) / self.step for g in self.guesses]
        self.scales = []
        made = {"number_byte": at, "channel": c}
        for p in range(4):
            before, C, w = self.error(self.C, p), self.C, self.width
            if w:
                beside = self.error(w + C, p) + (self.error(w - C, p) if w > C else 0.0)
                near = ((before + self.error(w, p)) * 2.0 + beside) / 6.0
            else:
                near = (before * 2.0 + self.error(2 * C, p)) / 3.0
            long = self.spreads[c][p]
            both = (long * 0.72, (near * 3.0 + long) * 0.25 * 0.72)
            self.scales.append([max(scale, 0.02) / self.step for scale in both])
            expected = math.floor(self.to_come[p] + 0.5)
            whole = self.big or at == self.size - 1
            made[f"expected_{p + 1}"] = (min(max(expected, -256), 511) if whole else expected & 255) & MASK
        made["expected_part"] = math.floor(self.to_come[0] * 4.0) & MASK
        sizes = [self.scales[0][1] * self.step, self.scales[0][0] * self.step, abs(self.guesses[0] - self.guesses[1])]
        for name, x in zip(("spread", "spread_long", "disagreed"), sizes, strict=True):
            made[name] = min(max(int(x * 16).bit_length() - 1, 0), 31)
        return made

    def chances(self, node: int, depth: int) -> list[np.float32 | None]:
        """Of each prediction and scale, the probability of a one; None where there is nothing to say, after the byte."""
        if depth >= 8:
            return [None] * 8
        at, made = len(self.current), []
        highest = at == (0 if self.big else self.size - 1)
        unknown_above = not self.big and not highest
        edge = 0.5 / self.step if self.big else 0.5
        values = [v for v in range(256) if (v | 256) >> 8 - depth == node]
        half = len(values) // 2

        def below(z: float) -> float:
            step = int((min(max(z, -11.99), 11.99) + 12.0) * 256.0)
            return float(exact(1 / (1 + math.exp(-((step + 0.5) / 256 - 12)))))

        def part(a: float, b: float) -> float:
            return below(-a) - below(-b) if a > 0 else below(b) - below(a)

        for left, scales in zip(self.to_come, self.scales, strict=True):
            for scale in scales:
                if unknown_above and scale >= 0.4 * 256.0:
                    made.append(F(0.5))
                    continue
                chances = []
                for some in (values[:half], values[half:]):  # those whose next bit is 0, 1
                    begin = some[0] ^ 128 if highest and self.signed else some[0]
                    lowest = values[0] ^ 128 if highest and self.signed and depth else values[0]
                    from_left = lowest - edge - left
                    if unknown_above:
                        from_left -= (math.floor(from_left / 256.0) + 2.0) * 256.0
                    chance = 1e-6 * half
                    for _ in range(3 if unknown_above else 1):
                        a, b = from_left + (begin - lowest), from_left + (begin - lowest + half)
                        chance += part(a / scale, b / scale)
                        from_left += 256.0
                    chances.append(chance)
                made.append(F(chances[1] / (chances[0] + chances[1])))
        return made

    def note(self, byte: int) -> None:
        self.current.append(byte)
        if len(self.current) < self.size:
            return
        number = float(self.value(self.current))
        if not hasattr(self, "near"):  # a number that began before the stream is not predicted
            self.near, self.left = [0.0] * 24, 0.0
        target = number - self.left
        if target or any(self.near):
            for (products, crossed, w), keep in zip(self.sums[self.channel], (0.998, 0.98), strict=True):
                self.regress(products, crossed, w, target, keep)
        errors = [abs(number - g) for g in self.guesses]
        self.errors.append(errors)
        for p in range(4):
            old = self.spreads[self.channel][p]
            self.spreads[self.channel][p] = max(old + (errors[p] - old) / 32, 1e-6)
        self.values.append(int(number))
        self.current = []

    def regress(self, products: list, crossed: list, w: list, target: float, keep: float) -> None:
        n, near = len(w), self.near
        for i in range(n):
            for j in range(i + 1):
                sum_now = products[i][j] * keep + near[i] * near[j]
                products[i][j] = sum_now if abs(sum_now) > 1e-12 else 0.0
            sum_now = crossed[i] * keep + target * near[i]
            crossed[i] = sum_now if abs(sum_now) > 1e-12 else 0.0
        L = [[0.0] * n for _ in range(n)]
        for i in range(n):
            for j in range(i + 1):
                ridge = 1.0 + products[i][i] * 2.0**-30
                rest = products[i][j] + (ridge if i == j else 0.0)
                for k in range(j):
                    rest -= L[i][k] * L[j][k]
                L[i][j] = math.sqrt(max(rest, ridge)) if i == j else rest / L[j][j]
        y = [0.0] * n
        for i in range(n):
            rest = crossed[i]
            for k in range(i):
                rest -= L[i][k] * y[k]
            y[i] = rest / L[i][i]
        for i in reversed(range(n)):
            rest = y[i]
            for k in range(i + 1, n):
                rest -= L[k][i] * w[k]
            w[i] = rest / L[i][i]


class SlowRich(SlowBank):
    """As `ExpertBank` with `rich`, learning always.

    Args:
        contexts: as of `SlowBank`, and ("terms", names).
        direct: numbers of the contexts with probabilities of their own. `width`: of rows, or 0. `numbers`: kind, channels, bytes before the first.
    """

    def __init__(
        self,
        contexts: list[tuple],
        unit_bits: int,
        buckets: int,
        history: int,
        match_order: int,
        shift: int,
        direct: list[int],
        width: int,
        instructions: bool = False,
        markup: bool = False,
        numbers: tuple[str, int, int] | None = None,
    ) -> None:
        super().__init__(contexts, unit_bits, buckets, history, match_order, -1)
        self.shift, self.direct, self.width = shift, direct, width
        self.state = Words()
        self.code = Instructions() if instructions else None
        self.markup = Markup() if markup else None
        self.numbers = Numbers(*numbers, width) if numbers else None
        self.entries = buckets
        self.runs: dict[tuple[int, int], tuple[int, int, int, int]] = {}  # check, count, other + 1, latest
        self.run_logits: dict[tuple[int, int], np.float32] = {}
        self.direct_p: dict[tuple[int, int, int], list[int]] = {}
        self.rows: dict[int, Row] = {}
        self.visits: dict[int, np.float32] = {}
        self.blend: dict[int, Row] = {}
        self.refined: dict[tuple[int, int], list[np.float32]] = {}
        self.far_heads: dict[int, int] = {}
        self.far: dict[int, int] = {}
        self.far_at, self.far_length = 0, 0
        self.followed: dict[tuple[int, int], int] = {}
        self.seen: dict[int, tuple[int, int]] = {}
        self.next: dict[tuple[int, int], int] = {}
        self.M = -(-(4 * self.K + 6 + 2 * DIRECT + (16 if numbers else 0)) // 16) * 16

    # ---- terms ----

    def after_place(self, a: int) -> tuple[int, int]:
        return a, (self.age(1) + (a - 1) * self.age(2) * 257) & 0xFFFF

    def pair(self, d: int) -> int:
        high, low = (max(self.age(a) - 1, 0) >> self.shift for a in (d, d + 1))
        return high << 8 | low

    def age(self, a: int) -> int:
        return super().age(a) if a else 0

    def terms(self) -> dict[str, int]:
        t, n = self.state, len(self.units)
        token = t.word or t.gap
        length = t.length if t.word else 0
        made = {f"unit_{a}": self.age(a) for a in (1, 2, 3)}
        made |= {f"word_{a + 1}": t.words[a] for a in range(4)}
        made |= {"phrase" + (f"_{a}" if a else ""): t.phrase[a] for a in range(3)}
        made |= {"token": token, "word": t.word, "gap": t.gap, "gap_1": t.gap_1, "title": t.title}
        if t.word:
            there = self.seen.get(t.word >> 48)
            known = there is not None and there[1] == t.word >> 16 & 0xFFFF
            made |= {"complete": int(known)}
            made |= {"since": (len(self.history) - there[0]).bit_length() if known else 0}
        else:
            made |= {"complete": 2, "since": 64 + t.gone.bit_length()}
        made |= {"place": n >> 10, "length": length}
        made |= {"ending": packed(t.all_letters, 8, min(length, 3)) if length else 0}
        made |= {f"letters_{a}": packed(t.all_letters, 8, a) for a in (4, 6)}
        groups = [group(c) for c in t.characters]
        made |= {f"groups_{a}": packed(groups, 8, a) for a in (2, 4, 8)}
        nibbles = [0 if c == 32 else c >> 4 for c in t.characters]
        made |= {f"nibbles_{a}": packed(nibbles, 4, a) for a in (3, 8)}
        kinds = [kind(c) for c in t.characters]
        made |= {f"kinds_{a}": packed(kinds, 3, a) for a in (3, 10)}
        made |= {"small": min(t.small, 63), "opened": t.opened}
        followers = self.followed.get((0, token >> 48), 0)
        made |= {"follower": followers & 511, "followers": followers}
        column = n - t.line_begin
        above = t.line_before + column
        made |= {"line": t.line, "column": min(column, 255), "above": 0}
        if above < t.line_begin and n - above < 1024:
            made["above"] = self.age(n - above)
        made |= {"line_length": min(t.line_begin - t.line_before, 255), "line_begin": t.line_begin}
        made |= {"line_first": t.line_first, "line_word": t.line_word}
        made |= {
            "next_word": self.next.get((0, t.words[0] >> 48), 0),
            "next_word_2": self.next.get((1, t.words[0] >> 48), 0),
        }
        made |= {"next_pair": self.next.get((2, joined(t.words[0], t.words[1]) >> 48), 0)}
        classes = [character_class(c) for c in t.characters]
        made |= {"sentence": min(t.sentence, 7), "capitals": t.capitals, "classes_2": packed(classes, 4, 2)}
        made |= {"classes_16": packed(classes, 4, 16), "initials_3": packed(t.initials, 8, 3)}
        made |= {f"after_{a}": self.followed.get(self.after_place(a), 0) for a in (1, 2)}
        made |= {"phase_4": n & 3}
        rows = ["above_1", "above_left", "above_right", "slope_1", "slope_2", "phase_2", "slope_16", "mean_16"]
        made |= dict.fromkeys(rows, 0)
        if self.width:
            w, mask, odd = self.width, (1 << self.U) - 1, n & 1
            up, left = self.age(w), self.age(w + 1)
            made |= {"above_1": up, "above_left": left, "above_right": self.age(w - 1), "phase_2": odd}
            made |= {
                "slope_1": (self.age(1) + up - left) & mask,
                "slope_2": (self.age(2) + up - self.age(w + 2)) & mask,
            }
            before, over, corner = self.pair(1 + odd), self.pair(w - 1 + odd), self.pair(w + 1 + odd)
            made |= {"slope_16": (before + over - corner) & 0xFFFF, "mean_16": before + over >> 1}
        made |= self.code.terms() if self.code else dict.fromkeys(NAMES[60:74], 0)
        made |= self.markup.terms() if self.markup else dict.fromkeys(NAMES[74:80], 0)
        return made | (self.numbers.terms() if self.numbers else dict.fromkeys(NAMES[80:], 0))

    def hashes(self) -> list[int]:
        made, whole = self.terms(), self.contexts
        self.contexts = [c if c[0] != "terms" else ("order", 0) for c in whole]  # those of terms are written below
        out = super().hashes()
        self.contexts = whole
        for k, (kind, names) in enumerate(whole):
            if kind == "terms":
                value = 0
                for name in names:
                    value = mixed(((value ^ made[name]) * FOURTH + NAMES.index(name)) & MASK)
                out[k] = mixed(mixed(value + (k + 1) * 0xD1B54A32D192ED03 & MASK))
        self.made = made
        return out

    def note(self, unit: int) -> None:
        t, n, c = self.state, len(self.units), unit >> self.shift
        before = self.units[-1] >> self.shift if self.units else 0
        if self.code:
            self.code.note(c, before)
        if self.markup:
            self.markup.note(c, before)
        if self.numbers:
            self.numbers.note(c & 255)
        places = [(0, (t.word or t.gap) >> 48), self.after_place(1), self.after_place(2)]
        for place in places:
            self.followed[place] = (self.followed.get(place, 0) << 9 | unit) & (1 << 18) - 1
        capital, small = 65 <= c <= 90, lower(c)
        t.characters.append(c)
        t.small = 0 if capital else min(t.small + 1, 255)
        if is_letter(small):
            if not t.word:
                t.gap_1, t.gap, t.length, t.capitals = t.gap, 0, 0, 0
                t.initials = [*t.initials, small][-8:]
            t.word = joined(t.word, small)
            t.length += 1
            t.all_letters.append(small)
            if capital:
                t.capitals |= 2 if t.length > 1 else 1
            t.phrase[0] = joined(t.phrase[0], small)
        else:
            if t.word:
                self.end_word()
            t.gap = joined(t.gap, c)
            if c in (32, 10) and (is_letter(lower(before)) or before in (39, 34)):
                t.phrase = [0, *t.phrase[:2]]
            elif not (c in (39, 34) or (c, before) in ((10, 32), (32, 10))):
                t.phrase = [0] * 3
            if chr(c) in "!.?":
                t.sentence = 0
            if chr(c) in '"(<[{':
                t.opened = c
            elif chr(c) in "')>]}":
                t.opened = 0
        if n == t.line_begin:
            t.line_first = group(c)
        if c == 10:
            if before == 58:
                t.title = t.line
            t.line_before, t.line_begin = t.line_begin, n + 1
            t.line = t.line_word = 0
        else:
            t.line = joined(t.line, c)

    def end_word(self) -> None:
        t = self.state
        word, now = t.word, len(self.history)
        t.words, t.word = [word, *t.words[:3]], 0
        if t.line_word == 0:
            t.line_word = word
        t.sentence += 1
        slot, check = word >> 48, word >> 16 & 0xFFFF
        there = self.seen.get(slot)
        t.gone = now - there[0] if there is not None and there[1] == check else 0
        self.seen[slot] = now, check
        one, two = t.words[1] >> 48, joined(t.words[1], t.words[2]) >> 48
        self.next[1, one] = self.next.get((0, one), 0)
        self.next[0, one] = word
        self.next[2, two] = word

    # ---- the far match ----

    def find_far(self) -> None:
        n = len(self.units)
        if n >= FAR_ORDER:
            value = 0
            for a in range(1, FAR_ORDER + 1):
                value = joined(value, self.units[-a])
            slot = value >> 20 & (1 << self.head_bits) - 1
            if not self.far_length:
                found, same = self.far_heads.get(slot, 0), 0
                oldest = max(0, len(self.history) - (self.ring - 1))
                while (
                    found > oldest
                    and same < 63
                    and found - 1 - same >= oldest
                    and same < n
                    and self.history[found - 1 - same] == self.units[-1 - same]
                ):
                    same += 1
                if same >= FAR_ORDER:
                    self.far_at, self.far_length = found, same
            self.far_heads[slot] = len(self.history)
        if self.far_length and self.far_at >= len(self.history):
            self.far_length = 0

    # ---- one unit ----

    def logit(self, chance12: int) -> np.float32:
        p = (chance12 + 0.5) / 4096
        return exact(math.log(p / (1 - p)))

    def chance_at(self, z: np.float32) -> np.float32:
        step = int(F(F(z + F(12)) * F(256)))
        return exact(1 / (1 + math.exp(-((step + 0.5) / 256 - 12))))

    def run_logit(self, k: int, row: int) -> np.float32:
        if row == 0:
            return F(0)
        start = 0.5 if row >= 64 else min(math.log1p(row // 2) + 0.5, 4)
        return self.run_logits.setdefault((k, row), exact(start))

    def weights_row(self, row: int) -> Row:
        if row not in self.rows:
            start = [F(4 / self.K)] * self.K + [F(0)] * (self.M - self.K)
            start[4 * self.K] = start[4 * self.K + 2] = F(0.2)
            self.rows[row] = np.array(start)
        return self.rows[row]

    def expected(self, at: int, node: int, depth: int) -> int | None:
        symbol = self.history[at] | 1 << self.U
        return symbol >> (self.U - 1 - depth) & 1 if symbol >> (self.U - depth) == node else None

    def go(self, bit_of: Callable[[int], int]) -> list[list[int]]:
        hashes = self.hashes()
        self.find_match()
        self.find_far()
        U, K, made = self.U, self.K, self.made
        places = [(k, h >> 32 & self.entries - 1) for k, h in enumerate(hashes)]
        runs = []
        for place, h in zip(places, hashes, strict=True):
            there = self.runs.get(place, (0, 0, 0, 0))
            runs.append(there[1:] if there[0] == h >> 24 & 255 else (0, 0, 0))
        before = made["unit_1"] - 1 if made["unit_1"] else 0
        rows, node = [], 1
        for depth in range(U):
            inside = depth % 4
            root = node >> inside
            if inside == 0:
                buckets = [self.bucket(k, h, root) for k, h in enumerate(hashes)]
                lines = [
                    mixed(hashes[k] ^ root * 0xE7037ED1A0B428DB & MASK) >> 20 & self.buckets // 4 - 1
                    for k in self.direct
                ]
            slot = 1 << inside | node & (1 << inside) - 1
            seen = [b[slot] for b in buckets]
            flat, sure, run, run_rows = [], [], [], []
            steep = []
            for k, s in enumerate(seen):
                p = self.chance_of(k, s)[0]
                steep.append(self.logit(p >> 10))
                flat.append(F(F(F(p) * F(2.0**-22) - F(0.5)) * F(4)))
                sure.append(F(steep[-1] * F(0 in s[:2])))
                count, other, latest = runs[k]
                row, unit = 0, other - 1
                if count and (latest | 1 << U) >> (U - depth) == node:
                    row, unit = count * 2 + (other > 0), latest
                elif other and (other - 1 | 1 << U) >> (U - depth) == node:
                    row = 64 + count
                bit = unit >> (U - 1 - depth) & 1 if row else 1
                z = self.run_logit(k, row)
                run.append(z if bit else F(-z))
                run_rows.append((row, bit))
            x = [*steep, *flat, *sure, *run]
            bits, lengths = [None, None], [0, 0]
            for which, (at, length, most) in enumerate(
                ((self.match_at, self.match_length, 31), (self.far_at, self.far_length, 63))
            ):
                if length:
                    bits[which] = self.expected(at, node, depth)
                    lengths[which] = min(length, most) if bits[which] is not None else 0
                entry = self.match.get(lengths[0], 3 << 14) if which == 0 else self.far.get(lengths[1], 50000)
                sign = F(0) if bits[which] is None else F(1) if bits[which] else F(-1)
                x.append(F(sign * self.logit(entry >> 4)))
                x.append(F(F(sign * F(F(F(entry) * F(2.0**-16)) - F(0.5))) * F(2)))
            x += [self.logit(self.first.get(node, 1 << 15) >> 4), F(0.4)]
            for d in range(DIRECT):
                p = self.direct_p.setdefault((d, lines[d], slot), [1 << 21, 0])[0]
                x += [self.logit(p >> 10), F(F(F(p) * F(2.0**-22) - F(0.5)) * F(4))]
            if self.numbers:
                for chance in self.numbers.chances(node, depth):
                    if chance is None:
                        x += [F(0), F(0)]
                    else:
                        x += [self.logit(min(int(F(chance * F(4096))), 4095)), F(F(chance - F(0.5)) * F(4))]
            x += [F(0)] * (self.M - len(x))
            known = [s != NOTHING for s in seen]
            longest = max((k + 1 for k in range(min(8, K)) if known[k]), default=0)
            length, classes = min(made["length"], 15), made["classes_2"]
            chosen = [
                node,
                before,
                min(lengths[0], 15) * 16 + min(sum(known) * 16 // (K + 1), 15),
                length * 16 + (classes & 15),
                made["unit_2"] & 511,
                classes * 8 + (depth & 7),
                min(made["column"], 63) * 4 + min(depth, 3),
                made["sentence"] * 8 + made["capitals"],
                (length * 3 + made["complete"]) * 8 + (depth & 7),
                longest * 512 + node,
            ]
            token = made["token"]
            if self.code:
                token, at = made["instruction"], made["code_at"]
                chosen[3] = at * 16 + made["code_bytes"]
                chosen[5] = (made["opcode"] & 255) * 8 + (depth & 7)
                chosen[8] = (at * 3 + made["complete"]) * 8 + (depth & 7)
            if self.numbers:
                byte = made["number_byte"]
                chosen[3] = made["spread"] * 8 + (depth & 7)
                chosen[5] = (made["expected_1"] & 255) * 8 + (depth & 7)
                chosen[6] = made["spread_long"] * 8 + (depth & 7)
                chosen[7] = (made["channel"] & 1) * 32 + byte * 8 + (depth & 7)
                chosen[8] = (min(made["disagreed"], 11) * 4 + byte) * 8 + (depth & 7)
                token = made["expected_part"] * 4 + byte & MASK
            chosen = [sum(SETS[:m]) + row for m, row in enumerate(chosen)]
            inputs = np.array(x)
            outputs = np.array([clipped(dot(self.weights_row(row), inputs)) for row in chosen] + [F(0)] * 6)
            for row in (node, (1 << U) + before):
                self.blend.setdefault(row, np.array([F(1 / 10)] * 10 + [F(0)] * 6))
            blends = [self.blend[row] for row in (node, (1 << U) + before)]
            blended = [clipped(dot(b, outputs)) for b in blends]
            z = F(F(blended[0] + blended[1]) * F(0.5))
            place = F(F(min(max(z, F(-7.7499)), F(7.7499)) * F(2)) + F(15.5))
            low = int(place)
            part = F(place - F(low))
            two = mixed(made["unit_1"] * 4099 + made["unit_2"]) >> 30
            maps = []
            for which, row in enumerate(
                (before << U | node, two ^ node * 40503, mixed(token ^ node * 0x5851F42D4C957F2D & MASK) >> 40)
            ):
                knots = [exact(1 / (1 + math.exp(-(i - 15.5) / 2))) for i in range(32)]
                maps.append(self.refined.setdefault((which, row & 0xFFFF), knots))
            total = F(0)
            for m in maps:
                total = F(total + F(F(m[low] * F(F(1) - part)) + F(m[low + 1] * part)))
            final = F(F(F(0.5) * self.chance_at(z)) + F(F(F(0.5) * total) * F(1 / 3)))
            one = min(max(int(F(final * F(65536))), 1), 65535)
            said = [*x[: min(28, K)], x[4 * K], x[4 * K + 2], self.logit(one >> 4)]
            rows.append([min(max(math.floor(F(F(v * F(12)) + F(0.5))), -127), 127) for v in said])

            bit = bit_of(one)
            goal = F(bit)
            for row, made_logit in zip(chosen, outputs, strict=False):
                self.visits[row] = F(self.visits.get(row, F(0)) + F(1))
                rate = max(F(0.0003), min(F(0.005), F(F(0.1) / np.sqrt(self.visits[row]))))
                error = F(F(goal - self.chance_at(made_logit)) * rate)
                weights = self.weights_row(row)
                weights += inputs * error
            for b, z_b in zip(blends, blended, strict=True):
                error = F(F(goal - self.chance_at(z_b)) * F(0.0008))
                b += outputs * error
            for m in maps:
                for i, share in ((low, F(F(1) - part)), (low + 1, part)):
                    m[i] = F(m[i] + F(F(F(goal - m[i]) * share) * F(0.02)))
                    m[i] = min(max(m[i], F(2.0**-20)), F(F(1) - F(2.0**-20)))
            self.first[node] = self.toward(self.first.get(node, 1 << 15), bit)
            if bits[0] is not None:
                self.match[lengths[0]] = self.toward(self.match.get(lengths[0], 3 << 14), bits[0] == bit)
            if bits[1] is not None:
                self.far[lengths[1]] = self.toward(self.far.get(lengths[1], 50000), bits[1] == bit)
            for d in range(DIRECT):
                self.move(self.direct_p[d, lines[d], slot], bit, 400)
            for k, s in enumerate(seen):
                if s != NOTHING:
                    self.move(self.chance_of(k, s), bit, 1023)
                buckets[k][slot] = after(s, bit)
                row, expected = run_rows[k]
                if row:
                    old = self.run_logits[k, row]
                    right = F(expected == bit)
                    self.run_logits[k, row] = clipped(F(old + F(F(right - self.chance_at(old)) * F(0.02))))
            node = node << 1 | bit
        unit = node - (1 << U)
        if self.far_length:
            same = self.history[self.far_at] == unit
            self.far_at, self.far_length = (self.far_at + 1, self.far_length + 1) if same else (0, 0)
        for place, h, (count, other, latest) in zip(places, hashes, runs, strict=True):
            if count and latest != unit:
                count, other = 0, latest + 1
            self.runs[place] = h >> 24 & 255, min(count + 1, 31), other, unit
        self.note(unit)
        self.end(unit)
        return rows

    @staticmethod
    def toward(old: int, right: bool | int) -> int:
        return old + ((65535 if right else 0) - old >> 7)

    @staticmethod
    def move(entry: list[int], bit: int, most: int) -> None:
        share = round(65536 / (entry[1] + 1.6))
        entry[0] += ((bit << 22) - bit - entry[0]) * share >> 16
        entry[1] = min(entry[1] + 1, most)
