"""The loops of the sparse head over one text, compiled with numba: screen all terms, compute the few that are left.

``encode`` is the entry. ``docs/sparse-head.md`` explains the steps and shows why no positive term is lost.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numba
import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.splade_head import llvm_blocks, quantise
from ensemble_assets.compute.splade_head.llvm_blocks import GROUP, ROWS, compiled, largest_block, terms_block
from ensemble_assets.compute.splade_head.quantise import (
    OFFSET,
    QuantisedText,
    Screen,
    keep_largest,
    longest_first,
    quantised_text,
    rotated_states,
)

DONE, NOT_FINITE, TOO_MANY = 0, 1, 2
"""How a text ended: computed; has a NaN or infinity; has so many candidates that plain products are faster."""

_LOWEST = -(2**31)
"""The smallest 32-bit integer: no product was computed."""

_FARTHEST_LIMIT = 2.0**30
"""Limits are cut to this size. It fits 32 bits, and no 8-bit product of fewer than 16,000 coordinates reaches it."""

_FARTHEST_STATE = 1e15
"""Texts with larger coordinates are left to plain products: squares of them would leave float32."""

_EXACT_SHARE = 32
_EXACT_LEAST = 64
"""A text is given up after so many float64 logits as ``V / _EXACT_SHARE + _EXACT_LEAST`` terms would need in full."""


class Outputs(NamedTuple):
    """Sparse vectors of ``B`` texts, to be filled in.

    Attributes:
        term: ``[B, k] int32``, filled with -1; or ``[B, 0]`` to get a weight for every vocabulary entry.
        weight: ``[B, k]`` or ``[B, V] float32``, filled with 0.
        active: ``[B] int32``, filled with 0: positive weights before pruning.
        ends: ``[B] uint8``, filled with DONE. The other outputs of a text that ends otherwise are left alone.
    """

    term: NDArray[np.int32]
    weight: NDArray[np.float32]
    active: NDArray[np.int32]
    ends: NDArray[np.uint8]


def encode(states: NDArray[np.float32], spans: NDArray[np.int64], screen: Screen, out: Outputs) -> None:
    """Compute the sparse vectors of some texts into ``out``.

    ``states`` are ``[tokens, H] float32``, ``spans`` ``[B, 2] int64``: first token and number of tokens of every text.
    """
    compute(states, spans, screen, out, np.empty(0, np.int64))


def blocks_left(states: NDArray[np.float32], screen: Screen) -> NDArray[np.int64]:
    """Count the blocks of ROWS tokens of a text that the first check of every group does not rule out: ``[P / GROUP]``.

    ``states`` are ``[tokens, H] float32``: one text of usual numbers. Each of the screen's groups has one check.
    """
    nothing = np.empty((1, 0), np.int32), np.empty((1, 0), np.float32), np.zeros(1, np.int32), np.zeros(1, np.uint8)
    left = np.zeros(len(screen.checks), np.int64)
    compute(states, np.array([[0, len(states)]]), screen, Outputs(*nothing), left)
    return left


@partial(compiled, no_cpython_wrapper=False)
def compute(
    states: NDArray[np.float32], spans: NDArray[np.int64], screen: Screen, out: Outputs, left: NDArray[np.int64]
) -> None:
    """Do the work of ``encode``, or of ``blocks_left`` where ``left`` has its groups.

    Both are one function, since every function that Python calls is optimised by itself, with all that it calls.
    """
    bounds, places = np.empty(len(screen.term), np.float64), np.empty(len(screen.term), np.int64)
    terms, weights = np.empty(len(screen.term), np.int32), np.empty(len(screen.term), np.float32)
    for row in range(len(spans)):
        if spans[row, 1] == 0:
            continue
        own = states[spans[row, 0] : spans[row, 0] + spans[row, 1]]
        rotated = rotated_states(own, screen)
        own, rotated = longest_first(own, rotated)
        if _reaches(rotated, _FARTHEST_STATE):
            out.ends[row] = NOT_FINITE if _reaches(own, np.inf) else TOO_MANY
            continue
        text = quantised_text(own, rotated, screen)
        if len(left):
            _count_blocks(text, screen, left)
            continue
        _upper_bounds(text, screen, bounds)
        candidates = 0
        for place in range(len(bounds)):
            places[candidates] = place
            candidates += bounds[place] > 0
        count = _positive_terms(own, text, screen, places[:candidates], (terms, weights))
        if count < 0:
            out.ends[row] = TOO_MANY
            continue
        out.active[row] = count
        if out.term.shape[1]:
            keep_largest(terms[:count], weights[:count], out.term[row], out.weight[row])
        else:
            for at in range(count):
                out.weight[row, terms[at]] = weights[at]


@compiled
def _reaches(values: NDArray[np.float32], limit: float) -> bool:
    """Return whether any value is at least ``limit`` in size, or not a number."""
    count = 0
    for row in range(values.shape[0]):
        for at in range(values.shape[1]):
            count += not abs(values[row, at]) < limit  # a NaN is not smaller either
    return count > 0


# --- step 1: an upper bound for every term ---


@compiled
def _upper_bounds(text: QuantisedText, screen: Screen, out: NDArray[np.float64]) -> None:
    """Bound the largest logit of every term over the text's tokens, ``[P]``; minus infinity if it is not positive."""
    last = len(screen.levels) - 1
    largest, limits = np.empty(GROUP, np.int32), np.empty((last + 1, GROUP), np.int32)
    for group in range(len(screen.checks)):
        for check in range(screen.checks[group]):
            _limits(text, screen, screen.check_levels[group, check], group, limits[check])
        for lane in range(GROUP):
            largest[lane] = _LOWEST
        for token in range(0, len(text.states), ROWS):
            _raise_largest(text, screen, group, token, limits, largest)
        for lane in range(GROUP):
            place = group * GROUP + lane
            product = text.step * (largest[lane] - OFFSET * screen.sums[last, place])
            bound = (screen.mean_logit[place] + product + _slack(text, screen, last, place)) * screen.scale[place]
            out[place] = bound if largest[lane] > _LOWEST else -np.inf


