"""Prepares a vocabulary so that almost all of its terms can be ruled out for a text without computing their logits.

A term counts for a text only if its largest logit over the text's tokens is positive, which for a trained SPLADE model
is about one term in a hundred. So an upper bound of that logit is computed cheaply for all terms, and the logit itself
only for those whose bound is positive. Nothing positive is lost, whatever the states: the bound is never too low.

With states h, their mean m, a term's row w and bias b, and any invertible A:

    h.w + b = (m.w + b) + y.z,   y = (h - m) A,   z = A^-1 w

1. Over the first k coordinates, with the rest bounded by Cauchy-Schwarz: y.z <= y[:k].z[:k] + |y[k:]| |z[k:]|.
   A balances states and terms (as balanced truncation does, Moore 1981): both have the same diagonal covariance in the
   new coordinates, by falling size, which makes what few coordinates leave out small on both sides.
2. In 8-bit numbers, with the rounding bounded the same way, for the rounded q of y and r of z:
   y.z - q.r = (y - q).z + q.(z - r) <= |y - q| |z| + |q| |z - r|. Norms of y's part are a text's largest.
3. How many coordinates rule a term out at least cost differs between terms, so it is tried on a few texts; terms that
   need the same number are screened together.

This module does 1 to 3 in numpy, once per model and run; the loops over texts are ``screen_kernels``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ensemble_assets.compute.quantised_text import Screen
from ensemble_assets.compute.screen_kernels import upper_bounds
from ensemble_assets.compute.vector_blocks import GROUP

_SAMPLE_TOKENS = 8192
_TRIAL_TEXTS = 8
_EIGHTHS = (1, 2, 3, 4, 5, 6)
_COST_OF_A_CANDIDATE = 1.7
"""Of looking at a term that was not ruled out, in screenings of all its coordinates: measured."""

_RIDGE = 1e-4
_EPSILON = 2.0**-24


@dataclass(frozen=True)
class _Terms:
    """Quantised terms in vocabulary order; see ``Screen`` for the quantities.

    Attributes:
        quantised: ``[V, K] int8``.
        scale: ``[V] float64``.
        centre: ``[V] float64``.
        levels: ``[L] int64``.
        left_out: ``[L, V] float64``: norm of the coordinates after each level.
        sums, reach, blur: ``[L, V] float64``: of the coordinates up to each level.
    """

    quantised: NDArray[np.int8]
    scale: NDArray[np.float64]
    centre: NDArray[np.float64]
    levels: NDArray[np.int64]
    left_out: NDArray[np.float64]
    sums: NDArray[np.float64]
    reach: NDArray[np.float64]
    blur: NDArray[np.float64]


def prepare(
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32],
    states: NDArray[np.float32],
    spans: NDArray[np.int64],
    threads: int = 1,
) -> Screen:
    """A screen for a vocabulary, fitted to some texts; right for all texts, fast for similar ones.

    Args:
        matrix: ``[V, H] float32``, finite.
        bias: ``[V] float32``, finite.
        states: ``[tokens, H] float32``.
        spans: ``[B, 2] int64``: first token and number of tokens of every text; none empty, all their states finite.
        threads: for trying levels.
    """
    tokens = np.concatenate([np.arange(first, first + count) for first, count in spans])
    sample = states[tokens[:: -(-len(tokens) // _SAMPLE_TOKENS)]].astype(np.float64)
    mean = sample.mean(axis=0).astype(np.float32)
    centred = sample - mean
    basis = _balanced(centred.T @ centred / len(centred), matrix)
    terms = _quantise(matrix, bias, mean, basis)
    frame = {
        "mean": mean,
        "basis": _column_blocks(basis),
        "matrix": matrix,
        "bias": bias.astype(np.float64),
        "norm": float(np.linalg.norm(mean.astype(np.float64))),
        "rounding": (matrix.shape[1] + 4) * _EPSILON * float(np.linalg.norm(basis.astype(np.float64))),
    }
    chosen = np.linspace(0, len(spans) - 1, min(_TRIAL_TEXTS, len(spans))).astype(np.int64)
    bounds = _trial(frame, terms, [states[first : first + count] for first, count in spans[chosen]], threads)
    order, level = _cheapest(bounds, terms.levels)
    return Screen(**frame, **_by_order(terms, order, len(level)), **_by_level(terms, order, level))


def _balanced(covariance: NDArray[np.float64], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rotation and scaling A of the states, ``[H, H]``, by falling share of the logits' variance."""
    hidden = len(covariance)
    scale = float(np.trace(covariance)) / hidden or 1.0
    root = np.linalg.cholesky(covariance + _RIDGE * scale * np.eye(hidden))
    gram = (matrix.T @ matrix).astype(np.float64) / len(matrix)
    values, vectors = np.linalg.eigh(root.T @ gram @ root)
    values, vectors = values[::-1], vectors[:, ::-1]
    # directions that no term uses would get an infinite scale on one side
    sizes = np.maximum(values, max(float(values[0]), 1e-30) * 1e-6) ** 0.25
    basis: NDArray[np.float32] = (np.linalg.solve(root.T, vectors) * sizes).astype(np.float32)
    return basis


