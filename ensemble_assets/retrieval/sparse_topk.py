"""Search sparse vectors exactly: dot-product top-k in tiles of documents whose posting lists fit a memory bound.

Each tile is turned into posting lists (one per term) and every query adds up the lists of its own terms. Sums run in
float64 in ascending term order and are rounded once: scores and ties do not depend on the tile size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.common.errors import ArtefactError, MemoryBudgetError
from ensemble_assets.retrieval.topk import BestSoFar, TopK, check_depth

DEFAULT_TILE_BYTES = 256 * 1024 * 1024

_BYTES_PER_WEIGHT = 24  # posting lists, and a query's copy of the ones it needs, in float32 and float64
_BYTES_PER_ROW = 64  # score buffers, mask, candidate rows and keys of one query
_BYTES_PER_TERM = 8  # posting list offsets
_WEIGHTS_PER_TILE = 2**31 - 1  # scipy's sparse kernels count in int32


@dataclass(frozen=True)
class SparseRows:
    """Sparse vectors as rows of one matrix in compressed row form (CSR).

    Attributes:
        indptr: ``[n + 1] int64``; row ``i`` is ``indices[indptr[i]:indptr[i + 1]]``, as in ``values``.
        indices: ``[n_weights] int32``, term numbers below ``dimension``; a term that repeats in a row is summed.
        values: ``[n_weights] float32``, finite, not negative.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    dimension: int

    def __len__(self) -> int:
        return len(self.indptr) - 1


def sparse_topk(documents: SparseRows, queries: SparseRows, k: int, *, tile_bytes: int = DEFAULT_TILE_BYTES) -> TopK:
    """Find the k documents with the highest positive dot product for every query.

    The score of a pair is ``float32(sum_t float64(document_t) * float64(query_t))``, summed in ascending term order
    (the products are exact in float64). Order: score descending, then row ascending. Documents that score 0 are not
    candidates: a query gets fewer than k places, or none, when fewer documents share a term with it.

    The working memory stays below ``tile_bytes``, besides the inputs and the result (12 bytes per place).

    Raises:
        ArtefactError: if arrays do not fit together, or an index or a weight is out of range.
        StageError: if ``k`` is not positive.
        MemoryBudgetError: if ``tile_bytes`` does not hold the longest document.
    """
    _check_layout(documents, "documents")
    _check_queries(queries, documents.dimension)
    check_depth(k, len(documents))
    k = min(k, max(len(documents), 1))
    terms = _sorted_by_term(queries)
    best = BestSoFar(len(queries), k)
    for start, stop in _tiles(documents, k, tile_bytes):
        _search(_postings(documents, start, stop), terms, best, start)
        drop_resident_pages(documents.indices)
        drop_resident_pages(documents.values)
    return best.result()


class SparseIndex:
    """The posting lists of all documents, made once for searches that come one after the other."""

    def __init__(self, documents: SparseRows, *, tile_bytes: int = DEFAULT_TILE_BYTES) -> None:
        _check_layout(documents, "documents")
        self._documents, self._dimension = len(documents), documents.dimension
        tiles = _tiles(documents, 1, tile_bytes)
        self._tiles = [(start, _postings(documents, start, stop)) for start, stop in tiles]

    def topk(self, queries: SparseRows, k: int) -> TopK:
        """Find the k documents with the highest positive dot product for every query; see ``sparse_topk``."""
        _check_queries(queries, self._dimension)
        check_depth(k, self._documents)
        terms = _sorted_by_term(queries)
        best = BestSoFar(len(queries), min(k, max(self._documents, 1)))
        for start, postings in self._tiles:
            _search(postings, terms, best, start)
        return best.result()


def _search(postings: Any, queries: SparseRows, best: BestSoFar, start: int) -> None:
    """Offer the rows of a tile that may be among the best of every query, whose terms ascend."""
    for query in range(len(queries)):
        row = slice(queries.indptr[query], queries.indptr[query + 1])
        if row.start < row.stop:
            # A float64 vector makes scipy multiply and add in float64.
            scores = postings[:, queries.indices[row]] @ queries.values[row].astype(np.float64)
            _offer(best, query, scores.astype(np.float32), start)


