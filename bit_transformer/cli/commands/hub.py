"""`btlm hub`: models on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bit_transformer.cli.options import Json, RunArgument, Store, run_folder
from bit_transformer.cli.output import console, errors_in_one_line, show_json
from bit_transformer.cli.training_output import live_progress
from bit_transformer.service import DEFAULT_STORE

app = typer.Typer(
    help="Push models to the Hugging Face hub, and pull them; see whose token is used.", no_args_is_help=True
)
Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")]


@app.command("login")
def login(
    keep: Annotated[
        bool, typer.Option("--keep", help="Ask for a token, and keep it in the system's keyring if the hub knows it.")
    ] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Remove the token from the system's keyring.")] = False,
    as_json: Json = False,
) -> None:
    """Say whose token of the hub this machine has. It comes from HF_TOKEN, from `hf auth login` or from the system's keyring, and is never shown."""
    with errors_in_one_line(as_json):
        from bit_transformer.errors import ConfigError
        from bit_transformer.service import hub_token
        from bit_transformer.service.hub import whose
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        if keep and forget:
            raise ConfigError("got --keep and --forget; only one of them can be done. Try --keep")
        if forget:
            there = hub_token.forget_token()
            console.print("removed the token from the system's keyring" if there else "the keyring has no token")
            return
        if keep:
            given = typer.prompt("Token (it is not shown)", hide_input=True, err=True).strip()
            made = whose(given, "the prompt")
            hub_token.keep_token(given)
        else:
            made = call("hub.login", {}, Workspace(DEFAULT_STORE))
        if as_json:
            show_json(made)
            return
        role = f"; its role is {made.role}" if made.role else ""
        where = "kept in the system's keyring" if keep else f"from {made.source}"
        console.print(f"signed in to {made.endpoint} as {made.user}, with a token {where}{role}", soft_wrap=True)


@app.command("push")
def push(
    run: RunArgument,
    repo: Repo,
    public: Annotated[bool, typer.Option("--public", help="Everybody can see it. Default: only its owner.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit. Default: which update of which run it is.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Add a new version to a repository that holds files already.")
    ] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Push a run's model, with its settings, its gate and a model card made from its records."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        asked = {"run": run, "repo": repo, "private": not public, "message": message, "overwrite": overwrite}
        with live_progress() as job:
            made = call("hub.push", asked, Workspace(store), job)
        if as_json:
            show_json(made)
            return
        seen = "private" if made.private else "public"
        console.print(
            f"pushed {made.run} to {made.url} ({seen}): {_list(made.files)}; commit {made.commit[:12]}", soft_wrap=True
        )


@app.command("pull")
def pull(
    repo: Repo,
    out: Annotated[str, typer.Option("--out", help="Run folder; must not contain anything.")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit. Default: the latest version.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Pull a model into a new run folder. Only safetensors, JSON and text are taken; nothing is unpickled or run."""
    with errors_in_one_line(as_json):
        from bit_transformer.service.operations import call
        from bit_transformer.service.workspace import Workspace

        folder: Path = run_folder(out)
        with live_progress() as job:
            made = call("hub.pull", {"repo": repo, "out": folder, "revision": revision}, Workspace(store), job)
        if as_json:
            show_json(made)
            return
        console.print(
            f"pulled {made.repo} into {made.out}: {_list(made.files)}; commit {made.commit[:12]}", soft_wrap=True
        )
        if made.left:
            more = f" and {len(made.left) - 5} more" if len(made.left) > 5 else ""
            console.print(f"not taken: {', '.join(made.left[:5])}{more}", style="dim", soft_wrap=True)


def _list(files: dict[str, int]) -> str:
    return ", ".join(f"{name} ({size:,} bytes)" for name, size in files.items())
