"""Requests to the advisor."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bit_transformer.service.requests import Checkpoint, Request, RunName, Source

Task = Literal["generate", "compress", "score", "infill", "repair"]
Measured = Literal["bits", "predictions"]


class DoctorRequest(Request):
    """Look at this machine: processor, memory, GPUs, disk, versions, and whether everything that is needed works."""


class AdviseRequest(Request):
    """Propose settings and a command for a task, a size and a budget, with the memory and the time that they take here."""

    task: Task = Field("generate", description="What the model is for.")
    parameters: int | None = Field(None, ge=1, le=10**12, description="Size of the model, about.")
    preset: str | None = Field(None, description="Or: tiny, small, medium, large, or a depth such as 6.")
    model: dict[str, Any] = Field(default_factory=dict, description="Fields of the model that are settled.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of the training that are settled.")
    seconds: float | None = Field(None, gt=0, le=1e9, description="Budget of the training. Default: 60.")
    memory: int | None = Field(None, ge=1, description="Bytes of a device. Default: what is free here.")
    devices: int = Field(1, ge=1, le=65_536, description="Devices that share the training.")
    device: Literal["cpu", "cuda"] | None = Field(None, description="Of another machine. Default: this one's.")
    data: Source | None = Field(None, description="Data to train on, for the command and the length of a pass.")
    data_bytes: int | None = Field(None, ge=1, description="Its size, where it is not here.")
    measure: float = Field(10.0, ge=0, le=600, description="Seconds of updates to time; 0: no time is predicted.")


class TradeRequest(Request):
    """Compare settings by what they cost: memory by the estimator, time by measured updates, each in turn."""

    preset: str = "small"
    model: dict[str, Any] = Field(default_factory=dict, description="Fields of the model in all of them.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of the training in all of them.")
    variants: tuple[tuple[str, ...], ...] = Field(
        ((), ("model.use_checkpoint=true",), ("model.reversible=true",)),
        max_length=16,
        description="Settings of each, such as model.reversible=true; the first is what the others are compared with.",
    )
    seconds: float = Field(3.0, ge=0, le=600, description="Of updates to time, for each; 0: only memory.")


class DiagnoseRequest(Request):
    """Say how a run goes: converging, levelling off, diverging, over-fitting, NaN, blocked by its gate, too slow; and why."""

    run: RunName


class DiagnoseErrorRequest(Request):
    """Say what an error in a log means, with the numbers that it names, and what would help how much."""

    log: str = Field(max_length=200_000, description="The end of what was printed.")
    run: RunName | None = Field(None, description="The run that it is of, for its settings.")
    preset: str | None = Field(None, description="Or its model, by name or depth.")
    model: dict[str, Any] = Field(default_factory=dict, description="Or fields of its model.")
    train: dict[str, Any] = Field(default_factory=dict, description="Fields of its training.")
    devices: int = Field(1, ge=1, le=65_536)


class InterpretRequest(Request):
    """Say what K, C and S mean where no run was calibrated: next to what kinds of data measured."""

    K: float = Field(ge=0, le=1)
    C: float = Field(ge=0, le=1)
    S: float | None = Field(None, ge=0, le=1)
    source: Measured = Field("bits", description="Of the bits of a text, or of a model's predictions in training.")


class MeasureRequest(Request):
    """Measure a text: order, complexity, likeness to a run's reference, and how much it repeats itself."""

    data: bytes = Field(min_length=8, max_length=1 << 20, description="The text.")
    run: Checkpoint | None = Field(None, description="A calibrated run, for S and its own limits.")
    window: int = Field(512, ge=8, le=65_536, description="Bytes measured at a time.")


class DiagnoseGateRequest(Request):
    """Find out how often a run's gate blocks a text or the model's own samples, and why."""

    run: Checkpoint
    name: Source | None = Field(None, description="The text. Default: samples of the model.")
    temperature: float = Field(1.0, ge=0, le=10, description="Of the samples.")
    window: int = Field(256, ge=32, le=65_536, description="Bytes judged at a time.")
    windows: int = Field(16, ge=1, le=1000, description="How many.")
    seed: int = Field(0, ge=0, lt=1 << 31)


class PlanRequest(Request):
    """Plan a comparison of models: seeds that a difference needs, what each row costs, and the protocol."""

    models: tuple[str, ...] = Field(("ours", "gpt2"), description="What is compared; the first is compared with each.")
    difference: float = Field(0.02, gt=0, le=8, description="Smallest difference in bits per byte that matters.")
    deviation: float | None = Field(
        None,
        gt=0,
        le=8,
        description="Of paired differences between seeds. Default: as measured in the store, else here.",
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Of false claims, over the whole table.")
    power: float = Field(0.8, gt=0.1, lt=1)
    seeds: int | None = Field(None, ge=2, le=1000, description="Or the number of seeds; then what they can show.")
    seconds: float = Field(180.0, gt=0, description="Budget of one training.")


class SignificanceRequest(Request):
    """Test paired results: difference, interval, exact sign-flip p, effect size."""

    a: tuple[float, ...] = Field((), max_length=10_000, description="Bits per byte by seed.")
    b: tuple[float, ...] = Field(
        (), max_length=10_000, description="Of what it is compared with, the same seeds in the same order."
    )
    runs_a: tuple[RunName, ...] = Field((), description="Or runs, which are paired by their seeds.")
    runs_b: tuple[RunName, ...] = ()
    comparisons: int = Field(1, ge=1, le=10_000, description="Comparisons in the table, for Bonferroni's correction.")


class ReportRequest(Request):
    """Draft a report of runs: tables, intervals over seeds, what was not shown, and what failed."""

    names: tuple[RunName, ...] = Field((), description="Runs. Default: all of the store.")
    title: str = Field("Results", max_length=200)
