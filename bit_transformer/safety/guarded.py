"""Generation behind a gate: window by window, stopped, asked about, or drawn again.

A window is judged as it is, whatever came before it; a loop that turns round in fewer bytes than a window is seen in the first
window that it fills.
"""

# Shapes: B streams, T bits.
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice

import torch
from torch import Tensor

from bit_transformer.bit_io import bytes_to_bits
from bit_transformer.config import Sampling
from bit_transformer.errors import BitTransformerError, ConfigError, SafetyRejection
from bit_transformer.generation import infer_long, stream_bytes
from bit_transformer.model import BitTransformerLM
from bit_transformer.safety.gate import Decision, SafetyGate
from bit_transformer.safety.reference import Reference

WINDOW = 256  # bytes
WARMER, COOLER = (
    1.25,
    0.8,
)  # what a retry makes of the temperature, after a repetitive or predictable window, and after a foreign one


@dataclass(frozen=True)
class Guard:
    """A gate, what it compares with, and how long its windows are.

    Attributes:
        window: bytes.
    """

    gate: SafetyGate
    reference: Reference
    window: int = WINDOW

    def __post_init__(self) -> None:
        least = self.least_bytes
        if self.window < least:
            raise ConfigError(
                f"window={self.window} bytes; the gate was calibrated from {least} on. Try {max(least, WINDOW)}"
            )

    @property
    def least_bytes(self) -> int:
        """The shortest window that can be judged."""
        return self.gate.calibration.least_bytes if self.gate.calibration else 1

    def check(self, bits: Tensor, stream: int = 0) -> Decision:
        """Measure a window of bits, (T,), and decide. What cannot be measured is blocked."""
        try:
            (vitals,) = self.reference.measure(bits[None])
        except BitTransformerError:
            return self.gate.update(None, stream)
        return self.gate.update(vitals, stream)

    def check_bytes(self, data: bytes) -> Decision:
        """`check` for bytes, whose parity, where there is one, is right."""
        return self.check(torch.from_numpy(bytes_to_bits(data, parity=self.reference.byte_bits == 9)))

    def check_length(self, size: int) -> None:
        """Refuse a length that cannot be judged.

        Raises:
            ConfigError: too short.
        """
        if size < self.least_bytes:
            raise ConfigError(
                f"got {size} bytes to generate; the gate judges {self.least_bytes} or more. Try {self.window}"
            )


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
    """Continue a prompt; give each window when the gate has allowed it, and stop at the first that it blocks for good.

    As long as nothing is blocked the bytes are those of `stream_bytes`. A remainder shorter than a window is judged together
    with the end of the window before.

    Args:
        retries: how often a blocked window is drawn again: warmer where it repeats itself or says only what is expected, cooler where it is foreign.

    Yields:
        the windows; a last one without bytes where one was blocked.

    Raises:
        ConfigError: fewer bytes than the gate can judge.
    """
    guard.check_length(max_bytes)
    asked = sampling or Sampling()
    text = b""
    stream = chain.from_iterable(stream_bytes(model, prompt, max_bytes, asked))
    while len(text) < max_bytes:
        size = min(guard.window, max_bytes - len(text))
        how = asked
        for tried in count():
            fresh = bytes(islice(stream, size))
            lacking = max(0, guard.least_bytes - size)
            decision = guard.check_bytes(text[len(text) - lacking :] + fresh)
            if decision.allow or tried == retries:
                break
            how = _again(how, decision, tried)
            stream = chain.from_iterable(stream_bytes(model, prompt + text, size, how))
        if not decision.allow:
            yield Piece(b"", decision, tried)
            return
        text += fresh
        yield Piece(fresh, decision, tried)
        if tried:
            seed = None if asked.seed is None else asked.seed + len(text)
            rest = asked.model_copy(update={"seed": seed})
            stream = chain.from_iterable(stream_bytes(model, prompt + text, max_bytes - len(text), rest))


def _again(how: Sampling, decision: Decision, tried: int) -> Sampling:
    """How a blocked window is drawn again."""
    repeats = any(reason.kind in ("C below", "S above") for reason in decision.reasons)
    temperature = max(how.temperature, 0.4) * (WARMER if repeats else COOLER)
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
    prompt_BT: Tensor,
    max_new_bits: int,
    guard: Guard,
    sampling: Sampling | None = None,
    *,
    ask: Callable[[Decision], bool] | None = None,
) -> tuple[Tensor, list[Decision]]:
    """Continue prompts and let nothing blocked out without a person's word (human in the loop).

    Every continuation is judged as one window.

    Args:
        ask: called with each decision that blocks; whether it may pass all the same. Not given: nothing may.

    Returns:
        (B, max_new_bits) bits, and a decision for each row.

    Raises:
        SafetyRejection: a blocked row that was not let through; it carries the decision.
        ConfigError: fewer bytes than the gate can judge.
    """
    guard.check_length(max_new_bits // guard.reference.byte_bits)
    bits_BT = infer_long(model, prompt_BT, max_new_bits, sampling)
    decisions = [guard.check(row, stream) for stream, row in enumerate(bits_BT)]
    for decision in decisions:
        if not decision.allow and not (ask is not None and ask(decision)):
            raise SafetyRejection(
                f"the gate blocked stream {decision.stream}: {'; '.join(map(str, decision.reasons))}", decision
            )
    return bits_BT, decisions
