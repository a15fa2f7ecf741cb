"""One cell of a comparison: a model on a corpus with a seed. Trained and scored in a process of its own, with nothing left from the others.

python -m bit_transformer.service.comparing.cells FOLDER KEY PARENT
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bit_transformer.config import ComparisonConfig, Contender, DataConfig, ModelConfig
from bit_transformer.config.comparison import corpus_label
from bit_transformer.errors import BitTransformerError, Cancelled, NonFiniteLoss, RunNotFound, StoreError
from bit_transformer.presets import preset
from bit_transformer.service.files import write_file

if TYPE_CHECKING:
    from bit_transformer.data.sources import Corpus

PLAN_FILE, CELLS, RUNS, STORE_FILE = "plan.json", "cells", "runs", "runs.sqlite"
BLOCK = 1024  # bytes of a block of held-out data, over which costs are paired
NO_ROOM = 4  # exit code of a cell whose result could not be written
SAMPLE_PIECE = 1 << 14  # bytes of each piece of the held-out sample


@dataclass(frozen=True)
class Cell:
    """A model on a corpus with a seed; without one for models that have none."""

    model: Contender
    data: DataConfig
    seed: int | None

    def key(self, plan: ComparisonConfig) -> str:
        """Its name: readable, with a digest of everything that its result depends on. A changed plan does not take an old result for a new one."""
        whole: dict[str, Any] = {
            "model": self.model.model_dump(mode="json"),
            "data": self.data.model_dump(mode="json"),
            "seed": self.seed,
            "eval_bytes": plan.eval_bytes,
        }
        if self.model.trained:
            whole |= {"train": plan.train, "shape": plan.shape.model_dump(), "threads": [plan.threads, plan.at_once]}
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]
        seed = "" if self.seed is None else f"-s{self.seed}"
        return f"{file_name(f'{self.model.label}-{corpus_label(self.data)}{seed}')}-{digest}"


@dataclass(frozen=True)
class Scored:
    """What held-out bytes cost under a model.

    Attributes:
        adaptive: whether it learns from the bytes as it is scored, as a compressor does. Adaptive and frozen ones are not compared.
        bits, bytes: of the whole sample. `seconds`: of scoring it.
        block_bits: cost of each block of 1,024 bytes; empty if only the whole is known.
        bit_costs: mean cost of a bit by its place in the byte, the most significant first; empty if there is none.
    """

    adaptive: bool
    bits: float
    bytes: int
    seconds: float
    protocol: str
    block_bits: list[float] = field(default_factory=list)
    bit_costs: list[float] = field(default_factory=list)

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return self.bits / self.bytes


@dataclass(frozen=True)
class CellResult:
    """A cell that is done.

    Attributes:
        scores: by row: the model's name, with what learns; or a compressor's name.
        curve: (seconds, bytes, operations, bits per byte of the validation sample) during training.
        data_sha256: of the training bytes and of the held-out sample.
    """

    key: str
    model: str
    kind: str
    corpus: str
    seed: int | None
    scores: dict[str, Scored]
    provenance: dict[str, Any]
    data_sha256: tuple[str, str]
    curve: list[tuple[float, float, float, float]] = field(default_factory=list)
    train_seconds: float = 0.0
    train_bytes: float = 0.0
    train_flops: float = 0.0
    steps: int = 0
    parameters: int = 0


def cells_of(plan: ComparisonConfig) -> list[Cell]:
    """All cells. Models take turns within a corpus and a seed, so that what changes on the machine over hours falls on all of them."""
    found = [Cell(model, data, None) for data in plan.corpora for model in plan.models if not model.trained]
    trained = [model for model in plan.models if model.trained]
    return found + [Cell(model, data, seed) for seed in plan.seeds for data in plan.corpora for model in trained]


def model_config(plan: ComparisonConfig, model: Contender) -> ModelConfig:
    """The shape of a model of ours, or of its blocks.

    Raises:
        ConfigError: fields that do not go together.
    """
    s = plan.shape
    if model.preset is not None:
        return preset(model.preset, **model.model)
    fields = {"patch_bits": 8, "parity": False, **model.model}
    unit = 9 if fields["parity"] else 8
    bits = s.window_bytes * unit // fields["patch_bits"] * fields["patch_bits"]
    shape = {"d_model": s.d_model, "nhead": s.nhead, "num_layers": s.num_layers, "max_seq_len": bits}
    return ModelConfig.of({**shape, "experts": None, **fields})


def file_name(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:100]


def result_file(folder: Path, key: str) -> Path:
    """Where the result of a cell is."""
    return folder / CELLS / f"{key}.json"


def read_result(path: Path) -> CellResult | None:
    """A result; None if there is none, or it is damaged: then its cell is trained again."""
    try:
        found = json.loads(path.read_text())
        found["scores"] = {name: Scored(**score) for name, score in found["scores"].items()}
        found["curve"] = [tuple(point) for point in found["curve"]]
        found["data_sha256"] = tuple(found["data_sha256"])
        return CellResult(**found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_cell(plan: ComparisonConfig, cell: Cell, folder: Path) -> CellResult:
    """Train and score one cell.

    Raises:
        BitTransformerError: it failed.
    """
    training, sample = cut(plan, cell.data, folder)
    made = {
        "bits": _bits,
        "byte-softmax": _byte_softmax,
        "gpt2-bytes": _gpt2,
        "gpt2-bpe": _gpt2,
        "counts": _counts,
        "compressor": _compressors,
    }[cell.model.kind](plan, cell, folder, training, sample)
    if bad := next((name for name, score in made["scores"].items() if not math.isfinite(score.bits)), None):
        raise NonFiniteLoss(
            f"got a score of {bad} that is not finite. Try a lower train.optim.lr", made.get("steps", 0)
        )
    from bit_transformer.service.provenance import provenance

    return CellResult(
        key=cell.key(plan),
        model=cell.model.label,
        kind=cell.model.kind,
        corpus=corpus_label(cell.data),
        seed=cell.seed,
        provenance=provenance(),
        data_sha256=(sha256_of(training), sha256_of(sample)),
        **made,
    )


def cut(plan: ComparisonConfig, data: DataConfig, folder: Path) -> tuple[Corpus, Corpus]:
    """The part of a corpus to train on, and the held-out sample that all models score. The comparison's own folder is no data."""
    from bit_transformer.service.training import train_and_held_out

    training, held_out = train_and_held_out(data, leave_out=(folder,))
    return training, held_out.thinned(plan.eval_bytes, SAMPLE_PIECE)


