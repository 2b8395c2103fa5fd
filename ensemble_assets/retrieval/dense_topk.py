"""Search one model's dense vectors exactly: inner-product top-k in tiles of bounded memory.

Two steps per tile. A float32 matrix product finds every row that could belong to the k best, with the worst-case
rounding error of that product as margin. Those few rows are scored again in float64, one pair at a time in a fixed
order, and rounded once to float32. So the scores depend on nothing but the two vectors: not on the tile size, the
threads, the BLAS kernels or the row's place. Identical rows tie exactly.

Exact search is affordable below ten million rows, and a quality gate over it needs no tolerance band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.common.errors import ArtefactError, MemoryBudgetError
from ensemble_assets.retrieval.topk import BestSoFar, TopK, check_depth

DEFAULT_TILE_BYTES = 256 * 1024 * 1024

_BYTES_PER_CELL = 72  # float32 scores, partition copy and mask, and all temporaries when every cell is a candidate
_BYTES_PER_PLACE = 48  # one of the k places of one query, merged and sorted
_RESCORE_BYTES = 4 * 1024 * 1024  # pairs scored in float64 at a time; stays in cache
_QUERIES_AT_ONCE = 1024  # at most, so that a tile has room for many rows
_ROWS_WORTH_A_PRODUCT = 256  # the queries of a tile are halved before it has fewer rows than this
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_SMALLEST_NORMAL = 2.0**-126  # of float32; products below it may be flushed to zero


@dataclass(frozen=True)
class DenseModel:
    """One model's vectors, and its weight among several models.

    ``documents`` ``[n_rows, dim] float32`` may be memory-mapped; they and ``queries`` are unit rows when scores are to
    be cosines. A row's score is multiplied by ``norms`` ``[n_rows] float32``, not negative.
    """

    name: str
    documents: NDArray[np.float32]
    queries: NDArray[np.float32]
    norms: NDArray[np.float32] | None = None
    weight: float = 1.0


def dense_topk(model: DenseModel, k: int, *, tile_bytes: int = DEFAULT_TILE_BYTES) -> TopK:
    """Find the k rows with the highest score for every query: ``[n_queries, min(k, n_rows)]``, every place filled.

    The score of a pair is ``float32(norm * sum_i float64(document_i) * float64(query_i))``, the sum in numpy's pairwise
    order; it differs from the real value by at most half a unit in the last place of float32, plus 1e-13 relative to
    the sum of the products' magnitudes. Order: score descending, then row ascending.

    The working memory stays below ``tile_bytes``, besides the inputs, the result (12 bytes per place) and 4 MiB.

    Raises:
        ArtefactError: if shapes or types do not fit together, or a vector is not finite.
        StageError: if ``k`` is not positive.
        MemoryBudgetError: if ``tile_bytes`` does not hold one row for one query.
    """
    _check_arrays(model)
    n_rows, n_queries = len(model.documents), len(model.queries)
    check_depth(k, n_rows)
    k = min(k, max(n_rows, 1))
    best = BestSoFar(n_queries, k)
    if not n_rows or not n_queries:
        return best.result()
    search = _Search(model, best)
    rows_at_once, queries_at_once = _tile_shape(n_rows, n_queries, k, tile_bytes)
    for start in range(0, n_rows, rows_at_once):
        search.load_tile(start, min(start + rows_at_once, n_rows))
        for first in range(0, n_queries, queries_at_once):
            search.visit(first, min(first + queries_at_once, n_queries))
        drop_resident_pages(model.documents)
    return best.result()


class _Search:
    """A search of one tile of rows after the other against all queries."""

    def __init__(self, model: DenseModel, best: BestSoFar) -> None:
        self.model = model
        self.best = best
        self.query_norms = _norms_above(model.queries, model.name, "query", 0)
        self.start = 0
        self.documents = model.documents[:0]
        self.norms = model.norms
        self.longest = self.largest_norm = 0.0

    def load_tile(self, start: int, stop: int) -> None:
        """Make rows ``start`` to ``stop`` the current tile."""
        model = self.model
        self.start = start
        self.documents = model.documents[start:stop]
        lengths = _norms_above(self.documents, model.name, "row", start)
        if model.norms is not None:
            self.norms = model.norms[start:stop]
            lengths = lengths * _checked_norms(self.norms, model.name, start)
            self.largest_norm = float(self.norms.max())
        self.longest = float(lengths.max())

    def visit(self, first: int, last: int) -> None:
        """Offer the rows of the current tile that may be among the best of queries ``first`` to ``last``."""
        approximate = self._approximate(first, last)
        floors = self._floors(approximate, first, last)
        cells = np.flatnonzero(approximate >= floors[:, None])
        queries, columns = np.divmod(cells, approximate.shape[1])
        queries += first
        scores = self._exact(queries, columns)
        self.best.offer(queries, scores, columns + self.start)

    def _approximate(self, first: int, last: int) -> NDArray[np.float32]:
        """Compute float32 scores of all pairs of the tile, ``[last - first, n_tile]``."""
        scores: NDArray[np.float32] = self.model.queries[first:last] @ self.documents.T
        if self.norms is not None:
            scores *= self.norms
        return scores

    def _floors(self, approximate: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
        """Compute the approximate score below which a row cannot be among the k best, ``[last - first] float32``."""
        margin = self._error_bounds(first, last)
        floors = self.best.floors(first, last).astype(np.float64) - margin
        k = self.best.k
        unfilled = np.flatnonzero(np.isneginf(floors))
        if len(unfilled) and approximate.shape[1] > k:
            kth = np.partition(approximate[unfilled], -k, axis=1)[:, -k]
            # The k rows at or above kth have real scores at or above kth - margin; others may exceed that by margin.
            floors[unfilled] = kth - 2 * margin[unfilled]
        return floors.astype(np.float32)

    def _error_bounds(self, first: int, last: int) -> NDArray[np.float64]:
        """Bound the distance of an approximate score from the exact one, ``[last - first] float64``.

        |fl(x.y) - x.y| <= n u / (1 - n u) |x| |y| for any order of summation (Higham, Accuracy and Stability of
        Numerical Algorithms, 3.1), n products of unit roundoff u. A few n more for the norm and comparisons, twice the
        whole for the rounding of the norms, and what flushing tiny products to zero can lose.
        """
        dimension = self.documents.shape[1]
        rounding = 2 * (dimension + 8) * _UNIT_ROUNDOFF
        flushed = dimension * _SMALLEST_NORMAL * max(1.0, self.largest_norm)
        bound: NDArray[np.float64] = rounding * self.query_norms[first:last] * self.longest + flushed
        return bound

    def _exact(self, queries: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the scores of pairs (query number, tile row), each computed alone in float64: ``[n_pairs]``."""
        scores = np.empty(len(queries))
        step = max(1, _RESCORE_BYTES // (20 * self.documents.shape[1]))
        for start in range(0, len(queries), step):
            pairs = slice(start, start + step)
            products = self.documents[columns[pairs]].astype(np.float64)
            products *= self.model.queries[queries[pairs]]
            scores[pairs] = products.sum(axis=1)
        if self.norms is not None:
            scores *= self.norms[columns]
        return scores.astype(np.float32)


def _check_arrays(model: DenseModel) -> None:
    """Check that the arrays fit together."""
    for role, array in (("documents", model.documents), ("queries", model.queries)):
        if array.ndim != 2 or array.dtype != np.float32 or not array.shape[1]:
            raise ArtefactError(
                f"{model.name}: {role} are {array.dtype} of shape {array.shape}; expected float32 [n, dim]. "
                "Materialise the embeddings again"
            )
    if model.documents.shape[1] != model.queries.shape[1]:
        raise ArtefactError(
            f"{model.name}: documents have {model.documents.shape[1]} dimensions and queries "
            f"{model.queries.shape[1]}. Encode both with the same model"
        )
    if model.norms is not None and model.norms.shape != (len(model.documents),):
        raise ArtefactError(
            f"{model.name}: {model.norms.shape} norms for {len(model.documents)} rows. Materialise the embeddings again"
        )


def _checked_norms(norms: NDArray[np.float32], name: str, first: int) -> NDArray[np.float32]:
    """Refuse norms that are negative or not finite."""
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms >= 0)))
    if len(bad):
        raise ArtefactError(
            f"{name}: the norm of row {first + int(bad[0])} is {norms[bad[0]]}; expected a number of at least 0. "
            "Materialise the embeddings again"
        )
    return norms