def _quantise(
    matrix: NDArray[np.float32], bias: NDArray[np.float32], mean: NDArray[np.float32], basis: NDArray[np.float32]
) -> _Terms:
    size, hidden = matrix.shape
    width = -(-hidden // 4) * 4
    levels = np.unique([max(4, int(hidden * part / 32) * 4) for part in _EIGHTHS] + [width])
    inverse = np.linalg.inv(basis.astype(np.float64)).T
    z = np.zeros((size, width), np.float32)
    z[:, :hidden] = matrix @ inverse.astype(np.float32)
    norms = np.linalg.norm(matrix, axis=1)
    rounding = (hidden + 4) * _EPSILON * np.linalg.norm(inverse) * norms
    parts = _squares(z, levels)
    rest = np.sqrt(np.concatenate([np.cumsum(parts[:0:-1], axis=0)[::-1], np.zeros((1, size))])) + rounding
    scale = np.maximum(np.maximum(np.abs(z).max(axis=1) / 127, rest[0] / 500), 1e-30).astype(np.float32)
    near = np.rint(z / scale[:, None])
    z -= near * scale[:, None]
    return _Terms(
        quantised=near.astype(np.int8),
        scale=scale.astype(np.float64),
        centre=matrix @ mean + bias + (hidden + 4) * _EPSILON * (norms * np.linalg.norm(mean) + np.abs(bias)),
        levels=levels,
        left_out=rest,
        sums=np.cumsum(np.add.reduceat(near, _starts(levels), axis=1).T, axis=0, dtype=np.float64),
        reach=np.sqrt(np.cumsum(parts, axis=0)) * 1.0001 + rounding,
        blur=np.sqrt(np.cumsum(_squares(z, levels), axis=0)) * 1.0001 + rounding,
    )


def _starts(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], levels[:-1]])


def _squares(values: NDArray[np.float32], levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of squares of the coordinates between one level and the next, ``[L, V]``."""
    sums: NDArray[np.float64] = np.add.reduceat(values * values, _starts(levels), axis=1).T.astype(np.float64)
    return sums


def _column_blocks(basis: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[H, H]`` -> ``[blocks, H, GROUP]``, enough columns for K, those past H zero."""
    hidden = len(basis)
    blocks = -(-hidden // GROUP)
    wide = np.zeros((hidden, blocks * GROUP), np.float32)
    wide[:, :hidden] = basis
    return np.ascontiguousarray(wide.reshape(hidden, blocks, GROUP).transpose(1, 0, 2))


def _trial(frame: dict[str, Any], terms: _Terms, texts: list[NDArray[np.float32]], threads: int) -> NDArray[np.float64]:
    """Upper bounds of every term's logit when all are screened at one level: ``[texts, L, V]``."""
    size = len(terms.scale)
    order, groups = np.arange(size), -(-size // GROUP)
    first = Screen(**frame, **_by_order(terms, order, groups), **_by_level(terms, order, np.zeros(groups, np.int64)))
    out = np.empty((len(texts), len(terms.levels), size))
    with ThreadPoolExecutor(threads) as pool:
        for level in range(len(terms.levels)):
            screen = first._replace(**_by_level(terms, order, np.full(groups, level)))
            for row, bounds in enumerate(pool.map(upper_bounds, texts, repeat(screen))):
                out[row, level] = bounds[:size]
    return out


def _cheapest(bounds: NDArray[np.float64], levels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order of the terms, ``[V]``, and the level of every group in it: least expected work per text."""
    spread = np.maximum(bounds.std(axis=0).mean(axis=1), 1e-6)[:, None]
    stays = ndtr(bounds.mean(axis=0) / spread)  # the chance that a bound is positive, taking bounds for normal
    order = np.argsort(stays.sum(axis=0), kind="stable")
    cost = levels[:, None] + _COST_OF_A_CANDIDATE * levels[-1] * stays[:, order]
    starts = np.arange(0, len(order), GROUP)
    return order, np.add.reduceat(cost, starts, axis=1).argmin(axis=0)


def _by_order(terms: _Terms, order: NDArray[np.int64], groups: int) -> dict[str, Any]:
    """A screen's fields that depend on the terms' order, ``[V]``, alone."""
    width = terms.quantised.shape[1]
    rows = _placed(terms.quantised[order], groups)
    packed = rows.reshape(groups, GROUP, width // 4, 4).transpose(0, 2, 1, 3)
    return {
        "levels": terms.levels,
        "packed": np.ascontiguousarray(packed).reshape(groups, width // 4, GROUP * 4),
        "rows": rows.view(np.int32),
        "scale": _placed(terms.scale[order], groups, 1.0),
        "centre": _placed(terms.centre[order], groups, -np.inf),
        "term": _placed(order.astype(np.int32), groups, -1),
    }


def _by_level(terms: _Terms, order: NDArray[np.int64], level: NDArray[np.int64]) -> dict[str, Any]:
    """A screen's fields that depend on the levels of its groups, ``[P / GROUP]``, too."""
    groups, whole, own = len(level), len(terms.levels) - 1, np.repeat(level, GROUP)[: len(order)]

    def both(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([_placed(values[own, order], groups), _placed(values[whole, order], groups)])

    tails = np.ceil(terms.left_out[own, order] / terms.scale[order] * 1.0001).astype(np.int64)
    four = (tails[:, None] + np.arange(4)) // 4  # bytes that add up to the whole
    return {
        "level": level,
        "tail": _placed(four.astype(np.int8), groups).reshape(groups, GROUP * 4),
        "sums": both(terms.sums),
        "reach": both(terms.reach),
        "blur": both(terms.blur),
    }


def _placed(values: NDArray[Any], groups: int, fill: float = 0) -> NDArray[Any]:
    """Values per term, filled up to whole groups."""
    out = np.full((groups * GROUP, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
