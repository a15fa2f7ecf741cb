"""The parser of x86 code ends its instructions where they end."""

import itertools

import numpy as np
import pytest

from bit_transformer.config import ExpertConfig
from bit_transformer.experts.bank import ExpertBank
from bit_transformer.experts.instructions import note_instruction
from bit_transformer.experts.terms import Text

# One instruction each, as an assembler writes them.
BOTH = """
55
89 E5
83 EC 10
C7 45 FC 01 00 00 00
0F B6 45 08
66 B8 34 12
66 81 C1 34 12
66 F7 C1 34 12
F6 45 08 01
F6 D8
F7 C1 FF 00 00 00
F7 D9
F7 44 24 04 00 01 00 00
8B 44 24 04
8B 04 8D 00 10 40 00
8B 84 24 80 00 00 00
8D 14 85 00 00 00 00
FF 15 00 20 40 00
E8 10 00 00 00
E9 FB FF FF FF
EB FE
74 05
0F 84 10 00 00 00
0F 94 C0
0F AF C1
0F A4 C2 05
0F 10 45 E0
66 0F 70 C0 1B
66 0F 38 00 C1
66 0F 3A 0F C1 08
F3 A5
F2 0F 10 05 00 10 00 00
C2 08 00
C8 10 00 00
68 00 10 40 00
6A 01
69 C0 E8 03 00 00
6B C0 0A
64 A1 00 00 00 00
CC
90
5D
C3
"""
ONLY_64 = """
48 8B 05 10 20 00 00
48 89 E5
4C 8D 0C 85 00 00 00 00
48 83 EC 28
48 81 EC 00 01 00 00
41 57
44 0F B6 C0
49 63 C4
F3 48 0F 2A C0
48 85 C0
48 B8 01 02 03 04 05 06 07 08
C5 FE 6F 06
C5 F8 77
C4 E2 7D 58 C0
C4 E3 7D 39 C1 01
62 F1 FE 48 6F 46 01
"""


def instructions(text: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in text.strip().split("\n")]


def ends(data: bytes, votes: int) -> list[int]:
    """After which bytes the parser has a whole instruction."""
    text = np.zeros(len(Text), dtype=np.int64)
    text[Text.CODE_VOTES] = votes
    found = []
    for i, c in enumerate(data):
        note_instruction(text, c, data[i - 1] if i else 0)
        if text[Text.CODE_BYTES] == 0:
            found.append(i + 1)
    return found


@pytest.mark.parametrize("long", [False, True])
def test_instructions_end_where_they_end(long):
    every = instructions(BOTH + ONLY_64.lstrip("\n") if long else BOTH + "48\n4B\n")
    for seed in range(5):  # in any order, so that none depends on the one before
        row = [every[i] for i in np.random.default_rng(seed).permutation(len(every))]
        data, votes = b"".join(row), 255 if long else 0
        assert ends(data, votes) == list(itertools.accumulate(map(len, row)))


def test_the_parser_tells_64_bit_code_by_itself():
    for long, text in ((True, BOTH + ONLY_64.lstrip("\n")), (False, BOTH + "48\n4B\n")):
        every = instructions(text)
        row = [every[i] for i in np.random.default_rng(3).integers(len(every), size=2000)]
        expected = set(itertools.accumulate(map(len, row)))
        half = sum(map(len, row)) // 2  # by now it knows
        wrong = {end for end in expected ^ set(ends(b"".join(row), 0)) if end > half}
        assert not wrong, long


def test_the_parser_falls_into_step_again():
    """Started inside data, it is in step with the code after some instructions."""
    every = instructions(BOTH)
    for seed in range(20):
        random = np.random.default_rng(seed)
        row = [every[i] for i in random.integers(len(every), size=60)]
        noise = random.bytes(16)
        expected = [16 + end for end in itertools.accumulate(map(len, row))]
        assert set(expected[-30:]) <= set(ends(noise + b"".join(row), 0))


def test_instructions_need_rich_experts_and_no_words():
    with pytest.raises(ValueError, match=r"instructions=True needs rich experts. Try rich=True"):
        ExpertConfig(instructions=True)
    with pytest.raises(ValueError, match=r"instructions=True takes the place of words=True. Try words=False"):
        ExpertConfig(rich=True, instructions=True, words=True)


def test_contexts_of_instructions_pay():
    every = instructions(BOTH)
    random = np.random.default_rng(0)
    # Instructions in habitual pairs, with operands that vary.
    row = []
    for _ in range(1500):
        i = int(random.integers(len(every)))
        for one in (every[i], every[(i * 7 + 3) % len(every)]):
            row.append(one[:-1] + bytes([one[-1] ^ int(random.integers(4))]) if len(one) > 5 else one)
    units = np.frombuffer(b"".join(row), np.uint8)
    cost = {}
    for aware in (False, True):
        fields = {"orders": (1, 2, 3, 4, 5, 6, 8, 12), "rich": True, "instructions": aware, "words": False}
        bank = ExpertBank(ExpertConfig.of({**fields, "buckets": 1 << 14, "history": 1 << 14}), 8)
        code = bank.encode(units, bank.stream())
        assert code is not None
        cost[aware] = len(code)
    assert cost[True] < 0.95 * cost[False]