@compiled
def _slack(text: QuantisedText, screen: Screen, level: int, place: int) -> float:
    """Return how far a product of the coordinates up to a level can lie from its 8-bit value, in the term's steps."""
    return float(
        text.error[level] * screen.norm[level, place]
        + text.norm[level] * screen.error[level, place]
        + text.rounding * screen.norm[-1, place]
    )


@compiled
def _limits(text: QuantisedText, screen: Screen, level: int, group: int, out: NDArray[np.int32]) -> None:
    """Return the 8-bit products, tails included, up to which no logit of a group's terms is positive: ``[GROUP]``.

    This is ``_upper_bounds`` solved for the product, for all lanes at once, so that the compiler can use vectors.
    """
    own = slice(group * GROUP, (group + 1) * GROUP)  # slices, so that the compiler sees the indices to be valid
    mean_logit, sums, whole_norm = screen.mean_logit[own], screen.sums[level, own], screen.norm[-1, own]
    norm, error = screen.norm[level, own], screen.error[level, own]
    text_norm, text_error, inverse = text.norm[level], text.error[level], 1 / text.step
    for lane in range(GROUP):
        slack = text_error * norm[lane] + text_norm * error[lane] + text.rounding * whole_norm[lane]
        # the conversion to an integer rounds towards zero, up to one too high: 2 is subtracted
        limit = OFFSET * sums[lane] - (mean_logit[lane] + slack) * inverse - 2
        limit = limit if limit > -_FARTHEST_LIMIT else -_FARTHEST_LIMIT
        out[lane] = np.int32(limit if limit < _FARTHEST_LIMIT else _FARTHEST_LIMIT)


@compiled
def _raise_largest(
    text: QuantisedText, screen: Screen, group: int, token: int, limits: NDArray[np.int32], largest: NDArray[np.int32]
) -> None:
    """Call ``largest_block`` for the ROWS tokens from ``token`` on and a group of terms."""
    width, levels = text.states.shape[1], len(screen.levels)
    largest_block(
        text.states.ctypes.data + token * width,
        width,
        text.tails.ctypes.data + token // ROWS * levels * 4,
        screen.packed.ctypes.data + group * width * GROUP,
        screen.plan.ctypes.data + group * levels * 16,
        screen.checks[group],
        screen.tails.ctypes.data + group * levels * GROUP * 4,
        limits.ctypes.data,
        largest.ctypes.data,
    )


# --- step 2: the exact logits of the candidates ---


