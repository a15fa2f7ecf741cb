"""Repair with proof: a reader ranks what may have been, a checksum or hash decides, and nothing else is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.proof.checks import Check, parse_proof
from bit_transformer.proof.edits import Edit, Solution
from bit_transformer.proof.found import block_checks, checksum_file, found_checks
from bit_transformer.proof.guesses import Progress
from bit_transformer.service.files import check_out, new_file
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.readers import Prepared, opened, prepared, progress
from bit_transformer.service.requests import ProveRequest
from bit_transformer.service.workspace import Workspace
from bit_transformer.surprisal.filling import LONGEST
from bit_transformer.surprisal.proved import prove
from bit_transformer.surprisal.reading import Bytes

SUFFIX = ".repaired"
AUTO = "auto"
MOST_BYTES = 1 << 25  # of a file: odds of all its bits, and their syndromes, must fit in memory
HASHED = 128  # bits of a check that does not hold by chance
LOCATED_ALARMS = 20.0  # per megabyte of clean data, where damage is to be located
LISTED = 20  # candidates in the result


@dataclass(frozen=True)
class Proof:
    """A check of a file.

    Attributes:
        name: such as `crc32:1c291ca3`.
        covers: of what it is, in words.
        held: whether it held before the repair.
    """

    name: str
    covers: str
    held: bool


@dataclass(frozen=True)
class Changed:
    """Bytes that are replaced: `old` by `new`, both in hex; `text` says it in words."""

    offset: int
    old: str
    new: str
    text: str


@dataclass(frozen=True)
class Candidate:
    """Changes with which the checks hold.

    Attributes:
        log_odds: against the file as received, in nats.
        probability: that these are right, among all that were found or were not looked for.
    """

    changes: list[Changed]
    log_odds: float
    probability: float
    kind: str


@dataclass(frozen=True)
class Proved:
    """What became of a repair.

    Attributes:
        already: whether all checks held as received; then nothing was done.
        proved: whether the file as it should be is known, and was written.
        candidates: the likeliest first; where something was written, the first is that.
        ambiguous: whether several are likely, and no check decides.
        unseen: probability that none of them is right.
        repaired: changes that are proved, also where other ranges stay damaged.
        open: what stays damaged, in words.
        tried: sets of changes that were covered. `how`: which kinds of damage were looked for.
    """

    file: str
    bytes: int
    checks: list[Proof]
    already: bool
    proved: bool
    out: str | None
    candidates: list[Candidate]
    ambiguous: bool
    unseen: float
    repaired: list[Changed]
    open: list[str]
    tried: int
    seconds: float
    how: str
    reader: str


def repair_proved(request: ProveRequest, workspace: Workspace, job: Job) -> Proved:
    """Repair a file by its checks.

    Raises:
        BitTransformerError: a file that cannot be read, no such run, proofs that do not fit, or a result that cannot be written.
    """
    path = request.path
    out = request.out or path.with_name(path.name + SUFFIX)
    file = opened(
        path, None, alone=False, most=MOST_BYTES, tries=("the part that a checksum covers, cut out with split or dd",)
    )
    data = file.data.tobytes()
    checks = _checks(request, data)
    held = [check.holds(data) for check in checks]
    proofs = [Proof(c.name, c.covers, h) for c, h in zip(checks, held, strict=True)]
    if all(held):
        return Proved(str(path), len(data), proofs, True, False, None, [], False, 0.0, [], [], 0, 0.0, "", "")
    sure = next(
        (
            c
            for c, good in zip(checks, held, strict=True)
            if good and c.bits >= HASHED and c.begin == 0 and c.end == len(data)
        ),
        None,
    )
    if sure is not None:
        wrong = next(c for c, good in zip(checks, held, strict=True) if not good)
        raise BitStreamError(
            f"{path}: {sure.name} holds, so the file is intact, and {wrong.name} is of something else. Try without it",
            field="proofs",
        )
    check_out(out)
    if out.exists() and not request.overwrite:
        raise ConfigError(f"{out}: is there already", field="out", tries=(Give("out"), Give("overwrite", True)))
    with job.cancellable():
        ready = prepared(request.run, request.reference, workspace, job)
        reader = ready.reader
        lost = _lost(request, file.data, ready, job)

        def tell(so_far: Progress) -> None:
            doing = f"{so_far.stage}: {so_far.tried:,} tried, {so_far.per_second:,.0f} a second; time"
            job.tell(Reading(round(min(so_far.seconds, request.seconds)), round(request.seconds), doing, "seconds"))

        found = prove(
            data,
            checks,
            reader,
            lost=lost,
            most_flips=request.most_flips,
            seconds=request.seconds,
            read=progress(job, 2 * len(data), "read"),
            tell=tell,
        )
    if found.proved is not None:
        with new_file(out, like=path) as target:
            target.write(found.proved)
    return Proved(
        str(path),
        len(data),
        proofs,
        False,
        found.proved is not None,
        None if found.proved is None else str(out),
        [_candidate(solution) for solution in found.solutions[:LISTED]],
        found.ambiguous,
        found.unseen,
        [_changed(edit) for edit in found.repaired],
        list(found.open),
        found.tried,
        found.seconds,
        found.how,
        reader.words,
    )


def _lost(request: ProveRequest, data: Bytes, ready: Prepared, job: Job) -> tuple[int, int] | None:
    """The range that is to be filled in, if there is one.

    Raises:
        BitStreamError: it is to be located, and no damage is found.
    """
    if request.lost is None or isinstance(request.lost, tuple):
        return request.lost
    costs = ready.reader.costs(data, tell=progress(job, len(data), "read"))
    found, _ = ready.judge(data, costs, LOCATED_ALARMS, job)
    if not found:
        raise BitStreamError("got lost=located, and no damage that shows. Try a range FROM:TO", field="lost")
    begin, length = found[0].begin, found[0].length
    if length > LONGEST:
        raise BitStreamError(
            f"got lost=located, and the clearest damage, {begin}:{begin + length}, is of {length:,} bytes; at most {LONGEST} can be filled in",
            field="lost",
        )
    return begin, begin + length


def _checks(request: ProveRequest, data: bytes) -> list[Check]:
    """The checks that a request names.

    Raises:
        ConfigError, BitStreamError: none, or such that do not fit the file.
    """
    made = list[Check]()
    for proof in request.proofs:
        if proof.strip().lower() != AUTO:
            made.append(parse_proof(proof, len(data)))
            continue
        inside = found_checks(data)
        if not inside:
            raise BitStreamError(
                f"{request.path}: got no PNG, ZIP, gzip, tar or Intel HEX file, so there is no check in it",
                field="proofs",
                tries=(Give("proofs", "crc32:1c291ca3"), Give("checksums", "SHA256SUMS")),
            )
        made += inside
    if request.checksums is not None:
        try:
            text = Path(request.checksums).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as unreadable:
            why = unreadable.strerror if isinstance(unreadable, OSError) else "it is no text"
            raise BitStreamError(f"{request.checksums}: cannot be read ({why}). Try another file") from None
        if request.block_size is not None:
            made += block_checks(text.splitlines(), request.block_size, len(data))
        else:
            made += checksum_file(text, len(data), request.called or request.path.name)
    elif request.block_size is not None:
        raise ConfigError(
            f"got block_size={request.block_size} and no checksums of blocks",
            field="block_size",
            tries=(Give("checksums", "FILE"),),
        )
    if not made:
        raise ConfigError(
            "got no proof; a checksum or a hash of the intact file is needed",
            field="proofs",
            tries=(Give("proofs", "crc32:1c291ca3"), Give("proofs", AUTO)),
        )
    return made


def _candidate(solution: Solution) -> Candidate:
    changes = [_changed(edit) for edit in solution.edits]
    return Candidate(changes, solution.log_odds, solution.probability, solution.kind)


def _changed(edit: Edit) -> Changed:
    return Changed(edit.offset, edit.old.hex(), edit.new.hex(), str(edit))
