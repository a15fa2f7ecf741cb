"""What is each expert worth, and what is the trunk? One taken out at a time; trunk size against experts at equal seconds.

Tiny Shakespeare's training part (the first 90 % of the file): its first 95 % to train on, its last 5 % to score, so that the
held-out part of other benchmarks stays unseen. One seed: differences under 0.005 say nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch

from bit_transformer.config import TrainConfig
from bit_transformer.data.sources import Corpus, Span
from bit_transformer.evaluation.metrics import bits_per_byte, default_protocol
from bit_transformer.experts.feature_cache import CACHE_VARIABLE
from bit_transformer.model import BitTransformerLM
from bit_transformer.presets import preset
from bit_transformer.service.settings import read_settings
from bit_transformer.training import Trainer, build_windows

RECIPE = Path(__file__).parents[1] / "recipes" / "tinyshakespeare-experts-cpu.toml"
ORDERS = (1, 2, 3, 4, 5, 6, 8)
PLAIN = {"ngram_orders": (), "ngram_words": False, "ngram_dropout": ()}
TRUNKS: dict[str, dict[str, Any]] = {
    "1 layer, width 64": {"num_layers": 1, "d_model": 64, "nhead": 1},
    "2 layers, width 128": {},
    "4 layers, width 128": {"num_layers": 4},
}


def main(quick: bool) -> int:
    """Measure."""
    budget: dict[str, Any] = {"bytes": 20_000 if quick else 600_000, "seconds": None}
    report = harness.Report(
        "ablation", f"dev bits per byte, online, one seed; {budget['bytes']:,} bytes of training", {}
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        changes: dict[str, dict[str, Any]] = {"all": {}}
        changes |= {f"without order {n}": {"orders": tuple(o for o in ORDERS if o != n)} for n in ORDERS}
        changes |= {
            "without words": {"words": False},
            "without long orders (5, 6, 8)": {"orders": ORDERS[:4]},
            "without matches (of less than 31)": {"match_order": 31},
            "buckets / 16": {"buckets": 1 << 16},
        }
        base = read_settings(RECIPE, [])["model"]
        for what, fields in list(changes.items())[: 3 if quick else None]:
            model = {**base, "experts": {**base["experts"], **fields}}
            value, _ = run(model, budget)
            report.figures.setdefault("all_bpb", value)
            report.row(what, f"{value:.3f}")
        for what, fields in (("without n-gram embeddings", PLAIN), ("without experts", {"experts": None})):
            value, _ = run({**base, **fields}, budget)
            report.row(what, f"{value:.3f}")
        seconds = {"seconds": 5 if quick else 45}
        for trunk, shape in TRUNKS.items():
            for what, experts in (("with experts", base["experts"]), ("alone", None)):
                value, seen = run({**base, **shape, "experts": experts}, seconds)
                report.row(f"{trunk}, {what}, {seconds['seconds']} s", f"{value:.3f}   {seen / 1e6:.2f} MB seen")
    return report.finish()


def run(model_fields: dict[str, Any], budget: dict[str, Any]) -> tuple[float, float]:
    """Bits per byte on the development part, and the bytes trained on."""
    name, whole, _ = harness.text_corpus()
    cut = int(len(whole) * 0.95)
    spans = [(s.path, s.start, s.stop) for s in whole.spans]
    assert len(spans) == 1, f"{name} is many files; this benchmark needs Tiny Shakespeare"
    path, start, stop = spans[0]
    training, dev = Corpus([Span(path, start, start + cut)]), Corpus([Span(path, start + cut, stop)])
    torch.manual_seed(0)
    model = BitTransformerLM(preset("small", **model_fields))
    train = read_settings(RECIPE, [])["train"]
    config = TrainConfig.of({**train, **budget})
    began = time.monotonic()
    trainer = Trainer(model, build_windows(model, training, config), config)
    trainer.progress.seconds = time.monotonic() - began
    trainer.run()
    return bits_per_byte(model, dev, default_protocol(model)).bpb, trainer.progress.bytes_seen


if __name__ == "__main__":
    harness.run(main, __doc__)
