"""The gate: compares C, S and loops with their limits, decides on every window, and gives reasons and advice.

The gate fails closed: it blocks if a measurement is missing or is not a number, or if the gate itself has an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bit_transformer.errors import ConfigError
from bit_transformer.safety.calibration import MOST_COPIED, Calibration, Limits
from bit_transformer.safety.reference import Vitals
from bit_transformer.telemetry import METRICS

_LOOSER = "a higher temperature, a repetition penalty, or no_repeat_ngram"
_MEANING = {
    "C below": ("the text repeats itself", _LOOSER),
    "S below": (
        "the text is unlike the reference",
        "a lower temperature or top_p, or a prompt of the reference's kind",
    ),
    "repeats": ("the text is in a loop", _LOOSER),
    "parity": ("bytes have wrong parity", "force_parity=True, or repair_parity"),
    "judged": ("the window could not be judged", "measuring it again, or an earlier checkpoint"),
}


@dataclass(frozen=True)
class Reason:
    """Why a window was blocked.

    Attributes:
        kind: `C below`, `S below`, `repeats`, `parity`, or `judged` if it could not be judged.
        text: the reason with its values.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Decision:
    """The gate's decision on one window.

    Attributes:
        allow: whether the window passes.
        reasons: why it is blocked, or, in the burn-in, why it would be.
        vitals: what was measured; None if measuring failed.
        smoothed: C and S after smoothing, as compared.
        limits: what they were compared with; None if the window could not be judged.
        window: number of earlier windows of this stream.
        stream: number of the stream.
        margin: smallest distance of C, S and copied bytes from their limits; negative if beyond. In units of the distance
            between median and limit, so 1 is typical; without a calibration, in units of C and S. Minus infinity if parity is wrong
            or the window could not be judged.
    """

    allow: bool
    reasons: tuple[Reason, ...]
    vitals: Vitals | None
    smoothed: Mapping[str, float]
    limits: Limits | None
    window: int
    stream: int
    margin: float


@dataclass
class _State:
    """State of a stream: smoothed C and S, the number of windows, and how many of them were averaged."""

    C: float = 0.0
    S: float = 0.0
    windows: int = 0
    averaged: int = 0