def _tile_shape(n_rows: int, n_queries: int, k: int, tile_bytes: int) -> tuple[int, int]:
    """Choose the rows and queries of one tile: as many queries as leave room for a worthwhile number of rows."""
    queries = min(n_queries, _QUERIES_AT_ONCE)
    while True:
        rows = (tile_bytes // queries - k * _BYTES_PER_PLACE) // _BYTES_PER_CELL
        if rows >= min(n_rows, _ROWS_WORTH_A_PRODUCT) or queries == 1:
            break
        queries = (queries + 1) // 2
    if rows < 1:
        raise MemoryBudgetError(
            f"dense top-{k} needs at least {k * _BYTES_PER_PLACE + _BYTES_PER_CELL} bytes of working memory; "
            f"tile_bytes is {tile_bytes}. Raise tile_bytes"
        )
    return min(rows, n_rows), queries


def _norms_above(vectors: NDArray[np.float32], name: str, what: str, first: int) -> NDArray[np.float64]:
    """Compute Euclidean norms, or slightly more where squares underflow, ``[n] float64``.

    A vector that is not finite, or so large that its squares are not, is an ``ArtefactError``.
    """
    with np.errstate(over="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise ArtefactError(
            f"{name}: the vector of {what} {first + int(bad[0])} is not finite ({len(bad)} such in this tile). "
            "Materialise the embeddings again"
        )
    norms: NDArray[np.float64] = np.sqrt(squares + vectors.shape[1] * _SMALLEST_NORMAL)
    return norms
