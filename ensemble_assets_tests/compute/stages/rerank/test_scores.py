"""The final order equals the rule as one would write it for a single query."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.frame_schemas import CANDIDATES, RERANKED
from ensemble_assets.compute.stages.rerank.scores import final_order

SCORE = st.floats(-4, 4, width=16).map(float)
QUERY = st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=7)


def frame(queries: list[list[tuple[float, float | None]]]) -> pl.DataFrame:
    """Candidates in falling fused score, with logits beside them."""
    rows = [
        {
            "public_id": f"q{9 - number}",
            "rank": at + 1,
            "row": at,
            "chunk_id": f"c{number}-{at}",
            "score": fused,
            "rerank_score": logit,
        }
        for number, query in enumerate(queries)
        for at, (fused, logit) in enumerate(query)
    ]
    schema = {**dict(CANDIDATES), "rerank_score": pl.Float32()}
    return pl.DataFrame(rows, schema=schema)


def minmax(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def reference(query: list[tuple[float, float | None]], weight: float) -> list[tuple[int, float]]:
    """(position before, final score) in final order."""
    fused = minmax([score for score, _ in query])
    scored = [at for at, (_, logit) in enumerate(query) if logit is not None]
    if not scored:
        return [(at, score) for at, (score, _) in enumerate(query)]
    logits = dict(zip(scored, minmax([query[at][1] for at in scored]), strict=True))
    final = {at: (1 - weight) * fused[at] + weight * logits.get(at, 0.0) for at in range(len(query))}
    head = sorted(scored, key=lambda at: (-final[at], at))
    return [(at, final[at]) for at in head + [at for at in range(len(query)) if at not in logits]]


@given(
    queries=st.lists(QUERY, max_size=4),
    depths=st.lists(st.integers(0, 7), min_size=4, max_size=4),
    weight=st.floats(0, 1),
)
def test_order_and_scores_equal_the_rule_per_query(queries, depths, weight):
    queries = [
        [
            (float(np.float32(fused)), float(np.float32(logit)) if at < depth else None)
            for at, (fused, logit) in enumerate(sorted(query, key=lambda pair: -pair[0]))
        ]
        for query, depth in zip(queries, depths, strict=False)
    ]
    got = final_order(frame(queries), weight)
    assert got.schema == dict(RERANKED)
    start = 0
    for number, query in enumerate(queries):
        expected = reference(query, weight)
        part = got.slice(start, len(query))
        start += len(query)
        assert part["public_id"].unique().to_list() == [f"q{9 - number}"]
        assert part["rank"].to_list() == list(range(1, len(query) + 1))
        np.testing.assert_allclose(part["score"], [score for _, score in expected], atol=1e-6)
        by_position = dict(expected)
        for row, at in zip(part.iter_rows(named=True), (position for position, _ in expected), strict=True):
            # equal up to rounding: whoever stands here has the score that belongs here
            assert by_position[row["fused_rank"] - 1] == pytest.approx(by_position[at], abs=1e-9)
            assert row["reranked"] == (query[row["fused_rank"] - 1][1] is not None)
    assert got.height == start


@given(query=QUERY, depth=st.integers(1, 7), weight=st.floats(0, 1))
def test_scores_never_rise_with_the_rank(query, depth, weight):
    ordered = sorted(query, key=lambda pair: -pair[0])
    got = final_order(frame([[(f, logit if at < depth else None) for at, (f, logit) in enumerate(ordered)]]), weight)
    assert (np.diff(got["score"].to_numpy()) <= 0).all()
    assert got["reranked"].to_list() == sorted(got["reranked"].to_list(), reverse=True)


def test_ties_go_by_fused_rank():
    got = final_order(frame([[(3.0, 1.0), (3.0, 1.0), (3.0, 1.0)]]), 0.35)
    assert got["chunk_id"].to_list() == ["c0-0", "c0-1", "c0-2"]
    assert got["score"].to_list() == [0.5, 0.5, 0.5]


def test_equal_fused_ranks_go_by_chunk_id():
    tied = frame([[(3.0, 1.0), (3.0, 1.0)]]).with_columns(
        pl.lit(1, pl.UInt32).alias("rank"), pl.Series("chunk_id", ["b", "a"])
    )
    assert final_order(tied, 0.35)["chunk_id"].to_list() == ["a", "b"]


def test_a_query_without_logits_keeps_its_fused_order_and_scores():
    got = final_order(frame([[(0.9, None), (0.9, None), (0.1, None)], [(0.9, 0.0), (0.8, 5.0)]]), 0.9)
    assert got["chunk_id"].to_list() == ["c0-0", "c0-1", "c0-2", "c1-1", "c1-0"]
    assert got["score"].to_list()[:3] == pytest.approx([0.9, 0.9, 0.1])
    assert got["reranked"].to_list() == [False] * 3 + [True] * 2


def test_no_candidates_give_an_empty_frame():
    assert final_order(frame([]), 0.35).schema == dict(RERANKED)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_0_to_1_is_refused(weight):
    with pytest.raises(SettingsError, match=r"rerank\.weight"):
        final_order(frame([]), weight)
