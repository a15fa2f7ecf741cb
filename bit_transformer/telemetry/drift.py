"""Detects changes in a stream of numbers: Page-Hinkley in constant memory, and ADWIN in logarithmic memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", "both"]
# The direction in which each metric gets worse. In a healthy training, K, C and S rise and the loss falls.
BAD_NEWS: dict[str, Direction] = {"K": "down", "C": "down", "S": "down", "train_bpb": "up", "val_bpb": "up"}


@dataclass(frozen=True)
class Alert:
    """A detected change.

    Attributes:
        step: step of the training, or index in a series, at which it was detected.
        detector: `page-hinkley` or `adwin`.
        size: difference of the values after and before the change, in the metric's units.
    """

    step: int
    metric: str
    detector: str
    size: float


class PageHinkley:
    """Sums deviations from the running mean, and alarms when the sum is more than a threshold above its lowest point.

    It restarts after an alarm.

    Args:
        threshold: of the cumulative deviation.
        delta: deviations up to this size are not a change.
        least: number of values before the first alarm.
        forget: factor by which each value reduces the earlier cumulative deviation.

    Attributes:
        change: at the latest alarm, the mean since the extreme point minus the mean before it.

    Source: Page 1954, "Continuous inspection schemes"; Hinkley 1971.
    """

    def __init__(
        self,
        threshold: float = 50.0,
        delta: float = 0.005,
        *,
        least: int = 30,
        forget: float = 0.9999,
        direction: Direction = "both",
    ) -> None:
        self.threshold, self.delta, self.least, self.forget, self.direction = threshold, delta, least, forget, direction
        self.change = 0.0
        self._restart()

    def _restart(self) -> None:
        self.count, self.mean = 0, 0.0
        self.up = self.up_least = self.down = self.down_most = 0.0
        self.lowest = self.highest = (
            0,
            0.0,
        )  # number of values up to the extreme points of the two sums, and their mean

    def update(self, value: float) -> bool:
        """Take the next value; whether it completes a change."""
        self.count += 1
        self.mean += (value - self.mean) / self.count
        deviation = value - self.mean
        self.up = self.forget * self.up + deviation - self.delta
        self.down = self.forget * self.down + deviation + self.delta
        if self.up <= self.up_least:
            self.up_least, self.lowest = self.up, (self.count, self.mean)
        if self.down >= self.down_most:
            self.down_most, self.highest = self.down, (self.count, self.mean)
        rise = self.up - self.up_least > self.threshold and self.direction != "down"
        fall = self.down_most - self.down > self.threshold and self.direction != "up"
        if self.count < self.least or not (rise or fall):
            return False
        before, mean = self.lowest if rise else self.highest
        self.change = (self.count * self.mean - before * mean) / (self.count - before) - mean
        self._restart()
        return True


class Adwin:
    """A window that grows until its older and its newer part have different means.

    Values are stored in buckets of 1, 2, 4, ... values, at most five of each size, so memory and time are logarithmic. After every
    `clock` values, each boundary between buckets is tested: there is a change if the means on both sides differ significantly (a
    Bernstein bound at confidence `delta`). It then restarts, so each change is reported once.

    Args:
        delta: probability of a false alarm, in (0, 1).

    Attributes:
        change: at the latest alarm, the newer mean minus the older one.

    Source: Bifet and Gavalda 2007, "Learning from time-changing data with adaptive windowing".
    """

    def __init__(
        self, delta: float = 0.002, *, clock: int = 32, buckets: int = 5, least: int = 5, grace: int = 10
    ) -> None:
        self.delta, self.clock, self.buckets, self.least, self.grace = delta, clock, buckets, least, grace
        self.change = 0.0
        self._restart()

    def _restart(self) -> None:
        self.rows: list[deque[float]] = [deque()]  # sums of 1, 2, 4, ... values; the oldest on the left
        self.width, self.total, self.spread = 0, 0.0, 0.0

    @property
    def mean(self) -> float:
        """Mean of the window."""
        return self.total / self.width if self.width else 0.0

    def update(self, value: float) -> bool:
        """Take the next value; whether it completes a change."""
        if self.width:
            self.spread += self.width * (value - self.mean) ** 2 / (self.width + 1)
        self.width, self.total = self.width + 1, self.total + value
        self.rows[0].append(value)
        self._compress()
        if self.width % self.clock or self.width <= self.grace or not self._changed():
            return False
        self._restart()
        return True

    def _compress(self) -> None:
        for power, row in enumerate(self.rows):
            if len(row) <= self.buckets:
                return
            if power + 1 == len(self.rows):
                self.rows.append(deque())
            self.rows[power + 1].append(row.popleft() + row.popleft())

    def _changed(self) -> bool:
        """Whether the means on both sides of some boundary differ; sets `change` from the clearest one."""
        clearest = 1.0
        old_count, old_sum = 0, 0.0
        for power in range(len(self.rows) - 1, -1, -1):
            for bucket_sum in self.rows[power]:
                old_count, old_sum = old_count + (1 << power), old_sum + bucket_sum
                new_count = self.width - old_count
                if old_count < self.least or new_count < self.least:
                    continue
                change = (self.total - old_sum) / new_count - old_sum / old_count
                if (clear := abs(change) / self._bound(old_count, new_count)) > clearest:
                    clearest, self.change = clear, change
        return clearest > 1

    def _bound(self, old: int, new: int) -> float:
        ln = math.log(2 * math.log(self.width) / self.delta)
        inverse = 1 / (old - self.least + 1) + 1 / (new - self.least + 1)
        return math.sqrt(2 * inverse * (self.spread / self.width) * ln) + 2 / 3 * ln * inverse


class DriftMonitor:
    """Watches one metric with both detectors and reports when it gets worse.

    Values are scaled by the spread of the first ones, so the same thresholds work for every metric.

    Args:
        metric: its name. `BAD_NEWS` says in which direction it gets worse; for other names, any change is reported.
        least: number of values that give the spread; there is no alert before.
    """

    def __init__(self, metric: str, *, least: int = 30) -> None:
        self.metric, self.least = metric, least
        self.direction: Direction = BAD_NEWS.get(metric, "both")
        self.first: list[float] = []
        self.scale = 1.0
        self.page_hinkley = PageHinkley(threshold=20.0, delta=0.5, least=least, direction=self.direction)
        self.adwin = Adwin()

    def update(self, step: int, value: float) -> list[Alert]:
        """Take the next value; returns the alerts. Values that are not finite are ignored."""
        if not math.isfinite(value):
            return []
        if len(self.first) < self.least:
            self.first.append(value)
            if len(self.first) < self.least:
                return []
            mean = sum(self.first) / self.least
            self.scale = max(_spread(self.first), 1e-6 * abs(mean), 1e-6)  # for a constant, more than rounding errors
        alerts = []
        if self.page_hinkley.update(value / self.scale):
            alerts.append(Alert(step, self.metric, "page-hinkley", self.page_hinkley.change * self.scale))
        # ADWIN's bound needs values in [0, 1]: eight spreads are scaled to one.
        if self.adwin.update(value / (8 * self.scale)) and self._is_bad(self.adwin.change):
            alerts.append(Alert(step, self.metric, "adwin", self.adwin.change * 8 * self.scale))
        return alerts

    def _is_bad(self, change: float) -> bool:
        return self.direction == "both" or (change > 0) == (self.direction == "up")


def detect_metric_drift(
    metrics: Mapping[str, Iterable[tuple[int, float]]] | Mapping[str, Sequence[float]],
) -> list[Alert]:
    """Find where the metrics of a finished run got worse.

    Args:
        metrics: for each name, values in order, or (step, value) pairs.

    Returns:
        alerts, ordered by step.
    """
    alerts: list[Alert] = []
    for name, series in metrics.items():
        monitor = DriftMonitor(name)
        for index, row in enumerate(series):
            step, value = row if isinstance(row, tuple) else (index, row)
            alerts += monitor.update(step, value)
    return sorted(alerts, key=lambda alert: alert.step)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation around a straight line through the values, because a metric may still change steadily."""
    n = len(values)
    middle, mean = (n - 1) / 2, sum(values) / n
    slope = sum((i - middle) * (v - mean) for i, v in enumerate(values)) / sum((i - middle) ** 2 for i in range(n))
    return math.sqrt(sum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(values)) / n)
