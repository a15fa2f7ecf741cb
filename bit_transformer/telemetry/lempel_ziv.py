"""Counting Lempel-Ziv phrases in linear time, compiled by numba.

A sequence is cut into phrases from left to right. Each phrase is the shortest stretch that has not occurred before, including
overlapping occurrences (the exhaustive history of Lempel and Ziv 1976). The suffix automaton of the bits so far tells whether a
stretch has occurred. It grows by one bit at a time, in constant time per bit on average; comparing with every earlier position
would take time proportional to the length.

Sources: Lempel and Ziv 1976, "On the complexity of finite sequences"; Blumer et al. 1985, "The smallest automaton recognizing
the subwords of a text" (suffix automata).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bits = NDArray[np.uint8]

# Columns of a state: the next states after a zero and a one (0: none, because nothing leads to the root), its suffix link,
# and the length of its longest string. One state is 16 bytes, so reading it is one memory access.
LINK, LENGTH = 2, 3
_compiled: Any = njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)


def count_phrases(bits_BT: Bits) -> NDArray[np.int64]:
    """LZ76 phrases of each row. The last phrase counts even if it is incomplete. The bits are not validated.

    Memory: 32 bytes per bit of the longest row.
    """
    rows, length = bits_BT.shape
    counts = np.zeros(rows, dtype=np.int64)
    if length:
        states = np.empty((2 * length + 1, 4), dtype=np.int32)
        _count_rows(np.ascontiguousarray(bits_BT), states, counts)
    return counts


@_compiled
def _count_rows(bits_BT, states, counts):
    for row in range(len(bits_BT)):
        counts[row] = _count(bits_BT[row], states)


@_compiled
def _count(bits_T, states):
    states[0, 0] = states[0, 1] = states[0, LENGTH] = 0
    states[0, LINK] = -1
    used, last = 1, 0
    phrases, at, matched = 0, 0, 0  # `at` is the state of the phrase so far, which is `matched` bits long
    for bit in bits_T:
        at = states[at, bit]
        matched += 1
        if at == 0:  # new: the phrase ends with this bit
            phrases += 1
            matched = 0
        # Extend the automaton by the bit.
        new = used
        used += 1
        states[new, 0] = states[new, 1] = 0
        states[new, LENGTH] = states[last, LENGTH] + 1
        source = last
        while source != -1 and states[source, bit] == 0:
            states[source, bit] = new
            source = states[source, LINK]
        if source == -1:
            states[new, LINK] = 0
        else:
            target = states[source, bit]
            length = states[source, LENGTH] + 1
            if states[target, LENGTH] == length:
                states[new, LINK] = target
            else:  # split the shorter strings of the target from the longer ones
                clone = used
                used += 1
                for column in range(3):
                    states[clone, column] = states[target, column]
                states[clone, LENGTH] = length
                while source != -1 and states[source, bit] == target:
                    states[source, bit] = clone
                    source = states[source, LINK]
                states[target, LINK] = clone
                states[new, LINK] = clone
                if at == target and matched <= length:
                    at = clone
        last = new
    return phrases + (matched > 0)