def sha256_of(corpus: Corpus) -> str:
    """Digest of the bytes of a corpus."""
    digest = hashlib.sha256()
    for at in range(0, len(corpus), 1 << 20):
        digest.update(corpus.read(at, 1 << 20).tobytes())
    return digest.hexdigest()


# ---- models of ours ----


def _request(plan: ComparisonConfig, cell: Cell, folder: Path, shape: ModelConfig) -> Any:
    from bit_transformer.service.requests import TrainRequest
    from bit_transformer.service.settings import train_config

    own = {**plan.train, **cell.model.train, "seed": cell.seed}
    if isinstance(plan.train.get("optim"), dict) and isinstance(cell.model.train.get("optim"), dict):
        own["optim"] = {**plan.train["optim"], **cell.model.train["optim"]}
    train = train_config(shape, {"telemetry": 0.0, "checkpoint_seconds": 600.0, **own})
    out = folder / RUNS / cell.key(plan)
    return TrainRequest(out=out, model=shape, train=train, data=cell.data, eval_bytes=BLOCK, overwrite=True)


def _bits(plan: ComparisonConfig, cell: Cell, folder: Path, training: Corpus, sample: Corpus) -> dict[str, Any]:
    from bit_transformer.checkpoint import MODEL_FILE, load_checkpoint
    from bit_transformer.evaluation.metrics import default_protocol
    from bit_transformer.service.jobs import Job
    from bit_transformer.service.observers import TRAINING_FILE
    from bit_transformer.service.training import train
    from bit_transformer.service.workspace import Workspace

    request = _request(plan, cell, folder, model_config(plan, cell.model))
    workspace = Workspace(folder / STORE_FILE, "cpu")
    made = train(request, workspace, Job(listens=False))  # a cell that is to stop just ends, and is trained anew
    if made.status != "finished":
        raise Cancelled(f"{made.run} was stopped before its end. Try the same command again")
    model = load_checkpoint(request.out)
    scores = {}
    for learning in cell.model.learning:
        name = cell.model.label if learning == "static" else f"{cell.model.label}, {learning}"
        protocol = default_protocol(model, learning=learning if model.config.experts else None)
        scores[name] = _scored_bits(model, sample, protocol)
    for name in (MODEL_FILE, TRAINING_FILE):  # hundreds of models would fill the disk
        (request.out / name).unlink(missing_ok=True)
    return {
        "scores": scores,
        "curve": _curve(workspace.store, made.run, model.flops_per_byte()),
        "train_seconds": made.seconds,
        "train_bytes": float(made.bytes_seen),
        "train_flops": made.bytes_seen * model.flops_per_byte(),
        "steps": made.steps,
        "parameters": made.parameters,
    }


