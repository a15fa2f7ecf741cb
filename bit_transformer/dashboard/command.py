"""The command line that does the same as a filled-in form, to copy.

The command line starts from a preset (`small`, where none is named), whose fields depend on some of the others. So what the preset says
anyway is left out only where that is certain, and everything else is said.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from bit_transformer.dashboard.fields import BUDGETS, groups_of, same
from bit_transformer.dashboard.formats import flattened

DEFAULT_PRESET = "small"
RATE_WIDTH = (
    128  # of a model whose default learning rate is the training's default; that of others depends on their width
)
RATE = "train.optim.lr"
_FLAGS = {"steps": "--steps", "seconds": "--seconds", "epochs": "--epochs", "bytes": "--bytes"}
_SHAPING = {"causal": True, "patch_bits": 8, "parity": False}  # a preset looks otherwise where these do


def train_command(
    request: Mapping[str, Any],
    schemas: Mapping[str, Mapping[str, Any]],
    presets: Mapping[str, Mapping[str, Any]],
    preset: str = "",
) -> str:
    """`btlm train ...` for a request.

    Args:
        request: as it is sent to the server: out, model, train, data.
        schemas: of the three sections.
        presets: fields of models by name.
        preset: the one that the form started from.
    """
    train, data = flattened(request.get("train", {})), flattened(request.get("data", {}))
    corpora = data.pop("corpora", ())
    words = ["btlm", "train", *map(str, corpora)]
    words += ["--out", f"runs/{request['out']}"] if request.get("out") else []
    words += ["--preset", preset] if preset else []
    for name in BUDGETS:
        if name in _FLAGS and train.get(name) is not None:
            words += [_FLAGS[name], _toml(train.pop(name))]
    model = whole_model(request.get("model", {}), schemas["model"])
    if not any(key.startswith("experts.") for key in model):
        words.append("--no-experts")
    if model["d_model"] != RATE_WIDTH and "optim.lr" not in train:
        train["optim.lr"] = next(
            field.default
            for group in groups_of("train", schemas["train"])
            for field in group.fields
            if field.path == RATE
        )
    said = _beyond(model, whole_model(presets.get(preset or DEFAULT_PRESET, {}), schemas["model"]))
    return shlex.join([*words, *_settings("model", said), *_settings("train", train), *_settings("data", data)])


def whole_model(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a model, by dotted name, from those that differ from the defaults. Those of experts only if it has any."""
    made: dict[str, Any] = {}
    for group in groups_of("model", schema):
        name = group.path.removeprefix("model").lstrip(".")
        if not group.optional or given.get(name) is not None:
            made |= {field.path.removeprefix("model."): field.default for field in group.fields}
    return made | {key: value for key, value in flattened(given).items() if key in made}


def _beyond(model: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be said of a model, given a preset."""
    certain = all(model[key] == value for key, value in _SHAPING.items())
    contexts = any(not same(model[key], preset.get(key)) for key in ("ngram_orders", "ngram_words"))
    return {
        key: value
        for key, value in model.items()
        if value is not None
        and (not certain or key not in preset or not same(value, preset[key]) or (contexts and key == "ngram_dropout"))
    }


def _settings(section: str, fields: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for path, value in fields.items():
        if value is not None:
            words += [
                "--set",
                f"{section}.{path}={_toml(True if value == {} else value)}",
            ]  # {}: a group with its defaults
    return words


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)
