"""`btlm generate`: continue a prompt."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from bit_transformer.cli.options import Device, Json, RunArgument, Store
from bit_transformer.cli.output import EXIT_BLOCKED, errors_in_one_line, progress_console, show_json
from bit_transformer.errors import BitStreamError
from bit_transformer.service import DEFAULT_STORE
from bit_transformer.service.jobs import Job

if TYPE_CHECKING:
    from bit_transformer.service.inference import GatedWindow


def run(
    model: RunArgument,
    prompt: Annotated[str, typer.Option(help="What to continue; @FILE reads a file.")] = "",
    bytes_: Annotated[int, typer.Option("--bytes", help="Bytes to generate.")] = 256,
    samples: Annotated[int, typer.Option(help="Continuations, as one batch.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest; 1 samples as the model believes.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest patches up to this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Divides the probability of patches seen recently.")] = 1.0,
    no_repeat_ngram: Annotated[int, typer.Option(help="Complete no n-gram of this many patches twice; 0 is off.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    learn: Annotated[
        str, typer.Option(help="What experts learn from: nothing, the prompt, or all (what is generated, too).")
    ] = "nothing",
    seed: Annotated[int | None, typer.Option(help="Of the draws; none: another each time.")] = None,
    engine: Annotated[
        str, typer.Option(help="What computes the steps: auto, torch, or single-stream (one continuation, on a CPU).")
    ] = "auto",
    gate: Annotated[
        bool, typer.Option("--gate", help="Stop at the first window that the run's calibrated gate blocks.")
    ] = False,
    gate_window: Annotated[
        int, typer.Option(help="With --gate: bytes that are judged at a time; 0: 256, or the longest calibrated.")
    ] = 0,
    retries: Annotated[int, typer.Option(help="With --gate: how often a blocked window is drawn again.")] = 0,
    device: Device = "auto",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Continue a prompt; bytes go to standard output as they are made, whatever they are."""
    with errors_in_one_line(as_json):
        from bit_transformer.config import Sampling
        from bit_transformer.errors import ConfigError
        from bit_transformer.service import inference
        from bit_transformer.service.requests import GateRequest, GenerateRequest
        from bit_transformer.service.workspace import Workspace

        workspace = Workspace(store, device)
        sampling = Sampling.of(
            {
                "temperature": temperature,
                "top_p": top_p,
                "repetition_penalty": repetition_penalty,
                "no_repeat_ngram": no_repeat_ngram,
                "learn": learn,
                "seed": seed,
            }
        )
        if samples < 1:
            raise ConfigError(f"samples={samples}; at least 1 is needed. Try --samples 1")
        start = _prompt(prompt)
        ends = [os.fsencode(text) for text in stop or []]
        if gate:
            if samples > 1 or ends:
                raise ConfigError("--gate got --samples or --stop; it goes with one continuation. Try without them")
            gated = GateRequest(
                run=model, prompt=start, max_bytes=bytes_, sampling=sampling, window=gate_window, retries=retries
            )
            _show_gated(start, inference.stream_gated(gated, workspace), as_json)
            return
        asked = GenerateRequest(
            run=model, prompts=(start,) * samples, max_bytes=bytes_, sampling=sampling, stop=tuple(ends), engine=engine
        )
        if as_json or samples > 1:
            made = inference.generate(asked, workspace, Job()).data
            if as_json:
                texts = [out.decode("utf-8", errors="replace") for out in made]
                show_json(
                    {
                        "prompt": start.decode("utf-8", errors="replace"),
                        "texts": texts,
                        "hex": [out.hex() for out in made],
                    }
                )
                return
            for out in made:
                sys.stdout.buffer.write(start + out + b"\n---\n")
            return
        stream = inference.stream(asked, workspace)
        sys.stdout.buffer.write(start)
        for piece in stream:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if sys.stdout.isatty():
            print()


def _prompt(text: str) -> bytes:
    """The prompt itself, or what the file holds that it names."""
    if not text.startswith("@"):
        return os.fsencode(text)
    try:
        with open(text[1:], "rb") as file:
            return file.read()
    except OSError as unreadable:
        raise BitStreamError(f"{text[1:]}: cannot be read ({unreadable.strerror}). Try another file") from None


def _show_gated(start: bytes, windows: Iterator[GatedWindow], as_json: bool) -> None:
    """Windows as they are allowed; what was blocked, to standard error, and exit code 4."""
    seen: list[GatedWindow] = []
    if not as_json:
        sys.stdout.buffer.write(start)
    for window in windows:
        seen.append(window)
        if as_json:
            continue
        sys.stdout.buffer.write(window.data)
        sys.stdout.buffer.flush()
        if window.retries and window.allow:
            progress_console.print(f"\nnote: window {len(seen)} was drawn {window.retries + 1} times", soft_wrap=True)
    blocked = not seen[-1].allow
    if as_json:
        allowed = b"".join(window.data for window in seen)
        rows = [{**dataclasses.asdict(window), "data": window.data.hex()} for window in seen]
        show_json(
            {
                "text": allowed.decode("utf-8", errors="replace"),
                "hex": allowed.hex(),
                "blocked": blocked,
                "windows": rows,
            }
        )
    elif blocked:
        progress_console.print(f"\n{seen[-1].why}", soft_wrap=True)
    if blocked:
        raise typer.Exit(EXIT_BLOCKED)
