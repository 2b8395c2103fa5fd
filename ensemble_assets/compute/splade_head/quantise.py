"""A text's states as 8-bit numbers in the coordinates of a screen, with bounds on what that loses. Compiled.

``Screen`` stands here too: it is what texts are quantised for. Making one is ``screening``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.splade_head.llvm_blocks import GROUP, ROWS, compiled, rotate_block

OFFSET = 128
"""Added to quantised states: the instruction takes them unsigned."""


class Screen(NamedTuple):
    """A vocabulary prepared for screening; ``P`` terms in groups, ``L`` levels, ``H`` hidden, ``K = 4 * ceil(H / 4)``.

    Attributes:
        mean: ``[H] float32``, taken off every state.
        basis: ``[ceil(K / GROUP), H, GROUP] float32``: the rotation, column blocks one after another.
        levels: ``[L] int64``: leading coordinates used, multiples of 4, the last is ``K``.
        checks: ``[P / GROUP] int64``: at how many levels before the last a group of terms is looked at.
        level: ``[P / GROUP, L] int64``: which levels those are, ascending.
        plan: ``[P / GROUP, L, 2] int64``: for each of them and the last level, in steps of four coordinates: where it
            ends; and where a token's tails of it lie, in bytes.
        packed: ``[P / GROUP, K / 4, GROUP * 4] int8``: quantised terms, four coordinates of every term at a time.
        tail: ``[P / GROUP, L, GROUP * 4] int8``: norms of the coordinates that these levels leave out, split into four.
        rows: ``[P, K / 4] int32``: the quantised terms again, one after another, four coordinates in each number.
        scale: ``[P] float64``: quantisation step of a term; ``centre``, ``reach`` and ``blur`` count in it.
        centre: ``[P] float64``: logit of the mean state, a little rounded up; minus infinity where there is no term.
        sums: ``[L, P] float64``: sum of the quantised coordinates up to each level.
        reach: ``[L, P] float64``: norm of the term's coordinates up to each level.
        blur: ``[L, P] float64``: norm of their quantisation error.
        term: ``[P] int32``: vocabulary entry, -1 where there is none.
        matrix: ``[V, H] float32``, as it is in the model.
        bias: ``[V] float64``.
        norm: of the mean.
        rounding: float32 rounding error of a rotated state, per unit of its norm and the mean's.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]
    levels: NDArray[np.int64]
    checks: NDArray[np.int64]
    level: NDArray[np.int64]
    plan: NDArray[np.int64]
    packed: NDArray[np.int8]
    tail: NDArray[np.int8]
    rows: NDArray[np.int32]
    scale: NDArray[np.float64]
    centre: NDArray[np.float64]
    sums: NDArray[np.float64]
    reach: NDArray[np.float64]
    blur: NDArray[np.float64]
    term: NDArray[np.int32]
    matrix: NDArray[np.float32]
    bias: NDArray[np.float64]
    norm: float
    rounding: float


class QuantisedText(NamedTuple):
    """One text's states, quantised: ``T`` tokens, rounded up to a multiple of ``ROWS`` by repeating the last.

    Best by falling norm: what is said of several tokens together is then as good as what would be said of each.

    Attributes:
        states: ``[T, K] uint8``, 128 added.
        tails: ``[T / ROWS, L, 4] uint8``: largest norm that a level leaves out of ROWS tokens, rounded up, four times.
        step: quantisation step.
        reach: ``[L] float64``: largest norm of a token's quantised coordinates.
        blur: ``[L] float64``: largest norm of their quantisation error.
        rounding: largest norm of the rotation's rounding error.
    """

    states: NDArray[np.uint8]
    tails: NDArray[np.uint8]
    step: float
    reach: NDArray[np.float64]
    blur: NDArray[np.float64]
    rounding: float


@compiled
def rotated(states: NDArray[np.float32], screen: Screen) -> NDArray[np.float32]:
    """States less the mean in the screen's coordinates, ``[T, >= K]``, T rounded up by repeating the last token."""
    tokens, hidden = states.shape
    padded = (tokens + ROWS - 1) // ROWS * ROWS
    centred = np.empty((padded, hidden), np.float32)
    for row in range(padded):
        for at in range(hidden):
            centred[row, at] = states[min(row, tokens - 1), at] - screen.mean[at]
    blocks = len(screen.basis)
    out = np.empty((padded, blocks * GROUP), np.float32)
    for block in range(blocks):
        for row in range(0, padded, ROWS):
            rotate_block(
                centred.ctypes.data + row * hidden * 4,
                hidden * 4,
                screen.basis.ctypes.data + block * hidden * GROUP * 4,
                hidden,
                out.ctypes.data + (row * blocks + block) * GROUP * 4,
                blocks * GROUP * 4,
            )
    return out


@compiled
def _left_out(turned: NDArray[np.float32], levels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Norms of what the levels leave out of every token, ``[L, T]``."""
    out = np.zeros((len(levels), len(turned)), np.float32)
    for token in range(len(turned)):
        rest = np.float32(0)
        for level in range(len(levels) - 1, 0, -1):
            for at in range(levels[level - 1], levels[level]):
                rest += turned[token, at] * turned[token, at]
            out[level - 1, token] = np.sqrt(rest)
    return out


@compiled
def _highest(values: NDArray[np.float32]) -> np.float32:
    highest = np.float32(0)
    for row in range(values.shape[0]):
        for at in range(values.shape[1]):
            highest = max(highest, abs(values[row, at]))
    return highest


@compiled
def _longest(states: NDArray[np.float32]) -> float:
    longest = 0.0
    for token in range(len(states)):
        norm = 0.0
        for at in range(states.shape[1]):
            norm += np.float64(states[token, at]) ** 2
        longest = max(longest, norm)
    return float(np.sqrt(longest))


@compiled
def quantised(states: NDArray[np.float32], turned: NDArray[np.float32], screen: Screen) -> QuantisedText:
    """A text's rotated states as 8-bit numbers, with bounds on what that loses."""
    tokens, levels = len(turned), screen.levels
    left_out = _left_out(turned, levels)
    step = max(_highest(turned) / np.float32(127), _highest(left_out) / np.float32(254), np.float32(1e-30))
    inverse = np.float32(1) / step
    numbers = np.empty((tokens, screen.packed.shape[1] * 4), np.uint8)
    tails = np.zeros((tokens // ROWS, len(levels), 4), np.uint8)
    reach, blur = np.zeros(len(levels)), np.zeros(len(levels))
    for token in range(tokens):
        kept, lost, start = np.float32(0), np.float32(0), 0
        for level in range(len(levels)):
            for at in range(start, levels[level]):
                near = np.rint(turned[token, at] * inverse)
                numbers[token, at] = np.uint8(np.int32(near) + OFFSET)
                error = turned[token, at] - near * step
                kept += near * near
                lost += error * error
            start = levels[level]
            # float32 sums of this many squares are good to 1e-4 and better
            reach[level] = max(reach[level], np.sqrt(np.float64(kept)) * step * 1.0001)
            blur[level] = max(blur[level], np.sqrt(np.float64(lost)) * 1.0001)
            tail = np.uint8(np.ceil(left_out[level, token] * inverse * np.float32(1.0001)))
            for at in range(4):
                tails[token // ROWS, level, at] = max(tails[token // ROWS, level, at], tail)
    rounding = (_longest(states) + screen.norm) * screen.rounding
    return QuantisedText(numbers, tails, np.float64(step), reach, blur, rounding)


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