def _curve(store: Any, run: str, flops: float) -> list[tuple[float, float, float, float]]:
    seconds, seen = dict(store.series(run, "seconds")), dict(store.series(run, "bytes"))
    points = [(step, bpb) for step, bpb in store.series(run, "val_bpb") if step in seconds]
    return [(seconds[step], seen[step], seen[step] * flops, bpb) for step, bpb in points]


def _scored_bits(model: Any, sample: Corpus, protocol: Any) -> Scored:
    import numpy as np

    from bit_transformer.evaluation.metrics import bit_costs

    began = time.perf_counter()
    cost_LU = np.concatenate(list(bit_costs(model, sample, protocol)))
    seconds = time.perf_counter() - began
    return _scored(cost_LU, seconds, str(protocol), adaptive=protocol.learning != "static")


def _scored(cost_LU: Any, seconds: float, protocol: str, *, adaptive: bool = False) -> Scored:
    import numpy as np

    cost_L = cost_LU.sum(-1) if cost_LU.ndim == 2 else cost_LU
    blocks = np.add.reduceat(cost_L, np.arange(0, len(cost_L), BLOCK))
    by_bit = cost_LU.mean(0).tolist() if cost_LU.ndim == 2 else []
    return Scored(adaptive, float(cost_L.sum()), len(cost_L), seconds, protocol, blocks.tolist(), by_bit)


# ---- models of others ----


def _byte_softmax(plan: ComparisonConfig, cell: Cell, folder: Path, training: Corpus, sample: Corpus) -> dict[str, Any]:
    import torch

    from bit_transformer.evaluation.metrics import default_protocol
    from bit_transformer.peers.byte_softmax import ByteSoftmaxLM, ByteTrainer
    from bit_transformer.service.observers import Recorder
    from bit_transformer.service.training import load_data
    from bit_transformer.training import build_windows

    request = _request(plan, cell, folder, model_config(plan, cell.model))
    with _recorded(folder, request) as (workspace, store, run):
        data = load_data(request, workspace)
        began = time.monotonic()
        torch.manual_seed(request.train.seed)
        model = ByteSoftmaxLM(request.model)
        windows = build_windows(model, data.train, request.train)
        trainer = ByteTrainer(model, windows, request.train, data.validation if len(data.validation) else None)
        recorder = Recorder(store, run)
        trainer.observers = [recorder]
        trainer.progress.seconds = time.monotonic() - began
        trainer.run()
        recorder.flush()
        trainer.take_best()
    p = trainer.progress
    return {
        "scores": {cell.model.label: _scored_bits(model, sample, default_protocol(model))},
        "curve": _curve(store, run, model.flops_per_byte()),
        "train_seconds": p.seconds,
        "train_bytes": p.bytes_seen,
        "train_flops": p.flops,
        "steps": p.step,
        "parameters": model.num_parameters().total,
    }


