"""Requests: one record of plain values per operation, validated once, with a JSON schema for every interface."""

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
    """Train a new model."""

    out: Path = Field(description="The run folder; its name is the run's.")
    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    eval_bytes: int = Field(EVAL_BYTES, description="Held-out bytes to score in the last evaluation, at most.")
    teacher: Path | None = Field(None, description="Checkpoint of a model to distill from.")
    init: Path | None = Field(None, description="Checkpoint to start from, including its experts and optimizers.")
    overwrite: bool = Field(False, description="Replace a run in this folder.")


class FurtherRequest(Request):
    """Train the model of a run further, as a new run."""

    run: str = Field(description="The run or checkpoint file to start from; it is not changed.")
    out: Path = Field(description="Run folder of the new run.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of the training.")
    data: dict[str, Any] = Field(default_factory=dict, description="Fields of the data; default: as in the run.")
    eval_bytes: int = EVAL_BYTES
    overwrite: bool = False


class ResumeRequest(Request):
    """Resume a training that was stopped, interrupted or killed."""

    out: Path = Field(description="The run folder.")
    budget: dict[str, Any] = Field(
        default_factory=dict,
        description="One field such as steps, counted from the start of the training, in place of the run's own.",
    )
    auto_batch: bool = Field(False, description="Use smaller micro-batches from now on if memory is too small.")


class DistillRequest(Request):
    """Train a smaller model to predict what a run's model predicts, and the data."""

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
    """Estimate memory on one device."""

    model: ModelConfig
    train: TrainConfig
    training: bool = Field(True, description="False: the model is in use, to score windows or generate streams.")
    batch: int = Field(1, description="For a model in use: windows or streams at once, on all devices.")
    world_size: int = Field(1, description="Devices that share the model and the batch.")
    budget: int | None = Field(None, description="Bytes of a device; default: what is free here.")


class GenerateRequest(Request):
    """Continue prompts."""

    run: str
    prompts: tuple[bytes, ...] = (b"",)
    max_bytes: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[bytes, ...] = Field((), description="A stream ends before the first of these strings.")
    engine: str = Field(
        "auto", description="What computes the steps: auto, torch, or portable (exact and fast; float32 on a CPU)."
    )


class GateRequest(Request):
    """Continue a prompt behind the run's calibrated gate, window by window."""

    run: str
    prompt: bytes = b""
    max_bytes: int = 256
    sampling: Sampling = Sampling()
    window: int = Field(0, description="Bytes judged at a time; 0: 256, or the longest calibrated.")
    retries: int = Field(0, description="How often a blocked window is sampled again.")


class InfillRequest(Request):
    """Fill in missing bytes from what is before and after them."""

    run: str
    data: bytes
    gap: bytes = Field(b"", description="A mark in the text; each occurrence is filled in.")
    holes: tuple[tuple[int, int], ...] = Field((), description="First byte of each hole, and the byte after its last.")
    bit_holes: tuple[tuple[int, int], ...] = Field(
        (), description="The same in bits of the stream as the model reads it."
    )
    samples: int = 1
    steps: int | None = Field(None, description="Most network calls per window.")
    order: str | None = Field(None, description="first-hitting, ancestral or confidence.")
    temperature: float = 1.0
    seed: int | None = None


class RepairRequest(Request):
    """Correct flipped bits of a file, as far as the model can tell."""

    run: str
    path: Path = Field(description="The file; for a model with parity, one that `protect` wrote.")
    out: Path = Field(description="The repaired file, without parity.")
    rate: float | None = Field(
        None, description="Probability of a flip, in (0, 0.5); default: estimated from the file."
    )
    span: tuple[int, int] | None = Field(None, description="First byte to repair, and the byte after the last.")


class ProtectRequest(Request):
    """Write a file with a parity bit for each byte, or read such a file back."""

    path: Path
    out: Path
    undo: bool = False


class CompressRequest(Request):
    """Compress a file, with a model or with adaptive predictors alone."""

    path: Path
    out: Path | None = Field(None, description="Default: the file's name with .btlm at its end.")
    run: str | None = Field(
        None, description="The model that predicts the data; the same one is needed to decompress. Default: none."
    )
    adapt: float = Field(
        0.0, description="Step size by which the model's head and mixer learn while coding; 0: they do not."
    )
    frame_bytes: int | None = Field(
        None, description="Data per frame. Frames are independent. Default: 16 MiB, with a model 512 KiB."
    )
    jobs: int | None = Field(None, description="Threads; default: one per core.")
    verify: bool = Field(True, description="Decode everything again and compare.")
    overwrite: bool = Field(False, description="Replace a file of that name.")


class DecompressRequest(Request):
    """Read a compressed file back."""

    path: Path
    out: Path | None = Field(None, description="Default: the file's name without .btlm.")
    run: str | None = Field(None, description="The model that the file was compressed with, if it was.")
    jobs: int | None = Field(None, description="Threads; default: one per core.")
    keep_going: bool = Field(False, description="Write zeros where the file is damaged, and list these ranges.")
    overwrite: bool = Field(False, description="Replace a file of that name.")


class EvaluateRequest(Request):
    """Bits per byte of files, folders or named corpora."""

    run: str
    names: tuple[str, ...]
    overlap: float = Field(0.5, description="Fraction of a window that is only context, in [0, 1).")
    learning: str | None = Field(
        None, description="What learns from a file while it is scored: static, online, online+mixer."
    )


class ScoreRequest(Request):
    """Bits per byte of a file, window by window."""

    run: str
    name: str
    window: int = Field(256, description="Bytes per reported window.")
    overlap: float = 0.5
    learning: str | None = None
    plot: Path | None = Field(None, description="Also plot them, to a PNG file.")


class FileTelemetryRequest(Request):
    """K and C of a file by window, and S against a run's reference."""

    name: str
    run: str | None = None
    window: int = Field(512, description="Bytes; a shorter last window counts if it is at least half as long.")
    informative: int = Field(5, description="Number of windows to pick that are worth reading.")
    plot: Path | None = None


class RunTelemetryRequest(Request):
    """K, C, S and loss of a training by step, and where they drifted."""

    run: str = Field(description="A run folder, or a run's name in the store.")
    plot: Path | None = None


class CalibrateRequest(Request):
    """Set the limits of a run's gate."""

    run: str
    names: tuple[str, ...] = Field((), description="Files that the run was not trained on; default: its held-out data.")
    alpha: float = Field(0.01, description="False-alarm rate, in (0, 0.5).")
    seed: int = 0


class ExplainRequest(Request):
    """Explain what K, C and S mean for a run."""

    run: str
    K: float
    C: float
    S: float
    size: int = Field(512, description="Bytes of the measured window.")


class ListRunsRequest(Request):
    """List all runs of the store."""


class RunRequest(Request):
    """Show one run of the store."""

    run: str


class RemoveRunsRequest(Request):
    """Remove runs from the store."""

    names: tuple[str, ...]
    files: bool = Field(False, description="Also remove the files that training wrote into their folders.")


class StopRunRequest(Request):
    """Ask a training on this machine to stop normally."""

    run: str