class SafetyGate:
    """Blocks text that repeats itself, within a window (C below its floor) or in the whole stream (a loop copies too much), and
    text that is unlike the reference (S below its floor).

    Args:
        c_floor, s_floor: lower limits of C and S in [0, 1], for windows of any length. `SafetyGate.calibrated` has better ones.
        most_copied: bytes that a loop may copy.
        decay: of the moving averages that are compared, in [0, 1); 0 judges each window independently.
        burn_in: number of first windows of a stream that are not blocked for C, S or loops. Wrong parity and failures always block.
        calibration: limits by length, instead of the three above.

    Raises:
        ConfigError: a floor outside [0, 1], or another invalid value.
    """

    def __init__(
        self,
        c_floor: float = 0.3,
        s_floor: float = 0.5,
        decay: float = 0.9,
        burn_in: int = 10,
        *,
        most_copied: float = MOST_COPIED,
        calibration: Calibration | None = None,
    ) -> None:
        for name, value in (("c_floor", c_floor), ("s_floor", s_floor)):
            if not 0 <= value <= 1:
                raise ConfigError(f"got {name}={value}; it must be in [0, 1]. Try {0.3 if name == 'c_floor' else 0.5}")
        if not 0 <= decay < 1:
            raise ConfigError(f"got decay={decay}; it must be in [0, 1). Try 0.9")
        if burn_in < 0:
            raise ConfigError(f"got burn_in={burn_in}; it must not be negative. Try 0")
        if not most_copied >= 0:
            raise ConfigError(f"got most_copied={most_copied}; it must be 0 or more bytes. Try {MOST_COPIED:g}")
        self.decay, self.burn_in = decay, burn_in
        self.limits = Limits(c_floor, s_floor, most_copied)
        self.calibration = calibration
        self._streams: dict[int, _State] = {}
        self._latest: Decision | None = None

    @classmethod
    def calibrated(cls, calibration: Calibration) -> SafetyGate:
        """A gate with calibrated limits, which judges each window independently."""
        return cls(decay=0.0, burn_in=0, calibration=calibration)

    def __repr__(self) -> str:
        floors = f"c_floor={self.limits.c_floor}, s_floor={self.limits.s_floor}, most_copied={self.limits.most_copied}"
        limits = floors if self.calibration is None else f"calibration={self.calibration!r}"
        return f"SafetyGate({limits}, decay={self.decay}, burn_in={self.burn_in})"

    def update(self, vitals: Vitals | None, stream: int = 0, *, failure: str = "nothing was measured") -> Decision:
        """Judge the next window of a stream.

        Args:
            vitals: what `Reference.measure` measured; None if measuring failed, which blocks.
            stream: number of the stream; each has its own averages.
            failure: why measuring failed, if it did.
        """
        state = self._streams.setdefault(stream, _State())
        window = state.windows
        state.windows += 1
        try:
            decision = self._decide(vitals, state, window, stream, failure)
        except Exception as failed:
            decision = self._blocked(
                f"the gate itself failed ({type(failed).__name__}: {failed})", vitals, window, stream
            )
        self._latest = decision
        return decision

    def update_batch(self, vitals: Sequence[Vitals]) -> list[Decision]:
        """Judge the next window of each of several streams, numbered 0, 1, ..."""
        return [self.update(of_one, stream) for stream, of_one in enumerate(vitals)]

    def _decide(self, vitals: Vitals | None, state: _State, window: int, stream: int, failure: str) -> Decision:
        if vitals is None:
            return self._blocked(failure, vitals, window, stream)
        most = {**dict.fromkeys(METRICS, 1.0), "copied": math.inf}
        wrong = [name for name, bound in most.items() if not 0 <= getattr(vitals, name) <= bound]
        if wrong:
            got = ", ".join(f"{name}={getattr(vitals, name)}" for name in wrong)
            return self._blocked(
                f"got {got}; K, C and S must be in [0, 1], and copied bytes not negative", vitals, window, stream
            )
        limits, scales = self.limits, Limits(1.0, 1.0, max(self.limits.most_copied, 1.0))
        if self.calibration is not None:
            limits = self.calibration.limits_at(vitals.size)
            medians = self.calibration.medians_at(vitals.size)
            scales = Limits(*(max(abs(m - limit), 1e-6) for m, limit in zip(medians, limits, strict=True)))
        keep = self.decay if state.averaged else 0.0
        state.C = keep * state.C + (1 - keep) * vitals.C
        state.S = keep * state.S + (1 - keep) * vitals.S
        burning_in = state.averaged < self.burn_in
        state.averaged += 1
        note = ", in the burn-in" if burning_in else ""
        tests = (
            ("C below", state.C - limits.c_floor, scales.c_floor, f"C {state.C:.3f} is below its floor {limits.c_floor:.3f}"),
            ("S below", state.S - limits.s_floor, scales.s_floor, f"S {state.S:.3f} is below its floor {limits.s_floor:.3f}"),
            ("repeats", limits.most_copied - vitals.copied, scales.most_copied, _loop(vitals, limits.most_copied)),
        )  # fmt: skip
        reasons = [Reason(kind, text + note) for kind, room, _, text in tests if not room >= 0]
        allow = burning_in or not reasons
        margin = min(room / scale for _, room, scale, _ in tests)
        if vitals.odd_bytes:
            reasons = [Reason("parity", f"parity is wrong in {vitals.odd_bytes} bytes"), *reasons]
            allow, margin = False, -math.inf  # not a matter of degree
        smoothed = {"C": state.C, "S": state.S}
        return Decision(allow, tuple(reasons), vitals, smoothed, limits, window, stream, margin)

    def _blocked(self, text: str, vitals: Vitals | None, window: int, stream: int) -> Decision:
        return Decision(False, (Reason("judged", text),), vitals, {}, None, window, stream, -math.inf)

    def explain(self, decision: Decision | None = None) -> str:
        """Explain a decision: which window, which metric, by how much, what to try.

        Args:
            decision: Default: the latest.
        """
        d = decision or self._latest
        if d is None:
            return "No window has been judged yet."
        size = f", {d.vitals.size:,.6g} bytes" if d.vitals else ""
        stream = f" of stream {d.stream + 1}" if d.stream else ""
        lines = [f"{'Allowed' if d.allow else 'Blocked'}: window {d.window + 1}{stream}{size}."]
        for reason in d.reasons:
            meaning, advice = _MEANING[reason.kind]
            lines.append(f"  {reason}: {meaning}. Try {advice}.")
        if not d.reasons and d.limits:
            c_floor, s_floor, most_copied = d.limits
            copied = d.vitals.copied if d.vitals else 0
            lines.append(
                f"  C {d.smoothed['C']:.3f}, floor {c_floor:.3f}; S {d.smoothed['S']:.3f}, floor {s_floor:.3f}; "
                f"{copied:,.0f} bytes copied in a loop, at most {most_copied:,.0f} are allowed."
            )
        if self.calibration is not None and d.vitals is not None and d.limits:
            rank = self.calibration.ranks(d.vitals)
            below = ", ".join(f"{name}: {fraction:.1%}" for name, fraction in rank.items())
            lines.append(f"  Reference windows of this length with a lower value: {below}.")
        return "\n".join(lines)

    def reset(self) -> None:
        """Forget all streams."""
        self._streams.clear()
        self._latest = None

    def state_dict(self) -> dict[str, Any]:
        """The state of each stream, as plain JSON."""
        return {str(stream): asdict(state) for stream, state in self._streams.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`.

        Raises:
            ConfigError: an invalid state.
        """
        try:
            streams = {int(stream): _State(**values) for stream, values in state.items()}
            if any(set(values) != set(asdict(_State())) for values in state.values()):
                raise ValueError("each stream needs C, S, windows and averaged")
            for s in streams.values():
                if not (0 <= s.C <= 1 and 0 <= s.S <= 1 and 0 <= s.averaged <= s.windows):
                    raise ValueError(f"{s} is impossible")
        except (AttributeError, TypeError, ValueError) as wrong:
            raise ConfigError(f"got an invalid gate state ({wrong}). Try gate.state_dict()") from None
        self._streams = streams


def _loop(vitals: Vitals, most: float) -> str:
    """Describe a loop."""
    rounds = 1 + vitals.copied / vitals.period if vitals.period else 1
    return (
        f"{vitals.copied + vitals.period:,.6g} bytes are {rounds:.1f} times the same {vitals.period:,.6g}; a loop may copy "
        f"{most:,.0f}"
    )
