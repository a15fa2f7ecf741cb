"""Prefetching: a thread draws the next batch while the device works on this one, in memory from which GPUs copy asynchronously."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from bit_transformer.data.windows import Batch, SamplerState, Windows


class Prefetched:
    """Windows with one batch drawn ahead. The batches and their order stay the same.

    The state is that of the last batch returned, so a resumed training draws again what was only drawn ahead.

    Args:
        windows: drawn from by one thread only; its state must not need `tensors`.
        pin: whether batches are in page-locked memory, so that copies to a GPU do not block the CPU.
    """

    def __init__(self, windows: Windows, *, pin: bool) -> None:
        self.windows, self.pin = windows, pin
        self._state = windows.state_dict()
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: Future[tuple[Batch, SamplerState]] | None = None
        self._count = 0

    @property
    def window_bytes(self) -> float:
        """Data bytes of one window."""
        return self.windows.window_bytes

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, count: int) -> Batch:
        """The next `count` windows; an error of the thread is raised here."""
        if self._ahead is not None and count != self._count:
            self.close()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="windows")
        ahead = self._ahead or self._thread.submit(self._draw, count)
        self._ahead = None  # after an error nothing is
        batch, self._state = ahead.result()
        self._count, self._ahead = count, self._thread.submit(self._draw, count)
        return batch

    def _draw(self, count: int) -> tuple[Batch, SamplerState]:
        batch = self.windows.draw(count)
        if self.pin:
            features_BTF = None if batch.features_BTF is None else _pinned(batch.features_BTF)
            batch = Batch(_pinned(batch.bits_BT), features_BTF)
        return batch, self.windows.state_dict()

    def close(self) -> None:
        """End the thread, and forget what was drawn ahead: the windows stand where the last batch given stands."""
        ahead, self._ahead = self._ahead, None
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if ahead is not None and ahead.exception() is None:
            self.windows.load_state_dict(self._state, {})

    def state_dict(self) -> SamplerState:
        """The state after the last batch returned."""
        return self._state

    def tensors(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: SamplerState, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state."""
        self.close()
        self.windows.load_state_dict(state, tensors)
        self._state = state


def _pinned(part: Tensor) -> Tensor:
    """In page-locked memory, unless it is on a device already."""
    return part.pin_memory() if part.device.type == "cpu" else part
