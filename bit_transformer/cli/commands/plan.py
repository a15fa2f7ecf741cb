"""`btlm plan`, `btlm significance` and `btlm report`: comparisons before, between and after the trainings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Json, Store
from bit_transformer.cli.output import console, errors_in_one_line, show_json, table
from bit_transformer.service import DEFAULT_STORE

if TYPE_CHECKING:
    from bit_transformer.evaluation.significance import PairedTest
    from bit_transformer.service.advisor.significance import Plan

MODELS = ("ours", "gpt2")


def plan(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="What is compared. Default: ours gpt2.")
    ] = None,
    difference: Annotated[float, typer.Option(help="Smallest difference in bits per byte that matters.")] = 0.02,
    deviation: Annotated[
        float | None, typer.Option(help="Of paired differences between seeds. Default: as the store's runs show.")
    ] = None,
    power: Annotated[float, typer.Option(help="Probability that such a difference is shown.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Of false claims, over the whole table.")] = 0.05,
    seeds: Annotated[int | None, typer.Option(help="Or the number of seeds; then what they can show.")] = None,
    seconds: Annotated[float, typer.Option(help="Budget of one training.")] = 180.0,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Plan a comparison: how many seeds a difference needs, what each row costs, and the protocol."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {
            "models": models or MODELS,
            "difference": difference,
            "deviation": deviation,
            "power": power,
            "alpha": alpha,
            "seeds": seeds,
            "seconds": seconds,
        }
        found = call("plan", asked, Workspace(store))
        if as_json:
            show_json(found)
        else:
            _show_plan(found)


def _show_plan(found: Plan) -> None:
    console.print(
        f"{found.seeds} seeds of each: power {found.power:.2f} for {found.difference:g} bits per byte"
        + (f"; {found.smallest:.3f} is shown with the wanted probability" if found.smallest is not None else ""),
        style="bold",
        soft_wrap=True,
    )
    console.print(
        f"deviation of paired differences {found.deviation:.4f} ({found.deviation_from}); alpha {found.alpha_each:.3g} for each of "
        f"{found.comparisons}; smallest p by flipped signs {found.smallest_p:.2g}",
        soft_wrap=True,
    )
    made = table(f"\n{found.seconds / 3600:.1f} hours of training", "model", "trainings", "seconds", "command")
    made.columns[3].justify = "left"
    for row in found.rows:
        made.add_row(row.model, str(row.trainings), f"{row.seconds:,.0f}", row.command or "by its own library")
    console.print(made)
    for rule in found.rules:
        console.print(f"- {rule}", soft_wrap=True)
    for warning in found.warnings:
        console.print(f"! {warning}", soft_wrap=True)


def significance(
    a: Annotated[str, typer.Argument(metavar="A", help="Runs or bits per byte, separated by commas, one per seed.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What they are compared with: the same seeds.")],
    comparisons: Annotated[int, typer.Option(help="Comparisons in the table, for the correction of p.")] = 1,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Test paired results: difference, 95 % interval, exact p by flipped signs, effect size."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        one, other = a.split(","), b.split(",")
        try:
            asked: dict[str, object] = {"a": [float(text) for text in one], "b": [float(text) for text in other]}
        except ValueError:
            asked = {"runs_a": one, "runs_b": other}
        found: PairedTest = call("significance", {**asked, "comparisons": comparisons}, Workspace(store))
        if as_json:
            show_json(found)
            return
        effect = "-" if found.effect is None else f"{found.effect:.2f}"
        console.print(
            f"A - B = {found.difference:+.4f}, 95 % interval {found.low:.4f} to {found.high:.4f}, {found.n} pairs",
            style="bold",
            soft_wrap=True,
        )
        console.print(
            f"p {found.p:.3g}, corrected {found.p_corrected:.3g} (smallest possible {found.smallest_p:.2g}); effect size {effect}: "
            f"{'shown' if found.p_corrected <= 0.05 else 'no difference shown'} at the level of 0.05",
            soft_wrap=True,
        )


def report(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs of the store. Default: all.")
    ] = None,
    title: Annotated[str, typer.Option(help="Its heading.")] = "Results",
    out: Annotated[Path | None, typer.Option(help="Write it to this file instead of printing it.")] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Draft a report in Markdown: tables, intervals over seeds, what was not shown, and what failed."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.files import write_file
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        found = call("report", {"names": names or (), "title": title}, Workspace(store))
        if out is not None:
            write_file(out, found.markdown.encode())
        if as_json:
            show_json(found)
        elif out is None:
            print(found.markdown, end="")
        else:
            console.print(f"written to {out}", soft_wrap=True)
