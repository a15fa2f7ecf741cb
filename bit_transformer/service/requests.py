"""Requests: one record of plain values per operation, validated once, with a JSON schema for every interface."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from bit_transformer.config import (
    ComparisonConfig,
    Config,
    DataConfig,
    DistributedConfig,
    ModelConfig,
    Sampling,
    TrainConfig,
)
from bit_transformer.runs.jobs import State

EVAL_BYTES = 1 << 18


class Place(Enum):
    """What a field names. Doors that are open to others take ids for it, never paths: see `home.py`."""

    NEW_RUN = "the name of a new run"
    OWN_RUN = "a run, by name"
    CHECKPOINT = "a run, or RUN@STEP for a checkpoint of it that was kept"
    SOURCE = "data: the name of a corpus, an upload or a declared folder"
    NEW_FILE = "the name of a new file"
    HERE = "a file on this machine, which only the command line can name"


NewRun = Annotated[Path, Place.NEW_RUN]
OldRun = Annotated[Path, Place.OWN_RUN]
RunName = Annotated[str, Place.OWN_RUN]
Checkpoint = Annotated[str, Place.CHECKPOINT]
CheckpointFile = Annotated[Path, Place.CHECKPOINT]
Source = Annotated[str, Place.SOURCE]
SourceFile = Annotated[Path, Place.SOURCE]
NewFile = Annotated[Path, Place.NEW_FILE]
LocalFile = Annotated[Path, Place.HERE]
TaskName = Annotated[str, Place.HERE]  # a task of the harness can run its authors' code here, and load any data


LogName = Literal["jsonl", "tensorboard", "trackio", "wandb"]
LOG_TO: tuple[LogName, ...] = ("jsonl",)


BASE64 = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")  # bytes in JSON, of requests and of results


class Request(Config):
    """Base of all requests; in JSON, bytes are base64."""

    model_config = BASE64


class TrainRequest(Request):
    """Train a new model."""

    out: NewRun = Field(description="The run folder; its name is the run's.")
    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    eval_bytes: int = Field(EVAL_BYTES, description="Held-out bytes to score in the last evaluation, at most.")
    teacher: CheckpointFile | None = Field(None, description="Checkpoint of a model to distill from.")
    init: CheckpointFile | None = Field(
        None, description="Checkpoint to start from, including its experts and optimizers."
    )
    overwrite: bool = Field(False, description="Replace a run in this folder.")
    distributed: DistributedConfig | None = Field(None, description="Train on several processes.")
    log_to: tuple[LogName, ...] = Field(
        LOG_TO, description="Logs beside the run store; jsonl: metrics.jsonl in the run folder."
    )


class FurtherRequest(Request):
    """Train the model of a run further, as a new run."""

    run: Checkpoint = Field(description="The run or checkpoint file to start from; it is not changed.")
    out: NewRun = Field(description="Run folder of the new run.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of the training.")
    data: dict[str, Any] = Field(default_factory=dict, description="Fields of the data; default: as in the run.")
    eval_bytes: int = EVAL_BYTES
    overwrite: bool = False
    distributed: DistributedConfig | None = None
    log_to: tuple[LogName, ...] = LOG_TO


class ResumeRequest(Request):
    """Resume a training that was stopped, interrupted or killed."""

    out: OldRun = Field(description="The run folder.")
    budget: dict[str, Any] = Field(
        default_factory=dict,
        description="One field such as steps, counted from the start of the training, in place of the run's own.",
    )
    auto_batch: bool = Field(False, description="Use smaller micro-batches from now on if memory is too small.")
    distributed: DistributedConfig | None = Field(
        None, description="Continue on several processes; their number may be another than before."
    )


class GrowRequest(Request):
    """Write a larger copy of a run's model, which computes the same until it is trained further."""

    run: Checkpoint
    out: NewRun = Field(description="Folder of the copy.")
    model: dict[str, int] = Field(
        description="Sizes that grow: num_layers, d_model, nhead, dim_feedforward, max_seq_len."
    )
    overwrite: bool = Field(False, description="Replace a model that is there.")


class DistillRequest(Request):
    """Train a smaller model to predict what a run's model predicts, and the data."""

    run: Checkpoint = Field(description="The teacher.")
    out: NewRun = Field(description="Run folder of the student.")
    model: dict[str, Any] = Field(
        default_factory=dict, description="Fields in which the student differs; default: half as deep and wide."
    )
    train: dict[str, Any] = Field(default_factory=dict, description="`distillation` is the teacher's weight.")
    data: dict[str, Any] = Field(default_factory=dict, description="Default: as in the teacher's run.")
    eval_bytes: int = EVAL_BYTES
    overwrite: bool = False


