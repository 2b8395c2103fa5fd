"""Tiled dense search against scoring and sorting everything."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_limits

from ensemble_assets.common.errors import ArtefactError, MemoryBudgetError
from ensemble_assets.retrieval.dense_topk import DenseModel, dense_topk
from ensemble_assets_tests.retrieval.resident import resident_bytes

LARGEST_TILE = 1 << 20


def reference(model, k):
    """Every pair alone, exactly summed, times the row's norm, rounded to float32; then sorted."""
    norms = np.ones(len(model.documents), np.float32) if model.norms is None else model.norms
    ranked = []
    for query in model.queries:
        scores = []
        for document, norm in zip(model.documents, norms, strict=True):
            products = [float(a) * float(b) for a, b in zip(document, query, strict=True)]
            scores.append(float(np.float32(float(norm) * math.fsum(products))))
        order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
        ranked.append([(row, scores[row]) for row in order])
    return ranked


def as_lists(topk):
    return [
        [(int(row), float(score)) for row, score in zip(rows[:filled], scores[:filled], strict=True)]
        for rows, scores, filled in zip(topk.rows, topk.scores, topk.filled, strict=True)
    ]


quarters = st.integers(-8, 8).map(lambda n: n / 4)  # their sums are exact, and they tie often
any_float = st.floats(-2, 2, width=32)


@st.composite
def searches(draw, elements):
    n_rows, n_queries = draw(st.integers(0, 40)), draw(st.integers(0, 5))
    dimension = draw(st.integers(1, 11))
    documents = draw(hnp.arrays(np.float32, (n_rows, dimension), elements=elements))
    if n_rows:
        documents = documents[draw(st.lists(st.integers(0, n_rows - 1), min_size=n_rows, max_size=n_rows))]
    queries = draw(hnp.arrays(np.float32, (n_queries, dimension), elements=elements))
    lengths = hnp.arrays(np.float32, n_rows, elements=st.sampled_from([0.0, 0.25, 1.0, 6.0]))
    model = DenseModel("m", documents, queries, draw(st.none() | lengths))
    k = draw(st.integers(1, 50))
    return model, k, draw(st.integers(48 * k + 72, 48 * k + 6000) | st.just(LARGEST_TILE))


@given(searches(quarters))
def test_tiled_search_equals_sorting_everything(search):
    model, k, tile_bytes = search
    assert as_lists(dense_topk(model, k, tile_bytes=tile_bytes)) == reference(model, k)


@given(searches(any_float))
def test_the_tile_size_changes_nothing(search):
    model, k, tile_bytes = search
    small, large = dense_topk(model, k, tile_bytes=tile_bytes), dense_topk(model, k, tile_bytes=LARGEST_TILE)
    np.testing.assert_array_equal(small.rows, large.rows)
    np.testing.assert_array_equal(small.scores, large.scores)
    np.testing.assert_array_equal(small.filled, large.filled)


def vectors(n_rows, n_queries, dimension, seed=0):
    generator = np.random.default_rng(seed)
    documents = generator.standard_normal((n_rows, dimension), dtype=np.float32)
    queries = generator.standard_normal((n_queries, dimension), dtype=np.float32)
    return documents / np.linalg.norm(documents, axis=1)[:, None], queries / np.linalg.norm(queries, axis=1)[:, None]


