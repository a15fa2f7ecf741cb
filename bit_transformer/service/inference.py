"""Text and bytes from a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bit_transformer.config import Sampling
from bit_transformer.errors import ConfigError
from bit_transformer.generation import check_learning, generate_bytes, stream_bytes
from bit_transformer.model import BitTransformerLM
from bit_transformer.service import DEFAULT_STORE
from bit_transformer.service.models import load_model


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
    return stream_bytes(_model(run, store, sampling), prompt, max_bytes, sampling, stop=stop)


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
    return generate_bytes(_model(run, store, sampling), prompts, max_bytes, sampling, stop=stop)


def _model(run: str, store: Path, sampling: Sampling) -> BitTransformerLM:
    model = load_model(run, store)
    check_learning(model, sampling)  # before the first byte goes out
    return model


def _check(max_bytes: int, stop: Sequence[bytes]) -> None:
    if b"" in stop:
        raise ConfigError("stop=''; it must have at least one byte. Try without --stop")
    if max_bytes < 1:
        raise ConfigError(f"bytes={max_bytes}; at least 1 is needed. Try 256")
