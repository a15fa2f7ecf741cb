"""Generation behind a gate: window by window, stopped, asked about, or drawn again.

C and S of a window are judged by themselves, whatever came before it. Loops are looked for in all that the stream said, the prompt left out: a loop whose
period is longer than a window is seen in the window in which it begins its third round, at the latest in its middle.
"""

# Shapes: B streams, T bits.
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import torch
from torch import Tensor

from bit_transformer.bit_io import Bits, bytes_to_bits
from bit_transformer.config import Sampling
from bit_transformer.decoding.generation import infer_long, stream_bytes
from bit_transformer.errors import ConfigError, SafetyRejection
from bit_transformer.model import BitTransformerLM
from bit_transformer.restoration.streams import continued
from bit_transformer.safety.gate import Decision, SafetyGate
from bit_transformer.safety.reference import Reference
from bit_transformer.safety.repetition import MEMORY

WINDOW = 256  # bytes
WARMER, COOLER, WARM = 1.25, 0.8, 0.4  # see `_again`


@dataclass(frozen=True)
class Guard:
    """A gate, what it compares with, and how long its windows are.

    Attributes:
        gate: one that takes every window by itself, as `SafetyGate.calibrated` does.
        window: bytes; 0: 256, or the longest that was calibrated.

    Raises:
        ConfigError: a window that the gate was not calibrated for or in which units of the reference do not fit, or a gate with
            decay or burn_in, which would let windows through for what came before them.
    """

    gate: SafetyGate
    reference: Reference
    window: int = 0

    def __post_init__(self) -> None:
        align, known = self.reference.align_bytes, self.gate.calibration
        window = self.window or min(WINDOW, known.longest if known else WINDOW) // align * align
        object.__setattr__(self, "window", window)
        if self.gate.decay or self.gate.burn_in:
            raise ConfigError(
                f"got a gate with decay={self.gate.decay} and burn_in={self.gate.burn_in}; behind one each window is judged by itself. "
                f"Try SafetyGate(..., decay=0, burn_in=0), or SafetyGate.calibrated"
            )
        if window < 1 or window % align or (known and not known.shortest <= window <= known.longest):
            lengths = f"{known.shortest} to {known.longest:,}" if known else "1 or more"
            multiple = f", a multiple of {align}" if align > 1 else ""
            raise ConfigError(f"window={window} bytes; the gate judges {lengths}{multiple}. Try leaving it out")

    @property
    def least_bytes(self) -> int:
        """The shortest window that can be judged."""
        return self.gate.calibration.shortest if self.gate.calibration else 1

    def check(self, bits_T: Tensor, stream: int = 0, before_T: Tensor | None = None) -> Decision:
        """Measure one window, which begins where a unit does, and decide. What cannot be measured is blocked.

        Args:
            before_T: whole units, what the stream said before the window.
        """
        try:
            (vitals,) = self.reference.measure(bits_T[None], None if before_T is None else before_T[None])
        except Exception as failed:  # whatever it is, nothing is known of the window
            return self.gate.update(
                None, stream, failure=f"it could not be measured ({type(failed).__name__}: {failed})"
            )
        return self.gate.update(vitals, stream)

    def spans(self, size: int) -> Iterator[tuple[int, int]]:
        """The windows that so many bytes, from the start of a unit on, are judged in: where each begins and ends.

        A remainder that is too short to be judged is judged together with the end of the window before.

        Raises:
            ConfigError: fewer bytes than can be judged.
        """
        if size < self.least_bytes:
            raise ConfigError(
                f"got {size} bytes to generate; the gate judges {self.least_bytes} or more. Try {self.window}"
            )
        return self._spans(size)

    def _spans(self, size: int) -> Iterator[tuple[int, int]]:
        for begin in range(0, size, self.window):
            end = min(begin + self.window, size)
            if end - begin < self.least_bytes:
                begin = (size - self.least_bytes) // self.reference.align_bytes * self.reference.align_bytes
            yield begin, end


@dataclass(frozen=True)
class Piece:
    """A window of gated generation: its bytes, empty where it was blocked, what the gate said, and how often it was drawn again."""

    data: bytes
    decision: Decision
    retries: int = 0


@dataclass(frozen=True)
class SafeSample:
    """What gated generation gave: the bytes that were allowed, and every decision."""

    data: bytes
    pieces: tuple[Piece, ...]

    @property
    def complete(self) -> bool:
        """Whether no window was blocked for good."""
        return all(piece.decision.allow for piece in self.pieces)

    @property
    def retries(self) -> int:
        """Windows that were drawn again, in all."""
        return sum(piece.retries for piece in self.pieces)


