"""RUN frames and TREC run files."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.common.frame_schemas import RERANKED, RUN
from ensemble_assets.retrieval.dense_topk import DenseModel, dense_topk
from ensemble_assets.retrieval.ranked_lists import as_run, run_from_topk, trec_lines, with_chunk_ids
from ensemble_assets.retrieval.sparse_topk import SparseRows, sparse_topk


def test_a_search_result_becomes_ranked_lists_in_query_order():
    documents = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    queries = np.array([[2, 1], [0, 1]], dtype=np.float32)
    run = run_from_topk(dense_topk([DenseModel("m", documents, queries)], 2), ["q9", "q1"])
    assert run.schema == pl.Schema(RUN)
    assert run.rows() == [("q9", 1, 2, 3.0), ("q9", 2, 0, 2.0), ("q1", 1, 1, 1.0), ("q1", 2, 2, 1.0)]


def test_unfilled_places_are_not_in_the_run():
    one = SparseRows(np.array([0, 1]), np.array([0], dtype=np.int32), np.array([1.0], dtype=np.float32), 2)
    queries = SparseRows(np.array([0, 0, 1]), np.array([0], dtype=np.int32), np.array([0.5], dtype=np.float32), 2)
    run = run_from_topk(sparse_topk(one, queries, 3), pl.Series(["a", "b"]))
    assert run.rows() == [("b", 1, 0, 0.5)]


def test_the_wrong_number_of_query_ids_is_refused():
    found = dense_topk([DenseModel("m", np.ones((3, 2), np.float32), np.ones((2, 2), np.float32))], 1)
    with pytest.raises(ArtefactError, match="2 searched queries but 1 query ids"):
        run_from_topk(found, ["a"])


def test_a_reranked_list_is_a_run_by_its_final_rank_and_score():
    values = {"public_id": "q", "rank": 1, "row": 4, "chunk_id": "c", "score": 0.5, "fused_rank": 2}
    values |= {"fused_score": 0.1, "rerank_score": None, "reranked": False}
    reranked = pl.DataFrame([values], schema=dict(RERANKED))
    assert as_run(reranked, "reranked").rows() == [("q", 1, 4, 0.5)]
    with pytest.raises(ArtefactError, match="the reranked list does not have the expected columns: score"):
        as_run(reranked.drop("score"), "the reranked list")


def test_a_row_outside_the_collection_is_refused():
    run = pl.DataFrame([("q", 1, 3, 1.0)], schema=dict(RUN), orient="row")
    with pytest.raises(ArtefactError, match="names chunk row 3; the collection has 3 chunks"):
        with_chunk_ids(run, pl.Series(["a", "b", "c"]))


def run_frame(lists):
    """RUN with chunk ids from ``{query: [(chunk, score), ...]}``."""
    rows = [
        (query, rank, 0, float(np.float32(score)), chunk)
        for query, entries in lists.items()
        for rank, (chunk, score) in enumerate(entries, start=1)
    ]
    return pl.DataFrame(rows, schema={**RUN, "chunk_id": pl.String}, orient="row")


def test_lines_have_the_six_trec_fields():
    run = run_frame({"q1": [("c2", 0.75), ("c1", 0.5)], "q2": [("c1", -1.25)]})
    assert list(trec_lines(run, "fused")) == [
        "q1 Q0 c2 1 0.75 fused",
        "q1 Q0 c1 2 0.5 fused",
        "q2 Q0 c1 1 -1.25 fused",
    ]


scores = st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100)


@given(st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), st.lists(scores, min_size=1, max_size=20)))
def test_a_reader_that_sorts_by_float32_score_finds_our_order(lists):
    run = run_frame({query: [(f"c{i}", score) for i, score in enumerate(values)] for query, values in lists.items()})
    read = {}
    for line in trec_lines(run, "t"):
        query, _, chunk, rank, score, _ = line.split(" ")
        read.setdefault(query, []).append((np.float32(score), int(rank), chunk))
    for query, values in lists.items():
        written = read[query]
        assert [chunk for _, _, chunk in written] == [f"c{i}" for i in range(len(values))]
        assert all(earlier[0] > later[0] for earlier, later in itertools.pairwise(written))
        assert all(score <= np.float32(value) for (score, _, _), value in zip(written, values, strict=True))


@given(st.lists(scores, min_size=1, max_size=20, unique=True))
def test_scores_that_fall_are_written_as_they_are(values):
    falling = sorted({float(np.float32(value)) for value in values}, reverse=True)
    lines = trec_lines(run_frame({"q": [(f"c{i}", score) for i, score in enumerate(falling)]}), "t")
    assert [np.float32(line.split(" ")[4]) for line in lines] == [np.float32(score) for score in falling]


def test_white_space_in_ids_is_escaped():
    lines = list(
        trec_lines(run_frame({"my query": [("a b.md#1", 1.0), ("tab\there", 0.5), ("wide\u3000", 0.25)]}), "t")
    )
    assert [line.split(" ")[0] for line in lines] == ["my%20query"] * 3
    assert [line.split(" ")[2] for line in lines] == ["a%20b.md#1", "tab%09here", "wide%E3%80%80"]


def test_ids_that_would_become_the_same_are_refused():
    with pytest.raises(ContractError, match="two values of chunk_id differ only in how white space is written"):
        list(trec_lines(run_frame({"q": [("a b", 1.0), ("a%20b", 0.5)]}), "t"))


@pytest.mark.parametrize("tag", ["", "two words", " fused"])
def test_a_tag_with_white_space_is_refused(tag):
    with pytest.raises(ContractError, match="a tag without white space"):
        list(trec_lines(run_frame({"q": [("a", 1.0)]}), tag))


def test_an_empty_run_has_no_lines():
    assert list(trec_lines(run_frame({}), "t")) == []
