"""Prepare a vocabulary so that almost all of its terms can be ruled out for a text without computing their logits.

``prepare`` is the entry. It runs once per model and run, in numpy, and fits the screen to a few texts of the run. The
screen is correct for all texts and fast for similar ones. ``docs/sparse-head.md`` derives the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.splade_head.kernels import blocks_left
from ensemble_assets.compute.splade_head.llvm_blocks import GROUP, ROWS
from ensemble_assets.compute.splade_head.quantise import Screen

_SAMPLE_TOKENS = 8192
"""Most tokens that mean and covariance are computed from. It bounds the time that fitting takes."""

_ORDER_TOKENS = 128
"""Most tokens that decide the order of the terms. Their products with all terms are held at once, in float32."""

_TRIAL_TEXTS = 2
"""Most texts on which every level is tried for every group. With 8 of them, and 256 tokens for the
order, fitting takes 0.69 s in the place of 0.25 s, and blocks cost 0.9 % less (60 SciFact documents)."""

_EIGHTHS = (1, 2, 3, 4, 5, 6)
"""A check is possible after so many eighths of the coordinates."""

_COST_OF_A_CHECK = 10
"""Time of a check, in coordinates of a block's products: measured."""

_RIDGE = 1e-4
"""Added to the covariance's diagonal, as a share of its mean: the sample may not span all directions."""

_EPSILON = 2.0**-24
"""Relative rounding error of a float32 operation."""

_ROUNDED_UP = 1.0001
"""Factor on norms computed in float32: their relative error is smaller."""


@dataclass(frozen=True)
class _Terms:
    """Quantised terms in vocabulary order; ``Screen`` explains the quantities.

    ``quantised`` is ``[V, K] int8``; ``scale`` and ``mean_logit`` are ``[V] float64``, ``levels`` ``[L] int64``, the
    others ``[L, V] float64``: ``tail_norm`` of the coordinates after each level, the rest of those up to it.
    """

    quantised: NDArray[np.int8]
    scale: NDArray[np.float64]
    mean_logit: NDArray[np.float64]
    levels: NDArray[np.int64]
    tail_norm: NDArray[np.float64]
    sums: NDArray[np.float64]
    norm: NDArray[np.float64]
    error: NDArray[np.float64]


def prepare(
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32],
    states: NDArray[np.float32],
    spans: NDArray[np.int64],
    threads: int = 1,
) -> Screen:
    """Make a screen for a vocabulary, fitted to some texts.

    Args:
        matrix: ``[V, H] float32``, finite.
        bias: ``[V] float32``, finite.
        states: ``[tokens, H] float32``.
        spans: ``[B, 2] int64``: first token and number of tokens of every text; none empty, all their states finite.
        threads: for trying levels.
    """
    tokens = np.concatenate([np.arange(first, first + count) for first, count in spans])
    sample = states[_every_nth(tokens, _SAMPLE_TOKENS)].astype(np.float64)
    mean = sample.mean(axis=0).astype(np.float32)
    centred = sample - mean
    basis = _balanced(centred.T @ centred / len(centred), matrix)
    terms = _quantised_terms(matrix, bias, mean, basis)
    rotated = _every_nth(centred, _ORDER_TOKENS).astype(np.float32) @ basis
    order = np.argsort(_how_often_left(terms, rotated), kind="stable")
    fixed = _in_order(terms, order) | {
        "mean": mean,
        "basis": _column_blocks(basis),
        "matrix": matrix,
        "bias": bias.astype(np.float64),
        "mean_norm": float(np.linalg.norm(mean.astype(np.float64))),
        "rounding": (matrix.shape[1] + 4) * _EPSILON * float(np.linalg.norm(basis.astype(np.float64))),
    }
    chosen = np.linspace(0, len(spans) - 1, min(_TRIAL_TEXTS, len(spans))).astype(np.int64)
    texts = [states[first : first + count] for first, count in spans[chosen]]
    shares = _shares_left(fixed, terms, order, texts, threads)
    return Screen(**fixed, **_checks(terms, order, _cheapest_checks(shares, terms.levels)))


