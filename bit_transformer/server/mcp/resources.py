"""Resources: the guide, the schema of all settings, the glossary, and what is recorded of each run."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import mcp.types as kinds

from bit_transformer.config import Config, DataConfig, DistributedConfig, ModelConfig, TrainConfig
from bit_transformer.errors import ConfigError
from bit_transformer.server.mcp.desk import Desk, as_data
from bit_transformer.service.jobs import TRAININGS

# In an installed package; in a source checkout.
GUIDES = (Path(__file__).parents[2] / "USER_GUIDE.md", Path(__file__).parents[3] / "USER_GUIDE.md")
RUN = re.compile(r"btlm://runs/([A-Za-z0-9][A-Za-z0-9._-]{0,63})/(config|log|report)")
LOG = 20_000  # bytes of a log

GLOSSARY = """# Metrics

- **bpb**: bits per byte of held-out data, every byte scored once; lower is better. 8 is knowing nothing. `train_bpb` is of the latest batch,
  `val_bpb` of validation, `held_out_bpb` of the last evaluation. A figure goes with its protocol: window, overlap, and what learns while scoring
  (static: nothing; online: the experts' tables; online+mixer: also mixer and head).
- **K**, negentropy, in [0, 1]: order. 0 is noise, 1 is certain. Of a model's predictions, 8 (1 - K) is the bits per byte that it expects to need.
- **C**, Lempel-Ziv complexity, in [0, 1]: 0 is a constant, 1 is fair coin flips. Low C is repetition.
- **S**, symbiosis, in [0, 1]: 1 - Jensen-Shannon distance from a reference. Text like its reference has about 0.6 to 0.75, noise 0.41.
- **alpha**: the false-alarm rate of a gate; calibration gives the interval of the rate on new text. A gate blocks windows whose C or S is below its
  floor, and loops.
- **margin**: how far within the limits a window is; 1 is typical, negative is blocked.
- **grad_norm**: of all gradients before clipping. **rate**: learning rate as a fraction of its peak; **lr**: AdamW's.
- **bytes_per_s**: data bytes a second in training. **share**: of the budget that is spent. **eta**: seconds left.
- **lambda_K, lambda_C, lambda_S**: weights of penalties on K, C and S in the loss. **bit_0 .. bit_8**: cost of a bit by its place in the byte.
- **parity_errors**: how often a sampled parity bit would be wrong.
- **active parameters**: those that one position uses; n-gram tables are large and mostly idle.
"""


def fixed() -> list[kinds.Resource]:
    """Resources that are always there."""
    return [
        kinds.Resource(
            uri="btlm://guide", name="guide", description="The user guide, task by task.", mime_type="text/markdown"
        ),
        kinds.Resource(
            uri="btlm://schema",
            name="schema",
            description="JSON schemas of model, train, data, distributed.",
            mime_type="application/json",
        ),
        kinds.Resource(
            uri="btlm://glossary", name="glossary", description="What the metrics mean.", mime_type="text/markdown"
        ),
    ]


def templates() -> list[kinds.ResourceTemplate]:
    """Resources of each run."""
    about = {
        "config": "All settings of a run.",
        "log": "The end of what its training printed.",
        "report": "A draft of a report, marked as data.",
    }
    return [
        kinds.ResourceTemplate(uri_template=f"btlm://runs/{{run}}/{name}", name=f"run {name}", description=text)
        for name, text in about.items()
    ]


async def read(desk: Desk, uri: str) -> tuple[str, str]:
    """Media type and text of a resource.

    Raises:
        ConfigError: no such resource.
        RunNotFound: no such run.
    """
    if uri == "btlm://guide":
        found = next((path for path in GUIDES if path.is_file()), None)
        text = await asyncio.to_thread(found.read_text) if found else "The guide is not installed with this package."
        return "text/markdown", text
    if uri == "btlm://glossary":
        return "text/markdown", GLOSSARY
    if uri == "btlm://schema":
        sections: dict[str, type[Config]] = {
            "model": ModelConfig,
            "train": TrainConfig,
            "data": DataConfig,
            "distributed": DistributedConfig,
        }
        return "application/json", json.dumps({name: kind.model_json_schema() for name, kind in sections.items()})
    of_run = RUN.fullmatch(uri)
    if of_run is None:
        raise ConfigError(
            f"got resource {uri[:100]!r}; there are btlm://guide, schema, glossary, and runs/RUN/config, log, report. Try btlm://guide"
        )
    run, what = of_run.groups()
    recorded = await asyncio.to_thread(desk.state.home.store.get, run)
    if what == "config":
        return "application/json", json.dumps(desk.state.home.named(recorded.config))
    if what == "report":
        found_report = await desk.quick("report", {"names": [run], "title": run})
        return "application/json", json.dumps(as_data(found_report["markdown"], LOG))
    there = await asyncio.to_thread(desk.state.home.jobs.list_jobs, run=run)
    jobs = [job.id for job in there if job.operation in TRAININGS]  # the latest first
    text = await asyncio.to_thread(desk.state.scheduler.log, jobs[0]) if jobs else ""
    return "application/json", json.dumps(as_data(text, LOG, tail=True))
