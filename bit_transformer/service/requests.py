"""What can be asked for: one record of plain values for each operation, validated once, with a JSON schema for every door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from bit_transformer.config import Config, DataConfig, ModelConfig, Sampling, TrainConfig

EVAL_BYTES = 1 << 18


BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")  # bytes in JSON, of requests and of results


class Request(Config):
    """Base of all requests; in JSON, bytes are base64."""

    model_config = BASE64


class TrainRequest(Request):
    """Train a model from the start."""

    out: Path = Field(description="The run folder; its name is the run's.")
    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    eval_bytes: int = Field(EVAL_BYTES, description="Held-out bytes that the last evaluation scores, at most.")
    teacher: Path | None = Field(None, description="Checkpoint of a model whose predictions are learned too.")
    init: Path | None = Field(None, description="Checkpoint to begin with, its experts and optimizers included.")
    overwrite: bool = Field(False, description="Replace a run that is in the folder.")


class FurtherRequest(Request):
    """Train the model of a run further, as a run of its own."""

    run: str = Field(description="What to begin with: a run or a checkpoint file; it stays as it is.")
    out: Path = Field(description="Run folder of the new run.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of the training.")
    data: dict[str, Any] = Field(default_factory=dict, description="Fields of the data; default: those of the run.")
    eval_bytes: int = EVAL_BYTES
    overwrite: bool = False


class ResumeRequest(Request):
    """Go on with a training that was stopped, interrupted or killed."""

    out: Path = Field(description="The run folder.")
    budget: dict[str, Any] = Field(
        default_factory=dict,
        description="One field such as steps, counted from the start of the training, in place of the run's own.",
    )
    auto_batch: bool = Field(False, description="Smaller micro-batches from here on, where memory does not suffice.")


class DistillRequest(Request):
    """Train a smaller model on what a run predicts, beside the data."""

    run: str = Field(description="The teacher.")
    out: Path = Field(description="Run folder of the student.")
    model: dict[str, Any] = Field(
        default_factory=dict, description="Fields in which the student differs; default: half as deep and wide."
    )
    train: dict[str, Any] = Field(default_factory=dict, description="`distillation` is the teacher's weight.")
    data: dict[str, Any] = Field(default_factory=dict, description="Default: as in the teacher's run.")
    eval_bytes: int = EVAL_BYTES
    overwrite: bool = False


class EstimateRequest(Request):
    """Memory on one device."""

    model: ModelConfig
    train: TrainConfig
    training: bool = Field(True, description="Otherwise the model is in use: windows scored, or streams generated.")
    batch: int = Field(1, description="Of a model in use: windows or streams at once, on all devices.")
    world_size: int = Field(1, description="Devices that share the model and the batch.")
    budget: int | None = Field(None, description="Bytes of a device; default: what is free here.")


class GenerateRequest(Request):
    """Continue prompts."""

    run: str
    prompts: tuple[bytes, ...] = (b"",)
    max_bytes: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[bytes, ...] = Field((), description="A stream ends before the first of these.")
    engine: str = Field("auto", description="What computes the steps: auto, torch, or single-stream (one stream, CPU).")


class GateRequest(Request):
    """Continue a prompt behind the run's calibrated gate, a window at a time."""

    run: str
    prompt: bytes = b""
    max_bytes: int = 256
    sampling: Sampling = Sampling()
    window: int = Field(0, description="Bytes that are judged at a time; 0: 256, or the longest calibrated.")
    retries: int = Field(0, description="How often a blocked window is drawn again.")


class InfillRequest(Request):
    """Fill in what is missing of some bytes, from what stands before and after it."""

    run: str
    data: bytes
    gap: bytes = Field(b"", description="A mark; wherever it stands its bytes are missing.")
    holes: tuple[tuple[int, int], ...] = Field(
        (), description="First missing byte and the byte after the last, of each."
    )
    bit_holes: tuple[tuple[int, int], ...] = Field((), description="The same in bits, as the model reads them.")
    samples: int = 1
    steps: int | None = Field(None, description="Network calls of a window, at most.")
    order: str | None = Field(None, description="first-hitting, ancestral or confidence.")
    temperature: float = 1.0
    seed: int | None = None


class RepairRequest(Request):
    """Set right the flipped bits of a file, as far as the model can tell."""

    run: str
    path: Path = Field(description="The file; of a model with parity, as `protect` wrote it.")
    out: Path = Field(description="Gets the bytes, without parity.")
    rate: float | None = Field(None, description="Probability of a flip, in (0, 0.5); default: found from the file.")
    span: tuple[int, int] | None = Field(None, description="First byte to repair and the byte after the last.")


class ProtectRequest(Request):
    """Write a file's bytes with a parity bit each, or read such a file back."""

    path: Path
    out: Path
    undo: bool = False


class EvaluateRequest(Request):
    """Bits per byte of files, folders or named corpora."""

    run: str
    names: tuple[str, ...]
    overlap: float = Field(0.5, description="Fraction of a window that is only context, in [0, 1).")
    learning: str | None = Field(
        None, description="What learns from a file while it is scored: static, online, online+mixer."
    )


class ScoreRequest(Request):
    """Bits per byte by stretch of a file."""

    run: str
    name: str
    window: int = Field(256, description="Bytes of a stretch that is reported.")
    overlap: float = 0.5
    learning: str | None = None
    plot: Path | None = Field(None, description="Also draw them, as a PNG.")


class FileTelemetryRequest(Request):
    """K and C of a file by window, and S against a run's reference."""

    name: str
    run: str | None = None
    window: int = Field(512, description="Bytes; a shorter last window counts if it is half of that or more.")
    informative: int = Field(5, description="How many windows to pick that are worth reading.")
    plot: Path | None = None


class RunTelemetryRequest(Request):
    """K, C, S and loss of a training by step, and where they drifted."""

    run: str = Field(description="A run folder, or a run's name in the store.")
    plot: Path | None = None


class CalibrateRequest(Request):
    """Set the limits of a run's gate."""

    run: str
    names: tuple[str, ...] = Field((), description="Files that it was not trained on; default: what it held out.")
    alpha: float = Field(0.01, description="Fraction of false alarms, in (0, 0.5).")
    seed: int = 0


class ExplainRequest(Request):
    """What K, C and S mean for a run."""

    run: str
    K: float
    C: float
    S: float
    size: int = Field(512, description="Bytes of the window that they were measured on.")


class ListRunsRequest(Request):
    """All runs of the store."""


class RunRequest(Request):
    """One run of the store."""

    run: str


class RemoveRunsRequest(Request):
    """Forget runs."""

    names: tuple[str, ...]
    files: bool = Field(False, description="Also remove what trainings wrote into their folders.")


class StopRunRequest(Request):
    """Ask a training, wherever it runs on this machine, to stop in good order."""

    run: str
