"""Damaged files are repaired where that is proved, and only where it is."""

from __future__ import annotations

import gzip
import hashlib
import zlib

import numpy as np
import pytest

from bit_transformer.errors import BitStreamError, ConfigError
from bit_transformer.proof import (
    CRCS,
    Crc,
    Edit,
    Priors,
    apply,
    block_checks,
    flips,
    found_checks,
    parse_proof,
    solve,
)
from tests.unit.test_proof_found import png, tarred

SIZE = 700


def text(size: int = SIZE, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).choice(list(b"etaoin shrdlu"), size).astype(np.uint8).tobytes()


def believing(bad: bytes, good: bytes, seed: int = 0, worth: float = 6.0, else_: float = -14.0):
    """Odds and a judge of a model that thinks of a damaged byte that it is wrong, and of a right one that it is right."""
    random = np.random.default_rng(seed)
    odds = random.normal(else_, 2, (len(bad), 8)).astype(np.float32)
    if len(bad) == len(good):
        for i, (a, b) in enumerate(zip(bad, good, strict=True)):
            for bit in range(8):
                if (a ^ b) >> (7 - bit) & 1:
                    odds[i, bit] = worth

    def judge(solutions):
        values = []
        for edits in solutions:
            made = apply(bad, edits)
            if made == good:
                values.append(worth * len(edits) + 8)
            else:
                values.append(
                    sum(
                        float(sum(odds.reshape(-1)[bit] for bit in edit.flipped)) if not edit.growth else -15.0
                        for edit in edits
                    )
                )
        return np.array(values)

    return odds, judge


def proofs(good: bytes, size: int, *kinds: str):
    made = {"crc32": f"crc32:{zlib.crc32(good):08x}", "sha256": f"sha256:{hashlib.sha256(good).hexdigest()}"}
    made["adler32"] = f"adler32:{zlib.adler32(good):08x}"
    made["crc16"] = f"crc16:{CRCS['crc16-arc'].of(good):04x}"
    made["md5"] = f"md5:{hashlib.md5(good).hexdigest()}"
    return [parse_proof(made[kind], size) for kind in kinds]


def test_a_file_that_is_right_is_left_alone() -> None:
    good = text()
    outcome = solve(good, proofs(good, SIZE, "crc32", "sha256"), *believing(good, good))
    assert outcome.already and outcome.proved == good and not outcome.repaired


@pytest.mark.parametrize("kinds", [("crc32",), ("crc32", "sha256"), ("adler32", "md5")])
@pytest.mark.parametrize("bits", [[800], [41, 4000], [7, 333, 5000], [10, 77, 2900, 4001]])
def test_flips_are_repaired(kinds: tuple[str, ...], bits: list[int]) -> None:
    good = text(size := 512 if len(bits) > 2 else SIZE)
    bits = [bit % (8 * size) for bit in bits]
    bad = apply(good, flips(good, bits))
    outcome = solve(bad, proofs(good, size, *kinds), *believing(bad, good))
    assert outcome.proved == good and apply(bad, outcome.repaired) == good and outcome.how
    assert outcome.solutions[0].probability > 0.99 and outcome.tried > 0 and not outcome.open


def test_a_hash_alone_is_enough_where_flips_are_likely() -> None:
    good = text()
    bad = apply(good, flips(good, [99, 2000, 5100]))
    odds, judge = believing(bad, good, else_=-9.0, worth=-3.0)
    seen = []
    outcome = solve(bad, proofs(good, SIZE, "sha256"), odds, judge, threads=2, tell=seen.append, seconds=20)
    assert outcome.proved == good and outcome.solutions[0].probability == 1


def test_overwritten_lost_and_doubled_bytes_are_repaired() -> None:
    good = text()
    for bad, kind in (
        (good[:200] + b"\x00\x99" + good[202:], "burst"),
        (good[:333] + good[334:], "lost"),
        (good[:333] + good[332:], "extra"),
    ):
        odds, judge = believing(bad, good, worth=10.0)
        if kind == "burst":
            odds[200:202] = -14
        outcome = solve(bad, proofs(good, len(bad), "crc32", "sha256"), odds, judge)
        assert outcome.proved == good and outcome.solutions[0].kind == kind


def test_several_solutions_are_ranked_and_none_is_written() -> None:
    good = text()
    bad = apply(good, flips(good, [100, 4000]))
    odds = np.full((SIZE, 8), -12, np.float32)

    def judge(solutions):
        return np.array([-12.0 * sum(len(edit.flipped) or 9 for edit in edits) for edits in solutions])

    outcome = solve(bad, proofs(good, SIZE, "crc16"), odds, judge)
    assert outcome.proved is None and outcome.ambiguous and len(outcome.solutions) > 10 and outcome.open
    assert outcome.solutions[0].probability < 0.1 and outcome.repaired == ()
    shares = [solution.probability for solution in outcome.solutions]
    assert shares == sorted(shares, reverse=True) and sum(shares) + outcome.unseen < 1.001


def test_what_meets_a_check_by_chance_is_not_proved() -> None:
    good, random = text(400), np.random.default_rng(3)
    bad = apply(good, flips(good, random.choice(3200, 12, replace=False).tolist()))
    odds, judge = believing(bad, good)
    outcome = solve(bad, proofs(good, 400, "crc32"), odds, judge, most_flips=3)
    assert outcome.proved is None and outcome.unseen > 0.9


