"""Measurements of predictions and bits: K, C and S, differentiable penalties for training, and drift detection."""

from bit_transformer.telemetry.drift import Adwin, Alert, DriftMonitor, PageHinkley, detect_metric_drift
from bit_transformer.telemetry.measures import METRICS, bit_negentropy, lz_complexity, negentropy, symbiosis
from bit_transformer.telemetry.record import Telemetry
from bit_transformer.telemetry.synthesis import Synthesis, TelemetrySynthesizer

__all__ = [
    "METRICS",
    "Adwin",
    "Alert",
    "DriftMonitor",
    "PageHinkley",
    "Synthesis",
    "Telemetry",
    "TelemetrySynthesizer",
    "bit_negentropy",
    "detect_metric_drift",
    "lz_complexity",
    "negentropy",
    "symbiosis",
]
