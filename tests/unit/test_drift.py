"""Page-Hinkley and ADWIN: where they alarm, where they do not, and as river's do."""

from __future__ import annotations

import random

import pytest

from bit_transformer.telemetry import Adwin, DriftMonitor, PageHinkley, detect_metric_drift


def stream(seed: int, at: int, shift: float, length: int = 4000, spread: float = 0.1) -> list[float]:
    """Normal values whose mean moves at one place."""
    source = random.Random(seed)
    return [source.gauss(0.5, spread) + shift * (i >= at) for i in range(length)]


def alarms(detector: PageHinkley | Adwin, values: list[float]) -> list[int]:
    return [index for index, value in enumerate(values) if detector.update(value)]


# Made by river 0.26.1 on the same streams: (seed, at, shift), ADWIN's alarms, Page-Hinkley's with threshold 5.
RIVER = [
    ((0, 2000, 0.1), [2111], [2054]),
    ((1, 3052, 0.3), [3103], [3062]),
    ((2, 1500, -0.05), [1791], [1617]),
    ((3, 9999, 0.0), [], []),
    ((4, 700, -0.2), [767], [720]),
    ((5, 2500, 0.03), [2975], [2699]),
]


@pytest.mark.parametrize("how, adwin, page_hinkley", RIVER)
def test_alarms_come_where_rivers_come(how, adwin, page_hinkley) -> None:
    assert alarms(Adwin(), stream(*how)) == adwin
    assert alarms(PageHinkley(threshold=5), stream(*how)) == page_hinkley


@pytest.mark.slow
def test_alarms_come_where_rivers_come_on_many_streams() -> None:
    drift = pytest.importorskip("river.drift")
    for seed in range(40):
        values = stream(seed, 500 + 70 * seed, [0, 0.05, 0.1, 0.3, -0.2][seed % 5])
        for ours, theirs in ((Adwin(), drift.ADWIN()), (PageHinkley(threshold=5), drift.PageHinkley(threshold=5))):
            expected = []
            for index, value in enumerate(values):
                theirs.update(value)
                expected += [index] if theirs.drift_detected else []
            assert alarms(ours, values) == expected, seed


def test_adwin_takes_logarithmic_memory_and_knows_its_mean() -> None:
    adwin = Adwin()
    values = stream(3, 10_000, 0.0, 10_000)
    assert alarms(adwin, values) == []
    assert adwin.width == 10_000
    assert adwin.mean == pytest.approx(sum(values) / len(values))
    assert sum(len(row) for row in adwin.rows) <= 5 * len(adwin.rows) <= 5 * 14
    mean = sum(values) / len(values)
    assert adwin.spread == pytest.approx(sum((v - mean) ** 2 for v in values))


@pytest.mark.parametrize("metric, shift, noticed", [("K", -0.05, True), ("K", 0.05, False), ("train_bpb", 0.05, True)])
def test_bad_news_is_told_and_good_news_is_not(metric: str, shift: float, noticed: bool) -> None:
    alerts = detect_metric_drift({metric: stream(1, 1000, shift, 2000, spread=0.02)})
    assert bool(alerts) == noticed
    for alert in alerts:
        assert 1000 <= alert.step < 1150
        assert alert.size == pytest.approx(shift, abs=0.03)
    assert {a.detector for a in alerts} <= {"page-hinkley", "adwin"}


@pytest.mark.parametrize("spread", [1e-4, 0.02, 3.0])
def test_steady_metrics_of_any_scale_do_not_alarm(spread: float) -> None:
    for seed in range(5):
        assert detect_metric_drift({"S": stream(seed, 10**9, 0.0, 3000, spread)}) == []


def test_a_constant_that_moves_by_rounding_does_not_alarm() -> None:
    assert detect_metric_drift({"K": [0.1] * 40 + [0.1 - 1e-12] * 200}) == []


def test_a_loss_that_falls_as_it_should_does_not_alarm() -> None:
    source = random.Random(0)
    falling = [2 + 6 / (1 + i / 20) + source.gauss(0, 0.05) for i in range(2000)]
    assert detect_metric_drift({"train_bpb": falling}) == []


def test_steps_are_those_of_the_series_and_no_number_is_no_evidence() -> None:
    values = stream(1, 300, -0.2, 600, spread=0.02)
    rows = [(10 * i, value) for i, value in enumerate(values)]
    rows[40] = (400, float("nan"))
    rows[50] = (500, float("inf"))
    alerts = detect_metric_drift({"C": rows})
    assert alerts and all(alert.step % 10 == 0 and 3000 <= alert.step < 3600 for alert in alerts)
    monitor = DriftMonitor("C")
    assert monitor.update(0, float("nan")) == [] and not monitor.first
