"""Settings for a task, a size and a budget: what fits, what it costs, and the command."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bit_transformer.config import BUDGETS, ModelConfig, TrainConfig
from bit_transformer.config.base import flat
from bit_transformer.data.sources import find_files, whole_files
from bit_transformer.errors import ConfigError, Give
from bit_transformer.machine import cores
from bit_transformer.memory import MemoryEstimate, elements, estimate_memory, largest_batch, savings
from bit_transformer.model import BitTransformerLM
from bit_transformer.presets import NAMED, of_depth, optim_for, preset
from bit_transformer.service.advisor.requests import AdviseRequest, Task, TradeRequest
from bit_transformer.service.duration import TimeEstimate, estimate_time
from bit_transformer.service.jobs import Job, Notice
from bit_transformer.service.memory import free_on
from bit_transformer.service.requests import TimeRequest
from bit_transformer.service.settings import Settings, parse_value, read_settings, train_config
from bit_transformer.service.workspace import Workspace
from bit_transformer.training.out_of_memory import as_estimated
from bit_transformer.training.precision import autocast_wanted

SECONDS = 60.0
ROOM = 0.85  # of the memory that is free; a process with torch takes some 0.4 GB, and its allocator keeps freed memory
FASTEST = 1e11  # operations a second of a core with wide vectors
SLOW = 0.5  # of the seconds for timing: where one update takes longer, nothing is timed
TINY_SECONDS = 300.0  # of a processor's training; up to these the smallest preset is proposed

# What was measured, and by what: `docs/results.md` has the figures.
CHOICES: dict[Task, tuple[bool, str, dict[str, float]]] = {
    "generate": (
        True,
        "a diffusion model with the same trunk needs 29 % more bits per byte (an upper bound: 3.037 against 2.350; `btlm bench diffusion`)",
        {"diffusion_bpb": 3.037, "causal_bpb": 2.350},
    ),
    "compress": (
        True,
        "coding needs exact probabilities, one bit after the other; a diffusion model only bounds them",
        {},
    ),
    "score": (
        True,
        "its cost of each byte is exact; that of a diffusion model is an upper bound, 29 % higher (3.037 against 2.350; `btlm bench diffusion`)",
        {"diffusion_bpb": 3.037, "causal_bpb": 2.350},
    ),
    "infill": (False, "a hole is filled in from both sides; a causal model does not see what comes after it", {}),
    "repair": (
        True,
        "a search with a causal model and experts leaves 13 % of flipped bits, with parity 4.0 %; a diffusion model 38 % and 20 % (`btlm bench diffusion`)",
        {"causal_left": 0.13, "causal_parity_left": 0.04, "diffusion_left": 0.38, "diffusion_parity_left": 0.20},
    ),
}


@dataclass(frozen=True)
class Reason:
    """Why a setting is proposed.

    Attributes:
        numbers: that it rests on: bytes, seconds, ratios, by name.
    """

    setting: str
    why: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """Proposed settings.

    Attributes:
        preset: by name or depth; `model`, `train`: fields in which the model differs from it, and the training from the defaults.
        command: that starts the training; `script`: the same in Python.
        memory: on one device; `budget`: its bytes, and `fits`: whether the peak stays below 85 % of them.
        largest_batch: windows that fit at once, over all devices.
        seconds: that the training takes; `passes`: over the data. None where they are not known.
        time: how it was measured; None if it was not.
        smaller: where nothing fits: parameters of the largest preset that does, and devices on which this would.
    """

    task: str
    causal: bool
    parameters: int
    active_parameters: int
    preset: str
    model: dict[str, Any]
    train: dict[str, Any]
    distributed: dict[str, Any] | None
    command: str
    script: str
    memory: MemoryEstimate
    budget: int | None
    fits: bool
    largest_batch: int | None
    seconds: float | None
    bytes_per_s: float | None
    passes: float | None
    time: TimeEstimate | None
    reasons: list[Reason]
    warnings: list[str]
    smaller: dict[str, int] = field(default_factory=dict)


def advise(request: AdviseRequest, workspace: Workspace, job: Job) -> Advice:
    """Propose settings.

    Raises:
        ConfigError: two sizes, or fields that are not settings.
        BitStreamError: data that cannot be read.
    """
    here = request.device is None or request.device == workspace.device.type
    device = workspace.device if here else torch.device(request.device or "cpu")
    causal, why, numbers = CHOICES[request.task]
    reasons, warnings = [Reason(f"model.causal={str(causal).lower()}", why, numbers)], list[str]()
    model, said = _sized(request, device, causal)
    reasons += said
    budget = request.memory or (free_on(device) if here else None)
    if budget is None:
        warnings.append("the memory of the device is not known; name it, such as memory=24000000000")
    train = _trained(request, model)
    if train.amp is None and device.type == "cuda" and not here:
        train = train.model_copy(update={"amp": True})
        reasons.append(
            Reason("train.amp=true", "GPUs since NVIDIA's Ampere multiply in bfloat16; that one was not looked at")
        )
    model, train, more = _fitted(request, model, train, device, budget)
    reasons += more
    how = as_estimated(train, device, train.accum_steps)
    memory = estimate_memory(model, how, world_size=request.devices)
    fits = budget is None or memory.peak <= ROOM * budget
    if device.type == "cpu" and not autocast_wanted(device, train.amp):
        reasons.append(
            Reason("train.amp=false", "this processor has no bfloat16, where it is about ten times slower than float32")
        )
    elif here and autocast_wanted(device, train.amp):
        reasons.append(Reason("train.amp=true", "the device multiplies in bfloat16; activations take half"))
    distributed = _spread(request.devices, memory, model, how, budget, reasons)
    data_bytes = request.data_bytes or (len(whole_files(find_files([request.data]))) if request.data else None)
    time = None
    if not request.measure:
        warnings.append("no updates were timed, so the time is not known")
    elif not here:
        warnings.append(f"updates were not timed, because this machine has no {device.type}")
    elif not fits:
        warnings.append("updates were not timed, because the training does not fit")
    elif device.type == "cpu" and (least := _least_seconds(model, train)) > SLOW * request.measure:
        warnings.append(
            f"updates were not timed: by its operations, one takes about {least:,.0f} s or more on {cores()} cores; name another device, or a smaller model"
        )
    else:
        job.tell(Notice(f"timing updates for {request.measure:g} s"))
        time = estimate_time(
            TimeRequest(model=model, train=train, data_bytes=data_bytes, seconds=request.measure), workspace, job
        )
    if time is not None and request.devices > 1:
        warnings.append(
            f"timed on one device; {request.devices} share an update, and what they send each other takes longer (docs/scaling.md)"
        )
    seen = (
        None
        if time is None
        else time.updates
        * train.batch_size
        * (model.max_seq_len if train.window is None else train.window)
        / model.byte_bits
    )
    passes = None if seen is None or data_bytes is None else seen / data_bytes
    count = _count(model)
    if seen is not None and seen < count[1]:
        warnings.append(f"in this time it sees {seen:,.0f} bytes, fewer than its {count[1]:,} active parameters")
    if not fits and budget is not None and not _smaller(model, how, budget, request.devices):
        warnings.append("nothing of this kind fits, however small; name more memory")
    data = request.data or "DATA"
    return Advice(
        task=request.task,
        causal=model.causal,
        parameters=count[0],
        active_parameters=count[1],
        preset=_named(model)[0],
        model=_named(model)[1],
        train=_differences(train, TrainConfig(seconds=SECONDS, optim=optim_for(model))) | dict([train.budget]),
        distributed=distributed,
        command=_command(request, model, train, data, distributed),
        script=_script(model, train, data),
        memory=memory,
        budget=budget,
        fits=fits,
        largest_batch=None
        if budget is None
        else largest_batch(model, how, int(ROOM * budget), world_size=request.devices),
        seconds=None if time is None else time.seconds,
        bytes_per_s=None if time is None else time.bytes_per_s,
        passes=passes,
        time=time,
        reasons=reasons,
        warnings=warnings,
        smaller={} if fits or budget is None else _smaller(model, how, budget, request.devices),
    )


# ---- size ----


def _sized(request: AdviseRequest, device: torch.device, causal: bool) -> tuple[ModelConfig, list[Reason]]:
    """The model, and why this one."""
    if request.parameters is not None and request.preset is not None:
        raise ConfigError(
            "got parameters and preset; one is needed", field="parameters", tries=(Give("preset", "small"),)
        )
    given = dict(request.model)
    if request.task == "repair":
        given.setdefault("parity", True)
    given.setdefault("causal", causal)
    if request.parameters is None:
        brief = device.type == "cpu" and (request.seconds or SECONDS) <= TINY_SECONDS
        name = request.preset or ("tiny" if brief else "small" if device.type == "cpu" else "medium")
        if request.preset:
            return preset(name, **given), []
        why = (
            f"{name} for {request.seconds or SECONDS:g} s on {cores()} cores"
            if device.type == "cpu"
            else f"{name} for a GPU"
        )
        return preset(name, **given), [Reason(f"preset={name}", f"{why}; `make demo` and the recipes are of this size")]
    wanted = request.parameters
    sized = [(depth, preset(str(depth), **given)) for depth in range(1, 65)]
    depth, model = min(sized, key=lambda pair: abs(math.log(_total(pair[1]) / wanted)))
    total = _total(model)
    why = f"depth {depth} has {total:,} parameters, the nearest to {request.parameters:,}; width, heads and rates follow from the depth"
    return model, [
        Reason(f"preset={depth}", why, {"parameters": total, "asked": request.parameters}),
        Reason(
            f"train.optim.lr={optim_for(model).lr:.3g}",
            "AdamW's rate falls as 1 / sqrt(width); Muon's for the matrices is the same at all widths",
            {"width": model.d_model, "lr": optim_for(model).lr, "matrix_lr": optim_for(model).matrix_lr},
        ),
    ]


def _total(c: ModelConfig) -> int:
    return c.num_layers * elements(c)[0] + sum(elements(c)[1:])


def _count(model: ModelConfig) -> tuple[int, int]:
    with torch.device("meta"):  # only shapes
        found = BitTransformerLM(model).num_parameters()
    return found.total, found.active


def _least_seconds(model: ModelConfig, train: TrainConfig) -> float:
    """Seconds that an update takes on this processor at the very least, about."""
    with torch.device("meta"):
        operations = BitTransformerLM(model).flops_per_byte()
    window = model.max_seq_len if train.window is None else train.window
    return train.batch_size * window / model.byte_bits * operations / (FASTEST * cores())


def _trained(request: AdviseRequest, model: ModelConfig) -> TrainConfig:
    fields = dict(request.train)
    if request.seconds is not None:
        fields = {key: value for key, value in fields.items() if key not in BUDGETS} | {"seconds": request.seconds}
    if not any(fields.get(name) is not None for name in BUDGETS):
        fields["seconds"] = SECONDS
    if "batch_size" not in fields:
        fields["batch_size"] = math.ceil(TrainConfig(steps=1).batch_size / request.devices) * request.devices
    return train_config(model, fields)


# ---- memory ----

_ORDER = ("accum_steps", "use_checkpoint", "reversible", "checkpoint_every", "keep_best", "chunk_size", "amp")


def _fitted(
    request: AdviseRequest, model: ModelConfig, train: TrainConfig, device: torch.device, budget: int | None
) -> tuple[ModelConfig, TrainConfig, list[Reason]]:
    """Settings that save memory, the cheapest in time first, until the training fits."""
    reasons: list[Reason] = []
    settled = {*request.model, *request.train}
    while budget is not None:
        how = as_estimated(train, device, train.accum_steps)
        now = estimate_memory(model, how, world_size=request.devices).peak
        if now <= ROOM * budget:
            break
        ways = [(saving, _assigned(saving.settings)) for saving in savings(model, how, world_size=request.devices)]
        names = {name: (saving, fields) for saving, fields in ways for name in (*fields["model"], *fields["train"])}
        able = autocast_wanted(device, None)
        name = next((n for n in _ORDER if n in names and n not in settled and (n != "amp" or able)), None)
        if name is None:
            break
        saving, fields = names[name]
        model = ModelConfig.of(model.model_dump() | fields["model"])
        train = TrainConfig.of(train.model_dump() | fields["train"])
        reasons = [
            reason for reason in reasons if reason.setting.partition("=")[0] != saving.settings.partition("=")[0]
        ]
        reasons.append(
            Reason(saving.settings, f"lowers the peak; {saving.price}", {"peak_before": now, "peak": saving.peak})
        )
    return model, train, reasons


def _assigned(settings: str) -> Settings:
    return read_settings(None, settings.split())


def _spread(
    devices: int,
    memory: MemoryEstimate,
    model: ModelConfig,
    how: TrainConfig,
    budget: int | None,
    reasons: list[Reason],
) -> dict[str, Any] | None:
    """How devices share a training."""
    if devices == 1:
        return None
    alone = estimate_memory(model, how.model_copy(update={"batch_size": how.batch_size // devices}), world_size=1).peak
    shard = budget is None or alone > ROOM * budget or _total(model) > 100_000_000
    why = (
        "each device keeps a part of weights, gradients and moments"
        if shard
        else "the whole model fits on each device, and replicas send less"
    )
    reasons.append(Reason("fsdp" if shard else "ddp", why, {"peak": memory.peak, "peak_with_all_weights": alone}))
    return {"nproc": devices, "shard": shard}


def _smaller(model: ModelConfig, how: TrainConfig, budget: int, devices: int) -> dict[str, int]:
    """What would fit."""
    found: dict[str, int] = {}
    more = devices
    while more < 4096:
        more *= 2
        rows = math.ceil(how.batch_size / (more * how.accum_steps)) * more * how.accum_steps
        if estimate_memory(model, how.model_copy(update={"batch_size": rows}), world_size=more).peak <= ROOM * budget:
            found["devices"] = more
            break
    lean = how.model_copy(update={"accum_steps": how.batch_size // devices, "amp": how.amp})
    for depth in range(model.num_layers - 1, 0, -1):
        smaller = of_depth(depth)
        if estimate_memory(smaller, lean, world_size=devices).peak <= ROOM * budget:
            return {**found, "depth": depth, "parameters": _total(smaller)}
    return found


# ---- the command ----


def _command(
    request: AdviseRequest, model: ModelConfig, train: TrainConfig, data: str, distributed: dict[str, Any] | None
) -> str:
    name, amount = train.budget
    words = ["btlm", "train", data, *_model_flags(model)]
    words += (
        [f"--{name}", _toml(amount)]
        if name in ("seconds", "steps", "epochs")
        else ["--set", f"train.{name}={_toml(amount)}"]
    )
    plain = TrainConfig.of({name: amount})
    for key, value in flat("", _differences(train, plain.model_copy(update={"optim": optim_for(model)}))):
        if key not in BUDGETS:
            words += ["--batch-size", str(value)] if key == "batch_size" else ["--set", f"train.{key}={_toml(value)}"]
    if distributed:
        words += ["--nproc", str(distributed["nproc"]), *(["--fsdp"] if distributed["shard"] else [])]
    if request.device:
        words += ["--device", request.device]
    return shlex.join([*words, "--out", "runs/new"])


def _named(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The preset of a model's depth, and the fields with which `preset` gives this model."""
    name = next((name for name, depth in NAMED.items() if depth == model.num_layers), str(model.num_layers))
    overrides = ({} if model.causal else {"causal": False}) | ({"parity": True} if model.parity else {})
    return name, overrides | _differences(model, preset(name, **overrides))


