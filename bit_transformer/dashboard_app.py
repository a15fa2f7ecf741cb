"""`python -m bit_transformer.dashboard_app`: the dashboard, a client of the management server.

    MCP_SERVER_ADDR=http://127.0.0.1:7000 python -m bit_transformer.dashboard_app --port 8080

It listens on this machine only, unless `--host` says otherwise; then every browser is asked for the server's token.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence

from bit_transformer.errors import BitTransformerError, ConfigError

SERVER = "http://127.0.0.1:7000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the dashboard until it is interrupted. Gives an exit code: 2 for invalid input, as the command line does."""
    given = _parser().parse_args(argv)
    try:
        return _serve(given)
    except BitTransformerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bit_transformer.dashboard_app", description="The dashboard.")
    parser.add_argument(
        "--server", default=os.environ.get("MCP_SERVER_ADDR", SERVER),
        help="Address of the management server. Default: MCP_SERVER_ADDR, else %(default)s.",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="Interface to listen on. Default: this machine only.")
    parser.add_argument("--port", type=int, default=8080, help="Default: 8080.")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="A further name or address under which browsers reach it, for example behind a proxy.",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="Do not open a browser.")
    parser.add_argument(
        "--ask-token", action="store_true",
        help="Ask every browser for the server's token, also on this machine. Use it where others have an account too.",
    )  # fmt: skip
    return parser


def _serve(given: argparse.Namespace) -> int:
    import bit_transformer.dashboard  # noqa: F401  # says what is not installed
    from bit_transformer.dashboard.desk import Access
    from bit_transformer.extras import require
    from bit_transformer.server.security import home_folder, read_token

    uvicorn = require("uvicorn", extra="dashboard", purpose="the dashboard")
    address = checked_address(given.server)
    listening = listen(given.host, given.port)
    port = listening.getsockname()[1]
    home = home_folder()
    access = Access(
        lambda: os.environ.get("BTLM_TOKEN") or read_token(home), ask=given.ask_token or given.host not in LOOPBACK
    )
    from bit_transformer.dashboard.app import build

    here = f"http://{'127.0.0.1' if given.host in ('0.0.0.0', '::') else given.host}:{port}"
    whole = build(
        address, access, hosts=frozenset({*LOOPBACK, given.host, *given.allow_host}), state=home / "dashboard"
    )
    sys.stdout.write(f"dashboard: {here} (server: {address})\n")
    sys.stdout.flush()
    if not given.no_browser:
        threading.Timer(1.0, _open_browser, [here]).start()
    config = uvicorn.Config(
        whole, log_level="warning", access_log=False, timeout_graceful_shutdown=2, server_header=False
    )
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def checked_address(text: str) -> str:
    """The server's address.

    Raises:
        ConfigError: it is not an HTTP address.
    """
    address = text.strip().rstrip("/")
    if not address.startswith(("http://", "https://")) or len(address.split("/")) != 3:
        raise ConfigError(
            f"got the server's address {text!r}; http://HOST:PORT is needed. Try {SERVER}", field="server"
        )
    return address


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on a port.

    Raises:
        ConfigError: the port is in use, or cannot be used.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except (OSError, OverflowError) as refused:
        reason = getattr(refused, "strerror", None) or str(refused)
        raise ConfigError(
            f"got port {port} of {host}, which cannot be used ({reason}). Try --port {(port % 60000) + 1}", field="port"
        ) from None


def _open_browser(address: str) -> None:
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return
    if type(found) is not webbrowser.GenericBrowser:  # that would be one in this terminal
        found.open(address)


if __name__ == "__main__":
    sys.exit(main())
