"""Hold sparse vectors as arrays: single rows, and many rows in compressed row form (CSR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages

_ROWS_AT_ONCE = 4096
"""Rows converted at once: it bounds the memory of sorting them, and outputs may be memory-mapped."""


class SparseRow(NamedTuple):
    """One vector: ``[k] int32`` indices, ascending, and ``[k] float32`` weights, positive."""

    indices: NDArray[np.int32]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class SparseMatrix:
    """Sparse vectors in CSR form.

    Attributes:
        indptr: ``[n + 1] int64``; row ``i`` is ``indices[indptr[i]:indptr[i + 1]]`` and the same of ``values``.
        indices: ``[nnz] int32``, ascending within a row.
        values: ``[nnz] float32``, positive.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def row(self, number: int) -> SparseRow:
        """Return one row, as views."""
        span = slice(int(self.indptr[number]), int(self.indptr[number + 1]))
        return SparseRow(self.indices[span], self.values[span])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Entries per row, ``[n] int64``."""
        return np.diff(self.indptr)

    def norms(self) -> NDArray[np.float64]:
        """Compute the L2 norm of every row that has entries, in order."""
        filled = self.counts > 0
        starts = self.indptr[:-1][filled]
        if not len(starts):
            return np.empty(0, np.float64)
        squares = np.square(self.values, dtype=np.float64)
        norms: NDArray[np.float64] = np.sqrt(np.add.reduceat(squares, starts))
        return norms


def empty_matrix(rows: int) -> SparseMatrix:
    """Make ``rows`` rows without entries."""
    return SparseMatrix(np.zeros(rows + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))


def build_matrix(index: NDArray[Any], weight: NDArray[Any], instead: Mapping[int, SparseRow]) -> SparseMatrix:
    """Bring a sparse forward's pruned outputs into CSR form, with some rows replaced.

    Args:
        index: ``[n, k] int32``, unused places -1; may be memory-mapped.
        weight: ``[n, k] float32``.
        instead: row -> the vector that replaces the forward's output.
    """
    counts = np.zeros(len(index), np.int64)
    for start in range(0, len(index), _ROWS_AT_ONCE):
        counts[start : start + _ROWS_AT_ONCE] = (index[start : start + _ROWS_AT_ONCE] >= 0).sum(axis=1)
        drop_resident_pages(index)
    for row, replacement in instead.items():
        counts[row] = len(replacement.indices)
    indptr = np.zeros(len(index) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices, values = np.empty(int(indptr[-1]), np.int32), np.empty(int(indptr[-1]), np.float32)
    for start in range(0, len(index), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(index))
        part = index[start:stop].copy()
        for row in instead.keys() & range(start, stop):
            part[row - start] = -1
        order = np.argsort(part, axis=1, kind="stable")
        ascending = np.take_along_axis(part, order, axis=1)
        used = ascending >= 0
        places = _places(indptr[start:stop], used)
        indices[places] = ascending[used]
        values[places] = np.take_along_axis(weight[start:stop], order, axis=1)[used]
        drop_resident_pages(index)
        drop_resident_pages(weight)
    for row, replacement in instead.items():
        span = slice(int(indptr[row]), int(indptr[row + 1]))
        indices[span], values[span] = replacement
    return SparseMatrix(indptr, indices, values)


def _places(starts: NDArray[np.int64], used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the places of the used entries: one after another within each row, from the row's start."""
    rank = np.cumsum(used, axis=1) - 1
    return (starts[:, None] + rank)[used]


def positive_entries(weights: NDArray[np.float32]) -> SparseRow:
    """Return the positive entries of a dense row ``[vocabulary] float32``."""
    indices = np.flatnonzero(weights > 0)
    return SparseRow(indices.astype(np.int32), weights[indices])
