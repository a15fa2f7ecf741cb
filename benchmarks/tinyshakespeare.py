"""How good in three minutes? The recipe on Tiny Shakespeare: first 90 % of the bytes, scored on the last 10 %, each once.

The same recipe at half and at twice the seconds: more time, or a faster machine, must not make it worse.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import harness

from bit_transformer.presets import preset
from bit_transformer.service.operations import call
from bit_transformer.service.settings import read_settings
from bit_transformer.service.training import TrainResult
from bit_transformer.service.workspace import Workspace

RECIPE = Path(__file__).parents[1] / "recipes" / "tinyshakespeare-cpu.toml"
SECONDS = {"half": 90.0, "recipe": 180.0, "twice": 360.0}


def trained(seconds: float, quick: bool) -> TrainResult:
    """One training, scored."""
    settings = read_settings(RECIPE, [f"train.seconds={seconds}"])
    with tempfile.TemporaryDirectory() as folder:
        asked = {
            "out": Path(folder) / "run",
            "model": preset("small", **settings["model"]),
            "train": settings["train"],
            "data": settings["data"],
            "eval_bytes": 8_192 if quick else 1 << 30,
        }
        found: TrainResult = call("train", asked, Workspace(Path(folder) / "runs.sqlite"))
        return found


def main(quick: bool) -> int:
    """Measure."""
    budgets = {"quick": 15.0} if quick else SECONDS
    results = {name: trained(seconds, quick) for name, seconds in budgets.items()}
    result = results["quick" if quick else "recipe"]
    assert result.comparison is not None
    report = harness.Report(
        "tinyshakespeare",
        f"recipes/{RECIPE.name}, {', '.join(f'{s:g}' for s in budgets.values())} s of wall-clock on {harness.machine()['threads']} threads, "
        f"{'a sample of' if quick else 'all'} held-out bytes; {result.comparison.protocol}",
        {}
        if quick
        else {"val_bpb": "<= 2.12", "seconds": f"<= {SECONDS['recipe'] + 5}", "worse_with_more": "<= 0.005"},
    )
    bpb = {}
    for name, found in results.items():
        assert found.comparison is not None
        bpb[name] = found.comparison.bpb
        report.row(
            f"{budgets[name]:g} s",
            f"{bpb[name]:.3f} bpb   {found.steps:,} updates, {found.bytes_seen / found.train_bytes:.2f} epochs, best after update {found.best_step:,}",
        )
    report.row("scored", f"{result.comparison.bytes:,} bytes")
    for name, value in result.comparison.compressors.items():
        report.row(f"{name}, starting empty", f"{value:.3f} bpb")
    if quick:
        report.figures = {"quick_bpb": bpb["quick"]}
    else:
        more = max(bpb["recipe"] - bpb["half"], bpb["twice"] - bpb["recipe"])
        report.figures = {"val_bpb": bpb["recipe"], "seconds": result.seconds, "worse_with_more": more}
    return report.finish()


if __name__ == "__main__":
    harness.run(main, __doc__)
