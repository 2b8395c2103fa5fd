"""Tiled sparse search against multiplying every pair."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import ArtefactError, MemoryBudgetError, StageError
from ensemble_assets.retrieval.sparse_topk import SparseIndex, SparseRows, sparse_topk
from ensemble_assets_tests.retrieval.resident import resident_bytes

LARGEST_TILE = 1 << 20


def sparse_rows(rows, dimension):
    """SparseRows from a list of lists of (term, weight)."""
    flat = [pair for row in rows for pair in row]
    return SparseRows(
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array([term for term, _ in flat], dtype=np.int32),
        np.array([weight for _, weight in flat], dtype=np.float32),
        dimension,
    )


def reference(documents, queries, k):
    """Term by term in ascending order in double precision, rounded to float32; then sorted."""
    ranked = []
    for query in queries:
        scores = []
        for document in documents:
            score = 0.0
            for term, weight in sorted(query, key=lambda pair: pair[0]):
                for other, other_weight in document:
                    if other == term:
                        score += float(np.float32(weight)) * float(np.float32(other_weight))
            scores.append(float(np.float32(score)))
        order = sorted((row for row in range(len(scores)) if scores[row] > 0), key=lambda row: (-scores[row], row))
        ranked.append([(row, scores[row]) for row in order[:k]])
    return ranked


def as_lists(topk):
    return [
        [(int(row), float(score)) for row, score in zip(rows[:filled], scores[:filled], strict=True)]
        for rows, scores, filled in zip(topk.rows, topk.scores, topk.filled, strict=True)
    ]


@st.composite
def searches(draw, weights):
    dimension = draw(st.integers(1, 12))
    row = st.lists(st.tuples(st.integers(0, dimension - 1), weights), max_size=8)  # unsorted, with repeated terms
    documents = draw(st.lists(row, max_size=30))
    if documents:
        documents = [documents[i] for i in draw(st.lists(st.integers(0, len(documents) - 1), max_size=40))]
    k = draw(st.integers(1, 45))
    least = 8 * dimension + 64 * (k + 1) + 24 * 8
    return (
        documents,
        draw(st.lists(row, max_size=5)),
        dimension,
        k,
        draw(st.integers(least, least + 4000) | st.just(LARGEST_TILE)),
    )


quarters = st.integers(0, 6).map(lambda n: n / 4)
any_weight = st.floats(0, 3, width=32)


@given(searches(quarters) | searches(any_weight))
def test_tiled_search_equals_multiplying_every_pair_at_any_tile_size(search):
    documents, queries, dimension, k, tile_bytes = search
    rows, asked = sparse_rows(documents, dimension), sparse_rows(queries, dimension)
    expected = reference(documents, queries, k)
    assert as_lists(sparse_topk(rows, asked, k, tile_bytes=tile_bytes)) == expected
    assert as_lists(SparseIndex(rows, tile_bytes=tile_bytes).topk(asked, k)) == expected


def random_rows(n, dimension, per_row, seed):
    generator = np.random.default_rng(seed)
    indices = np.concatenate([generator.choice(dimension, per_row, replace=False) for _ in range(n)] or [[]])
    return SparseRows(
        np.arange(n + 1, dtype=np.int64) * per_row,
        indices.astype(np.int32),
        generator.random(n * per_row, dtype=np.float32),
        dimension,
    )


def test_it_equals_the_product_of_dense_matrices():
    documents, queries = random_rows(400, 200, 30, seed=0), random_rows(20, 200, 12, seed=1)
    dense = [np.zeros((len(rows), 200)) for rows in (documents, queries)]
    for matrix, rows in zip(dense, (documents, queries), strict=True):
        matrix[np.repeat(np.arange(len(rows)), np.diff(rows.indptr)), rows.indices] = rows.values
    scores = dense[1] @ dense[0].T
    found = sparse_topk(documents, queries, 10, tile_bytes=100_000)
    np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :10], rtol=1e-6)


def test_documents_that_score_zero_are_not_candidates():
    documents = sparse_rows([[(0, 1.0)], [(1, 1.0)], [(0, 0.0)], []], 3)
    found = sparse_topk(documents, sparse_rows([[(0, 2.0)], [(2, 1.0)], []], 3), 4)
    assert found.filled.tolist() == [1, 0, 0]
    assert as_lists(found)[0] == [(0, 2.0)]


@pytest.mark.parametrize("identical", [False, True])
def test_working_memory_stays_below_tile_bytes(identical):
    documents, queries = random_rows(6000, 500, 60, seed=0), random_rows(50, 500, 20, seed=1)
    if identical:  # the worst case: every document is a candidate, and every posting list is as long as the tile
        documents = SparseRows(documents.indptr, np.tile(documents.indices[:60], 6000), documents.values, 500)
        documents.values[:] = 1
        queries = SparseRows(
            np.array([0, 60], dtype=np.int64), documents.indices[:60], documents.values[:60].copy(), 500
        )
    sparse_topk(documents, queries, 10)  # imports are not working memory
    tile_bytes, k = 2 << 20, 10
    tracemalloc.start()
    found = sparse_topk(documents, queries, k, tile_bytes=tile_bytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= tile_bytes + found.rows.size * 12
    if identical:
        assert found.rows[0].tolist() == list(range(10))


def test_the_order_in_which_terms_are_stored_does_not_matter():
    # 24929 * 673 = 2^24 + 1, so the large product lies half way between two float32 numbers; the two small ones decide,
    # unless they are added to it one by one.
    document = [(0, 24929 * 2.0**15), (1, 1.0), (2, 1.0)]
    query = [(0, 673 * 2.0**14), (1, 1.0), (2, 1.0)]
    scores = {
        as_lists(sparse_topk(sparse_rows([document[::step]], 3), sparse_rows([query[::other]], 3), 1))[0][0][1]
        for step in (1, -1)
        for other in (1, -1)
    }
    assert len(scores) == 1


def test_memory_mapped_arrays_give_the_same_and_leave_no_pages_resident(tmp_path):
    documents, queries = random_rows(20_000, 100, 20, seed=0), random_rows(2, 100, 10, seed=1)
    for name in ("indptr", "indices", "values"):
        np.save(tmp_path / f"{name}.npy", getattr(documents, name))
    mapped = SparseRows(*(np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("indptr", "indices", "values")), 100)
    found = sparse_topk(mapped, queries, 7, tile_bytes=1 << 20)
    assert as_lists(found) == as_lists(sparse_topk(documents, queries, 7))
    for name in ("indices", "values"):
        resident = resident_bytes(tmp_path / f"{name}.npy")
        if resident is None:
            pytest.skip("this system does not tell resident pages per file")
        assert resident < documents.values.nbytes / 10


def test_an_empty_collection_and_no_queries_give_empty_lists():
    assert sparse_topk(sparse_rows([], 4), sparse_rows([[(1, 1.0)]], 4), 3).filled.tolist() == [0]
    assert sparse_topk(sparse_rows([[(1, 1.0)]], 4), sparse_rows([], 4), 3).filled.tolist() == []


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["documents", "queries"])
def test_a_weight_out_of_range_is_refused(bad, where):
    good, wrong = sparse_rows([[(0, 1.0)]], 2), sparse_rows([[(0, 1.0), (1, bad)]], 2)
    with pytest.raises(ArtefactError, match=f"sparse {where}.*: a weight is negative or not finite"):
        sparse_topk(wrong, good, 1) if where == "documents" else sparse_topk(good, wrong, 1)


@pytest.mark.parametrize("term", [-1, 2])
def test_a_term_outside_the_vocabulary_is_refused(term):
    with pytest.raises(ArtefactError, match=r"sparse documents 0 to 0: term numbers .*; expected 0 to 1"):
        sparse_topk(sparse_rows([[(0, 1.0), (term, 1.0)]], 2), sparse_rows([[(0, 1.0)]], 2), 1)


def test_different_vocabularies_are_refused():
    with pytest.raises(ArtefactError, match="documents have 5 terms and queries 4"):
        sparse_topk(sparse_rows([], 5), sparse_rows([], 4), 1)


@pytest.mark.parametrize(
    ("indptr", "message"),
    [
        (np.array([0, 1], dtype=np.int32), "indptr is int32 with 1 dimensions; expected one-dimensional int64"),
        (np.array([0, 3], dtype=np.int64), "does not divide 2 indices and 2 values"),
        (np.array([1, 2], dtype=np.int64), "does not divide"),
        (np.array([0, 2, 1, 2], dtype=np.int64), "does not divide"),
        (np.array([], dtype=np.int64), "does not divide"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(indptr, message):
    wrong = SparseRows(indptr, np.zeros(2, np.int32), np.ones(2, np.float32), 4)
    with pytest.raises(ArtefactError, match=message):
        sparse_topk(wrong, sparse_rows([], 4), 1)


def test_a_depth_below_one_is_refused():
    with pytest.raises(StageError, match="0 rows per query"):
        sparse_topk(sparse_rows([], 4), sparse_rows([], 4), 0)


def test_too_small_a_tile_names_the_document_and_what_is_needed():
    documents = sparse_rows([[(0, 1.0)], [(0, 1.0), (1, 1.0), (2, 1.0)]], 4)
    needed = 8 * 4 + 64 * 2 + 64 + 3 * 24
    assert as_lists(sparse_topk(documents, sparse_rows([[(1, 1.0)]], 4), 5, tile_bytes=needed)) == [[(1, 1.0)]]
    with pytest.raises(MemoryBudgetError, match=f"needs {needed} bytes of working memory for document 1; .*Raise"):
        sparse_topk(documents, sparse_rows([[(1, 1.0)]], 4), 5, tile_bytes=needed - 1)
