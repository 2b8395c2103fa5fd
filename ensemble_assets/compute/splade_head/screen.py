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
3. A few tokens and a group of terms are multiplied together, coordinate after coordinate, and given up as soon as a
   check finds no bound among them above zero. Terms are grouped by how far below zero their logits lie, and after how
   many coordinates it pays to check is tried, for every group, on a few texts.

This module does 1 to 3 in numpy, once per model and run; the loops over texts are ``screen_kernels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.splade_head.kernels import left_by_check
from ensemble_assets.compute.splade_head.llvm_blocks import GROUP, ROWS
from ensemble_assets.compute.splade_head.quantise import Screen

_SAMPLE_TOKENS = 8192
_ORDER_TOKENS = 256
_TRIAL_TEXTS = 8
_EIGHTHS = (1, 2, 3, 4, 5, 6)
_COST_OF_A_CHECK = 10
"""In coordinates: measured."""

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
    few = centred[:: -(-len(centred) // _ORDER_TOKENS)].astype(np.float32) @ basis
    order = np.argsort(_left_alone(terms, few), kind="stable")
    chosen = np.linspace(0, len(spans) - 1, min(_TRIAL_TEXTS, len(spans))).astype(np.int64)
    texts = [states[first : first + count] for first, count in spans[chosen]]
    fixed = frame | _by_order(terms, order)
    left = _trial(fixed, terms, order, texts, threads)
    return Screen(**fixed, **_checks(terms, order, _cheapest(left, terms.levels)))


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


def _left_alone(terms: _Terms, turned: NDArray[np.float32]) -> NDArray[np.float64]:
    """What share of single tokens checks at some levels leave to every term, summed, ``[V]``; ties by their bounds."""
    z = terms.quantised[:, : turned.shape[1]] * terms.scale[:, None].astype(np.float32)
    left = np.zeros(len(z))
    for level in range(min(4, len(terms.levels)))[1:] or [0]:
        end = terms.levels[level]
        bounds = turned[:, :end] @ z[:, :end].T + terms.centre.astype(np.float32)
        bounds += np.outer(np.linalg.norm(turned[:, end:], axis=1), terms.left_out[level].astype(np.float32))
        left += (bounds > 0).mean(axis=0) + 1e-3 * np.tanh(bounds.mean(axis=0))
    return left


def _trial(
    fixed: dict[str, Any],
    terms: _Terms,
    order: NDArray[np.int64],
    texts: list[NDArray[np.float32]],
    threads: int,
) -> NDArray[np.float64]:
    """The share of the blocks of tokens that a check at each level but the last leaves to a group: ``[L - 1, G]``."""
    groups = -(-len(order) // GROUP)
    blocks = sum(-(-len(text) // ROWS) for text in texts)
    left = []
    with ThreadPoolExecutor(threads) as pool:
        for level in range(len(terms.levels) - 1):
            screen = Screen(**fixed, **_checks(terms, order, [[level]] * groups))
            left.append(sum(pool.map(left_by_check, texts, repeat(screen))) / blocks)
    return np.array(left).reshape(len(terms.levels) - 1, groups)


def _cheapest(left: NDArray[np.float64], levels: NDArray[np.int64]) -> list[list[int]]:
    """The levels at which every group is checked: least expected work.

    The shortest way from no coordinate to all of them; a step's length is the share of blocks that take it times the
    coordinates and the check at its end.
    """
    last = len(levels) - 1
    ends, shares = np.concatenate([[0], levels]), np.vstack([np.ones((1, left.shape[1])), left])
    cost, following = np.zeros((last + 2, left.shape[1])), np.zeros((last + 1, left.shape[1]), np.int64)
    for start in range(last, -1, -1):
        steps = [
            shares[start] * (ends[end] - ends[start] + _COST_OF_A_CHECK * (end <= last)) + cost[end]
            for end in range(start + 1, last + 2)
        ]
        following[start] = start + 1 + np.argmin(steps, axis=0)
        cost[start] = np.min(steps, axis=0)
    return [_way(following[:, group], last) for group in range(left.shape[1])]


def _way(following: NDArray[np.int64], last: int) -> list[int]:
    at, way = int(following[0]), list[int]()
    while at <= last:
        way.append(at - 1)
        at = int(following[at])
    return way


def _by_order(terms: _Terms, order: NDArray[np.int64]) -> dict[str, Any]:
    """A screen's fields that depend on the terms' order, ``[V]``, alone."""
    width, groups = terms.quantised.shape[1], -(-len(order) // GROUP)
    rows = _placed(terms.quantised[order], groups)
    packed = rows.reshape(groups, GROUP, width // 4, 4).transpose(0, 2, 1, 3)
    return {
        "levels": terms.levels,
        "packed": np.ascontiguousarray(packed).reshape(groups, width // 4, GROUP * 4),
        "rows": rows.view(np.int32),
        "scale": _placed(terms.scale[order], groups, 1.0),
        "centre": _placed((terms.centre / terms.scale)[order], groups, -np.inf),
        "term": _placed(order.astype(np.int32), groups, -1),
        "sums": _placed(terms.sums[:, order].T, groups).T.copy(),
        "reach": _placed((terms.reach / terms.scale)[:, order].T, groups).T.copy(),
        "blur": _placed((terms.blur / terms.scale)[:, order].T, groups).T.copy(),
    }


def _checks(terms: _Terms, order: NDArray[np.int64], chosen: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A screen's fields that depend on the levels, ascending, at which each group is checked, too."""
    groups, width = len(chosen), len(terms.levels)
    level = np.array([[*own, *[width - 1] * (width - len(own))] for own in chosen], np.int64)
    tails = _placed(np.ceil(terms.left_out[:, order] / terms.scale[order] * 1.0001).astype(np.int64).T, groups)
    own = np.take_along_axis(tails.reshape(groups, GROUP, width), level[:, None, :], axis=2).transpose(0, 2, 1)
    four = (own[..., None] + np.arange(4)) // 4  # bytes that add up to the whole
    return {
        "checks": np.array([len(one) for one in chosen], np.int64),
        "level": level,
        "plan": np.stack([terms.levels[level] // 4, level * 4], axis=2),
        "tail": four.astype(np.int8).reshape(groups, width, GROUP * 4),
    }


def _placed(values: NDArray[Any], groups: int, fill: float = 0) -> NDArray[Any]:
    """Values per term, filled up to whole groups."""
    out = np.full((groups * GROUP, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
