"""How numba compiles the loops of this package.

No `fastmath`: sums are added in the order in which they are written, so the result is the same on every processor. Nothing allocates, so
reference counting (`_nrt`) is off: counting the references of arrays in tuples took half of the time. What is compiled is cached on
disk. numba takes a cached function for current as long as its own file is unchanged, though code of other files is compiled into it; so here what is
cached is valid for the contents of all files with loops. Else an upgrade could run loops that expect other tables, and crash.
"""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event

# Every file with code that is compiled, or compiled into other loops.
SOURCES = (
    "compiled.py",
    "coding/arithmetic.py",
    "coding/filters.py",
    "experts/layout.py",
    "experts/vectors.py",
    "experts/terms.py",
    "experts/instructions.py",
    "experts/markup.py",
    "experts/numbers.py",
    "experts/rich.py",
    "experts/kernels.py",
    "decoding/integer_kernels.py",
    "decoding/portable_kernels.py",
    "decoding/bit_loop.py",
    "restoration/beam_kernel.py",
    "proof/kernels.py",
    "quality/kernels.py",
)

_log = logging.getLogger(__name__)
_jit: Any = njit
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
_NO_DOOR = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _Compilations(event.Listener):
    """Logs, once a process, that loops are compiled and not read from the cache: commands are silent for so long."""

    def on_start(self, event: Any) -> None:
        module = event.data["dispatcher"].__module__ or ""  # none in code that was made from text
        if module.startswith(f"{__package__}."):
            _say_once()

    def on_end(self, event: Any) -> None:
        """Nothing to say."""


@lru_cache(maxsize=1)
def _say_once() -> None:
    _log.info("compiling loops that this installation has not used before: up to a minute")


event.register("numba:compile", _Compilations())  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1)
def _stamp() -> str | None:
    """A digest of all sources; None where they cannot be read, as in a frozen program."""
    found = hashlib.sha256()
    try:
        for name in SOURCES:
            found.update((Path(__file__).parent / name).read_bytes())
    except OSError:
        return None
    return found.hexdigest()


def _with_stamp(function: Any) -> Any:
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)  # numba has no public way
    if file is not None and _stamp() is not None:
        file._source_stamp = _stamp()
    return function


def compiled(function: Any) -> Any:
    """A loop that Python calls, compiled when it is first called."""
    return _with_stamp(_jit(**_OPTIONS, no_cfunc_wrapper=True)(function))


def part(function: Any) -> Any:
    """A part of loops, which only they call. It has no door for Python, which takes long to compile."""
    return _with_stamp(_jit(**_OPTIONS, **_NO_DOOR)(function))


def inline(function: Any) -> Any:
    """A part of loops that is compiled into each that calls it. LLVM does that; numba's own inlining takes time with the square of the size."""
    return _with_stamp(_jit(**_OPTIONS, **_NO_DOOR, forceinline=True)(function))