def _gpt2(plan: ComparisonConfig, cell: Cell, folder: Path, training: Corpus, sample: Corpus) -> dict[str, Any]:
    import numpy as np
    import torch

    from bit_transformer.peers.token_model import Point, TokenModel, TokenTraining, protocol_of, token_costs
    from bit_transformer.peers.tokens import ByteVocabulary, PairVocabulary, Vocabulary
    from bit_transformer.service.training import load_data

    s, bytewise = plan.shape, cell.model.kind == "gpt2-bytes"
    shape = model_config(plan, Contender(kind="bits"))  # of no model; it says how data is cut
    request = _request(plan, cell, folder, shape)
    curve: list[tuple[float, float, float, float]] = []
    rows: list[tuple[int, str, float]] = []
    with _recorded(folder, request) as (workspace, store, run):
        data = load_data(request, workspace)
        began = time.monotonic()
        vocabulary: Vocabulary = (
            ByteVocabulary() if bytewise else PairVocabulary.learned(data.train, cell.model.vocabulary)
        )
        tokens = np.concatenate(
            [vocabulary.encode(span.read(0, len(span)).tobytes()) for span in data.train.spans]
        )  # a span begins anew, as a file does
        per_token = len(data.train) / len(tokens)
        spent = time.monotonic() - began
        context = s.window_bytes if bytewise else max(8, round(s.window_bytes / per_token))
        torch.manual_seed(request.train.seed)
        model = TokenModel(vocabulary, d_model=s.d_model, nhead=s.nhead, num_layers=s.num_layers, context=context)

        def told(point: Point) -> None:
            rows.append((point.step, "train_bpb", point.train_bpb))
            if point.val_bpb is not None:
                curve.append((point.seconds, point.bytes, point.flops, point.val_bpb))
                values = {"val_bpb": point.val_bpb, "seconds": point.seconds, "bytes": point.bytes}
                store.add_metrics(run, [*rows, *((point.step, key, value) for key, value in values.items())])
                rows.clear()

        validation = data.validation if len(data.validation) else None
        training_ = TokenTraining(
            model, tokens, len(data.train), request.train, validation=validation, spent=spent, told=told
        )
        end = training_.run()
        store.add_metrics(run, rows)
    began = time.perf_counter()
    cost = np.concatenate(list(token_costs(model, sample, by_bit=bytewise)))
    scored = _scored(cost, time.perf_counter() - began, protocol_of(model))
    return {
        "scores": {cell.model.label: scored},
        "curve": curve,
        "train_seconds": end.seconds,
        "train_bytes": end.bytes,
        "train_flops": end.flops,
        "steps": end.step,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@contextmanager
def _recorded(folder: Path, request: Any) -> Iterator[tuple[Any, Any, str]]:
    """Within: a training that is in the comparison's store, as ours are: workspace, store, name."""
    from bit_transformer.service.provenance import provenance
    from bit_transformer.service.workspace import Workspace

    workspace, run = Workspace(folder / STORE_FILE, "cpu"), request.out.name
    store = workspace.store
    document = {part: getattr(request, part).model_dump(mode="json") for part in ("model", "train", "data")}
    store.begin(run, request.out, {**document, "provenance": provenance()})
    try:
        yield workspace, store, run
    except BaseException as failed:
        store.end(run, "failed", str(failed))
        raise
    store.end(run, "finished", "budget spent")


# ---- models without updates ----


def _counts(plan: ComparisonConfig, cell: Cell, folder: Path, training: Corpus, sample: Corpus) -> dict[str, Any]:
    from bit_transformer.peers.context_counts import ContextCounts

    began = time.perf_counter()
    model = ContextCounts(training, cell.model.order)
    counted = time.perf_counter() - began
    cost_L = model.byte_costs(sample)
    scored = _scored(cost_L, time.perf_counter() - began - counted, f"frozen counts of {len(training):,} bytes")
    return {"scores": {cell.model.label: scored}, "train_seconds": counted, "train_bytes": float(len(training))}


def _compressors(plan: ComparisonConfig, cell: Cell, folder: Path, training: Corpus, sample: Corpus) -> dict[str, Any]:
    from bit_transformer.evaluation.baselines import codings

    primer = None
    if cell.model.primed:
        primer = training.part(max(0, len(training) - cell.model.primer_bytes), len(training))
    scores = {}
    for found in codings(sample, primer):
        how = f"primed with {found.primed_with:,} bytes" if primer is not None else "starts empty"
        name = f"{found.name}{', primed' if primer is not None else ''}"
        scores[name] = Scored(True, 8.0 * found.coded, found.bytes, found.seconds, how)
    return {"scores": scores}


# ---- the process ----


def needs(plan: ComparisonConfig) -> Iterator[str]:
    """Libraries that a plan's models need and that are not part of this package."""
    kinds = {model.kind for model in plan.models}
    if kinds & {"gpt2-bytes", "gpt2-bpe"}:
        yield "transformers"
    if "gpt2-bpe" in kinds:
        yield "tokenizers"


def _end_with(parent: int) -> None:
    """End this process soon after the one that started it has ended, in whatever way: it may be started again, and would meet this one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        with suppress(OSError):
            os.killpg(0, signal.SIGKILL)  # with the programs that it has started
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: Path, key: str, parent: int) -> int:
    """Run a cell of the plan in a folder; the exit code. Its result, or its error, is in a file."""
    _end_with(parent)
    import torch

    from bit_transformer.runs.store import RunStore

    plan = ComparisonConfig.of(json.loads((folder / PLAN_FILE).read_text()))
    cell = next(one for one in cells_of(plan) if one.key(plan) == key)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    path = result_file(folder, key)
    error = path.with_suffix(".error")
    error.unlink(missing_ok=True)
    shutil.rmtree(folder / RUNS / key, ignore_errors=True)  # of a try that was killed
    with suppress(RunNotFound, StoreError):
        RunStore(folder / STORE_FILE).remove(key)
    try:
        made = run_cell(plan, cell, folder)
    except (BitTransformerError, OSError) as failed:
        sys.stderr.write(f"{type(failed).__name__}: {failed}\n")
        with suppress(OSError):  # the disk may be full
            write_file(error, json.dumps({"error": type(failed).__name__, "message": str(failed)}).encode())
        return NO_ROOM if isinstance(failed, OSError) else 2
    try:
        write_file(path, json.dumps(dataclasses.asdict(made), allow_nan=False).encode())
    except OSError as full:
        sys.stderr.write(f"{full.filename}: {full.strerror}\n")
        return NO_ROOM
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