class QuantizeRequest(Request):
    """Write a copy of a run's model with weights of 8 or 4 bits, and compare both."""

    run: Checkpoint
    out: NewRun | None = Field(
        None, description="Folder or .safetensors file of the copy. Default: beside the run, RUN-int8 or RUN-int4."
    )
    bits: int | None = Field(None, description="8 or 4. Default: what the run was trained for (qat), else 8.")
    group: int | None = Field(
        None, description="Weights of a row that share a scale, a multiple of 32. Default: 64 with 8 bits, 32 with 4."
    )
    activations: bool = Field(False, description="Also round the inputs of all matrices to 8 bits.")
    names: tuple[Source, ...] = Field(
        (), description="Files to score both models on. Default: the run's held-out data."
    )
    eval_bytes: int = Field(1 << 17, ge=1, description="Bytes to score, at most.")
    measure: bool = Field(True, description="Also measure memory and speed of both, each in a process of its own.")
    overwrite: bool = Field(False, description="Replace a model that is there.")


class EstimateRequest(Request):
    """Estimate memory on one device."""

    model: ModelConfig
    train: TrainConfig
    training: bool = Field(True, description="False: the model is in use, to score windows or generate streams.")
    batch: int = Field(1, description="For a model in use: windows or streams at once, on all devices.")
    world_size: int = Field(1, description="Devices that share the model and the batch.")
    budget: int | None = Field(None, description="Bytes of a device; default: what is free here.")


class TimeRequest(Request):
    """Estimate how long a training takes here, by measuring some of its updates."""

    model: ModelConfig
    train: TrainConfig
    data_bytes: int | None = Field(
        None, description="Bytes of the training part. Default: unknown; then a first pass by experts is not counted."
    )
    seconds: float = Field(5.0, description="How long to measure updates, in (0, 600].")


class GenerateRequest(Request):
    """Continue prompts."""

    run: Checkpoint
    prompts: tuple[bytes, ...] = (b"",)
    max_bytes: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[bytes, ...] = Field((), description="A stream ends before the first of these strings.")
    engine: str = Field(
        "auto", description="What computes the steps: auto, torch, or portable (exact and fast; float32 on a CPU)."
    )


class GateRequest(Request):
    """Continue a prompt behind the run's calibrated gate, window by window."""

    run: Checkpoint
    prompt: bytes = b""
    max_bytes: int = 256
    sampling: Sampling = Sampling()
    window: int = Field(0, description="Bytes judged at a time; 0: 256, or the longest calibrated.")
    retries: int = Field(0, description="How often a blocked window is sampled again.")


class InfillRequest(Request):
    """Fill in missing bytes from what is before and after them."""

    run: Checkpoint
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

    run: Checkpoint
    path: SourceFile = Field(description="The file; for a model with parity, one that `protect` wrote.")
    out: NewFile = Field(description="The repaired file, without parity.")
    rate: float | None = Field(
        None, description="Probability of a flip, in (0, 0.5); default: estimated from the file."
    )
    span: tuple[int, int] | None = Field(None, description="First byte to repair, and the byte after the last.")


class ProveRequest(Request):
    """Repair a file so that a checksum or hash proves it. Nothing is written that is not proved."""

    path: SourceFile = Field(description="The damaged file.")
    out: NewFile | None = Field(
        None, description="The repaired file. Default: the file's name with .repaired at its end."
    )
    proofs: tuple[str, ...] = Field(
        (),
        description="crc32:HEX, sha256:HEX, md5:HEX, crc16:HEX, adler32:HEX, ...; auto: what is in a PNG, ZIP, gzip, tar, Intel HEX.",
    )
    checksums: SourceFile | None = Field(
        None, description="A file of checksums, as sha256sum writes it, or one of each block."
    )
    block_size: int | None = Field(None, ge=1, description="Bytes of a block, if the checksums are of blocks.")
    run: Checkpoint | None = Field(None, description="The model that ranks what may have been. Default: experts alone.")
    reference: tuple[Source, ...] = Field((), description="Intact files of the same kind; experts read them first.")
    lost: tuple[int, int] | Literal["located"] | None = Field(
        None,
        description="At most 256 bytes that are unknown, to be filled in; located: the clearest damage that is found.",
    )
    called: str = Field("", description="What the file is called in the list of checksums. Default: as its path says.")
    most_flips: int = Field(4, ge=1, le=4, description="Flipped bits, at most, in a range with a check of its own.")
    seconds: float = Field(60.0, gt=0, description="When to stop looking.")
    overwrite: bool = Field(False, description="Replace a file of that name.")


