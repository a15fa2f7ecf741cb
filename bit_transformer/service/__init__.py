"""What a user can ask for, one function each: plain values in, plain values out.

Command line, HTTP, MCP and dashboard are doors to these functions; none of them reaches further down.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_STORE = Path("runs/runs.sqlite")
"""Where run records are, unless told otherwise."""