def _model_flags(model: ModelConfig) -> list[str]:
    """Flags that give this model."""
    name, fields = _named(model)
    words = ["--preset", name]
    for key, value in fields.items():
        plain = {"causal": ["--diffusion"], "parity": ["--parity"]}.get(key) if key != "experts" else None
        if key == "experts" and value is None:
            words.append("--no-experts")
        else:
            words += plain or ["--set", f"model.{key}={_toml(value)}"]
    return words


def _script(model: ModelConfig, train: TrainConfig, data: str) -> str:
    """A whole training in Python."""
    name, amount = train.budget
    depth, fields = _named(model)
    given = "".join(f", {key}={value!r}" for key, value in fields.items())
    settings = _differences(train, TrainConfig.of({name: amount}))
    rest = (f"{key}={value!r}" for key, value in settings.items() if key not in BUDGETS)
    how = ", ".join([f"{name}={_toml(amount)}", *rest])
    lines = [
        "from pathlib import Path",
        "",
        "from bit_transformer import BitTransformerLM, bits_per_byte, preset, save_checkpoint, train_loop",
        "from bit_transformer.data.sources import find_files, split",
        "",
        f"train, held_out = split(find_files([{data!r}]), 'auto', 0.1)",
        f"model = BitTransformerLM(preset({depth!r}{given}))",
        f"train_loop(model, train, {how})",
        'print(f"{bits_per_byte(model, held_out.thinned(65_536, 4_096)).bpb:.3f} bits per byte of held-out files")',
        'Path("runs/new").mkdir(parents=True, exist_ok=True)',
        'save_checkpoint("runs/new/model.safetensors", model)',
    ]
    return "\n".join(lines) + "\n"


