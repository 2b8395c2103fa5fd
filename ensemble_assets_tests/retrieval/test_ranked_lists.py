"""RUN frames of search results, and chunk ids on them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.frame_schemas import RUN
from ensemble_assets.retrieval.dense_topk import DenseModel, dense_topk
from ensemble_assets.retrieval.ranked_lists import run_from_topk, with_chunk_ids
from ensemble_assets.retrieval.sparse_topk import SparseRows, sparse_topk


def test_a_search_result_becomes_ranked_lists_in_query_order():
    documents = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    queries = np.array([[2, 1], [0, 1]], dtype=np.float32)
    run = run_from_topk(dense_topk(DenseModel("m", documents, queries), 2), ["q9", "q1"])
    assert run.schema == pl.Schema(RUN)
    assert run.rows() == [("q9", 1, 2, 3.0), ("q9", 2, 0, 2.0), ("q1", 1, 1, 1.0), ("q1", 2, 2, 1.0)]


def test_unfilled_places_are_not_in_the_run():
    one = SparseRows(np.array([0, 1]), np.array([0], dtype=np.int32), np.array([1.0], dtype=np.float32), 2)
    queries = SparseRows(np.array([0, 0, 1]), np.array([0], dtype=np.int32), np.array([0.5], dtype=np.float32), 2)
    run = run_from_topk(sparse_topk(one, queries, 3), pl.Series(["a", "b"]))
    assert run.rows() == [("b", 1, 0, 0.5)]


def test_the_wrong_number_of_query_ids_is_refused():
    found = dense_topk(DenseModel("m", np.ones((3, 2), np.float32), np.ones((2, 2), np.float32)), 1)
    with pytest.raises(ArtefactError, match="2 searched queries but 1 query ids"):
        run_from_topk(found, ["a"])


def test_a_row_outside_the_collection_is_refused():
    run = pl.DataFrame([("q", 1, 3, 1.0)], schema=dict(RUN), orient="row")
    with pytest.raises(ArtefactError, match="names chunk row 3; the collection has 3 chunks"):
        with_chunk_ids(run, pl.Series(["a", "b", "c"]))
