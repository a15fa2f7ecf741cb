"""What a damaged file was: solutions that its checks allow, ranked by a model; proved, or only ranked where several remain."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bit_transformer.errors import BitStreamError, ConfigError, Give
from bit_transformer.proof.checks import Adler32, Check, Crc, LinearCheck
from bit_transformer.proof.edits import Edit, Solution, apply, flips
from bit_transformer.proof.guesses import Guess, Progress, Tell, count_above, guessable, guesses
from bit_transformer.proof.linear import (
    MOST_FLIPS,
    Changes,
    bursts,
    changes,
    extra_bytes,
    flip_sets,
    likeliest,
    lost_bytes,
    range_guesses,
)

# Shapes: N bytes of the file.

Judge = Callable[[list[tuple[Edit, ...]]], NDArray[np.float64]]
Odds = NDArray[np.float32]

SURE = 0.99  # probability from which a solution is proved without a hash
CLEAR = 0.999  # probability from which rarer kinds of damage are not looked for
_DECIDES = 64  # bits of other checks that settle what is right
_ELSEWHERE = 10.0  # beforehand, how many times likelier damage is that is not looked for
_MOST_COUNTED = 10**9  # sets; more take too long
_SETTLES = 30  # bits of checks over several ranges that settle which combination is right
_GRACE = 5.0  # seconds for putting together what was found
_COMBINED = 100_000  # combinations of several ranges' solutions that are tried
_LISTED = 100


@dataclass(frozen=True)
class Priors:
    """What is added to the judge's log-odds, in nats.

    Attributes:
        flip: for each flipped bit: 0, if the judge counts it as the odds of flips do.
        burst, lost, extra: that the damage is of that kind; each of its places is equally likely, and each byte that was overwritten with, or
            added, had any value with the same probability.
    """

    flip: float = 0.0
    burst: float = math.log(0.1)
    lost: float = math.log(0.05)
    extra: float = math.log(0.05)


@dataclass(frozen=True)
class Outcome:
    """What became of a damaged file.

    Attributes:
        proved: the whole file as it should be; None if that is not known.
        already: whether all checks held as received.
        solutions: that pass, the likeliest first.
        ambiguous: whether those after the first have more than 1 % of the probability of all that were found, and no other check decides.
        unseen: probability that none of the solutions is right.
        repaired: edits that are proved, also where other ranges stay damaged.
        open: what stays damaged, in words.
        tried: sets of changes that were covered. `seconds`: that it took. `how`: in words.
    """

    proved: bytes | None
    already: bool
    solutions: tuple[Solution, ...]
    ambiguous: bool
    unseen: float
    repaired: tuple[Edit, ...]
    open: tuple[str, ...]
    tried: int
    seconds: float
    how: str


@dataclass(frozen=True)
class _Found:
    """A solution of one check before it is judged."""

    edits: tuple[Edit, ...]
    score: float
    kind: str
    log_rank: float | None = None  # of how many that are as likely it is one, where that is known


@dataclass
class _Region:
    """One damaged range: what was found for it."""

    finder: Check
    bits: int = 0
    possible: Changes | None = None
    solutions: list[Solution] = field(default_factory=list)
    unseen: float = 1.0
    others: float = 0.0  # probability of all but the first, among what was found
    decided: bool = False
    how: str = ""

    @property
    def best(self) -> Solution | None:
        return self.solutions[0] if self.solutions else None

    @property
    def proved(self) -> bool:
        return self.decided or (self.best is not None and self.best.probability >= SURE)

    @property
    def ambiguous(self) -> bool:
        return not self.decided and self.others > 1 - SURE


def solve(
    data: bytes,
    checks: Sequence[Check],
    odds_N8: Odds,
    judge: Judge,
    *,
    extra_edits: Iterable[tuple[Edit, float]] = (),
    most_flips: int = MOST_FLIPS,
    most_lost: int = 1,
    lost: tuple[int, int] | None = None,
    guessed: Iterable[bytes] = (),
    surprise_N: NDArray[Any] | None = None,
    priors: Priors | None = None,
    thorough: bool = False,
    judged: int = 300,
    judged_bursts: int = 2000,
    kept: int = 4096,
    seconds: float = 60.0,
    threads: int = 1,
    tell: Tell | None = None,
) -> Outcome:
    """Find what a file was, from checks of it and a model's opinion.

    A check that sums up changes (CRCs, Adler-32, sums) finds solutions; the other checks of the same bytes and the judge decide between
    them. Of each kind of damage all solutions that are likely enough are found: one and two flips; a run of bytes that was overwritten; a
    byte that was lost, or is too much; three and four flips. Where there is only a hash, likely flips are tried one set after another.
    Several damaged ranges with checks of their own are repaired one by one.

    A solution is proved if a hash says so, or if it is right with a probability of 99 %. It may be wrong in two ways. Another one that was
    found may be right: the judge's log-odds say how likely that is. Or the damage is of a kind that is not looked for, and this one meets
    the checks by chance: how likely that is follows from its rank. If R sets of no more changes are at least as likely, then one of them
    passes by chance with a probability of R / 2^bits, whether the model's odds are calibrated or not.

    Args:
        odds_N8: log-odds of each flip in nats, prior included, most significant bit of a byte first.
        judge: log-odds of whole solutions against the file as received, in nats; asked some hundreds at once.
        extra_edits: other edits that are likely, with their log-odds.
        most_flips: 1 to 4. `most_lost`: the longest run of bytes that may be lost or too much; 0: none.
        lost: a range of which only the length is known; then nothing else is looked for. `guessed`: what may have been there, the likeliest
            first.
        surprise_N: of each byte, in bits: which overwritten bytes are judged.
        thorough: look for all kinds of damage, also when the answer is clear.
        judged, judged_bursts: solutions of each kind, and overwritten runs of bytes, that are judged. `kept`: that are found.
        seconds: when to stop. `threads`: that compute hashes.
        tell: told how far it is; False stops the search.

    Raises:
        ConfigError, BitStreamError: input that does not fit together.
    """
    _refuse(data, checks, odds_N8, most_flips, lost)
    search = _Search(
        data,
        tuple(checks),
        odds_N8,
        judge,
        tuple(extra_edits),
        most_flips,
        most_lost,
        lost,
        guessed,
        surprise_N,
        priors or Priors(),
        thorough,
        judged,
        judged_bursts,
        kept,
        threads,
        tell,
        seconds,
    )
    return search.run()


def _refuse(data: bytes, checks: Sequence[Check], odds_N8: Odds, most_flips: int, lost: tuple[int, int] | None) -> None:
    if not data:
        raise BitStreamError("data: got an empty file; it must have at least one byte", field="data")
    if not checks:
        raise ConfigError(
            "proof: got no check; at least one is needed", field="proofs", tries=(Give("proofs", "crc32:1c291ca3"),)
        )
    for check in checks:
        if not 0 <= check.begin < check.end <= len(data):
            raise ConfigError(
                f"proof: got {check.name} of bytes {check.begin}:{check.end} of a file of {len(data)}; the range must be in the file and not empty",
                field="proofs",
            )
    if odds_N8.shape != (len(data), 8):
        raise ConfigError(f"odds: got shape {odds_N8.shape}; must be {(len(data), 8)}")
    if not 1 <= most_flips <= MOST_FLIPS:
        raise ConfigError(
            f"most_flips: got {most_flips}; must be 1 to {MOST_FLIPS}",
            field="most_flips",
            tries=(Give("most_flips", MOST_FLIPS),),
        )
    if lost is not None and not 0 <= lost[0] < lost[1] <= len(data):
        raise ConfigError(
            f"lost: got bytes {lost[0]}:{lost[1]} of a file of {len(data)}; they must be in the file", field="lost"
        )


@dataclass
class _Search:
    data: bytes
    checks: tuple[Check, ...]
    odds_N8: Odds
    judge: Judge
    extra_edits: tuple[tuple[Edit, float], ...]
    most_flips: int
    most_lost: int
    lost: tuple[int, int] | None
    guessed: Iterable[bytes]
    surprise_N: NDArray[Any] | None
    priors: Priors
    thorough: bool
    judged: int
    judged_bursts: int
    kept: int
    threads: int
    tell: Tell | None
    seconds: float

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.deadline = self.began + self.seconds
        self.tried = 0
        self.stopped = False
        self.done: tuple[Edit, ...] = ()  # proved edits that changed the length, in the file as it was given

    # Several ranges.

    def run(self) -> Outcome:
        failing = self._failing()
        if not failing:
            return self._outcome([], "all checks hold as received", proved=self.data, already=True)
        regions: list[_Region] = []
        waiting = self._finders(failing)
        while waiting:
            finder, *rest = waiting
            now = time.monotonic()
            # What a range may take: its share of the time that is left.
            until = now if self.stopped else now + max(0.0, self.deadline - now) / len(waiting)
            single = not rest and not regions
            deciders = [
                check
                for check in self.checks
                if check is not finder and (single or (finder.begin <= check.begin and check.end <= finder.end))
            ]
            region = self._solve_one(finder, deciders, until)
            best = region.best
            if region.proved and best is not None and rest and any(edit.growth for edit in best.edits):
                # All that follows has moved: which checks fail must be seen again.
                self._apply(best.edits)
                failing = self._failing()
                if not failing:
                    return self._outcome([], region.how, proved=self.data)
                waiting = [check for check in self._finders(failing) if check.begin >= finder.begin]
                regions = []
                continue
            regions.append(region)
            waiting = rest
        return self._outcome(regions, "; ".join(dict.fromkeys(region.how for region in regions)))

    def _failing(self) -> list[Check]:
        return [check for check in self.checks if not check.holds(self.data)]

    def _finders(self, failing: Sequence[Check]) -> list[Check]:
        """Checks of separate ranges that are repaired one by one: the shortest, and of the same range one that sums up changes."""
        taken: list[Check] = []
        for check in sorted(failing, key=lambda check: (check.end - check.begin, not _is_linear(check), -check.bits)):
            if all(check.end <= other.begin or other.end <= check.begin for other in taken):
                taken.append(check)
        return sorted(taken, key=lambda check: check.begin)

    def _passes(self, edits: tuple[Edit, ...], checks: Sequence[Check]) -> bool:
        made = apply(self.data, edits)
        return all(check.after(edits).holds(made) for check in checks)

    def _apply(self, edits: tuple[Edit, ...]) -> None:
        """Go on with a file in which these are made; of what is inserted, nothing changes any more."""
        odds, surprise, at = [], [], 0
        for edit in edits:
            new = np.full((len(edit.new), 8), -np.inf, np.float32)
            odds += [self.odds_N8[at : edit.offset], new]
            if self.surprise_N is not None:
                surprise += [self.surprise_N[at : edit.offset], np.zeros(len(edit.new))]
            at = edit.end
        self.odds_N8 = np.concatenate([*odds, self.odds_N8[at:]])
        if self.surprise_N is not None:
            self.surprise_N = np.concatenate([*surprise, self.surprise_N[at:]])
        self.done = self._as_given(edits)
        self.checks = tuple(check.after(edits) for check in self.checks)
        self.extra_edits = tuple(
            (replace(edit, offset=edit.offset + _growth_before(edits, edit.offset)), value)
            for edit, value in self.extra_edits
            if all(edit.end <= other.offset or other.end <= edit.offset for other in edits)
        )
        self.data = apply(self.data, edits)

    def _as_given(self, edits: Iterable[Edit]) -> tuple[Edit, ...]:
        """All edits so far, in terms of the file as it was given."""
        moved = [
            replace(edit, offset=edit.offset - sum(other.growth for other in self.done if other.offset < edit.offset))
            for edit in edits
        ]
        return tuple(sorted((*self.done, *moved), key=lambda edit: edit.offset))

    def _outcome(
        self, regions: list[_Region], how: str, *, proved: bytes | None = None, already: bool = False
    ) -> Outcome:
        settled = self._settled(regions)
        certain = all(region.proved for region in regions)
        solutions: list[Solution] = []
        repaired: tuple[Edit, ...] = ()
        if regions and all(region.solutions for region in regions):
            for number, solution in enumerate(_combined([region.solutions for region in regions], _COMBINED)):
                if number >= _LISTED and time.monotonic() > self.deadline + _GRACE:
                    break
                if not self._passes(solution.edits, self.checks):
                    continue
                # If ranges are settled one by one, only the likeliest combination is proved.
                if settled or (certain and number == 0):
                    proved = apply(self.data, solution.edits)
                solutions.append(replace(solution, probability=1.0) if settled else solution)
                if settled or len(solutions) == _LISTED:
                    break
        open_: list[str] = []
        unseen = 0.0 if settled or not regions else 1 - math.prod(1 - region.unseen for region in regions)
        if proved is not None:
            repaired = solutions[0].edits if solutions else ()
        else:
            done = [region.best for region in regions if region.proved and region.best is not None]
            repaired = tuple(edit for solution in done for edit in solution.edits)
            open_ = [f"{region.finder.covers}: {region.finder.name}" for region in regions if not region.proved]
            if regions and not solutions and all(region.solutions for region in regions):
                how += "; no combination passes all checks"
        return Outcome(
            proved,
            already,
            tuple(replace(solution, edits=self._as_given(solution.edits)) for solution in solutions),
            proved is None and any(region.ambiguous for region in regions),
            unseen,
            self._as_given(repaired),
            tuple(open_),
            self.tried,
            time.monotonic() - self.began,
            how,
        )

    def _settled(self, regions: Sequence[_Region]) -> bool:
        """Whether checks besides those that found the solutions say which combination is right."""
        if len(regions) < 2:
            return all(region.decided for region in regions)
        more = [
            check
            for check in self._failing()
            if not any(region.finder.begin <= check.begin and check.end <= region.finder.end for region in regions)
        ]
        return sum(check.bits for check in more) >= _SETTLES

    # One range.

    def _solve_one(self, finder: Check, deciders: Sequence[Check], until: float) -> _Region:
        failing = [check for check in deciders if not check.holds(self.data)]
        bits = finder.bits + sum(check.bits for check in failing)
        decides = bits - finder.bits >= _DECIDES or (finder.bits >= _DECIDES and not isinstance(finder, Crc))
        # What arithmetic found passes the check that it was found by; it is verified once more before it is called proved.
        asked = deciders if isinstance(finder, (Crc, Adler32)) else [finder, *deciders]
        # The one that decides most is asked first.
        asked = sorted(asked, key=lambda check: (check not in failing, -check.bits))
        odds_N8, may_change_N = self._allowed(finder, deciders)
        region, pool = _Region(finder, bits), cast("dict[Any, tuple[Solution, _Found]]", {})
        stages = self._stages(region, odds_N8, may_change_N, decides, until)
        for name, clear_first, found in stages:
            if clear_first and not self.thorough and region.best is not None and region.best.probability >= CLEAR:
                break
            region.how = region.how or name
            fresh: list[_Found] = []
            most = max(self.judged, self.judged_bursts) if name == _BURSTS else self.judged
            for candidate in found():
                if not asked or self._passes(candidate.edits, asked):
                    fresh.append(candidate)
                if len(fresh) >= (1 if decides else most) or time.monotonic() > until:
                    break
            self._rank(region, pool, fresh)
            if decides and fresh:
                region.decided, region.unseen = True, 0.0
                region.solutions = [replace(region.solutions[0], probability=1.0)]
                region.how = f"{name}, settled by {(failing or [finder])[0].name.partition(':')[0]}"
                return region
            if self._told(name, region.best.log_odds if region.best else -math.inf) or time.monotonic() > until:
                break
        if region.best is not None:
            region.how = _KINDS[region.best.kind]
        else:
            region.how = "nothing found" + (" in that time" if time.monotonic() > until else "")
        return region

    def _rank(self, region: _Region, pool: dict[Any, tuple[Solution, _Found]], fresh: Sequence[_Found]) -> None:
        """Judge what was found, and rank it with what was found before."""
        if fresh:
            log_odds = self.judge([self._as_given(found.edits) for found in fresh])
            for found, value in zip(fresh, log_odds, strict=True):
                total = float(value) + self._prior(found, region.finder)
                key = _what(found.edits)
                if key not in pool or pool[key][0].log_odds < total:
                    pool[key] = Solution(found.edits, total, 0.0, found.kind), found
        ranked = sorted(pool.values(), key=lambda pair: -pair[0].log_odds)
        if not ranked:
            return
        logs = np.array([solution.log_odds for solution, _ in ranked])
        shares = np.exp(logs - np.logaddexp.reduce(logs))
        chance = math.exp(min(0.0, self._log_rank(region, *ranked[0]) - region.bits * math.log(2)))
        region.unseen, region.others = min(1.0, _ELSEWHERE * chance), 1 - float(shares[0])
        region.solutions = [
            replace(solution, probability=float(share) * (1 - region.unseen))
            for (solution, _), share in zip(ranked, shares, strict=True)
        ]

    def _log_rank(self, region: _Region, solution: Solution, found: _Found) -> float:
        """The logarithm of how many solutions of that kind are at least as likely, whether they pass or not."""
        if found.log_rank is not None:
            return found.log_rank
        size = region.finder.end - region.finder.begin
        if found.kind == "flips" and region.possible is not None:
            flipped = sum(len(edit.flipped) for edit in found.edits)
            least, most = min(found.score, solution.log_odds), min(_MOST_COUNTED, 1 << min(region.bits, 60))
            count = count_above(region.possible.odds_C, least, min(flipped, self.most_flips), most)
            return math.log(max(1.0, count)) if count < most else math.inf
        # Odds of all that may have happened sum to about one, so not more than this many are as likely; nor are there more than this many.
        byte = math.log(256)
        every = math.log(size) + (0 if found.kind == "extra" else byte * sum(len(edit.new) for edit in found.edits))
        return max(0.0, min(-solution.log_odds, every))

    def _prior(self, found: _Found, finder: Check) -> float:
        size, priors = finder.end - finder.begin, self.priors
        edit = found.edits[0]
        if found.kind == "burst":
            return priors.burst - math.log(size * finder.bits / 8) - len(edit.new) * math.log(256)
        if found.kind == "lost":
            return priors.lost - math.log(size + 1)
        if found.kind == "extra":
            doubled = edit.old == self.data[edit.end : edit.end + len(edit.old)]
            doubled |= edit.old == self.data[max(0, edit.offset - len(edit.old)) : edit.offset]
            return priors.extra - math.log(size) - (0 if doubled else len(edit.old) * math.log(256))
        return priors.flip * sum(len(edit.flipped) for edit in found.edits) if found.kind == "flips" else 0.0

    def _allowed(self, finder: Check, deciders: Sequence[Check]) -> tuple[Odds, NDArray[np.bool_] | None]:
        """The odds without those of bytes that another check says are right."""
        may_change_N = np.ones(len(self.data), bool)
        for check in self.checks:
            smaller = check.end - check.begin < finder.end - finder.begin
            overlaps = check.begin < finder.end and finder.begin < check.end
            if check.bits >= 16 and smaller and overlaps and check.holds(self.data):
                may_change_N[check.begin : check.end] = False
        part = may_change_N[finder.begin : finder.end]
        if part.all() or not part.any():
            return self.odds_N8, None
        return np.where(may_change_N[:, None], self.odds_N8, np.float32(-np.inf)), may_change_N

    def _stages(
        self, region: _Region, odds_N8: Odds, may_change_N: NDArray[np.bool_] | None, decides: bool, until: float
    ) -> Iterator[tuple[str, bool, Callable[[], Iterable[_Found]]]]:
        """Kinds of damage in order: a name, whether it is left out where the answer is clear, and what is found."""
        finder = region.finder
        if self.lost is not None and finder.begin <= self.lost[0] and self.lost[1] <= finder.end:
            yield "a lost range", False, lambda: self._range(finder)
            return
        if not _is_linear(finder):
            yield "likely changes, one after another", False, lambda: self._guessed(finder, odds_N8, until)
            return
        linear = cast("LinearCheck", finder)
        possible = region.possible = changes(linear, self.data, odds_N8, self.extra_edits)
        target = linear.target(self.data)

        def flipped(size: int) -> Iterator[_Found]:
            sets = flip_sets(possible, target, size, kept=self.kept, bits=finder.bits)
            self.tried += sets.tried
            for ranks, odds in zip(sets.ranks_KS.tolist(), sets.odds_K.tolist(), strict=True):
                edits = possible.edits_of(ranks)
                if edits:
                    yield _Found(edits, odds, "flips")

        for size in (1, 2):
            if size <= self.most_flips:
                yield f"{size} change{'s' if size > 1 else ''}", False, lambda size=size: flipped(size)  # type: ignore[misc]
        if isinstance(finder, Crc):
            yield _BURSTS, False, lambda: self._bursts(finder, may_change_N, decides)
            if self.most_lost:
                yield "lost bytes", False, lambda: self._shifted(finder)
        else:
            yield "the stored value", False, lambda: self._stored(finder, odds_N8)
        for size in (3, 4):
            if size <= self.most_flips:
                yield f"{size} changes", True, lambda size=size: flipped(size)  # type: ignore[misc]

    def _bursts(self, finder: Crc, may_change_N: NDArray[np.bool_] | None, decides: bool) -> Iterator[_Found]:
        kept = 1 << 16 if decides else max(self.judged_bursts, self.judged)
        found = bursts(finder, self.data, cost_N=self.surprise_N, may_change_N=may_change_N, kept=kept)
        self.tried += found.tried
        for k in range(len(found.offsets_K)):
            edit = found.edit(self.data, k)
            yield _Found((edit,), float(found.scores_K[k]), "burst" if len(edit.flipped) > 1 else "flips")

    def _shifted(self, finder: Crc) -> Iterator[_Found]:
        for size in range(1, min(self.most_lost, finder.bits // 8) + 1):
            self.tried += 2 * (finder.end - finder.begin)
            for kind, edits in (
                ("lost", lost_bytes(finder, self.data, size)),
                ("extra", extra_bytes(finder, self.data, size)),
            ):
                for edit in edits:
                    yield _Found((edit,), 0.0, kind)

    def _stored(self, finder: Check, odds_N8: Odds) -> Iterator[_Found]:
        """Single flips that the sum of changes does not describe: those of a checksum that is stored as text."""
        if finder.end - finder.begin > 4096:
            return
        part = odds_N8[finder.begin : finder.end].ravel()
        for bit in likeliest(part, part.size):
            self.tried += 1
            edits = flips(self.data, [8 * finder.begin + int(bit)])
            if finder.holds(apply(self.data, edits)):
                yield _Found(edits, float(part[bit]), "flips")

    def _guessed(self, finder: Check, odds_N8: Odds, until: float) -> Iterator[_Found]:
        possible = guessable(finder, self.data, odds_N8, self.extra_edits)
        before, first = self.tried, None
        for found in guesses(
            finder,
            possible,
            most_flips=self.most_flips,
            seconds=max(0.0, until - time.monotonic()),
            threads=self.threads,
            tell=self._heard,
            stage="likely changes",
        ):
            self.tried = before + found.tried
            if isinstance(found, Guess):
                first = found.tried if first is None else first
                kind = "flips" if all(len(edit.flipped) for edit in found.edits) else "edits"
                yield _Found(found.edits, found.odds, kind, math.log(found.tried))
            elif first is not None and found.tried > 2 * first + 1000:
                return  # what comes now is less likely by far

    def _range(self, finder: Check) -> Iterator[_Found]:
        assert self.lost is not None
        first, last = self.lost
        if isinstance(finder, Crc):
            for edit, log_rank in range_guesses(finder, self.data, self.lost, self.guessed):
                self.tried += 1
                yield _Found((edit,), -log_rank, "range", log_rank)
            return
        view = memoryview(self.data)
        before = finder.stream(self.data)
        before.update(view[finder.begin : first])
        for rank, guess in enumerate(self.guessed):
            if len(guess) != last - first:
                raise BitStreamError(f"guesses: got one of {len(guess)} bytes; must be {last - first}", field="lost")
            self.tried += 1
            stream = before.copy()
            stream.update(guess)
            stream.update(view[last : finder.end])
            if stream.good():
                yield _Found((Edit(first, self.data[first:last], guess),), -float(rank), "range", math.log(rank + 1))
            if time.monotonic() > self.deadline:
                return

    def _heard(self, progress: Progress) -> bool:
        """Pass on how far it is. Whether to go on."""
        self.stopped |= self.tell is not None and self.tell(progress) is False
        return not self.stopped

    def _told(self, stage: str, log_odds: float) -> bool:
        """Tell how far it is. Whether to stop."""
        seconds = time.monotonic() - self.began
        return not self._heard(Progress(stage, self.tried, self.tried / max(seconds, 1e-6), log_odds, seconds))


_BURSTS = "overwritten bytes"
_KINDS = {
    "flips": "flipped bits",
    "burst": _BURSTS,
    "lost": "lost bytes",
    "extra": "bytes that are too much",
    "range": "a lost range",
    "edits": "likely edits",
}


def _is_linear(check: Check) -> bool:
    return hasattr(check, "modulus")


def _growth_before(edits: Iterable[Edit], offset: int) -> int:
    return sum(edit.growth for edit in edits if edit.offset < offset)


def _what(edits: Iterable[Edit]) -> tuple[tuple[int, bytes, bytes], ...]:
    """What edits do, whichever way they are written: the same for a run of bytes as for its bytes one by one."""
    made: list[tuple[int, bytes, bytes]] = []
    for edit in edits:
        if edit.growth:
            made.append((edit.offset, edit.old, edit.new))
        else:
            pairs = enumerate(zip(edit.old, edit.new, strict=True))
            made += [(edit.offset + i, bytes([a]), bytes([b])) for i, (a, b) in pairs if a != b]
    return tuple(made)


def _combined(lists: Sequence[Sequence[Solution]], most: int) -> Iterator[Solution]:
    """One solution of each range, the likeliest combinations first."""
    if not lists:
        return
    start = (0,) * len(lists)

    def odds(at: tuple[int, ...]) -> float:
        return sum(solutions[i].log_odds for solutions, i in zip(lists, at, strict=True))

    waiting, seen = [(-odds(start), start)], {start}
    for _ in range(most):
        if not waiting:
            return
        value, at = heapq.heappop(waiting)
        chosen = [solutions[i] for solutions, i in zip(lists, at, strict=True)]
        edits = tuple(sorted((edit for solution in chosen for edit in solution.edits), key=lambda edit: edit.offset))
        kinds = {solution.kind for solution in chosen}
        yield Solution(
            edits,
            -value,
            math.prod(solution.probability for solution in chosen),
            kinds.pop() if len(kinds) == 1 else "edits",
        )
        for place in range(len(lists)):
            following = (*at[:place], at[place] + 1, *at[place + 1 :])
            if following[place] < len(lists[place]) and following not in seen:
                seen.add(following)
                heapq.heappush(waiting, (-odds(following), following))
