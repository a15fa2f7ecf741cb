"""The expert bank again, slowly: dictionaries of contexts' buckets, Python's integers, one bit at a time.

Written from the description in `kernels.py` and `histories.py`, not from their loops: tables are dictionaries that start from their
initial value, buckets are lists, and what overflows 64 bits in the kernels is cut by hand here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
SECOND = 0xBF58476D1CE4E5B9
THIRD = 0x94D049BB133111EB
FOURTH = 0xD6E8FEB86659FD93
BOUNDS = (40, 24, 12, 8, 6, 5)


def mixed(x: int) -> int:
    x = x * GOLDEN & MASK
    return x ^ x >> 29


def fits(zeros: int, ones: int) -> bool:
    few, many = min(zeros, ones), max(zeros, ones)
    return few < len(BOUNDS) and many <= BOUNDS[few]


def after(history: tuple[int, int, int], bit: int) -> tuple[int, int, int]:
    """(zeros, ones, latest) after one more bit."""
    same, other = (history[1], history[0]) if bit else (history[0], history[1])
    same += 1
    if other > 2:
        other = other // 2 + 1
    while True:
        zeros, ones = (other, same) if bit else (same, other)
        if fits(zeros, ones):
            return zeros, ones, bit if zeros and ones else int(ones > 0)
        if same >= other:
            # The larger goes down; of two equal ones, the ones.
            if same > other or bit:
                same -= 1
            else:
                other -= 1
        else:
            other -= 1


def length(history: tuple[int, int, int]) -> tuple[int, tuple[int, int], int]:
    zeros, ones, latest = history
    return zeros + ones, (zeros, ones), latest


NOTHING = (0, 0, 0)


class SlowBank:
    """As `ExpertBank`, learning always.

    Args:
        contexts: ("order", n), ("word",), ("pair",), ("skip",), ("bits", n), ("sparse", ages).
    """

    def __init__(self, contexts: list[tuple], unit_bits: int, buckets: int, history: int, match_order: int, text: int):
        self.contexts, self.U, self.buckets, self.match_order, self.text = (
            contexts,
            unit_bits,
            buckets,
            match_order,
            text,
        )
        self.K = len(contexts)
        self.tables: list[dict[int, tuple[int, list]]] = [{} for _ in contexts]
        self.chance: list[dict] = [{} for _ in contexts]
        self.first: dict[int, int] = {}
        self.match: dict[int, int] = {}
        self.weights: dict[int, list[int]] = {}
        self.last: dict[int, list[int]] = {}
        self.maps: dict[tuple[int, int], list[int]] = {}
        self.history: list[int] = []
        self.ring = history
        self.heads: dict[int, int] = {}
        self.head_bits = max(1 << 10, history // 4).bit_length() - 1
        self.units: list[int] = []
        self.words = [0, 0, 0]
        self.match_at: int | None = None
        self.match_length = 0

    # ---- pieces ----

    def age(self, a: int) -> int:
        return self.units[-a] + 1 if a <= len(self.units) else 0

    def padded(self, a: int) -> int:
        return (self.units[-a] if a <= len(self.units) else 0) + 1

    def hashes(self) -> list[int]:
        word = self.words[0] or self.age(1) * FOURTH & MASK
        out = []
        for k, (kind, *rest) in enumerate(self.contexts):
            if kind == "order":
                value = 0
                for a in range(1, rest[0] + 1):
                    value = mixed((value ^ self.padded(a)) * SECOND & MASK)
            elif kind == "word":
                value = word
            elif kind == "pair":
                value = word ^ (self.words[1] * SECOND & MASK)
            elif kind == "skip":
                value = word ^ (self.words[2] * THIRD & MASK)
            elif kind == "bits":
                shifted = 0
                for unit in self.units:
                    shifted = (shifted << self.U | unit) & MASK
                value = shifted & ((1 << rest[0]) - 1)
            else:
                value = 0
                for a in rest[0]:
                    value = mixed((value ^ self.age(a)) * SECOND & MASK)
            out.append(mixed(mixed(value + (k + 1) * 0xD1B54A32D192ED03 & MASK)))
        return out

    def bucket(self, k: int, h: int, root: int) -> list:
        salt = 0xE7037ED1A0B428DB
        near = (h ^ (root >> 1) * salt & MASK) * GOLDEN & MASK
        line = (h >> 20 & ~255 | near >> 40 & 255) & self.buckets - 1 & ~3
        last = near + (root & 1) * salt & MASK
        index = line + (last >> 40 & 3)
        check = last >> 56
        places = [index, index ^ 1, index ^ 2]
        for place in places:
            there = self.tables[k].get(place)
            if (there[0] if there else 0) == check:
                return self.tables[k].setdefault(place, (check, [NOTHING] * 16))[1]

        def used(place: int) -> tuple:
            there = self.tables[k].get(place)
            return length(there[1][1]) if there else length(NOTHING)

        least = min(places, key=used)  # of equals, the first
        self.tables[k][least] = (check, [NOTHING] * 16)
        return self.tables[k][least][1]

    @staticmethod
    def stretch(chance12: int) -> int:
        p = (chance12 + 0.5) / 4096
        return round(256 * math.log(p / (1 - p)))

    @staticmethod
    def squash(logit: int) -> int:
        return min(max(round(65536 / (1 + math.exp(-logit / 256))), 1), 65535)

    @staticmethod
    def cut(logit: int) -> int:
        return min(max(logit, -3071), 3071)

    def weights_of(self, row: int) -> list[int]:
        return self.weights.setdefault(row, [3 * 65536 // self.K] * self.K + [1 << 14, 0, 0])

    def map_of(self, which: int, row: int) -> list[int]:
        start = [round(65536 / (1 + math.exp(-(i - 15.5) / 2))) for i in range(32)]
        return self.maps.setdefault((which, row), start)

    def chance_of(self, k: int, history: tuple[int, int, int]) -> list[int]:
        guess = (history[1] + 0.4) / (history[0] + history[1] + 0.8)
        return self.chance[k].setdefault(history, [round(guess * ((1 << 22) - 1)), 0])

    def find_match(self) -> None:
        n = len(self.units)
        if n < self.match_order:
            return
        value = 0
        for a in range(1, self.match_order + 1):
            value = (value + self.units[-a]) * GOLDEN & MASK
        slot = value >> 64 - self.head_bits
        if self.match_length == 0:
            found = self.heads.get(slot, 0)
            oldest = max(0, len(self.history) - (self.ring - 1))
            same = 0
            if found > oldest:
                while (
                    same < 31 and found - 1 - same >= oldest and self.history[found - 1 - same] == self.units[-1 - same]
                ):
                    same += 1
                    if same == n:
                        break
                if same >= self.match_order:
                    self.match_at, self.match_length = found, same
        self.heads[slot] = len(self.history)
        if self.match_length and self.match_at >= len(self.history):
            self.match_length = 0

    # ---- one unit ----

    def read(self, unit: int) -> list[list[int]]:
        """Features of the unit's bits, which are learned."""
        bits = [unit >> (self.U - 1 - depth) & 1 for depth in range(self.U)]
        return self.go(lambda one: bits.pop(0))

    def go(self, bit_of: Callable[[int], int]) -> list[list[int]]:
        """The same for a unit whose bits are asked for one by one, given the probability of a one in 1/65536."""
        hashes = self.hashes()
        self.find_match()
        expected_unit = self.history[self.match_at] if self.match_length else None
        before = self.age(1)
        two = mixed(before * 4099 + self.age(2)) >> 30
        rows = []
        node = 1
        for depth in range(self.U):
            inside = depth % 4
            root = node >> inside
            if inside == 0:
                buckets = [self.bucket(k, h, root) for k, h in enumerate(hashes)]
            slot = 1 << inside | node & (1 << inside) - 1
            seen = [b[slot] for b in buckets]
            inputs = [self.stretch(self.chance_of(k, s)[0] >> 10) for k, s in enumerate(seen)]
            informed = sum(s != NOTHING for s in seen)
            expected, reach = None, 0
            if expected_unit is not None and (expected_unit | 1 << self.U) >> (self.U - depth) == node:
                expected = expected_unit >> (self.U - 1 - depth) & 1
                reach = min(self.match_length, 31)
                z = self.stretch(self.match.get(reach, 3 << 14) >> 4)
                inputs.append(z if expected else -z)
            else:
                inputs.append(0)
            inputs += [self.stretch(self.first.get(node, 1 << 15) >> 4), 256]
            sets = [
                self.weights_of(node),
                self.weights_of((1 << self.U) + (before >> max(0, self.U - 8) & 255)),
                self.weights_of((1 << self.U) + 256 + min(reach, 15) * 16 + min(informed, 15)),
            ]
            logits = [self.cut(sum(w * x for w, x in zip(s, inputs, strict=True)) >> 16) for s in sets]
            last = self.last.setdefault(node, [65536 // 3] * 3)
            mix = self.cut(sum(w * a for w, a in zip(last, logits, strict=True)) >> 16)
            reach_z = 128 * 31 // 2
            knot, part = divmod(min(max(mix, -reach_z), reach_z - 1) + reach_z, 128)
            maps = [
                self.map_of(0, (before << self.U | node) & 4095),
                self.map_of(1, (two ^ node * 40503) & 4095),
            ]
            refined = sum(m[knot] * (128 - part) + m[knot + 1] * part for m in maps) >> 7
            one = (2 * self.squash(mix) + refined) >> 2
            said = self.stretch(one >> 4)
            rows.append([x * 3 + 32 >> 6 for x in (*inputs[: self.K + 1], said)])

            bit = bit_of(min(max(one, 1), 65535))
            for weights, logit in zip(sets, logits, strict=True):
                error = (bit << 16) - self.squash(logit)
                for i, x in enumerate(inputs):
                    weights[i] += x * error + 32768 >> 16
            error = (bit << 16) - self.squash(mix)
            for i, a in enumerate(logits):
                last[i] += a * error + 65536 >> 17
            aim = bit * 65535
            for m in maps:
                m[knot] += (aim - m[knot]) * (128 - part) >> 13
                m[knot + 1] += (aim - m[knot + 1]) * part >> 13
            old = self.first.get(node, 1 << 15)
            self.first[node] = old + (aim - old >> 7)
            if expected is not None:
                old = self.match.get(reach, 3 << 14)
                self.match[reach] = old + ((65535 if expected == bit else 0) - old >> 8)
            for k, s in enumerate(seen):
                entry = self.chance_of(k, s)
                if s != NOTHING:
                    share = round(65536 / (entry[1] + 1.6))
                    entry[0] += ((bit << 22) - bit - entry[0]) * share >> 16
                entry[1] = min(entry[1] + 1, 1023)
                buckets[k][slot] = after(s, bit)
            node = node << 1 | bit
        self.end(node - (1 << self.U))
        return rows

    def end(self, unit: int) -> None:
        if self.match_length:
            if self.history[self.match_at] == unit:
                self.match_length += 1
                self.match_at += 1
            else:
                self.match_length = 0
        self.units.append(unit)
        self.history.append(unit)
        if self.text >= 0:
            c = unit >> self.text
            c = c + 32 if 65 <= c <= 90 else c
            if 97 <= c <= 122 or c >= 128:
                self.words[0] = mixed((self.words[0] + c) * 0x2545F4914F6CDD1D & MASK)
            elif self.words[0]:
                self.words = [0, self.words[0], self.words[1]]
