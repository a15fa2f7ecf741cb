"""All errors that a user can meet. Every message is one line: what was given, what is needed, what to try.

BitTransformerError
├── ConfigError (ValueError)        an invalid setting
├── BitStreamError (ValueError)     bits, bytes or files that cannot be used
│   └── ParityError                 bytes with wrong parity; has their offsets
├── CheckpointError                 a checkpoint that is missing, damaged or has another shape
├── StoreError                      a run store that cannot be used
│   ├── RunNotFound                 no run of that name
│   └── RunBusy                     another training uses the run folder
├── TrainingError                   a training that cannot continue
│   ├── NonFiniteLoss               the loss or the gradient became NaN or infinite; has the step
│   ├── StreamOverflow              values of a reversible trunk are too large to be recomputed exactly
│   ├── NotRebuilt                  a reversible trunk recomputed other values than in the forward pass
│   └── OutOfMemory                 not enough memory for an update; says what needs less
├── SafetyRejection                 the gate blocked generated text; has the decision
└── MissingExtra (ImportError)      an optional library is not installed

These are for wrong input and failing disks. `assert` is for what only a bug can cause.
"""

from __future__ import annotations

from collections.abc import Sequence


class BitTransformerError(Exception):
    """Base class of all errors of this package."""


class ConfigError(BitTransformerError, ValueError):
    """An invalid setting, or settings that do not fit together."""


class BitStreamError(BitTransformerError, ValueError):
    """Bits, bytes or files that cannot be used."""


class ParityError(BitStreamError):
    """Bytes with wrong parity.

    Attributes:
        offsets: byte offsets of the bytes with odd parity.
    """

    def __init__(self, message: str, offsets: Sequence[int]) -> None:
        super().__init__(message)
        self.offsets = tuple(offsets)


class CheckpointError(BitTransformerError):
    """A checkpoint that is missing, damaged or has another shape."""


class StoreError(BitTransformerError):
    """A run store that cannot be opened, written or queried."""


class RunNotFound(StoreError):
    """No run of that name."""


class RunBusy(StoreError):
    """A run folder that another training uses."""


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
