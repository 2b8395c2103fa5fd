"""Rotate a text's states and round them to 8 bits, with bounds on the error. Compiled with numba.

``Screen`` and ``QuantisedText`` are the two sides of the 8-bit product. Both describe a vector by the same four numbers
per level: its norm, its error's norm, the norm of the coordinates that the level leaves out, and its quantisation step.
``docs/sparse-head.md`` derives the bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.splade_head.llvm_blocks import GROUP, ROWS, UNIT, compiled, rotate_block

OFFSET = 1 << (UNIT.state_bits - 1)
"""Added to quantised states, 128 or 64: the instructions take one side unsigned."""

_ROUNDED_UP = 1.0001
"""Factor on norms computed in float32. Sums of at most 16,000 squares are good to a relative error below this."""


class Screen(NamedTuple):
    """A vocabulary prepared for screening.

    ``V`` terms stand in ``P`` places, filled up to whole groups. There are ``L`` levels, ``H`` hidden coordinates and
    ``K = 4 * ceil(H / 4)`` quantised ones.

    Attributes:
        mean: ``[H] float32``, subtracted from every state.
        basis: ``[ceil(K / GROUP), H, GROUP] float32``: the rotation, one block of columns after another.
        levels: ``[L] int64``: numbers of leading coordinates after which a check is possible. Multiples of 4; the last
            is ``K``.
        checks: ``[P / GROUP] int64``: how many checks a group of terms gets before the last level.
        check_levels: ``[P / GROUP, L] int64``: the levels of those checks, ascending, filled up with the last level.
        plan: ``[P / GROUP, L, 2] int64``: for each of ``check_levels``, the step of four coordinates at which it ends,
            and the offset in bytes of its tail norms in a block of ``QuantisedText.tails``.
        packed: ``[P / GROUP, K / 4, GROUP * 4] int8``: quantised terms, four coordinates of every term of a group at a
            time.
        tails: ``[P / GROUP, L, GROUP * 4] int8``: norms of the coordinates that ``check_levels`` leave out, rounded up,
            each as four numbers that add up to it.
        rows: ``[P, K / 4] int32``: the quantised terms again, one after another, four coordinates in each number.
        scale: ``[P] float64``: quantisation step of a term. ``mean_logit``, ``norm`` and ``error`` are in this unit.
        mean_logit: ``[P] float64``: logit of the mean state, rounded up; minus infinity in a place without a term.
        sums: ``[L, P] float64``: sum of the quantised coordinates up to each level.
        norm: ``[L, P] float64``: norm of the term's coordinates up to each level.
        error: ``[L, P] float64``: norm of their quantisation error.
        term: ``[P] int32``: vocabulary entry, -1 in a place without a term.
        matrix: ``[V, H] float32``, the model's output layer.
        bias: ``[V] float64``.
        mean_norm: norm of ``mean``.
        rounding: float32 rounding error of a rotated state, per unit of its norm plus ``mean_norm``.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]
    levels: NDArray[np.int64]
    checks: NDArray[np.int64]
    check_levels: NDArray[np.int64]
    plan: NDArray[np.int64]
    packed: NDArray[np.int8]
    tails: NDArray[np.int8]
    rows: NDArray[np.int32]
    scale: NDArray[np.float64]
    mean_logit: NDArray[np.float64]
    sums: NDArray[np.float64]
    norm: NDArray[np.float64]
    error: NDArray[np.float64]
    term: NDArray[np.int32]
    matrix: NDArray[np.float32]
    bias: NDArray[np.float64]
    mean_norm: float
    rounding: float


class QuantisedText(NamedTuple):
    """A text's states in 8 bits, or 7: ``T`` tokens, filled up to a multiple of ROWS by repeating the last.

    The tokens stand by falling norm: a bound shared by ROWS neighbours is then almost as tight as one per token.

    Attributes:
        states: ``[T, K] uint8``, OFFSET added.
        tails: ``[T / ROWS, L, 4] uint8``: largest norm that a level leaves out of ROWS tokens, rounded up, four times.
        step: quantisation step.
        norm: ``[L] float64``: largest norm of any token's quantised coordinates up to a level.
        error: ``[L] float64``: largest norm of their quantisation error.
        rounding: largest norm of the rotation's rounding error.
    """

    states: NDArray[np.uint8]
    tails: NDArray[np.uint8]
    step: float
    norm: NDArray[np.float64]
    error: NDArray[np.float64]
    rounding: float


