"""Numbers as people read them. All pure: a value in, a short text out; what is not known is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

UNKNOWN = "\u2013"  # a dash


def figure(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, such as bits per byte."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """A number with four significant digits, of any size: rates, norms, metrics."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.4g}"


def count(value: float | None) -> str:
    """A whole number, with a thousands separator; from ten million on in millions."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e10, "G"), (1e7, "M")):
        if value >= limit:
            return f"{value / limit * 10:,.1f} {unit}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """A number of bytes."""
    if value is None:
        return UNKNOWN
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.{0 if value >= 100 * limit else 1}f} {unit}"
    return f"{value:.0f} B"


def speed(value: float | None) -> str:
    """Bytes per second."""
    return UNKNOWN if not value else f"{size(value)}/s"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(iso: str | None) -> datetime | None:
    """A point in time from ISO text; without a zone it is UTC."""
    if not iso:
        return None
    try:
        found = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def ago(iso: str | None, now: datetime | None = None) -> str:
    """How long ago something was."""
    then = moment(iso)
    if then is None:
        return UNKNOWN
    seconds = ((now or datetime.now(timezone.utc)) - then).total_seconds()
    if seconds < 45:
        return "just now"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "1 min ago"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.0f} %"


def plain(value: Any) -> str:
    """Any value of a config, in one line."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items()) or "none"
    return str(value)


def flattened(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested config as dotted names and values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
