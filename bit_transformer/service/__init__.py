"""The operations of the package, one function each: plain values in, plain values out.

The command line, HTTP, MCP and the dashboard call these functions and nothing below them.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_STORE = Path("runs/runs.sqlite")
"""Default store of run records."""

SECONDS_DEFAULT = 60.0
"""Default budget of a training."""