@compiled
def quantised_text(states: NDArray[np.float32], rotated: NDArray[np.float32], screen: Screen) -> QuantisedText:
    """Round a text's states to 8 or 7 bits: ``[tokens, H] float32``, ``rotated`` to ``[T, >= K] float32``."""
    tokens, levels = len(rotated), screen.levels
    left_out = _left_out_norms(rotated, levels)
    # a coordinate becomes less than OFFSET in size; a tail norm, which is never negative, less than twice of it
    steps, tail_steps = np.float32(OFFSET - 1), np.float32(2 * OFFSET - 2)
    step = max(_largest_size(rotated) / steps, _largest_size(left_out) / tail_steps, np.float32(1e-30))
    inverse = np.float32(1) / step
    numbers = np.empty((tokens, screen.packed.shape[1] * 4), np.uint8)
    tails = np.zeros((tokens // ROWS, len(levels), 4), np.uint8)
    norm, error = np.zeros(len(levels)), np.zeros(len(levels))
    for token in range(tokens):
        squares, lost_squares, start = np.float32(0), np.float32(0), 0
        for level in range(len(levels)):
            for at in range(start, levels[level]):
                near = np.rint(rotated[token, at] * inverse)
                numbers[token, at] = np.uint8(np.int32(near) + OFFSET)
                lost = rotated[token, at] - near * step
                squares += near * near
                lost_squares += lost * lost
            start = levels[level]
            norm[level] = max(norm[level], np.sqrt(np.float64(squares)) * step * _ROUNDED_UP)
            error[level] = max(error[level], np.sqrt(np.float64(lost_squares)) * _ROUNDED_UP)
            tail = np.uint8(np.ceil(left_out[level, token] * inverse * np.float32(_ROUNDED_UP)))
            for at in range(4):
                tails[token // ROWS, level, at] = max(tails[token // ROWS, level, at], tail)
    rounding = (_longest(states) + screen.mean_norm) * screen.rounding
    return QuantisedText(numbers, tails, np.float64(step), norm, error, rounding)


@compiled
def rotated_states(states: NDArray[np.float32], screen: Screen) -> NDArray[np.float32]:
    """Subtract the mean and rotate: ``[tokens, H]`` to ``[T, >= K] float32``, filled up by repeating the last token."""
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
def longest_first(
    states: NDArray[np.float32], rotated: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Order a text's tokens by falling norm: ``states``, and ``rotated`` filled up with the last of them.

    The norm is that of the coordinates after the first three eighths: most blocks are given up around there, and the
    bound then depends on the coordinates that are left.
    """
    keys, squares = np.empty(len(states), np.uint64), np.zeros(len(states), np.float32)
    for token in range(len(states)):
        for at in range(rotated.shape[1] * 3 // 8, rotated.shape[1]):
            squares[token] += rotated[token, at] * rotated[token, at]
    bits = squares.view(np.uint32)  # positive floats order like their bits
    for token in range(len(states)):
        # falling norm in the upper half of the key, the token's number in the lower
        keys[token] = (np.uint64(0xFFFFFFFF - bits[token]) << np.uint64(32)) | np.uint64(token)
    _sort(keys)
    ordered, ordered_rotated = np.empty(states.shape, np.float32), np.empty(rotated.shape, np.float32)
    for place in range(len(rotated)):
        token = keys[min(place, len(states) - 1)] & np.uint64(0xFFFFFFFF)
        for at in range(
            states.shape[1] if place < len(states) else 0
        ):  # a copy of a whole row takes seconds to compile
            ordered[place, at] = states[token, at]
        for at in range(rotated.shape[1]):
            ordered_rotated[place, at] = rotated[token, at]
    return ordered, ordered_rotated


@compiled
def keep_largest(
    terms: NDArray[np.int32],
    weights: NDArray[np.float32],
    out_terms: NDArray[np.int32],
    out_weights: NDArray[np.float32],
) -> None:
    """Write the largest weights by falling weight, ties by lower term; the rest of the outputs is left alone."""
    keys = np.empty(len(terms), np.uint64)
    bits, out_bits = weights.view(np.uint32), out_weights.view(np.uint32)  # positive floats order like their bits
    for at in range(len(terms)):
        keys[at] = (np.uint64(0xFFFFFFFF - bits[at]) << np.uint64(32)) | np.uint64(terms[at])
    _sort(keys)
    for at in range(min(len(keys), len(out_terms))):
        out_terms[at] = np.int32(keys[at] & np.uint64(0xFFFFFFFF))
        out_bits[at] = np.uint32(0xFFFFFFFF - (keys[at] >> np.uint64(32)))


@compiled
def _sort(keys: NDArray[np.uint64]) -> None:
    """Sort in place by Shell's method: numba's own sorts take longer to compile than all other code here."""
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
def _left_out_norms(rotated: NDArray[np.float32], levels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the norm of the coordinates after each level, of every token: ``[L, T]``."""
    out = np.zeros((len(levels), len(rotated)), np.float32)
    for token in range(len(rotated)):
        squares = np.float32(0)
        for level in range(len(levels) - 1, 0, -1):
            for at in range(levels[level - 1], levels[level]):
                squares += rotated[token, at] * rotated[token, at]
            out[level - 1, token] = np.sqrt(squares)
    return out


@compiled
def _largest_size(values: NDArray[np.float32]) -> np.float32:
    largest = np.float32(0)
    for row in range(values.shape[0]):
        for at in range(values.shape[1]):
            largest = max(largest, abs(values[row, at]))
    return largest


@compiled
def _longest(states: NDArray[np.float32]) -> float:
    """Return the largest norm of any token's state, in float64."""
    longest = 0.0
    for token in range(len(states)):
        squares = 0.0
        for at in range(states.shape[1]):
            squares += np.float64(states[token, at]) ** 2
        longest = max(longest, squares)
    return float(np.sqrt(longest))
