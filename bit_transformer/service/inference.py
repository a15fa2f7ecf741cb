"""Text and bytes from a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.config import Sampling
from bit_transformer.errors import ConfigError
from bit_transformer.generation import check_learning, generate_bytes, stream_bytes
from bit_transformer.model import BitTransformerLM
from bit_transformer.safety import Vitals, stream_guarded
from bit_transformer.service import DEFAULT_STORE
from bit_transformer.service.models import load_guard, load_model


@dataclass(frozen=True)
class GatedWindow:
    """A window of gated generation.

    Attributes:
        data: its bytes; none where it was blocked.
        margin: how far within the limits, 1 being typical; negative beyond.
        retries: how often it was drawn again.
        why: what the gate says, in words.
        vitals: what was judged: K, C, S, size in bytes, bytes with wrong parity, and the longest loop's copied bytes and period;
            none where it could not be measured.
    """

    data: bytes
    allow: bool
    margin: float
    retries: int
    why: str
    vitals: Vitals | None


def stream(
    run: str,
    prompt: bytes,
    max_bytes: int,
    sampling: Sampling,
    *,
    stop: Sequence[bytes] = (),
    store: Path = DEFAULT_STORE,
) -> Iterator[bytes]:
    """Continue a prompt, byte by byte.

    Raises:
        CheckpointError: no such run.
        ConfigError: a length or a stop string that cannot be.
    """
    _check(max_bytes, stop)
    return stream_bytes(_autoregressive(run, store, sampling), prompt, max_bytes, sampling, stop=stop)


def stream_gated(
    run: str,
    prompt: bytes,
    max_bytes: int,
    sampling: Sampling,
    *,
    window: int = 0,
    retries: int = 0,
    store: Path = DEFAULT_STORE,
) -> Iterator[GatedWindow]:
    """Continue a prompt behind the run's calibrated gate, a window at a time; the first that is blocked for good is the last.

    Args:
        window: bytes that are judged at a time; 0: 256, or the longest that was calibrated.
        retries: how often a blocked window is drawn again.

    Raises:
        CheckpointError: no such run, or not calibrated.
        ConfigError: a length or a window that cannot be judged, or retries that cannot be.
    """
    _check(max_bytes, ())
    if retries < 0:
        raise ConfigError(f"retries={retries}; it must not be negative. Try 3")
    model = _model(run, store, sampling)
    guard = load_guard(model, run, store, window=window)
    pieces = stream_guarded(model, prompt, max_bytes, guard, sampling, retries=retries)
    return (
        GatedWindow(p.data, d.allow, d.margin, p.retries, guard.gate.explain(d), d.vitals)
        for p in pieces
        for d in (p.decision,)
    )


def generate(
    run: str,
    prompts: Sequence[bytes],
    max_bytes: int,
    sampling: Sampling,
    *,
    stop: Sequence[bytes] = (),
    store: Path = DEFAULT_STORE,
) -> list[bytes]:
    """Continue several prompts as one batch.

    Raises:
        CheckpointError: no such run.
        ConfigError: a length or a stop string that cannot be.
    """
    _check(max_bytes, stop)
    return generate_bytes(_autoregressive(run, store, sampling), prompts, max_bytes, sampling, stop=stop)


def _model(run: str, store: Path, sampling: Sampling) -> BitTransformerLM:
    model = load_model(run, store)
    check_learning(model, sampling)  # before the first byte goes out
    return model


def _autoregressive(run: str, store: Path, sampling: Sampling) -> BitTransformerLM:
    model = _model(run, store, sampling)
    if not model.config.causal:
        raise ConfigError(f"{run}: got a diffusion model, which has no next bit. Try btlm infill {run} --text 'a____b'")
    return model


def _check(max_bytes: int, stop: Sequence[bytes]) -> None:
    if b"" in stop:
        raise ConfigError("stop=''; it must have at least one byte. Try without --stop")
    if max_bytes < 1:
        raise ConfigError(f"bytes={max_bytes}; at least 1 is needed. Try 256")
