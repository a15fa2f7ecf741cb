"""Jobs: long work that reports its progress and can be stopped from this thread, another one or another process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bit_transformer.errors import Cancelled
from bit_transformer.runs.jobs import OPEN as OPEN
from bit_transformer.runs.jobs import TRAININGS as TRAININGS
from bit_transformer.runs.jobs import State as State  # of jobs in a queue, for doors

STOP_FILE = "stop"  # in a run folder: another process asks its training to stop


@dataclass(frozen=True)
class Update:
    """Progress of a training, for display.

    Attributes:
        share: fraction of the budget spent, in [0, 1].
        bytes_per_s: since the first update.
        bpb: training bits per byte, smoothed over about 20 reports: of updates on a processor, of looks on an accelerator.
        val_bpb: of the latest validation.
        eta: seconds left at the current pace.
    """

    step: int
    share: float
    seconds: float
    bytes_per_s: float
    bpb: float
    val_bpb: float | None
    eta: float


@dataclass(frozen=True)
class Reading:
    """Progress of other long work.

    Attributes:
        doing: what it does. Default: the experts' reading before a training.
        total: 0 if it is not known. `unit`: of `done` and `total`.
    """

    done: int
    total: int
    doing: str = "experts: read"
    unit: str = "bytes"


@dataclass(frozen=True)
class Notice:
    """A message for the user, in one line."""

    text: str


Message = Update | Reading | Notice
Report = Callable[[Message], None]


class Job:
    """A piece of work in progress.

    Args:
        report: called with progress and messages.
        listens: whether Ctrl-C and SIGTERM ask it to stop; else they end the process.
        number: of a job in a queue; recorded with a training, so that it is known again.
        again: whether this training was begun before, and its process was killed.
    """

    def __init__(
        self, report: Report | None = None, *, listens: bool = True, number: int | None = None, again: bool = False
    ) -> None:
        self._report = report
        self.number, self.again = number, again
        self._listens = listens
        self._cancelled = threading.Event()
        self._check: Callable[[], bool] = lambda: False

    def tell(self, message: Message) -> None:
        """Pass a message on to who asked for the work.

        Raises:
            Cancelled: within `cancellable`, where the work was asked to stop.
        """
        if self._report is not None:
            self._report(message)
        if self._check():
            raise Cancelled("stopped before there was a result. Try again")

    @contextmanager
    def cancellable(self, asked: Callable[[], bool] | None = None) -> Iterator[None]:
        """Within: work that has nothing to show before it is done ends where it says how far it is.

        Args:
            asked: whether it was asked to stop; not given: as of `stoppable`.
        """
        with nullcontext(asked) if asked else self.stoppable() as check:
            assert check is not None
            self._check = check
            try:
                yield
            finally:
                self._check = lambda: False

    def notice(self, text: str) -> None:
        """Pass on a notice."""
        self.tell(Notice(text))

    def cancel(self) -> None:
        """Ask the work to stop normally; from any thread."""
        self._cancelled.set()

    @contextmanager
    def stoppable(self, folder: Path | None = None) -> Iterator[Callable[[], bool]]:
        """Within: a function that says whether the work should stop. Reasons are `cancel`, Ctrl-C or SIGTERM in the main thread, or a stop
        file in the run folder. A second Ctrl-C stops at once.

        Args:
            folder: of the run, if it has one. An old stop file in it is removed.
        """
        stop = None if folder is None else folder / STOP_FILE
        if stop is not None:
            stop.unlink(missing_ok=True)
        with _signals() if self._listens else nullcontext(lambda: False) as signalled:

            def asked() -> bool:
                return self._cancelled.is_set() or signalled() or (stop is not None and stop.exists())

            try:
                yield asked
            finally:
                if stop is not None:
                    stop.unlink(missing_ok=True)


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Within: a function that says whether Ctrl-C or SIGTERM came. Outside the main thread, signals are not handled."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