def _differences(config: Any, base: Any) -> dict[str, Any]:
    """Fields of a config that differ from another's; of groups only what differs in them."""
    one, other = json.loads(config.model_dump_json()), json.loads(base.model_dump_json())
    return _unlike(one, other)


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in one.items():
        before = other.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = _unlike(value, before)
            if inner:
                found[key] = inner
        elif value != before:
            found[key] = value
    return found


def _toml(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value == int(value) else json.dumps(value)


# ---- trade-offs ----


@dataclass(frozen=True)
class Variant:
    """What settings cost.

    Attributes:
        settings: as given.
        peak: bytes; `activations`: stored for the backward pass.
        seconds_per_update: None if none was timed.
        peak_ratio, time_ratio: to the first.
        says: what was measured about them before.
    """

    settings: list[str]
    peak: int
    activations: int
    seconds_per_update: float | None
    peak_ratio: float
    time_ratio: float | None
    says: str


KNOWN = {
    "reversible": "bits per byte, reversible minus plain: -0.013, 95 % interval -0.034 to 0.009, p 0.25, six paired seeds: no difference shown (`btlm bench reversible-quality`); "
    "it computes another function, so checkpoints of plain models do not fit",
    "use_checkpoint": "the same function and the same gradients",
}


def trade(request: TradeRequest, workspace: Workspace, job: Job) -> list[Variant]:
    """Compare settings by memory and time.

    Raises:
        ConfigError: settings that are not valid.
    """
    found: list[Variant] = []
    all_fields = [
        _assigned_all(settings) for settings in request.variants
    ]  # what is wrong is said before the first is timed
    for settings, fields in zip(request.variants, all_fields, strict=True):
        model = preset(request.preset, **{**request.model, **fields["model"]})
        plain = {**request.train, **fields["train"]}
        budget = {} if any(plain.get(name) is not None for name in BUDGETS) else {"steps": 1000}
        train = train_config(model, {"telemetry": 0.0, **plain, **budget})
        memory = estimate_memory(model, as_estimated(train, workspace.device, train.accum_steps))
        pace = None
        if request.seconds:
            timed = train.model_copy(update={"eval_every": 1.0, "eval_bytes": 256})
            pace = estimate_time(
                TimeRequest(model=model, train=timed, seconds=request.seconds), workspace, job
            ).seconds_per_update
        first = found[0] if found else None
        found.append(
            Variant(
                settings=list(settings),
                peak=memory.peak,
                activations=memory.activations,
                seconds_per_update=pace,
                peak_ratio=memory.peak / first.peak if first else 1.0,
                time_ratio=None
                if pace is None
                else pace / (first.seconds_per_update if first and first.seconds_per_update else pace),
                says="; ".join(text for name, text in KNOWN.items() if fields["model"].get(name)),
            )
        )
    return found


def _assigned_all(settings: tuple[str, ...]) -> Settings:
    found: Settings = {"model": {}, "train": {}, "data": {}}
    for text in settings:
        key, _, value = text.partition("=")
        section, _, name = key.partition(".")
        if section not in ("model", "train") or not name or not value:
            raise ConfigError(
                f"got the setting {text[:80]!r}; section.key=value is needed, of model or train",
                field="variants",
                tries=("model.reversible=true",),
            )
        found[section][name] = parse_value(value)
    return found
