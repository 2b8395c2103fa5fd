"""Fusion against a slow reference, and its invariances."""

from __future__ import annotations

import math
import statistics

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.common.frame_schemas import CANDIDATES, RUN, conform
from ensemble_assets.retrieval.fusion import METHODS, RankedList, fuse, rrf

N_CHUNKS = 12
CHUNK_IDS = pl.Series([f"chunk-{(7 * row) % N_CHUNKS:02d}" for row in range(N_CHUNKS)])  # not in row order
QUERIES = ["q2", "q0", "q1"]


def run_frame(lists):
    """RUN from ``{query: [(row, score), ...]}`` in rank order."""
    rows = [
        (query, rank, row, score)
        for query, entries in lists.items()
        for rank, (row, score) in enumerate(entries, start=1)
    ]
    return pl.DataFrame(rows, schema=dict(RUN), orient="row")


def contribution(method, rank, score, scores):
    """What a list gives one chunk, from the formulas."""
    low, high = min(scores), max(scores)
    if method == "rrf":
        return 1 / (60 + rank)
    if low == high:
        return {"minmax": 1.0, "dbsf": 0.5, "zscore": 0.0}[method]
    if method == "minmax":
        return (score - low) / (high - low)
    if method == "zscore":
        return (score - low) / statistics.pstdev(scores)
    mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
    return max(0.0, (score - (mean - 3 * deviation)) / (6 * deviation))


def reference(method, lists, weights):
    """``{query: {row: fused score}}``: ``lists`` is ``{name: {query: [(row, score), ...]}}``."""
    total = 1.0 if method == "rrf" else sum(weights.values())
    fused = {}
    for name, per_query in lists.items():
        if weights[name] == 0:
            continue
        for query, entries in per_query.items():
            scores = [score for _, score in entries]
            for rank, (row, score) in enumerate(entries, start=1):
                parts = fused.setdefault(query, {})
                part = contribution(method, rank, score, scores)
                parts[row] = parts.get(row, 0.0) + weights[name] / total * part
    return fused


def best_rank(lists, weights, query, row):
    ranks = [
        rank
        for name, per_query in lists.items()
        if weights[name] > 0
        for rank, (found, _) in enumerate(per_query.get(query, []), start=1)
        if found == row
    ]
    return min(ranks)


score_values = st.integers(-8, 8).map(lambda n: n / 4) | st.floats(-4, 4, width=32).map(lambda x: round(x, 3))


@st.composite
def ranked_lists(draw, names=("dense", "sparse")):
    lists = {}
    for name in names:
        lists[name] = {}
        for query in QUERIES:
            rows = draw(st.lists(st.integers(0, N_CHUNKS - 1), unique=True, max_size=8))
            scores = sorted((float(np.float32(draw(score_values))) for _ in rows), reverse=True)
            if rows:
                lists[name][query] = list(zip(rows, scores, strict=True))
    return lists


def as_input(lists, weights):
    return [RankedList(name, run_frame(lists[name]), weights[name]) for name in lists]


weight_values = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])


@st.composite
def fusions(draw, names=("dense", "sparse", "title")):
    lists = draw(ranked_lists(names))
    weights = {name: draw(weight_values) for name in names}
    if not any(weights.values()):
        weights[names[0]] = 1.0
    return draw(st.sampled_from(sorted(METHODS))), lists, weights


@given(fusions())
def test_every_method_gives_the_scores_of_the_slow_reference_in_the_promised_order(case):
    method, lists, weights = case
    fused = fuse(as_input(lists, weights), CHUNK_IDS, METHODS[method](), query_order=QUERIES)
    expected = reference(method, lists, weights)
    assert set(fused["public_id"]) == set(expected)
    assert fused["public_id"].unique(maintain_order=True).to_list() == [q for q in QUERIES if q in expected]
    for query, scores in expected.items():
        mine = fused.filter(pl.col("public_id") == query)
        assert dict(zip(mine["row"], mine["score"], strict=True)) == pytest.approx(scores, rel=1e-5, abs=1e-6)
        keys = [
            (-score, best_rank(lists, weights, query, row), chunk)
            for row, score, chunk in mine.select("row", "score", "chunk_id").iter_rows()
        ]
        assert keys == sorted(keys)
        assert mine["rank"].to_list() == list(range(1, len(mine) + 1))


