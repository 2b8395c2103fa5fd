"""Compute the sparse head by matrix products: exactly, on every CPU. Tests compare the compiled screen with it.

A float32 product in numpy gives every logit up to a rounding error whose bound is known. Only logits that may be
positive and the largest of their term are computed again in float64. A faster product, such as one in bfloat16, may
rule out most terms before. So all paths of the head give the same bits: the largest float64 logit, rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_TILE = 4096
"""Vocabulary entries at once: with 512 tokens, 8 MiB of products."""

_PAIRS = 16384
"""(token, term) pairs computed in float64 at once: 16 MiB of rows of 128 numbers."""

_WITHIN_FLOAT32 = 1e30
"""Products are computed in float32 below this bound of their size, else in float64."""

_EPSILON = 2.0**-24
"""Relative rounding error of a float32 operation."""

_UNDERFLOW = 1e-30
"""Added to bounds: a product unit may take numbers below 1e-38 for 0."""


class LargestProducts(Protocol):
    """Products of an output layer that another library computes.

    ``error`` is the largest that a product has, as a part of the product of the two norms.
    """

    error: float

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the largest product of every term with any state of a text ``[T, H]``: ``[V]``."""


@dataclass(frozen=True)
class Layer:
    """An output layer: ``matrix [V, H] float32``, ``bias [V] float64``, ``norms [V] float64`` of the matrix's rows."""

    matrix: NDArray[np.float32]
    bias: NDArray[np.float64]
    norms: NDArray[np.float64]

    def of(self, terms: NDArray[np.int64]) -> Layer:
        """Return the layer of some terms."""
        return Layer(self.matrix[terms], self.bias[terms], self.norms[terms])


def positive_terms(
    states: NDArray[np.float32], layer: Layer, products: LargestProducts | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Compute the terms whose largest logit over a text's tokens is positive, and their weights log1p(logit).

    ``states`` are ``[tokens, H] float32``, finite, at least one. ``products`` rule terms out first. Terms come out
    ascending, ``[n] int32``, weights ``[n] float32``.
    """
    longest = float(np.sqrt(np.square(states, dtype=np.float64).sum(axis=1).max()))
    if products is None or longest * float(layer.norms.max(initial=0.0)) >= _WITHIN_FLOAT32:
        return _positive(states, layer, longest)
    error = products.error * longest * layer.norms + _UNDERFLOW * (1 + longest + layer.norms)
    candidates = np.flatnonzero(products(states) + layer.bias + error > 0)
    terms, weights = _positive(states, layer.of(candidates), longest)
    return candidates[terms].astype(np.int32), weights


def _positive(
    states: NDArray[np.float32], layer: Layer, longest: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    matrix, bias, norms = layer.matrix, layer.bias, layer.norms
    # rounding error of an inner product, whatever the order of summation (Higham 2002, 3.5)
    slack = 1.01 * (len(states[0]) + 2) * _EPSILON * (longest * norms + np.abs(bias))
    dtype = np.float32 if longest * float(norms.max(initial=0.0)) < _WITHIN_FLOAT32 else np.float64
    logits = np.empty(len(matrix))
    for left in range(0, len(matrix), _TILE):
        span = slice(left, left + _TILE)
        logits[span] = _largest_logits(states, matrix[span], bias[span], slack[span], dtype)
    weights = np.log1p(np.maximum(logits, 0.0)).astype(np.float32)
    terms = np.flatnonzero(weights > 0)
    return terms.astype(np.int32), weights[terms]


def _largest_logits(
    states: NDArray[np.float32],
    matrix: NDArray[np.float32],
    bias: NDArray[np.float64],
    slack: NDArray[np.float64],
    dtype: type[np.floating],
) -> NDArray[np.float64]:
    """Return the largest logits of a tile's terms: exact where they are positive, minus infinity elsewhere."""
    products = states.astype(dtype, copy=False) @ matrix.astype(dtype, copy=False).T
    largest = products.max(axis=0)
    candidates = np.flatnonzero(largest + bias + slack > 0)
    # a token decides only if its logit may be the largest and may be positive
    least = np.maximum(largest[candidates] - 2 * slack[candidates], -bias[candidates] - slack[candidates])
    tokens, at = np.nonzero(products[:, candidates] >= least)
    out = np.full(len(matrix), -np.inf)
    for start in range(0, len(tokens), _PAIRS):
        rows, terms = tokens[start : start + _PAIRS], candidates[at[start : start + _PAIRS]]
        exact = np.einsum("ij,ij->i", states[rows].astype(np.float64), matrix[terms].astype(np.float64))
        np.maximum.at(out, terms, exact + bias[terms])
    return out
