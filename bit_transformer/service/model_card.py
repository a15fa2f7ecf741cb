"""What of a model is given to others: its files, settings without this machine's paths, and a card that says what is recorded of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bit_transformer.adapters.folder import CODE_FILE, as_json, code_files, config_entries, has_text
from bit_transformer.config import ModelConfig
from bit_transformer.errors import CheckpointError
from bit_transformer.runs.store import Run
from bit_transformer.service.checkpoints import GATE_FILE, KEPT, MODEL_FILE, CheckpointSummary, header, summarize_file
from bit_transformer.service.workspace import Workspace

CARD_FILE, CONFIG_FILE, METRICS_FILE = "README.md", "config.json", "metrics.csv"
PUBLIC = ("model", "train", "data", "eval_bytes", "teacher", "init", "provenance")  # of config.json
NAMED = ("teacher", "init")  # paths, of which others get the last part


@dataclass(frozen=True)
class Parcel:
    """A model as it is given to others.

    Attributes:
        name: the run's, with @STEP for a checkpoint of it that was kept.
        path: of the checkpoint.
        about: what the checkpoint says of itself. `document`: all of it.
        config: the settings of the run, if there are some.
        result: of the evaluation of these weights; empty if there was none.
        metrics: the table of the run's metrics, if there is one.
    """

    name: str
    path: Path
    about: CheckpointSummary
    document: dict[str, Any]
    config: dict[str, Any] | None
    result: dict[str, Any]
    metrics: Path | None

    @property
    def gate(self) -> Path | None:
        """The calibrated gate, if there is one."""
        return self.path.with_name(GATE_FILE) if self.about.calibrated else None

    def files(self, repo: str | None = None) -> dict[str, Path | bytes]:
        """Files to give away, by name. A folder of them is one for `btlm` and, unless it is a diffusion model, for transformers too.

        Args:
            repo: OWNER/NAME, for the card, if they go to the hub.
        """
        model = ModelConfig.of(self.about.model)
        files: dict[str, Path | bytes] = {MODEL_FILE: self.path, CARD_FILE: card(self, repo).encode()}
        if model.causal:
            files[CONFIG_FILE] = as_json({**public_config(self.config or {}), **config_entries(model)})
            files |= code_files(model)
        elif self.config is not None:
            files[CONFIG_FILE] = config_text(self.config)
        if self.gate is not None:
            files[GATE_FILE] = self.gate
        return files


def parcel(run: str, workspace: Workspace) -> Parcel:
    """What there is of a run, of a kept checkpoint or of a checkpoint file.

    Raises:
        CheckpointError: no such run, or its checkpoint cannot be read.
    """
    path = workspace.model_path(run).absolute()
    folder, kept = path.parent, path.parent.name
    if folder.parent.name == KEPT and kept.isdigit() and path.name == MODEL_FILE:
        folder = folder.parent.parent
    is_kept = folder != path.parent
    name = folder.resolve().name if path.name == MODEL_FILE else path.stem
    name = f"{name}@{kept}" if is_kept else name
    about = summarize_file(name, path)
    if about is None:
        raise CheckpointError(f"{path}: is damaged or no checkpoint. Try an earlier one", field="run")
    of_a_run = path.name == MODEL_FILE
    record = _record(folder, workspace) if of_a_run else None
    evaluated = record is not None and record.status == "finished" and not is_kept
    metrics = folder / METRICS_FILE
    return Parcel(
        name=name,
        path=path,
        about=about,
        document=header(path)[1],
        config=_config(folder, record) if of_a_run else None,
        result=record.result if record is not None and evaluated else {},
        metrics=metrics if of_a_run and metrics.is_file() else None,
    )


def _record(folder: Path, workspace: Workspace) -> Run | None:
    place = str(folder.resolve())
    return next((run for run in workspace.store.list_runs() if run.folder == place), None)


def _config(folder: Path, record: Run | None) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        found = record.config if record is not None else None
    return found if isinstance(found, dict) else None


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run without paths, commands and stores of the machine that it was made on."""
    found = {name: config[name] for name in PUBLIC if name in config}
    found |= {name: _last_part(found[name]) for name in NAMED if found.get(name)}
    if isinstance(data := found.get("data"), dict) and "corpora" in data:
        found["data"] = {**data, "corpora": data_names(config)}
    return found


