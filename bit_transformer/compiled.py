"""How numba compiles the loops of this package.

No `fastmath`: sums are added in the order in which they are written, so the result is the same on every processor. Nothing allocates, so
reference counting (`_nrt`) is off: counting the references of arrays in tuples took half of the time. What is compiled is cached on
disk.
"""

from __future__ import annotations

from typing import Any

from numba import njit

_jit: Any = njit
compiled = _jit(cache=True, nogil=True, error_model="numpy", boundscheck=False, _nrt=False)
inline = _jit(cache=True, nogil=True, error_model="numpy", boundscheck=False, _nrt=False, inline="always")
