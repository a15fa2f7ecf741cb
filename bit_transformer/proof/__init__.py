"""Checksums and hashes as proofs of a repair: what is known of a file besides its bytes."""

from bit_transformer.proof.checks import CRCS, DIGESTS, Adler32, ByteSum, Check, Crc, Digest, Inflated, parse_proof
from bit_transformer.proof.edits import Edit, Solution, apply, flips
from bit_transformer.proof.found import block_checks, checksum_file, found_checks
from bit_transformer.proof.guesses import Progress, best_first, guessable, rank_of
from bit_transformer.proof.solve import Outcome, Priors, solve

__all__ = [
    "CRCS",
    "DIGESTS",
    "Adler32",
    "ByteSum",
    "Check",
    "Crc",
    "Digest",
    "Edit",
    "Inflated",
    "Outcome",
    "Priors",
    "Progress",
    "Solution",
    "apply",
    "best_first",
    "block_checks",
    "checksum_file",
    "flips",
    "found_checks",
    "guessable",
    "parse_proof",
    "rank_of",
    "solve",
]
