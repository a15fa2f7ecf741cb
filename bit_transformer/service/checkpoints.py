"""What checkpoints say of themselves, read from their headers alone: without torch, and however large they are."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

MODEL_FILE, GATE_FILE, KEPT = "model.safetensors", "gate.safetensors", "checkpoints"
SEALED = "bit-transformer, sealed"  # the header's entry, as in `tensor_file.py`
HEADER_BYTES = 64 << 20
BANK = "bank."


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint in a list.

    Attributes:
        name: RUN, or RUN@STEP for one that was kept.
        step: the update that its weights are of.
        bytes: of the model's file.
        written: UTC, ISO 8601.
        parameters: numbers in its weights, without what the experts have learned.
        precision: float32, int8, int4 ...
        model: its settings.
        calibrated: whether a gate was calibrated for it.
    """

    name: str
    step: int | None
    bytes: int
    written: str
    val_bpb: float | None
    parameters: int
    precision: str
    model: dict[str, Any]
    calibrated: bool


def header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors (name -> dtype, shape, data_offsets) and document of a checkpoint. Its digest is not checked.

    Raises:
        OSError, ValueError: it is not there, or not of this format.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_BYTES:
            raise ValueError("the header is too large")
        text = file.read(size)
    try:
        tensors = json.loads(text)
        about = tensors.pop("__metadata__")
        document = json.loads(about[SEALED].partition(" ")[2] if SEALED in about else about["document"])
    except (KeyError, TypeError, AttributeError, RecursionError) as other:
        raise ValueError("the header is of another format") from other
    if not isinstance(document, dict):
        raise ValueError("the document is of another format")
    return tensors, document


def summarize(name: str, folder: Path) -> CheckpointSummary | None:
    """What the model in a folder says of itself; None if there is none that can be read."""
    return summarize_file(name, folder / MODEL_FILE)


def summarize_file(name: str, path: Path) -> CheckpointSummary | None:
    """What a checkpoint says of itself; None if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        tensors, document = header(path)
        stat, about = path.stat(), document.get("about", {})
        rounding = document.get("quantization")
        sizes = [
            prod(entry["shape"]) for key, entry in tensors.items() if not key.startswith(BANK) and ".scale" not in key
        ]
        return CheckpointSummary(
            name=name,
            step=about.get("step"),
            bytes=stat.st_size,
            written=datetime.fromtimestamp(stat.st_mtime, timezone.utc).isoformat(timespec="seconds"),
            val_bpb=about.get("val_bpb"),
            parameters=sum(sizes),
            precision=f"int{rounding.get('bits', '?')}" if isinstance(rounding, dict) else "float32",
            model=document["model"],
            calibrated=path.name == MODEL_FILE and path.with_name(GATE_FILE).is_file(),
        )
    return None


def of_run(name: str, folder: Path) -> list[CheckpointSummary]:
    """A run's checkpoint, and those of it that were kept, the latest first."""
    kept = sorted((folder / KEPT).glob("[0-9]*"), key=lambda place: -int(place.name) if place.name.isdigit() else 0)
    places = [(name, folder), *((f"{name}@{place.name}", place) for place in kept)]
    return [found for label, place in places if (found := summarize(label, place)) is not None]


def bands(folder: Path, size: int) -> dict[str, Any] | None:
    """Where K, C and S of windows of about `size` bytes usually are, by a run's calibration: from 1 % to 99 % of the reference, with the gate's
    floors of C and S. None if it was not calibrated."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        with safe_open(folder / GATE_FILE, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in ("lengths", "limits", "quantiles")}
        _, document = header(folder / GATE_FILE)
        at = int(np.abs(np.log(arrays["lengths"] / size)).argmin())
        spread = arrays["quantiles"][at]
        last = spread.shape[-1] - 1
        found = {
            metric: [float(spread[row, round(0.01 * last)]), float(spread[row, round(0.99 * last)])]
            for row, metric in enumerate("KCS")
        }
        floors = {"C": float(arrays["limits"][at, 0]), "S": float(arrays["limits"][at, 1])}
        return {
            **found,
            "floors": floors,
            "most_copied": float(arrays["limits"][at, 2]),
            "bytes": int(arrays["lengths"][at]),
            "alpha": document["alpha"],
        }
    return None
