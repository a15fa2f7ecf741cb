"""Repair with proof: a reader ranks what may have been, a checksum or hash decides."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from bit_transformer.errors import BitStreamError, Give
from bit_transformer.experts.bank import Tell, ignore
from bit_transformer.proof.checks import Check, parse_proof
from bit_transformer.proof.guesses import Tell as TellSearch
from bit_transformer.proof.solve import Outcome, Priors, solve
from bit_transformer.surprisal.filling import fills
from bit_transformer.surprisal.opinion import Opinion
from bit_transformer.surprisal.reading import BankReader, Bytes, Reader

JUDGED = 2000  # solutions of each kind: a flip that nobody suspects, among others that all do, is far down the list


def prove(
    data: bytes,
    proofs: Sequence[str | Check],
    reader: Reader | None = None,
    *,
    lost: tuple[int, int] | None = None,
    most_flips: int = 4,
    seconds: float = 60.0,
    read: Tell = ignore,
    tell: TellSearch | None = None,
) -> Outcome:
    """Find what damaged bytes were, such that checksums or hashes prove it.

    >>> import zlib
    >>> page = b"It was the best of times, it was the worst of times. " * 40
    >>> damaged = page[:900] + bytes([page[900] ^ 4]) + page[901:]
    >>> prove(damaged, [f"crc32:{zlib.crc32(page):08x}"]).proved == page
    True

    Args:
        proofs: such as "crc32:1c291ca3" or "sha256:...", of all bytes; or checks of parts.
        reader: who ranks. Default: experts alone.
        lost: a range whose bytes are unknown, and are to be filled in.
        most_flips: flipped bits that are looked for, 1 to 4.
        seconds: when to stop the search, which comes after reading.
        read: called with the bytes that were read, three times the data's; each way counts.
        tell: called with how far the search is; False stops it.

    Raises:
        ConfigError, BitStreamError: proofs or ranges that do not fit the data.
    """
    checks = [parse_proof(proof, len(data)) if isinstance(proof, str) else proof for proof in proofs]
    given, reader = np.frombuffer(data, dtype=np.uint8), reader or BankReader()
    if lost is not None and not 0 <= lost[0] < lost[1] <= len(data):
        raise BitStreamError(
            f"got lost={lost[0]}:{lost[1]} of {len(data):,} bytes; it must be in 0:{len(data)}",
            field="lost",
            tries=(Give("lost", f"0:{min(16, len(data))}"),),
        )
    failing = [(check.begin, check.end) for check in checks if not check.holds(data)]
    if not failing:
        return Outcome(data, True, (), False, 0.0, (), (), 0, 0.0, "all checks hold as received")
    opinion = Opinion(given, reader, failing, read)
    return solve(
        data,
        checks,
        opinion.odds_N8,
        opinion.judge,
        most_flips=most_flips,
        lost=lost,
        guessed=() if lost is None else _guesses(given, lost, reader),
        surprise_N=opinion.surprise_N,
        priors=Priors(flip=opinion.prior),
        judged=JUDGED,
        seconds=seconds,
        threads=os.cpu_count() or 1,
        tell=tell,
    )


def _guesses(data: Bytes, lost: tuple[int, int], reader: Reader) -> Iterator[bytes]:
    yield from fills(data, *lost, reader.banks(data)[0])
