"""How many bits a byte costs: of files, beside compressors, and window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bit_transformer.data.sources import Corpus, find_file, find_files, whole_files
from bit_transformer.errors import ConfigError
from bit_transformer.evaluation.baselines import compressors_bpb
from bit_transformer.evaluation.metrics import bits_per_byte, byte_costs, default_protocol
from bit_transformer.model import BitTransformerLM
from bit_transformer.service import DEFAULT_STORE
from bit_transformer.service.models import load_model
from bit_transformer.service.plots import check_plot, plot_windows


@dataclass(frozen=True)
class Comparison:
    """A model beside compressors on the same bytes.

    Attributes:
        bpb: bits per byte of the model.
        bytes: how many were scored.
        protocol: how.
        compressors: bits per byte of each.
        standard_error: of the bits per byte, where they are a sampled bound; else 0.
    """

    bpb: float
    bytes: int
    protocol: str
    compressors: dict[str, float]
    standard_error: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """A model on several files: each alone, and all together."""

    run: str
    files: dict[str, float]
    total: Comparison


@dataclass(frozen=True)
class Surprise:
    """A stretch of a file and what it cost."""

    offset: int
    bytes: int
    bpb: float


@dataclass(frozen=True)
class Scoring:
    """A file, window by window."""

    run: str
    file: str
    bpb: float
    protocol: str
    windows: list[Surprise]


def compare_on(
    model: BitTransformerLM, corpus: Corpus, *, overlap: float = 0.5, learning: str | None = None
) -> Comparison:
    """A model beside zlib, bz2 and xz on the same bytes."""
    score = bits_per_byte(model, corpus, default_protocol(model, overlap, learning))
    error = score.standard_error / score.bytes
    return Comparison(score.bpb, score.bytes, str(score.protocol), compressors_bpb(corpus), error)


def evaluate(
    run: str, names: list[str], *, overlap: float = 0.5, learning: str | None = None, store: Path = DEFAULT_STORE
) -> Evaluation:
    """Bits per byte of files, folders or named corpora.

    Args:
        overlap: share of a window that is only context, in [0, 1).
        learning: what may be learned from a file while it is scored: `static`, `online`, `online+mixer`; not given:
            `online` for models with experts. Every file starts from the model as it is.

    Raises:
        BitStreamError: an empty or unreadable file.
        CheckpointError: no such run.
        ConfigError: an overlap or a protocol that cannot be.
    """
    _check_overlap(overlap)
    files = find_files(names)
    model = load_model(run, store)
    protocol = default_protocol(model, overlap, learning)
    scores = {str(path): bits_per_byte(model, whole_files([path]), protocol) for path in files}
    bits, size = sum(s.bits for s in scores.values()), sum(s.bytes for s in scores.values())
    error = math.sqrt(sum(s.standard_error**2 for s in scores.values())) / size
    total = Comparison(bits / size, size, str(protocol), compressors_bpb(whole_files(files)), error)
    return Evaluation(run, {name: score.bpb for name, score in scores.items()}, total)


def score(
    run: str,
    name: str,
    *,
    window: int = 256,
    overlap: float = 0.5,
    learning: str | None = None,
    store: Path = DEFAULT_STORE,
    plot: Path | None = None,
) -> Scoring:
    """Where a file is surprising: bits per byte by window.

    Args:
        window: bytes of a stretch that is reported.
        learning: as for `evaluate`.
        plot: also draw them, as a PNG.

    Raises:
        BitStreamError: an empty or unreadable file.
        CheckpointError: no such run.
        ConfigError: a window or an overlap that cannot be.
    """
    _check_overlap(overlap)
    if window < 1:
        raise ConfigError(f"window={window}; at least 1 byte is needed. Try 256")
    if plot:
        check_plot(plot)
    path = find_file(name, "score", ", or btlm evaluate")
    model = load_model(run, store)
    protocol = default_protocol(model, overlap, learning)
    windows: list[Surprise] = []
    bits, inside, offset, total = 0.0, 0, 0, 0.0
    for cost in byte_costs(model, whole_files([path]), protocol):
        for value in cost.tolist():
            bits, inside, total = bits + value, inside + 1, total + value
            if inside == window:
                windows.append(Surprise(offset, inside, bits / inside))
                offset, bits, inside = offset + inside, 0.0, 0
    if inside:
        windows.append(Surprise(offset, inside, bits / inside))
    if plot:
        plot_windows([w.offset for w in windows], [w.bpb for w in windows], plot, title=str(path))
    return Scoring(run, str(path), total / (offset + inside), str(protocol), windows)


def _check_overlap(overlap: float) -> None:
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap={overlap}; it must be in [0, 1). Try 0.5")
