"""What a training is told while it runs: pause, go on, make some updates, change settings, keep a checkpoint; and triggers, which do so by
themselves once a metric crosses a line.

Commands come through the run store, from any process. A change of settings is part of the training: after a resume it is made again after the
same update, so that the training ends as if it had not been interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bit_transformer.errors import ConfigError, StoreError
from bit_transformer.runs.store import Command, Live, RunStore, Trigger
from bit_transformer.service.jobs import Job
from bit_transformer.training import Record, StopTraining, Trainer

INTERRUPTED, PAUSED = "interrupted", "paused; several processes end for that, and can be resumed"
LOOK = 0.2  # seconds between looks at the store
WAIT = 0.05  # the same while it is paused


class Clock:
    """Seconds of training: stands still while it is paused."""

    def __init__(self) -> None:
        self.waited = 0.0

    def __call__(self) -> float:
        """The time in seconds, from an arbitrary start."""
        return time.monotonic() - self.waited


class Steering:
    """Carries out what a training is told; an observer that comes before the one that saves.

    Args:
        save: saves the training; it resumes from there.
        keep: saves it, and keeps the files under the step's number.
        asked: whether it was asked to stop.
        live: where the training stands.
        clock: the training's; it stands still during pauses.
    """

    def __init__(
        self,
        store: RunStore,
        run: str,
        *,
        save: Callable[[Trainer], None],
        keep: Callable[[Trainer], None],
        asked: Callable[[], bool],
        live: Callable[[Trainer], Live],
        clock: Clock,
        job: Job,
    ) -> None:
        self.store, self.run, self.save, self.keep = store, run, save, keep
        self.asked, self.live, self.clock, self.job = asked, live, clock, job
        self.commands: list[Command] = []
        self.triggers: list[Trigger] = []
        self.pausing = False
        self.allowed = 0  # updates until the next pause, of a training that makes single steps
        self.looked, self.fresh = 0.0, False

    def begin(self, trainer: Trainer) -> None:
        """Before the first update: make the changes again that the checkpoint does not include."""
        self._look()
        self._carry_out(trainer, [command for command in self.commands if command.kind == "change"])

    def __call__(self, trainer: Trainer, record: Record) -> None:
        """Carry out what is due.

        Raises:
            StopTraining: it was asked to stop while it was paused; or to pause, as one of several processes.
        """
        if self.allowed:
            self.allowed -= 1
            self.pausing = not self.allowed
        self.fresh = time.monotonic() - self.looked >= LOOK
        if self.fresh:
            with suppress(StoreError):  # it is busy, or its disk is full: the next look may find it well
                self._look()
        self._carry_out(trainer, self.commands)
        for trigger in self.triggers:
            self._check(trigger, trainer, record)
        if self.pausing:
            self._pause(trainer)

    def _look(self) -> None:
        self.commands = self.store.commands(self.run)
        self.triggers = [trigger for trigger in self.store.triggers(self.run) if trigger.fired_at is None]
        self.looked = time.monotonic()

    def _carry_out(self, trainer: Trainer, commands: list[Command]) -> None:
        step = trainer.progress.step
        for command in list(commands):
            if command.due is None or command.due <= step:
                self.commands = [other for other in self.commands if other is not command]
                self._obey(trainer, command, step)

    def _obey(self, trainer: Trainer, command: Command, step: int) -> None:
        self.store.take_command(command, step)
        done, detail = command.kind, dict(command.detail)
        if command.kind == "change":
            try:
                trainer.change(command.detail)
                trainer.progress.commands = max(command.id, trainer.progress.commands)
                self._outdo(command)
                done = "changed"
            except ConfigError as refused:  # a door has checked it, for another state of the run
                done, detail = "notice", {"text": f"settings not changed: {refused}"}
        elif command.kind == "pause":
            self.pausing, self.allowed, done = True, 0, ""  # told when it waits
        elif command.kind == "checkpoint":
            done, detail = self._keep(trainer)
        elif command.kind in ("continue", "step") and not (self.pausing or self.allowed):
            done, detail = "notice", {"text": f"{command.kind}: the training is not paused"}
        elif command.kind == "continue":
            self.pausing, self.allowed, done = False, 0, "continued"
        elif command.kind == "step":
            self.pausing, self.allowed, done = False, int(command.detail.get("updates", 1)), "stepped"
        if done:
            self.store.add_happening(self.run, step, done, detail)

    def _outdo(self, newer: Command) -> None:
        """Forget changes that are due later, of the settings that a newer command has changed: they were made before it, and are only repeated."""
        for command in self.commands:
            if command.kind == "change" and command.id < newer.id and command.due is not None:
                kept = {name: value for name, value in command.detail.items() if name not in newer.detail}
                self.store.amend_command(command, kept)
        self.commands = self.store.commands(self.run)

    def _keep(self, trainer: Trainer) -> tuple[str, dict[str, Any]]:
        """Keep a checkpoint; the kind of what happened, and its detail."""
        try:
            self.keep(trainer)
        except ConfigError as refused:  # sharded weights
            return "notice", {"text": f"no checkpoint was kept: {refused}"}
        return "checkpoint", {}

    def _check(self, trigger: Trigger, trainer: Trainer, record: Record) -> None:
        found: Any = record.get(trigger.metric)
        if found is None or not (isinstance(found, float | int) or self.fresh):
            return
        value = float(found)  # waits for an accelerator, so there only at a look
        if not trigger.crossed(value):
            return
        step = trainer.progress.step
        self.store.fire(self.run, trigger, step, value)
        line = f"above {trigger.above:g}" if trigger.above is not None else f"below {trigger.below:g}"
        self.job.notice(f"trigger at step {step}: {trigger.metric} = {value:.4g} is {line} ({trigger.action})")
        self.triggers = [other for other in self.triggers if other is not trigger]
        if trigger.action == "pause":
            self.pausing = True
        elif trigger.action == "checkpoint":
            self.store.add_happening(self.run, step, *self._keep(trainer))

    def _pause(self, trainer: Trainer) -> None:
        """Save, and wait until the training may go on. The clock stands still."""
        step = trainer.progress.step
        if trainer.parallel.size > 1:
            raise StopTraining(PAUSED)
        self.save(trainer)
        live = self.live(trainer)
        self.store.set_live(self.run, Live(live.step, live.share, live.eta, None, paused=True))
        self.store.add_happening(self.run, step, "paused")
        self.job.notice(f"paused at step {step}, and saved; it waits to be told to continue")
        began = time.monotonic()
        try:
            while self.pausing:
                if self.asked():
                    raise StopTraining(INTERRUPTED)
                time.sleep(WAIT)
                before = trainer.progress.commands
                self._look()
                self._carry_out(trainer, self.commands)
                if trainer.progress.commands != before:
                    self.save(trainer)
        finally:
            self.clock.waited += time.monotonic() - began
            self.store.set_live(self.run, live)