def _offer(best: BestSoFar, query: int, scores: NDArray[np.float32], start: int) -> None:
    """Hand over the rows of a tile that may be among the best: ``scores`` is ``[n_tile]``, row 0 being ``start``."""
    floor = max(float(best.floors(query, query + 1)[0]), 0.0)
    columns = np.flatnonzero(scores > np.float32(floor))  # tiles ascend: an equal score with a later row comes too late
    if len(columns) > best.k:
        kth = np.partition(scores[columns], -best.k)[-best.k]
        columns = columns[scores[columns] >= kth]
    best.offer_one(query, scores[columns], columns + start)


def _postings(documents: SparseRows, start: int, stop: int) -> Any:
    """Make documents ``start`` to ``stop`` a scipy CSC matrix ``[stop - start, dimension] float32``."""
    import scipy.sparse  # slow to import, and only this stage needs it

    first, last = int(documents.indptr[start]), int(documents.indptr[stop])
    indices, values = documents.indices[first:last], documents.values[first:last]
    _check_content(indices, values, documents.dimension, f"sparse documents {start} to {stop - 1}")
    indptr = (documents.indptr[start : stop + 1] - first).astype(np.int32)
    shape = (stop - start, documents.dimension)
    return scipy.sparse.csr_array((values, indices, indptr), shape=shape).tocsc()


def _check_queries(queries: SparseRows, dimension: int) -> None:
    _check_layout(queries, "queries")
    if dimension != queries.dimension:
        raise ArtefactError(
            f"sparse documents have {dimension} terms and queries {queries.dimension}. Encode both with the same model"
        )


def _sorted_by_term(queries: SparseRows) -> SparseRows:
    """Sort the terms of every query: the order in which scores are summed."""
    _check_content(queries.indices, queries.values, queries.dimension, "sparse queries")
    of_query = np.repeat(np.arange(len(queries)), np.diff(queries.indptr))
    order = np.lexsort((queries.indices, of_query))
    return SparseRows(queries.indptr, queries.indices[order], queries.values[order], queries.dimension)


def _tiles(documents: SparseRows, k: int, tile_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut the rows into ranges, each as long as its posting lists and score buffers fit ``tile_bytes``."""
    fixed = _BYTES_PER_TERM * documents.dimension + _BYTES_PER_ROW * k
    room = min(tile_bytes - fixed, _BYTES_PER_WEIGHT * _WEIGHTS_PER_TILE)

    def need(row: int) -> int:
        return int(documents.indptr[row]) * _BYTES_PER_WEIGHT + row * _BYTES_PER_ROW

    start = 0
    while start < len(documents):
        stop = bisect_right(range(len(documents) + 1), need(start) + room, lo=start, key=need) - 1
        if stop <= start:
            raise MemoryBudgetError(
                f"sparse top-{k} needs {need(start + 1) - need(start) + fixed} bytes of working memory for document "
                f"{start}; tile_bytes is {tile_bytes}. Raise tile_bytes"
            )
        yield start, stop
        start = stop


def _check_layout(rows: SparseRows, what: str) -> None:
    expected = {"indptr": np.int64, "indices": np.int32, "values": np.float32}
    for name, dtype in expected.items():
        array = getattr(rows, name)
        if array.ndim != 1 or array.dtype != dtype:
            raise ArtefactError(
                f"sparse {what}: {name} is {array.dtype} with {array.ndim} dimensions; expected one-dimensional "
                f"{np.dtype(dtype)}. Materialise the sparse vectors again"
            )
    ends = (int(rows.indptr[0]), int(rows.indptr[-1])) if len(rows.indptr) else None
    if ends != (0, len(rows.indices)) or len(rows.indices) != len(rows.values) or (np.diff(rows.indptr) < 0).any():
        raise ArtefactError(
            f"sparse {what}: indptr does not divide {len(rows.indices)} indices and {len(rows.values)} values into "
            "rows. Materialise the sparse vectors again"
        )


def _check_content(indices: NDArray[np.int32], values: NDArray[np.float32], dimension: int, where: str) -> None:
    if not len(indices):
        return
    if indices.min() < 0 or indices.max() >= dimension:
        raise ArtefactError(
            f"{where}: term numbers from {indices.min()} to {indices.max()}; expected 0 to {dimension - 1}. "
            "Materialise the sparse vectors again"
        )
    # A NaN fails the first comparison.
    if not (values.min() >= 0 and values.max() < np.inf):
        raise ArtefactError(
            f"{where}: a weight is negative or not finite; expected non-negative numbers. "
            "Materialise the sparse vectors again"
        )
