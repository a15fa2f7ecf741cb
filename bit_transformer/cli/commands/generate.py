"""`btlm generate`: continue a prompt."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from bit_transformer.cli.options import Json, RunArgument, Store
from bit_transformer.cli.output import errors_in_one_line, show_json
from bit_transformer.service import DEFAULT_STORE


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
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Continue a prompt; bytes go to standard output as they are made, whatever they are."""
    with errors_in_one_line(as_json):
        from bit_transformer.config import Sampling
        from bit_transformer.errors import BitStreamError, ConfigError
        from bit_transformer.service import inference

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
        start = os.fsencode(prompt)
        if prompt.startswith("@"):
            try:
                with open(prompt[1:], "rb") as file:
                    start = file.read()
            except OSError as unreadable:
                raise BitStreamError(
                    f"{prompt[1:]}: cannot be read ({unreadable.strerror}). Try another file"
                ) from None
        ends = [os.fsencode(text) for text in stop or []]
        if as_json or samples > 1:
            made = inference.generate(model, [start] * samples, bytes_, sampling, stop=ends, store=store)
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
        pieces = inference.stream(model, start, bytes_, sampling, stop=ends, store=store)
        sys.stdout.buffer.write(start)
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        if sys.stdout.isatty():
            print()