@given(fusions())
def test_each_list_s_own_ranks_and_scores_are_kept_beside_the_fused_ones(case):
    method, lists, weights = case
    fused = fuse(as_input(lists, weights), CHUNK_IDS, METHODS[method]())
    for name, per_query in lists.items():
        stated = {
            (query, row): (rank, score)
            for query, row, rank, score in fused.select("public_id", "row", f"{name}_rank", f"{name}_score").iter_rows()
        }
        there = {
            (query, row): (rank, score)
            for query, entries in per_query.items()
            for rank, (row, score) in enumerate(entries, start=1)
        }
        assert stated == {key: there.get(key, (None, None)) for key in stated}
        if weights[name] > 0:
            assert set(there) <= set(stated)


@given(fusions(), st.permutations(["dense", "sparse", "title"]), st.permutations(QUERIES))
def test_neither_the_order_of_lists_nor_of_queries_changes_any_list(case, list_order, query_order):
    method, lists, weights = case
    once = fuse(as_input(lists, weights), CHUNK_IDS, METHODS[method](), query_order=QUERIES)
    shuffled = {
        name: {query: lists[name][query] for query in query_order if query in lists[name]} for name in list_order
    }
    again = fuse(as_input(shuffled, weights), CHUNK_IDS, METHODS[method](), query_order=query_order)
    assert again.columns == once.columns
    assert again.sort("public_id", "rank").equals(once.sort("public_id", "rank"))
    without_order = fuse(as_input(shuffled, weights), CHUNK_IDS, METHODS[method]())
    assert without_order.sort("public_id", "rank").equals(once.sort("public_id", "rank"))


@given(ranked_lists(("dense",)), st.sampled_from(sorted(METHODS)), st.booleans())
def test_a_single_list_keeps_its_order(lists, method, beside_an_empty_one):
    given_lists = as_input(lists, {"dense": 0.5})
    if beside_an_empty_one:
        given_lists.append(RankedList("sparse", run_frame({}), 0.5))
    fused = fuse(given_lists, CHUNK_IDS, METHODS[method]())
    for query, entries in lists["dense"].items():
        assert fused.filter(pl.col("public_id") == query)["row"].to_list() == [row for row, _ in entries]


@given(ranked_lists(), st.sampled_from(sorted(METHODS)))
def test_a_list_of_weight_zero_brings_nothing_but_its_columns(lists, method):
    alone = fuse([RankedList("dense", run_frame(lists["dense"]))], CHUNK_IDS, METHODS[method]())
    beside = fuse(as_input(lists, {"dense": 1.0, "sparse": 0.0}), CHUNK_IDS, METHODS[method]())
    own = [column for column in CANDIDATES if not column.startswith("sparse_")]
    assert beside.select(own).equals(alone.select(own))


def test_the_result_is_a_candidates_frame_with_columns_for_further_lists():
    run = run_frame({"q": [(0, 1.0)]})
    fused = fuse([RankedList("dense", run), RankedList("bm25", run)], CHUNK_IDS, rrf())
    assert conform(fused, CANDIDATES, "candidates").columns == list(CANDIDATES)
    assert fused.columns == [*CANDIDATES, "bm25_rank", "bm25_score"]
    assert fused["sparse_rank"].is_null().all()


def test_without_a_query_order_queries_and_columns_come_in_the_order_of_the_lists_by_name():
    lists = [
        RankedList("title", run_frame({"q3": [(0, 1.0)]})),
        RankedList("sparse", run_frame({"q1": [(0, 1.0)]})),
        RankedList("body", run_frame({"q2": [(0, 1.0)], "q3": [(1, 1.0)]})),
    ]
    fused = fuse(lists, CHUNK_IDS, rrf())
    assert fused["public_id"].to_list() == ["q2", "q3", "q3", "q1"]
    assert fused.columns[-4:] == ["body_rank", "body_score", "title_rank", "title_score"]
    assert fuse(lists[::-1], CHUNK_IDS, rrf()).equals(fused)


def test_dbsf_gives_an_outlier_far_below_the_others_nothing():
    entries = [(row, 1.0) for row in range(N_CHUNKS - 1)] + [(N_CHUNKS - 1, 0.0)]  # 3.2 standard deviations below
    fused = fuse([RankedList("dense", run_frame({"q": entries}))], CHUNK_IDS, METHODS["dbsf"]())
    assert fused["score"].to_list()[-1] == 0
    assert fused["score"].to_list()[0] == pytest.approx(0.5 + 1 / (6 * math.sqrt(N_CHUNKS)))


