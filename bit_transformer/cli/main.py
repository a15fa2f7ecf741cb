"""The command `btlm`. Its commands are in `commands/`; torch is loaded only when one of them runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bit_transformer.cli.commands import (
    advise,
    bench,
    calibrate,
    compare,
    compress,
    corpora,
    diagnose,
    distill,
    doctor,
    estimate,
    evaluate,
    explain,
    export,
    generate,
    grow,
    harness,
    hub,
    infill,
    jobs,
    maps,
    plan,
    quality,
    quantize,
    repair,
    runs,
    score,
    serve,
    telemetry,
    train,
)
from bit_transformer.cli.output import note_command, progress_console, refuse


class _Commands(TyperGroup):
    """Prints what is wrong with a command line in one line, as other errors are."""

    as_json = False

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Read the options before the command."""
        self.as_json = "--json" in args
        command: Any = self
        for word in args:
            command = getattr(command, "commands", {}).get(word) or command
            if not hasattr(command, "commands"):
                break
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        note_command(options, any("--set" in one.opts and one.metavar == "KEY=VALUE" for one in command.params))
        with self._in_one_line():
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's own options, and run it."""
        with self._in_one_line():
            return super().invoke(ctx)

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Typer's errors have no public base class: it brings its own copy of click, or uses the one that is installed.
            if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
                raise
            names: list[str] = []
            ctx = getattr(error, "ctx", None)
            while ctx is not None and ctx.parent is not None:
                names, ctx = [ctx.info_name, *names], ctx.parent
            said = error.format_message().rstrip(".")
            text = f"{said[:1].lower()}{said[1:]}{'' if said.endswith('?') else '.'} Try `{' '.join(['btlm', *names])} --help`"
            refuse("UsageError", " ".join(text.split()), self.as_json)


app = typer.Typer(
    name="btlm",
    cls=_Commands,
    help="Language modelling on bits: no tokenizer, any file, text or binary.",
    epilog="Exit codes: 0 done, 1 a fault of this program, 2 invalid input, 3 a benchmark missed a goal, "
    "4 the gate blocked what was generated, 5 a repair that nothing proves, 130 interrupted, a training under way saved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.run)
app.command("distill")(distill.run)
app.command("collapse", hidden=True)(distill.run)  # its earlier name
app.command("grow")(grow.run)
app.command("quantize")(quantize.run)
app.command("estimate")(estimate.run)
app.command("generate")(generate.run)
app.command("infill")(infill.run)
app.command("map")(maps.run)
app.command("locate")(maps.locate)
app.command("repair")(repair.run)
app.command("protect")(repair.protect)
app.command("compress")(compress.run)
app.command("decompress")(compress.decompress)
app.command("fit")(quality.fit)
app.command("filter")(quality.run)
app.command("evaluate")(evaluate.run)
app.command("harness")(harness.run)
app.command("compare")(compare.run)
app.command("score")(score.run)
app.command("telemetry")(telemetry.run)
app.command("calibrate")(calibrate.run)
app.command("explain")(explain.run)
app.add_typer(runs.app, name="runs")
app.command("jobs")(jobs.run)
app.command("export")(export.run)
app.add_typer(hub.app, name="hub")
app.command("serve", context_settings=serve.PASSED_ON)(serve.serve)
app.command("dashboard", context_settings=serve.PASSED_ON)(serve.dashboard)
app.command("corpora")(corpora.run)
app.command("doctor")(doctor.run)
app.command("advise")(advise.run)
app.command("trade")(advise.trade)
app.command("diagnose")(diagnose.run)
app.command("plan")(plan.plan)
app.command("significance")(plan.significance)
app.command("report")(plan.report)
app.command("bench")(bench.run)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"btlm {version('bit-transformer')}")
        raise typer.Exit()


class _Said(logging.Handler):
    """Prints what is logged, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        progress_console.print(record.getMessage(), style="dim")


@app.callback()
def about(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options without a command."""
    if sys.stderr.isatty():  # somebody waits
        log = logging.getLogger("bit_transformer.compiled")
        log.handlers = [_Said()]
        log.setLevel(logging.INFO)


def main() -> None:
    """Entry point."""
    app()
