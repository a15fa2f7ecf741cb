"""The tree of errors a user can meet. Every message is one line: what was got, what must hold, what to try.

An error knows which field was wrong, where there is one, and what to try in terms of operations and their fields. Each door says that in its own
words: the command line as flags, an HTTP server as fields of a request.

BitTransformerError
├── ConfigError (ValueError)        a setting that cannot be
│   └── NoExperts (AttributeError)  a model without experts was asked for its bank
├── BitStreamError (ValueError)     bits, bytes or files that cannot be modelled
│   └── ParityError                 a parity bit that does not fit its byte; carries the byte offsets
├── CheckpointError                 a checkpoint that is missing, damaged or of another shape
├── StoreError                      a run store that cannot answer
│   ├── RunNotFound                 no run of that name
│   ├── RunBusy                     a run folder in which a training goes on
│   └── RunNotRunning               a run that was asked to stop, and is not being trained
├── TrainingError                   a training that cannot go on
│   ├── NonFiniteLoss               loss or gradient became NaN or infinite; carries the step
│   ├── StreamOverflow              values of a reversible trunk that cannot be rebuilt exactly
│   ├── NotRebuilt                  a reversible trunk that is not what it was in the forward pass
│   └── OutOfMemory                 no memory for an update; says what would take less
├── SafetyRejection                 the gate blocked what was generated; carries the decision
└── MissingExtra (ImportError)      an optional library that is not installed

`assert` is for what cannot happen; these are for what users do and disks suffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Give:
    """Advice: give a field of the request, another value where none is named."""

    field: str
    value: Any = None

    def __str__(self) -> str:
        return f"another {self.field}" if self.value is None else f"{self.field}={self.value!r}"


@dataclass(frozen=True)
class Ask:
    """Advice: ask for another operation first, of a run where one is named."""

    operation: str
    run: str = ""
    more: tuple[Give, ...] = ()

    def __str__(self) -> str:
        given = ", ".join([*([f"run={self.run!r}"] if self.run else []), *map(str, self.more)])
        return f"{self.operation}({given})"


Advice = str | Give | Ask


class BitTransformerError(Exception):
    """Root of every error this package raises on purpose.

    Args:
        what: was wrong; where `tries` are not given, what to try too.
        field: of the request or config that was wrong, if it is one.
        tries: what would help, the likeliest first.
    """

    def __init__(self, what: str, *, field: str | None = None, tries: Sequence[Advice] = ()) -> None:
        super().__init__(what)
        self.what, self.field, self.tries = what, field, tuple(tries)

    def said(self, say: Callable[[Advice], str] = str) -> str:
        """The whole message, with advice in a door's words."""
        return f"{self.what}. Try {', or '.join(map(say, self.tries))}" if self.tries else self.what

    def __str__(self) -> str:
        return self.said()


class ConfigError(BitTransformerError, ValueError):
    """A setting that cannot be, or that does not go with another."""


class NoExperts(ConfigError, AttributeError):
    """A model without experts was asked for its bank; `hasattr` takes it for no."""


class BitStreamError(BitTransformerError, ValueError):
    """Bits, bytes or files that cannot be modelled as they are."""


class ParityError(BitStreamError):
    """Parity bits that do not fit their bytes.

    Attributes:
        offsets: the byte offsets of the bytes whose parity is odd.
    """

    def __init__(self, message: str, offsets: Sequence[int], *, tries: Sequence[Advice] = ()) -> None:
        super().__init__(message, tries=tries)
        self.offsets = tuple(offsets)


class CheckpointError(BitTransformerError):
    """A checkpoint that is missing, damaged, or of another shape."""


class StoreError(BitTransformerError):
    """A run store that cannot be opened, written or asked."""


class RunNotFound(StoreError):
    """No run of that name."""


class RunBusy(StoreError):
    """A run folder in which another training goes on."""


class RunNotRunning(StoreError):
    """A run that was asked to stop, and is not being trained."""


class TrainingError(BitTransformerError):
    """A training that cannot go on."""


class NonFiniteLoss(TrainingError):
    """The loss or the gradient became NaN or infinite.

    Attributes:
        step: the optimizer update that was not made.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StreamOverflow(TrainingError):
    """Values of a reversible trunk grew out of the range in which they can be rebuilt exactly."""


class NotRebuilt(TrainingError):
    """A reversible trunk computed something else in the backward pass than in the forward."""


class OutOfMemory(TrainingError):
    """There was no memory for an update; the message says which switch would save how much."""


class SafetyRejection(BitTransformerError):
    """The gate blocked what was generated, and nobody let it pass.

    Attributes:
        decision: the gate's, a `safety.Decision`.
    """

    def __init__(self, message: str, decision: object) -> None:
        super().__init__(message)
        self.decision = decision


class MissingExtra(BitTransformerError, ImportError):
    """An optional library that is asked for and not installed."""