def test_depth_keeps_the_first_of_every_query():
    run = run_frame({query: [(row, 1.0 - row / 10) for row in range(6)] for query in QUERIES})
    fused = fuse([RankedList("dense", run)], CHUNK_IDS, rrf(), depth=4)
    assert fused["rank"].to_list() == [1, 2, 3, 4] * 3


def test_equal_scores_go_by_best_rank_and_then_by_chunk_id():
    dense = run_frame({"q": [(0, 3.0), (1, 2.0)]})
    sparse = run_frame({"q": [(2, 9.0), (1, 8.0)]})
    fused = fuse([RankedList("dense", dense), RankedList("sparse", sparse)], CHUNK_IDS, METHODS["minmax"]())
    # Rows 0 and 2 both get 0.5 at rank 1; row 0 is chunk-00, row 2 is chunk-02, row 1 gets 0.
    assert fused["row"].to_list() == [0, 2, 1]
    renamed = pl.Series(["b", "x", "a", *CHUNK_IDS[3:]])
    swapped = fuse([RankedList("dense", dense), RankedList("sparse", sparse)], renamed, METHODS["minmax"]())
    assert swapped["row"].to_list() == [2, 0, 1]


def test_rrf_takes_and_records_its_k():
    run = run_frame({"q": [(0, 1.0)]})
    assert rrf().parameters == {"k": 60}
    assert rrf(1).parameters == {"k": 1}
    assert fuse([RankedList("dense", run, 2.0)], CHUNK_IDS, rrf(1))["score"].to_list() == [1.0]


def test_no_lists_found_anything_gives_an_empty_candidates_frame():
    fused = fuse([RankedList("dense", run_frame({})), RankedList("sparse", run_frame({}))], CHUNK_IDS, rrf())
    assert fused.schema == pl.Schema(CANDIDATES)
    assert fused.is_empty()


@pytest.mark.parametrize("k", [-1, float("nan"), float("inf")])
def test_an_unusable_k_is_refused(k):
    with pytest.raises(SettingsError, match=r"rrf k is .*; expected a number of at least 0"):
        rrf(k)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dense": -1.0, "sparse": 1.0}, r"weights are dense=-1.0, sparse=1.0; expected numbers of at least 0"),
        ({"dense": 0.0, "sparse": 0.0}, "one of them positive"),
        ({"dense": math.nan, "sparse": 1.0}, "weights are dense=nan"),
    ],
)
def test_unusable_weights_are_refused(weights, message):
    with pytest.raises(SettingsError, match=message):
        fuse(as_input({"dense": {}, "sparse": {}}, weights), CHUNK_IDS, rrf())


@pytest.mark.parametrize("names", [[], ["dense", "dense"], [""]])
def test_unusable_names_are_refused(names):
    with pytest.raises(SettingsError, match="expected at least one, each with its own name"):
        fuse([RankedList(name, run_frame({})) for name in names], CHUNK_IDS, rrf())


def test_an_unusable_depth_is_refused():
    with pytest.raises(SettingsError, match="depth is 0"):
        fuse([RankedList("dense", run_frame({}))], CHUNK_IDS, rrf(), depth=0)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_frame({"q": [(0, float("nan"))]}), "the dense list has a score that is not finite"),
        (run_frame({"q": [(0, 1.0), (0, 0.5)]}), "the dense list has a chunk twice for one query"),
        (run_frame({"q": [(0, None)]}), "the dense list has an empty cell"),
        (run_frame({"q": [(0, 1.0)]}).with_columns(rank=pl.lit(0, pl.UInt32)), "the dense list has a rank of 0"),
        (run_frame({"q": [(N_CHUNKS, 1.0)]}), "names chunk row 12; the collection has 12 chunks"),
        (run_frame({"q": [(0, 1.0)]}).drop("rank"), "the dense list does not have the expected columns: rank"),
        (run_frame({"stranger": [(0, 1.0)]}), "1 queries that are not among the queries"),
    ],
)
def test_a_broken_list_is_refused(run, message):
    with pytest.raises(ArtefactError, match=message):
        fuse([RankedList("dense", run)], CHUNK_IDS, rrf(), query_order=["q"])
