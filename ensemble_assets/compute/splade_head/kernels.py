"""The loops of the sparse head, compiled: rotate and quantise a text's states, screen all terms, compute the few left.

Plain numba around the vector code of ``vector_blocks``. What the numbers mean, and why no positive term can be lost, is
``screening``; choosing this path and running it on threads is ``sparse_head``.
"""

from __future__ import annotations

import hashlib
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
    quantised,
    rotated,
)

DONE, NOT_FINITE, TOO_MANY = 0, 1, 2
"""How a text ended: computed; has a NaN or infinity; screening left so much that plain products are faster."""

_LOWEST = -(2**31)
_FARTHEST_PRODUCT = 2.0**30
"""Beyond what quantised products of fewer than 16,000 coordinates can be, as a limit."""

_FARTHEST = 1e15
"""States beyond this are left to plain products: their squares would leave float32."""

_EXACT_SHARE = 32
_EXACT_LEAST = 64
"""A text is given up when more terms than these, one in so many and so many more, need all tokens one by one."""


class Outputs(NamedTuple):
    """Sparse vectors of ``B`` texts.

    Attributes:
        term: ``[B, k] int32``, -1 before; ``[B, 0]`` to have ``weight`` per vocabulary entry.
        weight: ``[B, k]`` or ``[B, V] float32``, 0 before.
        active: ``[B] int32``, 0 before: positive weights before pruning.
        ends: ``[B] uint8``, DONE before; the other outputs of a text that ends otherwise are left alone.
    """

    term: NDArray[np.int32]
    weight: NDArray[np.float32]
    active: NDArray[np.int32]
    ends: NDArray[np.uint8]


@compiled
def _beyond(values: NDArray[np.float32], limit: float) -> bool:
    """Whether any value is not smaller than the limit, or not a number."""
    count = 0
    for row in range(values.shape[0]):
        for at in range(values.shape[1]):
            count += not abs(values[row, at]) < limit
    return count > 0


@compiled
def _slack(text: QuantisedText, screen: Screen, level: int, place: int) -> float:
    """How far a logit up to a level can lie from its quantised value, in steps of the term (see ``screening``)."""
    return float(
        text.blur[level] * screen.reach[level, place]
        + text.reach[level] * screen.blur[level, place]
        + text.rounding * screen.reach[-1, place]
    )


@compiled
def _limits(text: QuantisedText, screen: Screen, level: int, group: int, out: NDArray[np.int32]) -> None:
    """Quantised products, tails included, up to which a group's logits cannot be positive, ``[GROUP]``."""
    own = slice(group * GROUP, (group + 1) * GROUP)  # which the compiler can see to be within the arrays
    centre, sums, whole = screen.centre[own], screen.sums[level, own], screen.reach[-1, own]
    reach, blur = screen.reach[level, own], screen.blur[level, own]
    text_reach, text_blur, inverse = text.reach[level], text.blur[level], 1 / text.step
    for lane in range(GROUP):
        slack = text_blur * reach[lane] + text_reach * blur[lane] + text.rounding * whole[lane]
        limit = OFFSET * sums[lane] - (centre[lane] + slack) * inverse - 2  # rounded to zero: up to one too high
        limit = limit if limit > -_FARTHEST_PRODUCT else -_FARTHEST_PRODUCT
        out[lane] = np.int32(limit if limit < _FARTHEST_PRODUCT else _FARTHEST_PRODUCT)


@compiled
def _raise_largest(
    text: QuantisedText, screen: Screen, group: int, token: int, limits: NDArray[np.int32], largest: NDArray[np.int32]
) -> None:
    """``largest_block`` for the tokens from ``token`` on and a group of terms."""
    width, levels = text.states.shape[1], len(screen.levels)
    largest_block(
        text.states.ctypes.data + token * width,
        width,
        text.tails.ctypes.data + token // ROWS * levels * 4,
        screen.packed.ctypes.data + group * width * GROUP,
        screen.plan.ctypes.data + group * levels * 16,
        screen.checks[group],
        screen.tail.ctypes.data + group * levels * GROUP * 4,
        limits.ctypes.data,
        largest.ctypes.data,
    )


@compiled
def _upper_bounds(text: QuantisedText, screen: Screen, out: NDArray[np.float64]) -> None:
    """What the largest logit of every term cannot exceed if it is positive, ``[P]``; minus infinity if it is not."""
    last = len(screen.levels) - 1
    largest, limits = np.empty(GROUP, np.int32), np.empty((last + 1, GROUP), np.int32)
    for group in range(len(screen.checks)):
        for stage in range(screen.checks[group]):
            _limits(text, screen, screen.level[group, stage], group, limits[stage])
        for lane in range(GROUP):
            largest[lane] = _LOWEST
        for token in range(0, len(text.states), ROWS):
            _raise_largest(text, screen, group, token, limits, largest)
        for lane in range(GROUP):
            place = group * GROUP + lane
            near = text.step * (largest[lane] - OFFSET * screen.sums[last, place])
            bound = (screen.centre[place] + near + _slack(text, screen, last, place)) * screen.scale[place]
            out[place] = bound if largest[lane] > _LOWEST else -np.inf


@compiled
def _columns(text: QuantisedText) -> NDArray[np.int32]:
    """The states as columns, GROUP tokens at a time, ``[T / GROUP, K / 4, GROUP]``, filled up with the last token."""
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
def _products(columns: NDArray[np.int32], screen: Screen, places: NDArray[np.int64], out: NDArray[np.int32]) -> None:
    """Quantised products, of all coordinates, of up to ROWS terms with all tokens: ``out [ROWS, T]``."""
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


@numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator, unused-ignore]
def _logit(state: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    total = 0.0
    for at in range(len(state)):
        total += np.float64(state[at]) * np.float64(weights[at])
    return total


@compiled
def _largest_logit(
    states: NDArray[np.float32], screen: Screen, term: int, products: NDArray[np.int32], least: np.int32
) -> tuple[float, int]:
    """The largest logit of the tokens whose quantised product is at least ``least``; and how many those were."""
    best, computed = -np.inf, 0
    for token in range(len(states)):
        if products[token] >= least:
            best = max(best, _logit(states[token], screen.matrix[term]))
            computed += 1
    return best + screen.bias[term], computed


@compiled
def _weights(
    states: NDArray[np.float32],
    text: QuantisedText,
    screen: Screen,
    places: NDArray[np.int64],
    found: tuple[NDArray[np.int32], NDArray[np.float32]],
) -> int:
    """Terms and weights of the positive ones among candidates; returns how many, or -1 if there is too much to do."""
    columns = _columns(text)
    products = np.empty((ROWS, columns.shape[0] * GROUP), np.int32)
    last, count, left = len(screen.levels) - 1, 0, len(states) * (len(screen.matrix) // _EXACT_SHARE + _EXACT_LEAST)
    for first in range(0, len(places), ROWS):
        some = places[first : first + ROWS]
        _products(columns, screen, some, products)
        for row in range(len(some)):
            place, largest = some[row], np.int32(_LOWEST)
            for token in range(products.shape[1]):
                largest = max(largest, products[row, token])
            slack = _slack(text, screen, last, place)
            origin = screen.centre[place] - text.step * OFFSET * screen.sums[last, place]
            if origin + text.step * largest + slack <= 0:
                continue
            # only a token that may be both positive and the largest can decide
            least = np.int32(max(largest - 2 * slack / text.step - 1, (-origin - slack) / text.step - 1, _LOWEST))
            logit, computed = _largest_logit(states, screen, screen.term[place], products[row], least)
            left -= computed
            if left < 0:
                return -1
            weight = np.float32(np.log1p(max(logit, 0.0)))
            if weight > 0:
                found[0][count], found[1][count] = screen.term[place], weight
                count += 1
    return count


@compiled
def upper_bounds(states: NDArray[np.float32], screen: Screen) -> NDArray[np.float64]:
    """What positive logits of every term over a text's tokens cannot exceed: ``[tokens, H] float32`` -> ``[P]``."""
    out = np.empty(len(screen.term), np.float64)
    own, turned = longest_first(states, rotated(states, screen))
    _upper_bounds(quantised(own, turned, screen), screen, out)
    return out


@compiled
def left_by_check(states: NDArray[np.float32], screen: Screen) -> NDArray[np.int64]:
    """How many blocks of a text's tokens every group's first check leaves, ``[P / GROUP]``."""
    own, turned = longest_first(states, rotated(states, screen))
    text = quantised(own, turned, screen)
    left = np.zeros(len(screen.checks), np.int64)
    largest, limits = np.empty(GROUP, np.int32), np.empty((len(screen.levels), GROUP), np.int32)
    for group in range(len(left)):
        _limits(text, screen, screen.level[group, 0], group, limits[0])
        for token in range(0, len(text.states), ROWS):
            largest[0] = _LOWEST
            _raise_largest(text, screen, group, token, limits, largest)
            left[group] += largest[0] > _LOWEST
    return left


@compiled
def encode(states: NDArray[np.float32], spans: NDArray[np.int64], screen: Screen, out: Outputs) -> None:
    """Sparse vectors of some texts.

    Args:
        states: ``[tokens, H] float32``.
        spans: ``[B, 2] int64``: first token and number of tokens of every text.
        screen: the vocabulary.
        out: what to fill.
    """
    bounds, places = np.empty(len(screen.term), np.float64), np.empty(len(screen.term), np.int64)
    terms, values = np.empty(len(screen.term), np.int32), np.empty(len(screen.term), np.float32)
    for row in range(len(spans)):
        if spans[row, 1] == 0:
            continue
        own = states[spans[row, 0] : spans[row, 0] + spans[row, 1]]
        turned = rotated(own, screen)
        own, turned = longest_first(own, turned)
        if _beyond(turned, _FARTHEST):
            out.ends[row] = NOT_FINITE if _beyond(own, np.inf) else TOO_MANY
            continue
        text = quantised(own, turned, screen)
        _upper_bounds(text, screen, bounds)
        found = 0
        for place in range(len(bounds)):
            places[found] = place
            found += bounds[place] > 0
        count = _weights(own, text, screen, places[:found], (terms, values))
        if count < 0:
            out.ends[row] = TOO_MANY
            continue
        out.active[row] = count
        if out.term.shape[1]:
            keep_largest(terms[:count], values[:count], out.term[row], out.weight[row])
        else:
            for at in range(count):
                out.weight[row, terms[at]] = values[at]


def compiled_in(cache: Path) -> Path:
    """Where the machine code of these sources belongs below a cache folder."""
    modules = (__file__, quantise.__file__, llvm_blocks.__file__)
    sources = b"".join(Path(str(module)).read_bytes() for module in modules)
    return cache / f"sparse-head-{hashlib.sha256(sources).hexdigest()[:16]}"


def is_compiled(folder: Path | None) -> bool:
    """Whether the code need not be made: it was in this process, or by another one that kept it."""
    return bool(cast("Any", encode).signatures) or (folder is not None and any(folder.rglob("*.nbi")))


def keep_compiled(folder: Path | None) -> None:
    """Have later processes load the machine code from ``folder`` instead of making it again.

    numba tells CPUs and its own versions apart, and replaces files whole: several processes may do this at once.
    """
    if folder is None or cast("Any", encode).signatures:
        return
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        for outermost in (left_by_check, encode):
            cast("Any", outermost).enable_caching()
    finally:
        config.CACHE_DIR = before
