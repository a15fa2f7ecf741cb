"""Checks generated text: a reference, limits with a known false-alarm rate, a gate, and generation behind the gate."""

from bit_transformer.safety.calibration import Calibration, Limits, calibrate, load_calibration, save_calibration
from bit_transformer.safety.gate import Decision, Reason, SafetyGate
from bit_transformer.safety.guarded import (
    Guard,
    Piece,
    SafeSample,
    hil_safe_inference,
    safe_sample_with_retry,
    stream_guarded,
)
from bit_transformer.safety.reference import Reference, Vitals

__all__ = [
    "Calibration",
    "Decision",
    "Guard",
    "Limits",
    "Piece",
    "Reason",
    "Reference",
    "SafeSample",
    "SafetyGate",
    "Vitals",
    "calibrate",
    "hil_safe_inference",
    "load_calibration",
    "safe_sample_with_retry",
    "save_calibration",
    "stream_guarded",
]
