"""`btlm serve` and `btlm dashboard`: the management server, and its pages."""

from __future__ import annotations

import typer

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def serve(context: typer.Context) -> None:
    """Start the management server, as `python mcp_server.py` does; `btlm serve --help` lists its options."""
    from bit_transformer.server import main

    main(context.args)


def dashboard(context: typer.Context) -> None:
    """Open the dashboard of a management server; `btlm dashboard --help` lists its options."""
    from bit_transformer.dashboard_app import main

    raise typer.Exit(main(context.args))