def _every_nth(values: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most ``most`` values, evenly spaced."""
    return values[:: -(-len(values) // most)]


def _balanced(covariance: NDArray[np.float64], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rotation and scaling A of the states, ``[H, H]``, by falling share of the logits' variance.

    In the new coordinates states and terms have the same diagonal covariance, as in balanced truncation (Moore, 1981).
    So the part that the first few coordinates leave out is small on both sides.
    """
    hidden = len(covariance)
    size = float(np.trace(covariance)) / hidden or 1.0
    root = np.linalg.cholesky(covariance + _RIDGE * size * np.eye(hidden))
    gram = (matrix.T @ matrix).astype(np.float64) / len(matrix)
    values, vectors = np.linalg.eigh(root.T @ gram @ root)
    values, vectors = values[::-1], vectors[:, ::-1]
    # directions that no term uses would get an infinite scale on one side
    scales = np.maximum(values, max(float(values[0]), 1e-30) * 1e-6) ** 0.25
    basis: NDArray[np.float32] = (np.linalg.solve(root.T, vectors) * scales).astype(np.float32)
    return basis


def _quantised_terms(
    matrix: NDArray[np.float32], bias: NDArray[np.float32], mean: NDArray[np.float32], basis: NDArray[np.float32]
) -> _Terms:
    """Rotate the terms by A^-1 and round them to 8 bits."""
    size, hidden = matrix.shape
    width = -(-hidden // 4) * 4  # the dot-product instruction takes four coordinates at a time
    levels = np.unique([max(4, int(hidden * part / 32) * 4) for part in _EIGHTHS] + [width])
    inverse = np.linalg.inv(basis.astype(np.float64)).T
    z = np.zeros((size, width), np.float32)
    z[:, :hidden] = matrix @ inverse.astype(np.float32)
    norms = np.linalg.norm(matrix, axis=1)
    rounding = (hidden + 4) * _EPSILON * np.linalg.norm(inverse) * norms
    squares = _squares_by_level(z, levels)
    tail_norm = np.sqrt(np.concatenate([np.cumsum(squares[:0:-1], axis=0)[::-1], np.zeros((1, size))])) + rounding
    # a coordinate becomes -127 to 127; a tail norm, split into four such numbers, 0 to 500
    scale = np.maximum(np.maximum(np.abs(z).max(axis=1) / 127, tail_norm[0] / 500), 1e-30).astype(np.float32)
    near = np.rint(z / scale[:, None])
    z -= near * scale[:, None]  # z is the quantisation error from here on
    return _Terms(
        quantised=near.astype(np.int8),
        scale=scale.astype(np.float64),
        mean_logit=matrix @ mean + bias + (hidden + 4) * _EPSILON * (norms * np.linalg.norm(mean) + np.abs(bias)),
        levels=levels,
        tail_norm=tail_norm,
        sums=np.cumsum(np.add.reduceat(near, _starts(levels), axis=1).T, axis=0, dtype=np.float64),
        norm=np.sqrt(np.cumsum(squares, axis=0)) * _ROUNDED_UP + rounding,
        error=np.sqrt(np.cumsum(_squares_by_level(z, levels), axis=0)) * _ROUNDED_UP + rounding,
    )


def _starts(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], levels[:-1]])


