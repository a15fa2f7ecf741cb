"""Text and bytes from a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bit_transformer.config import Sampling
from bit_transformer.decoding.generation import check_learning, generate_bytes, stream_bytes
from bit_transformer.errors import Ask, ConfigError, Give
from bit_transformer.model import BitTransformerLM
from bit_transformer.safety import Vitals, stream_guarded
from bit_transformer.service.jobs import Job
from bit_transformer.service.requests import BASE64, GateRequest, GenerateRequest
from bit_transformer.service.workspace import Workspace


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

    __pydantic_config__ = BASE64

    data: bytes
    allow: bool
    margin: float
    retries: int
    why: str
    vitals: Vitals | None


@dataclass(frozen=True)
class Continuations:
    """What was generated, one for each prompt, without them."""

    __pydantic_config__ = BASE64

    run: str
    data: list[bytes]


def stream(request: GenerateRequest, workspace: Workspace) -> Iterator[bytes]:
    """Continue the first prompt, byte by byte.

    Raises:
        CheckpointError: no such run.
        ConfigError: an invalid length or stop string.
    """
    _check(request.max_bytes, request.stop)
    model = _autoregressive(request.run, request.sampling, workspace)
    return stream_bytes(
        model, request.prompts[0], request.max_bytes, request.sampling, stop=request.stop, engine=request.engine
    )


def stream_gated(request: GateRequest, workspace: Workspace) -> Iterator[GatedWindow]:
    """Continue a prompt behind the run's calibrated gate, a window at a time; the first that is blocked for good is the last.

    Raises:
        CheckpointError: no such run, or not calibrated.
        ConfigError: an invalid length or number of retries, or a window that cannot be judged.
    """
    _check(request.max_bytes, ())
    if request.retries < 0:
        raise ConfigError(f"retries={request.retries}; it must not be negative. Try 3", field="retries")
    model = _model(request.run, request.sampling, workspace)
    guard = workspace.guard(request.run, window=request.window)
    pieces = stream_guarded(model, request.prompt, request.max_bytes, guard, request.sampling, retries=request.retries)
    return (
        GatedWindow(p.data, d.allow, d.margin, p.retries, guard.gate.explain(d), d.vitals)
        for p in pieces
        for d in (p.decision,)
    )


def generate(request: GenerateRequest, workspace: Workspace, job: Job) -> Continuations:
    """Continue several prompts as one batch.

    Raises:
        CheckpointError: no such run.
        ConfigError: an invalid length or stop string.
    """
    _check(request.max_bytes, request.stop)
    model = _autoregressive(request.run, request.sampling, workspace)
    made = generate_bytes(
        model, request.prompts, request.max_bytes, request.sampling, stop=request.stop, engine=request.engine
    )
    return Continuations(request.run, made)


def generate_gated(request: GateRequest, workspace: Workspace, job: Job) -> list[GatedWindow]:
    """`stream_gated`, all of it at once."""
    return list(stream_gated(request, workspace))


def _model(run: str, sampling: Sampling, workspace: Workspace) -> BitTransformerLM:
    model = workspace.model(run)
    check_learning(model, sampling)  # before the first byte goes out
    return model


def _autoregressive(run: str, sampling: Sampling, workspace: Workspace) -> BitTransformerLM:
    model = _model(run, sampling, workspace)
    if not model.config.causal:
        raise ConfigError(
            f"{run}: got a diffusion model, which has no next bit",
            field="run",
            tries=(Ask("infill", run, (Give("data", b"a____b"),)),),
        )
    return model


def _check(max_bytes: int, stop: Sequence[bytes]) -> None:
    if b"" in stop:
        raise ConfigError("stop=''; it must have at least one byte. Try without it", field="stop")
    if max_bytes < 1:
        raise ConfigError(f"bytes={max_bytes}; at least 1 is needed. Try 256", field="max_bytes")