class RepairBytesRequest(Request):
    """Correct flipped bits of bytes in memory, as far as the model can tell."""

    run: Checkpoint
    data: bytes = Field(
        description="At most 65,536 data bytes; for a model with parity, packed with a ninth bit each, as `protect` writes them."
    )
    rate: float | None = Field(
        None, description="Probability of a flip, in (0, 0.5); default: estimated from the data."
    )
    span: tuple[int, int] | None = Field(None, description="First byte to repair, and the byte after the last.")


class MapRequest(Request):
    """Show where a file is surprising, byte by byte: a page, a picture, tables, bookmarks."""

    path: SourceFile = Field(description="The file.")
    run: Checkpoint | None = Field(None, description="The model that reads it. Default: experts alone, both ways.")
    reference: tuple[Source, ...] = Field((), description="Clean files of the same kind; experts read them first.")
    out: NewFile | None = Field(None, description="An HTML page.")
    csv: NewFile | None = Field(None, description="A table: CSV.")
    table: NewFile | None = Field(None, description="The same as JSON, one object a line.")
    png: NewFile | None = Field(None, description="A picture.")
    imhex: NewFile | None = Field(None, description="Bookmarks for ImHex.")
    window: int = Field(1, ge=1, le=1 << 20, description="Bytes of a row of the tables.")
    hilbert: bool = Field(False, description="Whether the picture winds along a Hilbert curve.")
    span: tuple[int, int] | None = Field(None, description="First byte, and the byte after the last. Default: all.")
    false_alarms: float = Field(
        1.0, gt=0, description="Of damaged ranges, which are marked if a run or a reference is given; per megabyte."
    )
    called: str = Field("", description="What the file is called. Default: as its path says.")
    overwrite: bool = Field(False, description="Replace files of these names.")


class LocateRequest(Request):
    """Find damaged ranges of a file, at a known rate of false alarms."""

    path: SourceFile = Field(description="The file.")
    run: Checkpoint | None = Field(None, description="The model that reads it, and whose held-out data is normal.")
    reference: tuple[Source, ...] = Field((), description="Clean files of the same kind, in place of a run.")
    against: Source | None = Field(None, description="An intact version of the file; what it has too is not reported.")
    false_alarms: float = Field(1.0, gt=0, description="Ranges of clean data that are reported, per megabyte.")
    span: tuple[int, int] | None = Field(None, description="First byte, and the byte after the last. Default: all.")
    most: int = Field(1000, ge=1, description="Ranges in the result.")


class ProtectRequest(Request):
    """Write a file with a parity bit for each byte, or read such a file back."""

    path: SourceFile
    out: NewFile
    undo: bool = False


class CompressRequest(Request):
    """Compress a file, with a model or with adaptive predictors alone."""

    path: SourceFile
    out: NewFile | None = Field(None, description="Default: the file's name with .btlm at its end.")
    run: Checkpoint | None = Field(
        None, description="The model that predicts the data; the same one is needed to decompress. Default: none."
    )
    adapt: float = Field(
        0.0, description="Step size by which the model's head and mixer learn while coding; 0: they do not."
    )
    experts: Literal["light", "rich", "auto"] = Field(
        "light",
        description="Without a model: light; rich, 6 to 20 % smaller at an eighth of the speed, with up to 2 GB of memory a thread; auto, rich where it saves 3 %.",
    )
    frame_bytes: int | None = Field(
        None, description="Data per frame. Frames are independent. Default: 16 MiB, with a model 512 KiB."
    )
    jobs: int | None = Field(None, description="Threads; default: one per core.")
    verify: bool = Field(True, description="Decode everything again and compare.")
    overwrite: bool = Field(False, description="Replace a file of that name.")


