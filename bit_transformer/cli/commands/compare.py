"""`btlm compare`: models under one budget, with paired tests and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Json
from bit_transformer.cli.output import EXIT_INPUT, EXIT_INTERRUPTED, console, errors_in_one_line, show_json, table
from bit_transformer.cli.training_output import live_progress
from bit_transformer.errors import ConfigError

if TYPE_CHECKING:
    from bit_transformer.service.comparing.comparing import ComparisonResult


def run(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="The plan: a file in YAML, TOML or JSON.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A built-in plan of less than a minute instead.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison; begun there, it goes on. Default: runs/compare-NAME."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Another number of seeds than the plan's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Another budget: seconds of each training.")] = None,
    size: Annotated[int | None, typer.Option("--bytes", help="Another budget: data bytes of each training.")] = None,
    flops: Annotated[float | None, typer.Option(help="Another budget: operations of each training.")] = None,
    as_json: Json = False,
) -> None:
    """Compare models: trainings under one budget, paired tests of the differences, and a report in Markdown and HTML.

    Models, corpora and seeds are in the plan. A comparison that was stopped or killed goes on with the same command.
    """
    with errors_in_one_line(as_json):
        from bit_transformer.service.comparing.plan_file import quick_plan, read_plan, with_changes
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        if (plan is None) != quick:
            got = "no plan" if plan is None else f"{plan} and --quick"
            raise ConfigError(f"got {got}; a plan or --quick is needed, one of them. Try --quick")
        amounts = {"seconds": seconds, "bytes": size, "flops": flops}
        budget = {name: amount for name, amount in amounts.items() if amount is not None}
        chosen = with_changes(quick_plan() if plan is None else read_plan(plan), seeds=seeds, budget=budget)
        folder = out or Path("runs") / f"compare-{'quick' if plan is None else plan.stem}"
        fields = {"plan": chosen.model_dump(), "out": folder}
        with live_progress() as job:
            found = call("compare", fields, Workspace(folder / "runs.sqlite"), job)
        if as_json:
            show_json(found)
        else:
            _show(found)
        if found.stopped:
            raise typer.Exit(EXIT_INTERRUPTED)
        if found.failed:
            raise typer.Exit(EXIT_INPUT)


def _show(result: ComparisonResult) -> None:
    found = result.findings
    for corpus in dict.fromkeys(row.corpus for row in found.rows):
        for adaptive, what in ((False, "frozen models"), (True, "models that learn from what they score")):
            rows = [row for row in found.rows if row.corpus == corpus and row.adaptive is adaptive]
            if not rows:
                continue
            made = table(
                f"\n{what} on {corpus}", "model", "bits per byte", "95 % interval", "seeds", "seconds", "MB seen"
            )
            for row in rows:
                interval = "-" if row.low is None else f"{row.low:.4f} to {row.high:.4f}"
                seen = f"{row.bytes / 1e6:.2f}" if row.bytes else "-"
                seeds = str(len(row.bpb)) if row.trained else "-"
                seconds = f"{row.seconds if not adaptive else row.score_seconds:.1f}"
                style = "bold" if row.model == found.reference else None
                made.add_row(row.name, f"{row.mean:.4f}", interval, seeds, seconds, seen, style=style)
            console.print(made)
    claims = [*found.joint, *found.claims]
    if claims:
        made = table(
            f"\n{found.reference} minus the other",
            "other",
            "corpus",
            "difference",
            "95 % over seeds",
            "p, Holm",
            "shown",
        )
        for claim in claims:
            test = claim.test
            made.add_row(
                claim.other,
                claim.corpus or "all",
                "-" if test is None else f"{test.difference:+.4f}",
                "-" if test is None or claim.corpus is None else f"{test.low:+.4f} to {test.high:+.4f}",
                "-" if test is None else f"{claim.p_holm:.2g}",
                "yes" if claim.shown else "no",
            )
        console.print(made)
    if found.limits:
        console.print()
    for limit in found.limits:
        console.print(f"! {limit}", soft_wrap=True)
    if result.stopped:
        console.print(f"\nstopped after {result.done} of {result.of} cells; the same command goes on", soft_wrap=True)
    console.print(f"\nreport: {result.html} and {result.markdown}", soft_wrap=True)