def config_text(config: Mapping[str, Any]) -> bytes:
    """The public settings of a run, as the file that holds them."""
    return as_json(public_config(config))


def data_names(config: Mapping[str, Any]) -> list[str]:
    """What a run's data is called: names of corpora, and the last parts of paths."""
    names = _section(config, "data").get("corpora")
    return [_data_name(str(name)) for name in names] if isinstance(names, list | tuple) else []


def _data_name(name: str) -> str:
    if name == "-":
        return "standard input"
    path = Path(name)
    if path.name == "data" and (about := path.with_name("about.json")).is_file():  # an upload of a server
        try:
            return str(json.loads(about.read_text())["name"])
        except (OSError, ValueError, KeyError, TypeError):
            return "an upload"
    return _last_part(name)


def _last_part(path: Any) -> str:
    parts = [part for part in str(path).replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[-1] if parts else "data"


def card(of: Parcel, repo: str | None = None) -> str:
    """A model card: what is recorded of a model, and nothing else."""
    model = ModelConfig.of(of.about.model)
    name = plain(repo.partition("/")[2] if repo else of.name)
    lines = [
        "---",
        *_labels(model),
        "---",
        "",
        f"# {name}",
        "",
        "A model of bits, made with BitTransformerLM: it has no tokenizer, and reads and predicts any bytes. "
        "All figures here are from the records of its training.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {plain(value)} |" for key, value in _facts(of, model)),
        "",
        "## Bits per byte",
        "",
        *_evaluation(of),
        "",
        "## Use",
        "",
        "```",
        *_use(of, model, repo),
        "```",
        "",
        *_in_transformers(model, repo),
        "## Limits",
        "",
        *(f"- {limit}" for limit in _limits(of, model)),
    ]
    return "\n".join(lines) + "\n"


def _labels(model: ModelConfig) -> list[str]:
    """By what the hub sorts models."""
    if not model.causal:
        return ["library_name: bit-transformer", "tags:", "- bit-transformer", "- diffusion"]
    kind = ["pipeline_tag: text-generation"] if has_text(model) else []
    return ["library_name: transformers", *kind, "tags:", "- bit-transformer", "- custom_code", "- autoregressive"]


def _in_transformers(model: ModelConfig, repo: str | None) -> list[str]:
    """How transformers uses the model; nothing for those that it cannot use as they are."""
    if not has_text(model):
        return []
    return [
        "With Hugging Face transformers, and this package installed (`pip install 'bit-transformer[hf]'`):",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'make = pipeline("text-generation", model="{repo or "FOLDER"}", trust_remote_code=True)',
        'make("...", max_new_tokens=200, do_sample=False)',
        "```",
        "",
        f"`{CODE_FILE}`, which `trust_remote_code` runs, only imports the installed package.",
        "",
    ]


def _limits(of: Parcel, model: ModelConfig) -> list[str]:
    """What the model cannot do, as far as its shape and its records say."""
    window = model.max_seq_len // model.byte_bits
    limits = [
        "It predicts data like what it was trained on, and knows nothing about whether that is true.",
        "It continues or completes bytes. It was not trained to follow instructions, and what it makes is filtered only behind a calibrated gate.",
        f"It sees {_count(window, 'byte')} at once."
        + (" What is older is forgotten" if model.causal else " Longer data is done window by window")
        + (", except for what its experts remember of it." if model.experts is not None else "."),
    ]
    if isinstance(of.result.get("bpb"), int | float):
        size = of.result.get("bytes", 0)
        limits.append(
            f"The figures are of one training and of {size:,} bytes of data like its training data. Other data gives others."
        )
        limits.append(
            f"Compressors begin without knowledge and keep none. The model was trained before, and its file of {of.about.bytes:,} bytes is not counted."
        )
    if model.causal and model.experts is not None:
        limits.append(
            "Its experts can go on learning in `btlm`. In transformers they stay as they are: training there changes the other weights only."
        )
    limits.append("What is not listed here was not measured.")
    return limits


