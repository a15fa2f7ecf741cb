"""Guesses come in order, and are tested as the whole file would be."""

from __future__ import annotations

import hashlib
import itertools
import math
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bit_transformer.proof import Digest, Edit, apply, best_first, flips, guessable, parse_proof, rank_of
from bit_transformer.proof.checks import DIGESTS, Inflated
from bit_transformer.proof.guesses import Guess, Trials, guesses


def text(size: int, seed: int = 0) -> bytes:
    words = [b"of", b"the", b"and", b"bytes", b"checksum", b"a"]
    return b" ".join(words[i] for i in np.random.default_rng(seed).integers(0, 6, size))[:size]


@pytest.mark.parametrize("shift", [-4.0, 0.0, 3.0])
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_sets_come_best_first_and_all(shift: float, most: int) -> None:
    odds = -np.sort(-np.random.default_rng(most).normal(shift, 3, 14))
    sets = [ranks for size in range(1, most + 1) for ranks in itertools.combinations(range(14), size)]
    wanted = sorted((sum(odds[list(ranks)]) for ranks in sets), reverse=True)
    given = list(best_first(odds, most))
    np.testing.assert_allclose(np.concatenate([sums for sums, _ in given]), wanted)
    listed = [tuple(rank for rank in ranks if rank >= 0) for _, batch in given for ranks in batch.tolist()]
    assert sorted(listed) == sorted(sets)


def test_equal_odds_end_too() -> None:
    given = list(best_first(np.zeros(40), 2))
    assert sum(len(sums) for sums, _ in given) == 40 + 40 * 39 // 2


def test_many_changes_do_not_slow_down_the_first() -> None:
    odds = -np.sort(np.random.default_rng(0).exponential(8, 200_000))
    batches = list(itertools.islice(best_first(odds, 4), 8))
    joined = np.concatenate([sums for sums, _ in batches])
    assert (np.diff(joined) <= 0).all() and len(joined) > 1000


def test_a_rank_is_how_many_come_before() -> None:
    random = np.random.default_rng(1)
    data, odds = text(3), random.normal(-2, 3, (3, 8)).astype(np.float32)
    extra = [(Edit(1, data[1:2], b"\xff"), -1.5)]
    possible = guessable(Digest(0, 3, kind="md5", known=bytes(16)), data, odds, extra)
    for most in (2, 3):
        listed = np.concatenate([batch for _, batch in best_first(possible.odds_C, most)])
        for number in random.integers(0, len(listed), 40):
            edits = possible.edits_of([int(rank) for rank in listed[number] if rank >= 0])
            if edits is not None and len({edit.offset for edit in edits}) == len(edits):
                assert rank_of(possible, edits, most) == number
    assert rank_of(possible, [Edit(1, b"", b"x")]) == math.inf


@pytest.mark.parametrize("kind", DIGESTS)
def test_a_hash_that_goes_on_from_a_state_is_that_of_the_whole(kind: str) -> None:
    data, random = text(9000), np.random.default_rng(2)
    begin, end = 100, 8900
    odds = random.normal(-9, 3, (9000, 8)).astype(np.float32)
    extra = [(Edit(5000, data[5000:5001], b""), -2.0), (Edit(8000, data[8000:8002], b"zz"), -2.5)]
    named = "sha256" if kind == "blake2b" else kind
    make = hashlib.blake2b if kind == "blake2b" else getattr(hashlib, named)
    for wanted in ([5, 900], [3], [0], [1, 2, 40]):
        possible = guessable(Digest(begin, end, kind=kind), data, odds, extra)
        edits = possible.edits_of(wanted)
        assert edits is not None
        moved = end + sum(edit.growth for edit in edits)
        check = Digest(begin, end, kind=kind, known=make(apply(data, edits)[begin:moved]).digest())
        ranks = np.full((300, 4), -1, np.int32)
        ranks[:, 0], ranks[1::2, 1] = np.arange(300) + 10, np.arange(150) + 1000
        ranks[2::3, 2] = 5000
        ranks[123, : len(wanted)], ranks[123, len(wanted) :] = wanted, -1
        with ThreadPoolExecutor(2) as pool:
            for threads in (1, 2):
                assert Trials(check, possible).passing(ranks, pool, threads) == [123]


def test_inflated_bytes_are_tested_from_a_state_too() -> None:
    data = text(30_000)
    packer = zlib.compressobj(wbits=-15)
    packed = b"head" + packer.compress(data) + packer.flush() + b"tail"
    check = Inflated(4, len(packed) - 4, known=zlib.crc32(data), size=len(data))
    bad = apply(packed, flips(packed, [8 * 3000 + 3]))
    assert check.holds(packed) and not check.holds(bad)
    odds = np.random.default_rng(0).normal(-9, 2, (len(bad), 8)).astype(np.float32)
    found = [step for step in guesses(check, guessable(check, bad, odds), most=40_000) if isinstance(step, Guess)]
    assert [apply(bad, guess.edits) for guess in found if guess.tried] == [packed] or not found
    odds[3000, 3] = -4
    found = [step for step in guesses(check, guessable(check, bad, odds), most=5000) if isinstance(step, Guess)]
    assert [apply(bad, guess.edits) for guess in found] == [packed]


def test_it_says_how_far_it_is_and_stops_when_told() -> None:
    data, seen = text(4000), []
    check = parse_proof("sha256:" + "0" * 64, 4000)
    odds = np.random.default_rng(0).normal(-9, 2, (4000, 8)).astype(np.float32)

    def tell(progress):
        seen.append(progress)
        return len(seen) < 4

    assert not [step for step in guesses(check, guessable(check, data, odds), tell=tell) if isinstance(step, Guess)]
    assert len(seen) == 4 and seen[-1].tried > seen[0].tried and seen[-1].log_odds < seen[0].log_odds
    steps = list(guesses(check, guessable(check, data, odds), most=1000))
    assert steps[-1].tried == 1000