class DecompressRequest(Request):
    """Read a compressed file back."""

    path: SourceFile
    out: NewFile | None = Field(None, description="Default: the file's name without .btlm.")
    run: Checkpoint | None = Field(None, description="The model that the file was compressed with, if it was.")
    jobs: int | None = Field(None, description="Threads; default: one per core.")
    keep_going: bool = Field(False, description="Write zeros where the file is damaged, and list these ranges.")
    overwrite: bool = Field(False, description="Replace a file of that name.")


class FitRequest(Request):
    """Learn what clean text is like, to filter other texts by it: one small file, in seconds."""

    names: tuple[Source, ...] = Field(description="Clean text: files, folders, JSON lines, parquet, corpora.")
    out: NewFile = Field(Path("quality.btlm"), description="The file of the quality model.")
    field: str = Field("text", description="Of JSON lines and parquet: the field with the text.")
    overwrite: bool = Field(False, description="Replace a file of that name.")


class FilterRequest(Request):
    """Score texts by how much they are like clean ones, and leave out the odd ones."""

    names: tuple[Source, ...] = Field(
        description="JSON lines (also .gz, .zst, or - for standard input), parquet, folders of text."
    )
    run: Source = Field(description="A file that `fit` wrote, or a run whose experts read bytes.")
    field: str = Field("text", description="Of JSON lines and parquet: the field with the text.")
    keep_below: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Keep texts whose percentile is lower: 95 leaves out what is odder than 95 % of clean texts.",
    )
    out: NewFile | None = Field(None, description="Default: the input's name with .filtered; standard output for -.")
    rejects: NewFile | None = Field(
        None, description="A file of JSON lines for what is left out or cannot be read, and why."
    )
    report: NewFile | None = Field(None, description="An HTML page of what was found.")
    jobs: int | None = Field(
        None, ge=1, description="Threads; default: one per core. The result does not depend on it."
    )
    overwrite: bool = Field(False, description="Replace files of these names.")


class CompareRequest(Request):
    """Compare models: trainings under one budget, paired tests of the differences, and a report."""

    plan: ComparisonConfig = Field(description="Models, corpora, seeds and the budget.")
    out: LocalFile = Field(description="Folder of the comparison. One that was begun there goes on.")


class EvaluateRequest(Request):
    """Bits per byte of files, folders or named corpora."""

    run: Checkpoint
    names: tuple[Source, ...]
    overlap: float = Field(0.5, description="Fraction of a window that is only context, in [0, 1).")
    learning: str | None = Field(
        None, description="What learns from a file while it is scored: static, online, online+mixer."
    )
    primer_bytes: int = Field(
        1 << 20,
        ge=0,
        description="Bytes of the training data, the latest, that compressors read first, to be compared with the model; 0: no compressors.",
    )


class ScoreRequest(Request):
    """Bits per byte of a file, window by window."""

    run: Checkpoint
    name: Source
    window: int = Field(256, description="Bytes per reported window.")
    overlap: float = 0.5
    learning: str | None = None
    plot: LocalFile | None = Field(None, description="Also plot them, to a PNG file.")


class PredictionsRequest(Request):
    """What a model expects of each bit of some bytes, and what each costs."""

    run: Checkpoint
    data: bytes = Field(description="1 to 65,536 bytes.")
    overlap: float = Field(0.5, description="Fraction of a window that is only context, in [0, 1).")
    learning: str | None = Field(
        None, description="What learns from the data while it is scored: static, online, online+mixer."
    )


class HarnessRequest(Request):
    """A run's model on tasks of the Language Model Evaluation Harness."""

    run: Checkpoint
    tasks: tuple[TaskName, ...] = Field((), description="Names of tasks. Default: all of the folder.")
    include: LocalFile | None = Field(None, description="A folder of task files (.yaml). Python that they name is run.")
    limit: int | None = Field(None, ge=1, description="Documents of each task, at most.")
    shots: int | None = Field(None, ge=0, description="Examples before each question. Default: as the task says.")
    batch: int = Field(32, ge=1, description="Windows, or prompts, at once.")
    learning: str = Field(
        "static", description="What learns from a text while it is scored: static (nothing) or online (the experts)."
    )
    overlap: float = Field(
        0.5, ge=0, lt=1, description="Fraction of a window that is only context, of texts longer than a window."
    )


class CorporaRequest(Request):
    """List the corpora that can be named: size, licence, standard parts, checksum, and whether they are here."""

    check: bool = Field(False, description="Compare the checksums of the files that are here.")


class HistogramRequest(Request):
    """How often each byte value occurs in a file, a folder or a named corpus."""

    name: Source


