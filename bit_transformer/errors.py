"""All errors that a user can meet. Every message is one line: what was given, what is needed, what to try.

An error knows which field was wrong, where there is one, and what to try in terms of operations and their fields. Each door says that in its own
words: the command line as flags, an HTTP server as fields of a request.

BitTransformerError
├── ConfigError (ValueError)        an invalid setting
│   └── NoExperts (AttributeError)  a model without experts was asked for its bank
├── BitStreamError (ValueError)     bits, bytes or files that cannot be used
│   ├── UploadNotFound              no upload of that id, or its file is not there yet
│   ├── ParityError                 bytes with wrong parity; has their offsets
│   └── CompressedFileError         a compressed file that is damaged, or belongs to another model
├── CheckpointError                 a checkpoint that is missing, damaged or has another shape
├── StoreError                      a run store that cannot be used
│   ├── RunNotFound                 no run of that name
│   ├── RunBusy                     another training uses the run folder
│   ├── RunNotRunning               a run was asked to stop and is not being trained
│   ├── JobNotFound                 no job of that number
│   └── QueueFull                   too many jobs wait already
├── HubError                        the Hugging Face hub refused, or could not be reached
├── Refused                         something that this caller may not do, or only after confirming it
├── Cancelled                       work that was asked to stop before it had a result
├── TrainingError                   a training that cannot continue
│   ├── NonFiniteLoss               the loss or the gradient became NaN or infinite; has the step
│   ├── StreamOverflow              values of a reversible trunk are too large to be recomputed exactly
│   ├── NotRebuilt                  a reversible trunk recomputed other values than in the forward pass
│   ├── OutOfMemory                 not enough memory for an update; says what needs less
│   └── RankFailed                  another process of a distributed training ended, or did not answer
├── SafetyRejection                 the gate blocked generated text; has the decision
└── MissingExtra (ImportError)      an optional library is not installed

These are for wrong input and failing disks. `assert` is for what only a bug can cause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
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
    """Base class of all errors of this package.

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

    def within(self, section: str, fields: Container[str]) -> BitTransformerError:
        """The same error where these fields are of a section: `d_model` is `model.d_model`."""

        def named(field: str) -> str:
            return f"{section}.{field}" if re.split(r"[.\[]", field)[0] in fields else field

        self.field = self.field and named(self.field)
        self.tries = tuple(Give(named(t.field), t.value) if isinstance(t, Give) else t for t in self.tries)
        return self

    def __str__(self) -> str:
        return self.said()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__.copy())


def _rebuilt(kind: type[BitTransformerError], given: tuple[Any, ...], state: dict[str, Any]) -> BitTransformerError:
    """An error that comes from another process, whatever its class is made with."""
    error = kind.__new__(kind)
    error.args = given
    error.__dict__.update(state)
    return error


class ConfigError(BitTransformerError, ValueError):
    """An invalid setting, or settings that do not fit together."""


class NoExperts(ConfigError, AttributeError):
    """A model without experts was asked for its bank; `hasattr` takes it for no."""


class BitStreamError(BitTransformerError, ValueError):
    """Bits, bytes or files that cannot be used."""


class ParityError(BitStreamError):
    """Bytes with wrong parity.

    Attributes:
        offsets: byte offsets of the bytes with odd parity.
    """

    def __init__(self, message: str, offsets: Sequence[int], *, tries: Sequence[Advice] = ()) -> None:
        super().__init__(message, tries=tries)
        self.offsets = tuple(offsets)


class UploadNotFound(BitStreamError):
    """No upload of that id, or its file is not there yet."""


class CompressedFileError(BitStreamError):
    """A compressed file that is damaged, or belongs to another model."""


class CheckpointError(BitTransformerError):
    """A checkpoint that is missing, damaged or has another shape."""


class StoreError(BitTransformerError):
    """A run store that cannot be opened, written or queried."""


class RunNotFound(StoreError):
    """No run of that name."""


class RunBusy(StoreError):
    """A run folder that another training uses."""


class RunNotRunning(StoreError):
    """A run that was asked to stop, and is not being trained."""


class JobNotFound(StoreError):
    """No job of that number."""


class QueueFull(StoreError):
    """Too many jobs, or requests, wait already."""


class HubError(BitTransformerError):
    """The Hugging Face hub refused something, or could not be reached."""


class Refused(BitTransformerError):
    """Something that this caller may not do: it has no token for it, has used up its budget, or must confirm it first."""


class Cancelled(BitTransformerError):
    """Work that was asked to stop before it had anything to show."""


class TrainingError(BitTransformerError):
    """A training that cannot continue."""


class NonFiniteLoss(TrainingError):
    """The loss or the gradient became NaN or infinite.

    Attributes:
        step: the optimizer update that was not made.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StreamOverflow(TrainingError):
    """Values of a reversible trunk are too large to be recomputed exactly."""


class NotRebuilt(TrainingError):
    """A reversible trunk recomputed other values in the backward pass than in the forward pass."""


class OutOfMemory(TrainingError):
    """Not enough memory for an update. The message says which setting saves how much."""


class RankFailed(TrainingError):
    """Another process of a distributed training ended or did not answer; or none could be reached."""


class SafetyRejection(BitTransformerError):
    """The gate blocked generated text, and nobody allowed it.

    Attributes:
        decision: the gate's `safety.Decision`.
    """

    def __init__(self, message: str, decision: object) -> None:
        super().__init__(message)
        self.decision = decision


class MissingExtra(BitTransformerError, ImportError):
    """An optional library is needed and not installed."""