@pytest.mark.parametrize("tile_bytes", [200_000, 1_000_000, 64 << 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_identical_rows_tie_exactly_wherever_they_lie_and_however_many_threads_run(tile_bytes, threads):
    distinct, queries = vectors(37, 7, 383)  # an odd width: matrix kernels treat the last rows and columns differently
    documents = np.tile(distinct, (61, 1))
    with threadpool_limits(threads):
        found = dense_topk(DenseModel("m", documents, queries), 150, tile_bytes=tile_bytes)
    assert as_lists(found) == as_lists(dense_topk(DenseModel("m", documents, queries), 150))
    for rows, scores in zip(found.rows, found.scores, strict=True):
        for original in np.unique(rows % 37):
            copies = rows[rows % 37 == original]
            assert len(np.unique(scores[rows % 37 == original])) == 1
            np.testing.assert_array_equal(copies, original + 37 * np.arange(len(copies)))


@pytest.mark.parametrize("scale", [1, 1e-22])  # the squares of the small ones are 0 in float32
def test_rows_closer_than_a_float32_product_can_tell_apart_are_ordered_by_their_real_score(scale):
    documents, queries = vectors(1, 3, 768)
    documents = np.repeat(documents * np.float32(scale), 500, axis=0)
    generator = np.random.default_rng(1)
    documents[np.arange(500), generator.integers(0, 768, 500)] *= np.float32(1 + 2e-6)
    model = DenseModel("m", documents, queries)
    assert as_lists(dense_topk(model, 20, tile_bytes=100_000)) == reference(model, 20)


def test_rows_of_very_different_length_are_found():
    documents, queries = vectors(300, 4, 16)
    documents *= (10.0 ** np.linspace(-25, 10, 300, dtype=np.float64)).astype(np.float32)[:, None]
    model = DenseModel("m", documents[::-1].copy(), queries * np.float32(1e-12))
    assert as_lists(dense_topk(model, 300, tile_bytes=20_000)) == reference(model, 300)


def test_norms_of_very_different_size_rank_as_the_vectors_that_they_belong_to():
    documents, queries = vectors(300, 4, 16)
    norms = (10.0 ** np.linspace(-20, 10, 300, dtype=np.float64)).astype(np.float32)
    model = DenseModel("m", documents, queries, norms)
    assert as_lists(dense_topk(model, 300, tile_bytes=20_000)) == reference(model, 300)


@pytest.mark.parametrize("identical", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_working_memory_stays_below_tile_bytes(identical, scaled):
    documents, queries = vectors(8_000, 200, 8)
    if identical:  # the worst case: every row is a candidate of every query
        documents[:] = documents[0]
    model = DenseModel("m", documents, queries, np.full(8_000, 3, np.float32) if scaled else None)
    tile_bytes, k = 6 << 20, 10
    tracemalloc.start()
    dense_topk(model, k, tile_bytes=tile_bytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= tile_bytes + 200 * k * 12 + (4 << 20)


def test_a_memory_mapped_collection_gives_the_same_and_leaves_no_pages_resident(tmp_path):
    documents, queries = vectors(20_000, 3, 64)
    path = tmp_path / "vectors.npy"
    np.save(path, documents)
    mapped = np.load(path, mmap_mode="r")
    found = dense_topk(DenseModel("m", mapped, queries), 5, tile_bytes=1 << 20)
    np.testing.assert_array_equal(found.rows, dense_topk(DenseModel("m", documents, queries), 5).rows)
    resident = resident_bytes(path)
    if resident is None:
        pytest.skip("this system does not tell resident pages per file")
    assert resident < documents.nbytes / 10


def test_a_copy_on_write_map_keeps_what_was_written_to_it(tmp_path):
    documents, queries = vectors(100, 2, 8)
    np.save(tmp_path / "vectors.npy", np.zeros_like(documents))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="c")
    mapped[:] = documents
    dense_topk(DenseModel("m", mapped, queries), 5)
    np.testing.assert_array_equal(mapped, documents)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_named_by_its_row(bad):
    documents, queries = vectors(50, 2, 8)
    documents[33, 3] = bad
    with pytest.raises(ArtefactError, match=r"minilm: the vector of row 33 is not finite"):
        dense_topk(DenseModel("minilm", documents, queries), 5, tile_bytes=2000)


def test_a_query_vector_that_is_not_finite_is_named_by_its_number():
    documents, queries = vectors(5, 2, 8)
    queries[1, 0] = np.nan
    with pytest.raises(ArtefactError, match=r"minilm: the vector of query 1 is not finite"):
        dense_topk(DenseModel("minilm", documents, queries), 5)


@pytest.mark.parametrize(
    ("documents", "queries", "message"),
    [
        (np.zeros((3, 4)), np.zeros((1, 4), np.float32), r"documents are float64 of shape \(3, 4\); expected float32"),
        (np.zeros((3, 4), np.float32), np.zeros(4, np.float32), r"queries are float32 of shape \(4,\)"),
        (np.zeros((3, 4), np.float32), np.zeros((1, 5), np.float32), "documents have 4 dimensions and queries 5"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(documents, queries, message):
    with pytest.raises(ArtefactError, match=message):
        dense_topk(DenseModel("m", documents, queries), 1)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (np.ones(3, np.float32), r"m: \(3,\) norms for 4 rows"),
        (np.array([1, 2, -1, 1], np.float32), "m: the norm of row 2 is -1.0"),
        (np.array([1, np.nan, 1, 1], np.float32), "m: the norm of row 1 is nan"),
    ],
)
def test_norms_that_are_none_are_refused(norms, message):
    with pytest.raises(ArtefactError, match=message):
        dense_topk(DenseModel("m", *vectors(4, 1, 4), norms), 1)


def test_too_small_a_tile_names_what_is_needed():
    with pytest.raises(MemoryBudgetError, match="needs at least 552 bytes of working memory; tile_bytes is 551"):
        dense_topk(DenseModel("m", *vectors(30, 1, 4)), 10, tile_bytes=551)