def stream_guarded(
    model: BitTransformerLM,
    prompt: bytes,
    max_bytes: int,
    guard: Guard,
    sampling: Sampling | None = None,
    *,
    retries: int = 0,
) -> Iterator[Piece]:
    """Continue a prompt, of a diffusion model by filling in; give each window when the gate has allowed it, and stop at the first that it blocks for good.

    As long as nothing is blocked the bytes are those of `stream_bytes`, or of `restoration.continued`.

    Args:
        retries: how often a blocked window is drawn again: warmer where it repeats itself, cooler where it is foreign.

    Yields:
        the windows; a last one without bytes where one was blocked.

    Raises:
        ConfigError: fewer bytes than the gate can judge, or sampling that cannot be judged or drawn again; before any is drawn.
    """
    asked = sampling or Sampling()
    if model.config.parity and not asked.force_parity:
        raise ConfigError("got force_parity=False; behind a gate bytes come with even parity. Try force_parity=True")
    if retries and asked.learn == "prompt":
        raise ConfigError(
            "got learn='prompt' with retries, for which what was allowed becomes prompt. Try learn='nothing'"
        )
    # Windows begin where units do: with a prompt that ends inside one, at its last bytes.
    inside = len(prompt) % guard.reference.align_bytes
    return _guarded(model, prompt, inside, guard, guard.spans(inside + max_bytes), asked, retries)


def _guarded(
    model: BitTransformerLM,
    prompt: bytes,
    inside: int,
    guard: Guard,
    spans: Iterator[tuple[int, int]],
    asked: Sampling,
    retries: int,
) -> Iterator[Piece]:
    def bits_of(data: bytes) -> Tensor:
        return torch.from_numpy(bytes_to_bits(data, parity=model.config.parity).copy())

    ahead, text = len(prompt) - inside, prompt
    stream = _bytes(model, text, asked)
    for index, (begin, end) in enumerate(spans):
        size = ahead + end - len(text)
        said = text[ahead : ahead + begin][-MEMORY:]
        how = asked
        for tried in count():
            fresh = bytes(islice(stream, size))
            window = (text + fresh)[ahead + begin :]
            decision = replace(guard.check(bits_of(window), 0, bits_of(said)), window=index)  # draws are not windows
            if decision.allow or tried == retries:
                break
            how = _again(how, decision, tried)
            stream = _bytes(model, text, how)
        if not decision.allow:
            yield Piece(b"", decision, tried)
            return
        text += fresh
        yield Piece(fresh, decision, tried)
        if tried:  # from here on as was asked, with other draws
            seed = None if asked.seed is None else asked.seed + len(text)
            stream = _bytes(model, text, asked.model_copy(update={"seed": seed}))


def _bytes(model: BitTransformerLM, prompt: bytes, sampling: Sampling) -> Iterator[int]:
    if model.config.causal:
        return chain.from_iterable(stream_bytes(model, prompt, sys.maxsize, sampling))
    return chain.from_iterable(continued(model, prompt, sampling))


def _again(how: Sampling, decision: Decision, tried: int) -> Sampling:
    """How a blocked window is drawn again."""
    kinds = {reason.kind for reason in decision.reasons}
    temperature = how.temperature
    if kinds & {"C below", "repeats"}:
        temperature = max(temperature, WARM) * WARMER
    elif "S below" in kinds:
        temperature *= COOLER
    seed = None if how.seed is None else how.seed + 1_000_003 * (tried + 1)
    return how.model_copy(update={"temperature": temperature, "seed": seed})


def safe_sample_with_retry(
    model: BitTransformerLM,
    prompt: bytes,
    max_bytes: int,
    guard: Guard,
    sampling: Sampling | None = None,
    *,
    retries: int = 3,
) -> SafeSample:
    """`stream_guarded` to its end: each blocked window is drawn again, up to `retries` times; then it stops with what was allowed."""
    pieces = tuple(stream_guarded(model, prompt, max_bytes, guard, sampling, retries=retries))
    return SafeSample(b"".join(piece.data for piece in pieces), pieces)


def hil_safe_inference(
    model: BitTransformerLM,
    prompt_BT: Tensor | Bits,
    max_new_bits: int,
    guard: Guard,
    sampling: Sampling | None = None,
    *,
    ask: Callable[[Decision], bool] | None = None,
) -> tuple[Tensor, list[Decision]]:
    """Continue prompts and let nothing blocked out without a person's word (human in the loop).

    Args:
        ask: called with each decision that blocks; whether it may pass all the same. Not given: nothing may.

    Returns:
        (B, max_new_bits) bits, and the decisions: those of the first row's windows, then the second's, ...

    Raises:
        SafetyRejection: a blocked window that was not let through; it carries the decision.
        ConfigError: fewer bytes than the gate can judge.
    """
    known_BT, width = torch.as_tensor(prompt_BT), guard.reference.byte_bits
    inside = known_BT.shape[1] % (guard.reference.align_bytes * width)  # windows begin where units do
    spans = list(guard.spans((inside + max_new_bits) // width))
    bits_BT = infer_long(model, known_BT, max_new_bits, sampling)
    judged_BT = torch.cat((known_BT[:, known_BT.shape[1] - inside :].to(bits_BT), bits_BT), dim=1)
    decisions = []
    for stream, row in enumerate(judged_BT):
        for index, (begin, end) in enumerate(spans):
            stop = len(row) if index == len(spans) - 1 else width * end  # bits after the last whole byte go with it
            decision = guard.check(row[width * begin : stop], stream, row[: width * begin])
            decisions.append(replace(decision, window=index))
    for decision in decisions:
        if not decision.allow and not (ask is not None and ask(decision)):
            reasons = "; ".join(map(str, decision.reasons))
            raise SafetyRejection(
                f"the gate blocked window {decision.window + 1} of stream {decision.stream}: {reasons}", decision
            )
    return bits_BT, decisions
