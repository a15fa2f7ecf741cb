"""How good in three minutes? The recipe on Tiny Shakespeare: first 90 % of the bytes, scored on the last 10 %, each once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import harness

from bit_transformer.cli.options import read_settings
from bit_transformer.config import DataConfig, TrainConfig
from bit_transformer.presets import preset
from bit_transformer.service.training import TrainRequest, train

RECIPE = Path(__file__).parents[1] / "recipes" / "tinyshakespeare-cpu.toml"


def main(quick: bool) -> int:
    """Measure."""
    settings = read_settings(RECIPE, ["train.seconds=15"] if quick else [])
    with tempfile.TemporaryDirectory() as folder:
        request = TrainRequest(
            Path(folder) / "run",
            Path(folder) / "runs.sqlite",
            preset("small", **settings["model"]),
            TrainConfig.of(settings["train"]),
            DataConfig.of(settings["data"]),
            eval_bytes=8_192 if quick else 1 << 30,
        )
        result = train(request)
    assert result.comparison is not None
    report = harness.Report(
        "tinyshakespeare",
        f"recipes/{RECIPE.name}, {settings['train']['seconds']} s of wall-clock on {harness.machine()['threads']} threads, "
        f"{'a sample of' if quick else 'all'} validation bytes; {result.comparison.protocol}",
        {"val_bpb": "<= 2.12", "seconds": f"<= {settings['train']['seconds'] + 5}"},
    )
    report.row("trained on", f"{result.bytes_seen:,} bytes, {result.bytes_seen / result.train_bytes:.2f} epochs")
    report.row("scored", f"{result.comparison.bytes:,} bytes")
    for name, value in result.comparison.compressors.items():
        report.row(f"{name}, starting empty", f"{value:.3f} bpb")
    report.figures = {"val_bpb": result.comparison.bpb, "seconds": result.seconds}
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
