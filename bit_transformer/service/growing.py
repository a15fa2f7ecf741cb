"""A larger copy of a trained model, which computes the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bit_transformer.checkpoint import MODEL_FILE, load_checkpoint, save_checkpoint
from bit_transformer.config import ModelConfig
from bit_transformer.errors import Ask, ConfigError, Give
from bit_transformer.evaluation.metrics import window_bytes
from bit_transformer.growth import expand_to, grown_config
from bit_transformer.model import BitTransformerLM
from bit_transformer.service.files import check_run_folder
from bit_transformer.service.jobs import Job
from bit_transformer.service.requests import GrowRequest
from bit_transformer.service.workspace import Workspace

TRIED = 2  # windows of random bytes on which both models are compared


@dataclass(frozen=True)
class Grown:
    """The result of growing a model.

    Attributes:
        out: the new checkpoint.
        parameters_before, parameters: total.
        difference: largest difference of a bit's probability on random windows: rounding.
        model: settings of the larger model.
    """

    run: str
    out: str
    parameters_before: int
    parameters: int
    difference: float
    model: ModelConfig


def grow(request: GrowRequest, workspace: Workspace, job: Job) -> Grown:
    """Write a larger copy of a run's model. It predicts the same until it is trained further.

    Raises:
        CheckpointError: no such run.
        ConfigError: no size, a smaller one, or `out` holds a model already.
    """
    path, out = workspace.model_path(request.run), request.out
    if not request.model:
        raise ConfigError(
            "got no size to grow to; at least one is needed", field="model", tries=(Give("model.num_layers", 8),)
        )
    check_run_folder(out)
    target = out / MODEL_FILE
    if target.exists() and not request.overwrite:
        raise ConfigError(
            f"got out={str(out)!r}, which holds a model already",
            field="out",
            tries=(Give("out"), Give("overwrite", True)),
        )
    if target.resolve() == path.resolve():
        raise ConfigError(f"got out={str(out)!r}, the folder of the run itself", field="out", tries=(Give("out"),))
    model = load_checkpoint(path, device=workspace.device)
    larger = expand_to(model, grown_config(model.config, request.model))
    save_checkpoint(target, larger, about={"grown_from": path.parent.name})
    job.notice(f"train it further: {Ask('train_further', str(out))}")
    return Grown(
        run=request.run,
        out=str(out),
        parameters_before=model.num_parameters().total,
        parameters=larger.num_parameters().total,
        difference=_difference(model, larger),
        model=larger.config,
    )


def _difference(model: BitTransformerLM, larger: BitTransformerLM) -> float:
    """Largest difference of a probability on some windows of the smaller model."""
    generator = torch.Generator().manual_seed(0)
    size = window_bytes(model) * model.config.byte_bits // model.config.patch_bits * model.config.patch_bits
    bits_BT = torch.randint(0, 2, (TRIED, size), generator=generator, dtype=torch.uint8).to(model.head.weight.device)
    with torch.inference_mode():
        made = [torch.sigmoid(each.window_logits(bits_BT)[0].double()) for each in (model.eval(), larger.eval())]
    return float((made[0] - made[1]).abs().max())