def _facts(of: Parcel, model: ModelConfig) -> list[tuple[str, str]]:
    total, active = _parameters(model)
    reads = "from the past to the future" if model.causal else "both sides of what is missing"
    shape = f"{_count(model.num_layers, 'layer')} of width {model.d_model}, {_count(model.nhead, 'head')}"
    window = f"{model.max_seq_len:,} bits, in patches of {model.patch_bits}{', with a parity bit a byte' if model.parity else ''}"
    experts = "no" if model.experts is None else "yes: adaptive predictors of bits, which learn as they read"
    rounding = of.document.get("quantization")
    facts = [
        ("shape", shape),
        ("window", window),
        ("reads", reads),
        ("experts", experts),
        ("parameters", f"{total:,}, of which one position uses {active:,}"),
        ("precision", f"{rounding.get('bits')} bits" if isinstance(rounding, dict) else of.about.precision),
    ]
    about = _section(of.document, "about")
    config = of.config or {}
    data, made = _section(config, "data"), _section(config, "provenance")
    names = data_names(config)
    size = f", {data['train_bytes']:,} bytes" if isinstance(data.get("train_bytes"), int) else ""
    facts.append(("trained on", ", ".join(names) + size if names else "not recorded"))
    facts.append(("weights", f"of update {about['step']:,}" if isinstance(about.get("step"), int) else "not recorded"))
    if isinstance(about.get("bytes_seen"), int | float):
        facts.append(("bytes seen in training", f"{round(about['bytes_seen']):,}"))
    if made:
        facts.append(("made with", f"bit-transformer {made.get('bit_transformer')}, torch {made.get('torch')}"))
    facts.append(("safety gate", _gate(of.gate)))
    return facts


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _parameters(model: ModelConfig) -> tuple[int, int]:
    """All parameters of a shape, and those that one position uses."""
    import torch

    from bit_transformer.model import BitTransformerLM

    with torch.device("meta"):  # only shapes
        count = BitTransformerLM(model).num_parameters()
    return count.total, count.active


def _gate(gate: Path | None) -> str:
    if gate is None:
        return "not calibrated"
    try:
        alpha = header(gate)[1]["alpha"]
        return f"calibrated for {alpha:.2%} false alarms"
    except (OSError, ValueError, KeyError, TypeError):
        return "calibrated"


def _evaluation(of: Parcel) -> list[str]:
    """The last evaluation, next to compressors on the same bytes."""
    validation = of.about.val_bpb
    small = [] if validation is None else [f"Validation during the training, on a small sample: {validation:.4f}."]
    bpb = of.result.get("bpb")
    if not isinstance(bpb, int | float):
        return ["Not evaluated.", *(["", *small] if small else [])]
    error = of.result.get("standard_error") or 0.0
    rows = [("this model", float(bpb)), *(of.result.get("compressors") or {}).items()]
    return [
        f"{of.result.get('bytes', 0):,} held-out bytes. The model: {plain(of.result.get('protocol', 'protocol not recorded'))}; "
        "compressors start empty.",
        "",
        "| coder | bits per byte |",
        "|---|---|",
        *(
            f"| {plain(name)} | {value:.4f}{f' ± {error:.4f}' if error and name == 'this model' else ''} |"
            for name, value in sorted(rows, key=lambda row: row[1])
        ),
        *(["", *small] if small else []),
    ]


def _use(of: Parcel, model: ModelConfig, repo: str | None) -> list[str]:
    name = "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "-" for char in of.name)
    folder = f"runs/{repo.partition('/')[2] if repo else name}"
    get = f"btlm hub pull {repo} --out {folder}" if repo else f"unzip {name}.zip -d {folder}"
    example = (
        f'generate {folder} --prompt "..." --bytes 200' if model.causal else f'infill {folder} --text "... ____ ..."'
    )
    return [get, f"btlm {example}", f"btlm evaluate {folder} FILE"]


def plain(text: Any) -> str:
    """Text as it can stand in a cell of a table."""
    kept = "".join(char if char.isprintable() else " " for char in str(text))
    return kept.replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")")[:300]
