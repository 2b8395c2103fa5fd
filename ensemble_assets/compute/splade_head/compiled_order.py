"""Putting things in order in compiled code: a text's tokens by norm, its terms by weight.

What is computed of tokens and terms is ``screen_kernels``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.splade_head.llvm_blocks import compiled


@compiled
def _sort(keys: NDArray[np.uint64]) -> None:
    """Shell's sort, in place: numba's own sorts take longer to compile than everything else here."""
    gap = 1
    while gap < len(keys) // 3:
        gap = 3 * gap + 1
    while gap:
        for start in range(gap, len(keys)):
            key, at = keys[start], start
            while at >= gap and keys[at - gap] > key:
                keys[at] = keys[at - gap]
                at -= gap
            keys[at] = key
        gap //= 3


@compiled
def keep_largest(
    terms: NDArray[np.int32], weights: NDArray[np.float32], index: NDArray[np.int32], weight: NDArray[np.float32]
) -> None:
    """The largest weights by falling weight, ties by lower term, into rows of -1 and 0."""
    keys = np.empty(len(terms), np.uint64)
    bits, kept = weights.view(np.uint32), weight.view(np.uint32)  # positive floats order like their bits
    for at in range(len(terms)):
        keys[at] = (np.uint64(0xFFFFFFFF - bits[at]) << np.uint64(32)) | np.uint64(terms[at])
    _sort(keys)
    for at in range(min(len(keys), len(index))):
        index[at] = np.int32(keys[at] & np.uint64(0xFFFFFFFF))
        kept[at] = np.uint32(0xFFFFFFFF - (keys[at] >> np.uint64(32)))


@compiled
def longest_first(
    states: NDArray[np.float32], turned: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A text's tokens by falling norm, and ``turned`` in the same order, filled up with the last of them.

    The norm is that of the coordinates after the first three eighths, around which most blocks are given up.
    """
    keys, norms = np.empty(len(states), np.uint64), np.zeros(len(states), np.float32)
    for token in range(len(states)):
        for at in range(turned.shape[1] * 3 // 8, turned.shape[1]):
            norms[token] += turned[token, at] * turned[token, at]
    bits = norms.view(np.uint32)  # positive floats order like their bits
    for token in range(len(states)):
        keys[token] = (np.uint64(0xFFFFFFFF - bits[token]) << np.uint64(32)) | np.uint64(token)
    _sort(keys)
    own, rest = np.empty_like(states), np.empty_like(turned)
    for place in range(len(turned)):
        token = keys[min(place, len(states) - 1)] & np.uint64(0xFFFFFFFF)
        if place < len(states):
            own[place] = states[token]
        rest[place] = turned[token]
    return own, rest