def _squares_by_level(values: NDArray[np.float32], levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum the squares of the coordinates between one level and the next, ``[L, V]``."""
    sums: NDArray[np.float64] = np.add.reduceat(values * values, _starts(levels), axis=1).T.astype(np.float64)
    return sums


def _column_blocks(basis: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut ``[H, H]`` into blocks of columns ``[blocks, H, GROUP]``, enough for K columns; those past H are zero."""
    hidden = len(basis)
    blocks = -(-hidden // GROUP)
    wide = np.zeros((hidden, blocks * GROUP), np.float32)
    wide[:, :hidden] = basis
    return np.ascontiguousarray(wide.reshape(hidden, blocks, GROUP).transpose(1, 0, 2))


def _how_often_left(terms: _Terms, rotated: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return for every term the share of sampled tokens that early checks do not rule out, summed over levels: ``[V]``.

    A group is given up only if all its terms are ruled out. So terms that are ruled out as often share a group.
    """
    z = terms.quantised[:, : rotated.shape[1]] * terms.scale[:, None].astype(np.float32)
    left = np.zeros(len(z))
    for level in range(min(4, len(terms.levels)))[1:] or [0]:
        end = terms.levels[level]
        bounds = rotated[:, :end] @ z[:, :end].T + terms.mean_logit.astype(np.float32)
        bounds += np.outer(np.linalg.norm(rotated[:, end:], axis=1), terms.tail_norm[level].astype(np.float32))
        # the second summand orders terms with equal shares by how far below zero their bounds lie
        left += (bounds > 0).mean(axis=0) + 1e-3 * np.tanh(bounds.mean(axis=0))
    return left


def _shares_left(
    fixed: dict[str, Any], terms: _Terms, order: NDArray[np.int64], texts: list[NDArray[np.float32]], threads: int
) -> NDArray[np.float64]:
    """Try a check at each level but the last: the share of blocks of tokens left to each group, ``[L - 1, groups]``."""
    groups = -(-len(order) // GROUP)
    blocks = sum(-(-len(text) // ROWS) for text in texts)
    shares = []
    with ThreadPoolExecutor(threads) as pool:
        for level in range(len(terms.levels) - 1):
            screen = Screen(**fixed, **_checks(terms, order, [[level]] * groups))
            shares.append(sum(pool.map(blocks_left, texts, repeat(screen))) / blocks)
    return np.array(shares).reshape(len(terms.levels) - 1, groups)


def _cheapest_checks(shares: NDArray[np.float64], levels: NDArray[np.int64]) -> list[list[int]]:
    """Choose the levels at which every group is checked, so that the expected work is least.

    It is the shortest path from no coordinate to all of them. A step from one check to the next costs the share of
    blocks left at its start (``_shares_left``), times the coordinates between them and the check at its end.
    """
    last = len(levels) - 1
    # node 0 stands before all coordinates, node n at level n - 1
    ends, left = np.concatenate([[0], levels]), np.vstack([np.ones((1, shares.shape[1])), shares])
    cost, following = np.zeros((last + 2, left.shape[1])), np.zeros((last + 1, left.shape[1]), np.int64)
    for start in range(last, -1, -1):
        steps = [
            left[start] * (ends[end] - ends[start] + _COST_OF_A_CHECK * (end <= last)) + cost[end]
            for end in range(start + 1, last + 2)
        ]
        following[start] = start + 1 + np.argmin(steps, axis=0)
        cost[start] = np.min(steps, axis=0)
    return [_path(following[:, group], last) for group in range(left.shape[1])]


def _path(following: NDArray[np.int64], last: int) -> list[int]:
    """Follow a shortest path from node 0: the levels of its checks."""
    node, levels = int(following[0]), list[int]()
    while node <= last:
        levels.append(node - 1)
        node = int(following[node])
    return levels


def _in_order(terms: _Terms, order: NDArray[np.int64]) -> dict[str, Any]:
    """Return the fields of a screen that depend on the terms and their order ``[V]``, but not on the checks."""
    width, groups = terms.quantised.shape[1], -(-len(order) // GROUP)
    rows = _placed(terms.quantised[order], groups)
    packed = rows.reshape(groups, GROUP, width // 4, 4).transpose(0, 2, 1, 3)
    return {
        "levels": terms.levels,
        "packed": np.ascontiguousarray(packed).reshape(groups, width // 4, GROUP * 4),
        "rows": rows.view(np.int32),
        "scale": _placed(terms.scale[order], groups, 1.0),
        "mean_logit": _placed((terms.mean_logit / terms.scale)[order], groups, -np.inf),
        "term": _placed(order.astype(np.int32), groups, -1),
        "sums": _placed(terms.sums[:, order].T, groups).T.copy(),
        "norm": _placed((terms.norm / terms.scale)[:, order].T, groups).T.copy(),
        "error": _placed((terms.error / terms.scale)[:, order].T, groups).T.copy(),
    }


def _checks(terms: _Terms, order: NDArray[np.int64], chosen: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the fields of a screen that depend on the levels, ascending, at which each group is checked."""
    groups, width = len(chosen), len(terms.levels)
    check_levels = np.array([[*levels, *[width - 1] * (width - len(levels))] for levels in chosen], np.int64)
    in_steps = np.ceil(terms.tail_norm[:, order] / terms.scale[order] * _ROUNDED_UP).astype(np.int64)
    by_group = _placed(in_steps.T, groups).reshape(groups, GROUP, width)
    tails = np.take_along_axis(by_group, check_levels[:, None, :], axis=2).transpose(0, 2, 1)
    four_parts = (tails[..., None] + np.arange(4)) // 4  # bytes that add up to the norm
    return {
        "checks": np.array([len(levels) for levels in chosen], np.int64),
        "check_levels": check_levels,
        "plan": np.stack([terms.levels[check_levels] // 4, check_levels * 4], axis=2),
        "tails": four_parts.astype(np.int8).reshape(groups, width, GROUP * 4),
    }


def _placed(values: NDArray[Any], groups: int, fill: float = 0) -> NDArray[Any]:
    """Fill values per term up to whole groups."""
    out = np.full((groups * GROUP, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