def test_a_lost_range_is_filled_in() -> None:
    good = text()
    bad = good[:50] + bytes(30) + good[80:]
    wrong = [text(30, 8), text(30, 9)]
    for kinds in (("crc32",), ("sha256",), ("crc32", "sha256")):
        odds, judge = believing(bad, good)
        outcome = solve(bad, proofs(good, SIZE, *kinds), odds, judge, lost=(50, 80), guessed=[*wrong, good[50:80]])
        assert outcome.proved == good and outcome.solutions[0].kind == "range"


def test_edits_that_the_caller_offers_are_tried() -> None:
    good = text()
    bad = apply(good[:100] + b"xyz" + good[103:], flips(good, [4000]))
    extra = [(Edit(100, b"xyz", good[100:103]), -2.0), (Edit(300, bad[300:302], b"##"), -1.0)]
    for kinds in (("crc32",), ("md5",)):
        odds, judge = believing(bad, good)
        odds[100:103] = -20
        outcome = solve(bad, proofs(good, SIZE, *kinds), odds, judge, extra_edits=extra)
        assert outcome.proved == good


def test_chunks_of_a_png_are_repaired_one_by_one_and_the_hash_of_all_agrees() -> None:
    good = png()
    bad = apply(good, flips(good, [8 * (good.find(b"Comment") + 9) + 2, 8 * (good.find(b"IDAT") + 9) + 5]))
    odds, judge = believing(bad, good)
    for more in ([], proofs(good, len(good), "md5")):
        outcome = solve(bad, [*found_checks(bad), *more], odds, judge)
        assert outcome.proved == good and len(outcome.repaired) == 2


def test_a_damaged_checksum_is_repaired_too() -> None:
    good = png()
    at = good.find(b"IDAT") - 6  # in the CRC of the chunk before
    bad = apply(good, flips(good, [8 * at + 1]))
    odds, judge = believing(bad, good)
    assert solve(bad, found_checks(bad), odds, judge).proved == good


def test_a_lost_byte_moves_the_blocks_behind_it() -> None:
    good = text(1000)
    lines = [f"{zlib.crc32(good[at : at + 200]):08x}" for at in range(0, 1000, 200)]
    bad = good[:250] + good[251:]
    bad = apply(bad, flips(bad, [8 * 700 + 3]))
    almost = good[:250] + good[251:]
    odds, judge_flips = believing(bad, almost)

    def judge(solutions):
        values = []
        for edits in solutions:
            lost = [edit for edit in edits if edit.growth]
            right = lost == [Edit(lost[0].offset, b"", good[lost[0].offset : lost[0].offset + 1])] if lost else False
            rest = tuple(edit for edit in edits if not edit.growth)
            values.append((12.0 if right else -30.0 * len(lost)) + judge_flips([rest])[0])
        return np.array(values)

    outcome = solve(bad, block_checks(lines, 200, len(bad)), odds, judge)
    assert outcome.proved == good and len(outcome.repaired) == 2 and apply(bad, outcome.repaired) == good


def test_part_of_a_file_can_be_proved() -> None:
    good = text(1000)
    lines = [f"{zlib.crc32(good[at : at + 250]):08x}" for at in range(0, 1000, 250)]
    hopeless = bytes(x ^ 0x5A for x in good[500:750])
    bad = apply(good, flips(good, [800]))[:500] + hopeless + good[750:]
    odds, judge = believing(bad, good)
    odds[500:750] = -14
    outcome = solve(bad, block_checks(lines, 250, 1000), odds, judge, most_flips=2)
    assert outcome.proved is None and [edit.offset for edit in outcome.repaired] == [100]
    assert len(outcome.open) == 1 and "block 2" in outcome.open[0]


def test_a_sum_in_a_tar_header_finds_single_flips() -> None:
    good = tarred()
    for at in (3, 150):  # in the name, in the checksum
        bad = apply(good, flips(good, [8 * at + 7]))
        odds, judge = believing(bad, good, else_=-30.0, worth=12.0)
        outcome = solve(bad, found_checks(bad), odds, judge, most_flips=1)
        assert outcome.proved == good


def test_a_flip_in_gzip_is_found_by_inflating() -> None:
    good = gzip.compress(text(3000), mtime=0)
    bad = apply(good, flips(good, [8 * 600 + 2]))
    odds, judge = believing(bad, good, worth=-8.0)
    outcome = solve(bad, found_checks(bad), odds, judge, most_flips=2, seconds=20)
    assert outcome.proved == good


def test_a_search_can_be_stopped() -> None:
    good = text()
    bad = apply(good, flips(good, [1, 800, 2000, 4000]))
    odds, judge = believing(bad, good, worth=-14)
    outcome = solve(bad, proofs(good, SIZE, "sha256"), odds, judge, tell=lambda progress: progress.tried < 500)
    assert outcome.proved is None and outcome.tried < 5000
    assert solve(bad, proofs(good, SIZE, "sha256"), odds, judge, seconds=0.2).seconds < 3


def test_wrong_input_is_refused_in_one_line() -> None:
    odds, judge = believing(text(), text())
    check = Crc(0, SIZE, known=1)
    for error, words, call in (
        (BitStreamError, "empty file", lambda: solve(b"", [check], odds, judge)),
        (ConfigError, "no check", lambda: solve(text(), [], odds, judge)),
        (ConfigError, "range must be in the file", lambda: solve(text(9), [check], odds, judge)),
        (ConfigError, "shape", lambda: solve(text(), [check], odds[:5], judge)),
        (ConfigError, "most_flips", lambda: solve(text(), [check], odds, judge, most_flips=9)),
        (ConfigError, "lost", lambda: solve(text(), [check], odds, judge, lost=(5, 5))),
    ):
        with pytest.raises(error, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert Priors().flip == 0
