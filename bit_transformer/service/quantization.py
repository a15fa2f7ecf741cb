"""Makes a smaller model of a run's: weights of 8 or 4 bits; and measures what that costs and saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.checkpoint import MODEL_FILE, load_checkpoint, save_checkpoint
from bit_transformer.data.sources import Corpus, find_files, whole_files
from bit_transformer.errors import BitTransformerError, ConfigError, Give
from bit_transformer.evaluation.metrics import ModelScorer, default_protocol
from bit_transformer.evaluation.scorer import cost_of
from bit_transformer.model import BitTransformerLM
from bit_transformer.quantization import convert_qat, flattened, quantize_dynamic, quantize_weights
from bit_transformer.service.jobs import Job, Reading
from bit_transformer.service.measured import measure
from bit_transformer.service.requests import QuantizeRequest
from bit_transformer.service.training import held_out_part
from bit_transformer.service.workspace import Workspace


@dataclass(frozen=True)
class ModelFigures:
    """What a model costs.

    Attributes:
        bpb: bits per byte of the scored data; None if there was none.
        file_bytes: of the checkpoint, with what the experts have learned. `weight_bytes`: of the weights alone.
        peak_bytes: memory of a process that uses it, beyond Python and PyTorch; None where the system does not tell.
        bytes_per_s: of sampling one stream on the processor; None for a diffusion model.
    """

    bpb: float | None
    file_bytes: int
    weight_bytes: int
    peak_bytes: int | None
    bytes_per_s: float | None


@dataclass(frozen=True)
class Quantized:
    """The result of a quantization.

    Attributes:
        out: the new checkpoint.
        bits, group: of weights, and how many share a scale. `activations`: bits of the inputs of matrices, if they are rounded.
        trained: whether the model was trained for these bits.
        scored: bytes of data that were scored. `protocol`: how.
    """

    out: str
    bits: int
    group: int
    activations: int | None
    trained: bool
    before: ModelFigures
    after: ModelFigures
    scored: int
    protocol: str


def quantize(request: QuantizeRequest, workspace: Workspace, job: Job) -> Quantized:
    """Write a copy of a run's model with weights of 8 or 4 bits, and compare both.

    Raises:
        CheckpointError: no such run.
        ConfigError: bits or groups that do not fit the model, or `out` holds a model already.
    """
    path = workspace.model_path(request.run)
    model = load_checkpoint(path, device=workspace.device)
    small, trained = _smaller(model, request)
    assert small.rounding is not None
    out = _target(request.out, path, small.rounding.bits)
    if out.exists() and (not request.overwrite or out.resolve() == path.resolve()):
        itself = out.resolve() == path.resolve()
        more = () if itself else (Give("overwrite", True),)
        raise ConfigError(f"got out={str(out)!r}, which holds a model already", field="out", tries=(Give("out"), *more))
    corpus = _data(request, path, workspace, job)
    save_checkpoint(out, small, about={"quantized_from": path.parent.name})
    scored = [_score(each, corpus, name, job) for each, name in ((model, "before"), (small, "after"))]
    rounding = small.rounding
    return Quantized(
        out=str(out),
        bits=rounding.bits,
        group=rounding.group,
        activations=rounding.activations,
        trained=trained,
        before=_figures(model, path, scored[0], request),
        after=_figures(small, out, scored[1], request),
        scored=0 if corpus is None else len(corpus),
        protocol=str(default_protocol(model)),
    )


def _smaller(model: BitTransformerLM, request: QuantizeRequest) -> tuple[BitTransformerLM, bool]:
    """The quantized model, and whether the model was trained for these bits."""
    if request.activations:
        if request.bits == 4:
            raise ConfigError(
                "got activations=True and bits=4; 8-bit inputs go with 8-bit weights. Try bits=8", field="bits"
            )
        return quantize_dynamic(model, group=request.group), False
    if model.rounding is not None and request.bits in (None, model.rounding.bits) and request.group is None:
        return convert_qat(model), True
    return quantize_weights(model, bits=request.bits or 8, group=request.group), False


def _target(out: Path | None, path: Path, bits: int) -> Path:
    """The file of the copy."""
    if out is None:
        folder = path.parent.resolve() if path.name == MODEL_FILE else path.with_suffix("")
        out = folder.with_name(f"{folder.name}-int{bits}")
    return out if out.suffix == ".safetensors" else out / MODEL_FILE


def weight_bytes(model: BitTransformerLM) -> int:
    """Bytes of a model's weights as they are stored."""
    return sum(tensor.nbytes for tensor in flattened(model.weights()).values())


def _data(request: QuantizeRequest, path: Path, workspace: Workspace, job: Job) -> Corpus | None:
    """What both models are scored on."""
    if request.names:
        corpus = whole_files(find_files(list(request.names)))
    else:
        try:
            corpus = held_out_part(path.parent, workspace)
        except BitTransformerError as missing:
            job.notice(f"the models are not scored ({missing})")
            return None
    return corpus.thinned(request.eval_bytes, 1 << 16, 8)


def _score(model: BitTransformerLM, corpus: Corpus | None, which: str, job: Job) -> float | None:
    if corpus is None:
        return None
    tell: Callable[..., None] = lambda so_far: job.tell(Reading(so_far.bytes, len(corpus), f"scored {which}"))  # noqa: E731
    return cost_of(ModelScorer(model, default_protocol(model)), corpus, tell).bpb


def _figures(model: BitTransformerLM, path: Path, bpb: float | None, request: QuantizeRequest) -> ModelFigures:
    peak, rate = None, None
    if model.config.causal and request.measure:
        found = measure(path)
        peak = None if found.peak_bytes is None or found.base_bytes is None else found.peak_bytes - found.base_bytes
        rate = round(found.bytes_per_s)
    return ModelFigures(bpb, path.stat().st_size, weight_bytes(model), peak, rate)