@compiled
def _positive_terms(
    states: NDArray[np.float32],
    text: QuantisedText,
    screen: Screen,
    places: NDArray[np.int64],
    out: tuple[NDArray[np.int32], NDArray[np.float32]],
) -> int:
    """Write the terms and weights of the positive ones among candidates; return their number.

    The number is -1 if plain products would be faster.
    """
    columns = _token_columns(text)
    products = np.empty((ROWS, columns.shape[0] * GROUP), np.int32)
    last, count = len(screen.levels) - 1, 0
    logits_left = len(states) * (len(screen.matrix) // _EXACT_SHARE + _EXACT_LEAST)
    for first in range(0, len(places), ROWS):
        some = places[first : first + ROWS]
        _products_with_all_tokens(columns, screen, some, products)
        for row in range(len(some)):
            place, largest = some[row], np.int32(_LOWEST)
            for token in range(products.shape[1]):
                largest = max(largest, products[row, token])
            slack = _slack(text, screen, last, place)
            # the logit of an 8-bit product p is origin + step * p, give or take the slack
            origin = screen.mean_logit[place] - text.step * OFFSET * screen.sums[last, place]
            if origin + text.step * largest + slack <= 0:
                continue
            # a token decides only if its logit may be positive and may be the largest; 1 is for rounding to integers
            least = np.int32(max(largest - 2 * slack / text.step - 1, (-origin - slack) / text.step - 1, _LOWEST))
            logit, computed = _largest_logit(states, screen, screen.term[place], products[row], least)
            logits_left -= computed
            if logits_left < 0:
                return -1
            weight = np.float32(np.log1p(max(logit, 0.0)))
            if weight > 0:
                out[0][count], out[1][count] = screen.term[place], weight
                count += 1
    return count


@compiled
def _token_columns(text: QuantisedText) -> NDArray[np.int32]:
    """Lay the states out as columns, GROUP tokens at a time: ``[T / GROUP, K / 4, GROUP]``, T filled up."""
    tokens, steps = len(text.states), text.states.shape[1] // 4
    words = text.states.view(np.int32)
    out = np.empty(((tokens + GROUP - 1) // GROUP, steps, GROUP), np.int32)
    for group in range(len(out)):
        for lane in range(GROUP):
            token = min(group * GROUP + lane, tokens - 1)
            for step in range(steps):
                out[group, step, lane] = words[token, step]
    return out


@compiled
def _products_with_all_tokens(
    columns: NDArray[np.int32], screen: Screen, places: NDArray[np.int64], out: NDArray[np.int32]
) -> None:
    """Compute the 8-bit products, over all coordinates, of up to ROWS terms with all tokens: ``out [ROWS, T]``."""
    groups, steps, _ = columns.shape
    rows = np.empty(ROWS, np.int64)
    for row in range(ROWS):
        rows[row] = screen.rows.ctypes.data + places[min(row, len(places) - 1)] * steps * 4
    for group in range(groups):
        terms_block(
            rows.ctypes.data,
            columns.ctypes.data + group * steps * GROUP * 4,
            steps,
            out.ctypes.data + group * GROUP * 4,
            groups * GROUP * 4,
        )


@compiled
def _largest_logit(
    states: NDArray[np.float32], screen: Screen, term: int, products: NDArray[np.int32], least: np.int32
) -> tuple[float, int]:
    """Return the largest logit of the tokens whose 8-bit product is at least ``least``, and how many those are."""
    best, computed = -np.inf, 0
    for token in range(len(states)):
        if products[token] >= least:
            best = max(best, _logit(states[token], screen.matrix[term]))
            computed += 1
    return best + screen.bias[term], computed


@partial(compiled, fastmath={"reassoc", "contract"})  # the sum may be in any order, so that it can use vectors
def _logit(state: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    total = 0.0
    for at in range(len(state)):
        total += np.float64(state[at]) * np.float64(weights[at])
    return total


# --- for making a screen ---


@compiled
def _count_blocks(text: QuantisedText, screen: Screen, left: NDArray[np.int64]) -> None:
    largest, limits = np.empty(GROUP, np.int32), np.empty((len(screen.levels), GROUP), np.int32)
    for group in range(len(left)):
        _limits(text, screen, screen.check_levels[group, 0], group, limits[0])
        for token in range(0, len(text.states), ROWS):
            largest[0] = _LOWEST
            _raise_largest(text, screen, group, token, limits, largest)
            left[group] += largest[0] > _LOWEST


# --- machine code on disk ---


def compiled_in(cache: Path) -> Path:
    """Return where the machine code of these sources belongs below a cache folder."""
    modules = (__file__, quantise.__file__, llvm_blocks.__file__)
    sources = b"".join(Path(str(module)).read_bytes() for module in modules)
    return cache / f"sparse-head-{hashlib.sha256(sources).hexdigest()[:16]}"


def is_compiled(folder: Path | None) -> bool:
    """Return whether there is machine code already: in this process, or in ``folder``."""
    return bool(cast("Any", compute).signatures) or (folder is not None and any(folder.rglob("*.nbi")))


def keep_compiled(folder: Path | None) -> None:
    """Make numba load the machine code from ``folder``, or write it there when it is compiled.

    numba tells CPUs and its own versions apart, and replaces files whole. So several processes may do this at once.
    """
    if folder is None or cast("Any", compute).signatures:
        return
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        cast("Any", compute).enable_caching()
    finally:
        config.CACHE_DIR = before