class FileTelemetryRequest(Request):
    """K and C of a file by window, and S against a run's reference."""

    name: Source
    run: Checkpoint | None = None
    window: int = Field(512, description="Bytes; a shorter last window counts if it is at least half as long.")
    informative: int = Field(5, description="Number of windows to pick that are worth reading.")
    plot: LocalFile | None = None


class RunTelemetryRequest(Request):
    """K, C, S and loss of a training by step, and where they drifted."""

    run: RunName = Field(description="A run folder, or a run's name in the store.")
    plot: LocalFile | None = None


class CalibrateRequest(Request):
    """Set the limits of a run's gate."""

    run: Checkpoint
    names: tuple[Source, ...] = Field(
        (), description="Files that the run was not trained on; default: its held-out data."
    )
    alpha: float = Field(0.01, description="False-alarm rate, in (0, 0.5).")
    seed: int = 0


class ExplainRequest(Request):
    """Explain what K, C and S mean for a run."""

    run: Checkpoint
    K: float
    C: float
    S: float
    size: int = Field(512, description="Bytes of the measured window.")


class ExplainFileRequest(Request):
    """Explain what the gate of a run makes of a file: which parts are typical, which are not, and why."""

    run: Checkpoint
    name: Source
    window: int = Field(512, ge=1, description="Bytes that are judged at once.")


class ListRunsRequest(Request):
    """List all runs of the store."""


class RunRequest(Request):
    """Show one run of the store."""

    run: RunName


class CompareRunsRequest(Request):
    """Compare runs of the store: settings that differ, and figures."""

    names: tuple[RunName, ...] = Field(description="Two or more runs.")


class RemoveRunsRequest(Request):
    """Remove runs from the store."""

    names: tuple[RunName, ...]
    files: bool = Field(False, description="Also remove the files that training wrote into their folders.")


class StepRequest(Request):
    """Let a paused training make some updates, and pause again."""

    run: RunName
    updates: int = 1


class ChangeRequest(Request):
    """Change learning rates or penalties of a running training."""

    run: RunName
    settings: dict[str, float] = Field(
        description="lr, matrix_lr, table_lr (peaks; the schedule goes on), lambda_K, lambda_C, lambda_S."
    )


class TriggerRequest(Request):
    """Do something once a metric of a run crosses a line."""

    run: RunName
    metric: str = Field(description="Such as val_bpb, train_bpb, grad_norm, K, C or S.")
    above: float | None = None
    below: float | None = None
    action: str = Field("notify", description="pause, checkpoint (keep one) or notify.")


class RemoveTriggerRequest(Request):
    """Remove a trigger of a run."""

    run: RunName
    trigger: int


class BranchRequest(Request):
    """Make a new run that goes on from a checkpoint of another, with changed settings."""

    run: RunName
    out: NewRun = Field(description="Run folder of the new run.")
    step: int | None = Field(None, description="Update of a kept checkpoint. Default: the last checkpoint.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of the training that differ.")


class StopRunRequest(Request):
    """Ask a training on this machine to stop normally."""

    run: RunName


class ListJobsRequest(Request):
    """List the jobs of the store, newest first."""

    state: State | None = Field(None, description="Only jobs in this state.")


class ExportRequest(Request):
    """Pack a run's model, its settings, its gate, its metrics and a model card into one file."""

    run: Checkpoint
    out: NewFile = Field(description="The file, a .zip.")
    overwrite: bool = Field(False, description="Replace a file of that name.")


class LoginRequest(Request):
    """Say whose token of the Hugging Face hub this machine has; the token itself is never shown."""


class PushRequest(Request):
    """Push a run's model to the Hugging Face hub, with a model card."""

    run: Checkpoint
    repo: str = Field(description="OWNER/NAME on the hub; it is made if it is not there.")
    private: bool = Field(True, description="Only its owner can see it.")
    message: str = Field("", description="Of the commit. Default: which update of which run it is.")
    overwrite: bool = Field(False, description="Add a new version to a repository that holds files already.")


class PullRequest(Request):
    """Pull a model from the Hugging Face hub into a new run folder. Nothing in it is ever run or unpickled."""

    repo: str = Field(description="OWNER/NAME on the hub.")
    out: NewRun = Field(description="The new run folder.")
    revision: str | None = Field(None, description="A branch, a tag or a commit. Default: the latest.")
