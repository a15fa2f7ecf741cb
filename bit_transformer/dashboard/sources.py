"""Lists to choose from: models that can be used, and data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bit_transformer.dashboard import formats
from bit_transformer.dashboard.layout import Frame
from bit_transformer.dashboard.rows import Row

MOST = 500


def usable(row: Row) -> bool:
    """Whether a run has a checkpoint: the server says so, or it has made some updates."""
    return bool(row.get("usable", (row.get("step") or 0) > 0))


async def models(frame: Frame, *, causal: bool | None = None) -> dict[str, str]:
    """Runs whose model can be used, with a label each; the newest first.

    Args:
        causal: only autoregressive models, or only diffusion models, where the server says which they are.
    """
    rows = (await frame.desk.rows()).rows.values()
    found = [row for row in rows if usable(row) and (causal is None or row.get("causal", causal) == causal)]
    return {row["id"]: model_label(row) for row in found[:MOST]}


def model_label(row: Row) -> str:
    """A run in a list of models."""
    best = next((row[key] for key in ("held_out_bpb", "val_bpb", "train_bpb") if row.get(key) is not None), None)
    kind = ", diffusion" if row.get("causal") is False else ""
    return (
        f"{row['id']} ({formats.figure(best)} bpb{kind})"
        if best is not None
        else f"{row['id']}{kind and ' (diffusion)'}"
    )


async def data(frame: Frame) -> dict[str, str]:
    """Data that the server has, with a label each."""
    return {one["id"]: source_label(one) for one in await frame.server.get("corpora")}


def source_label(one: Mapping[str, Any]) -> str:
    """Data in a list."""
    name = one.get("name") or one["id"]
    return f"{name} ({formats.size(one['bytes'])})" if one.get("bytes") else str(name)
