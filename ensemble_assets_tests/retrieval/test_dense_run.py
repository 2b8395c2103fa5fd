"""Lists of several dense models against scoring everything and combining it by hand."""

from __future__ import annotations

import statistics

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemble_assets.common.errors import SettingsError, StageError
from ensemble_assets.common.frame_schemas import RUN
from ensemble_assets.retrieval.dense_run import dense_run
from ensemble_assets.retrieval.dense_topk import DenseModel

halves = st.integers(-4, 4).map(lambda number: number / 2)  # their products are exact, and scores tie often


def best_rows(model, query, depth):
    """A model's own list of one query: (row, score), every pair scored and sorted."""
    norms = np.ones(len(model.documents)) if model.norms is None else model.norms
    scores = [
        float(norm) * sum(float(a) * float(b) for a, b in zip(document, query, strict=True))
        for document, norm in zip(model.documents, norms, strict=True)
    ]
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return [(row, scores[row]) for row in order[:depth]]


def reference(models, chunk_ids, depth):
    """For every query: each list's scores above its last, in standard deviations, averaged by weight."""
    whole, lists = sum(model.weight for model in models), []
    for query in range(len(models[0].queries)):
        combined, best_rank = {}, {}
        for model in models:
            ranked = best_rows(model, model.queries[query], depth)
            scores = [score for _, score in ranked]
            spread = statistics.pstdev(scores)
            for rank, (row, score) in enumerate(ranked, start=1):
                standard = (score - min(scores)) / spread if spread else 0.0
                combined[row] = combined.get(row, 0.0) + model.weight / whole * standard
                best_rank[row] = min(best_rank.get(row, rank), rank)
        order = sorted(combined, key=lambda row: (-round(combined[row], 6), best_rank[row], chunk_ids[row]))
        lists.append([(row, combined[row]) for row in order[:depth]])
    return lists


@st.composite
def searches(draw):
    n_rows, n_queries = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    models = []
    for number in range(draw(st.integers(2, 3))):
        width = draw(st.integers(1, 4))
        models.append(
            DenseModel(
                f"m{number}",
                draw(hnp.arrays(np.float32, (n_rows, width), elements=halves)),
                draw(hnp.arrays(np.float32, (n_queries, width), elements=halves)),
                draw(st.none() | hnp.arrays(np.float32, n_rows, elements=st.sampled_from([0.5, 1.0, 4.0]))),
                draw(st.sampled_from([0.5, 1.0, 2.0])),
            )
        )
    return models, draw(st.integers(1, 14))


@given(searches())
def test_several_models_are_combined_as_by_hand(search):
    models, depth = search
    chunk_ids = pl.Series([f"c{(7 * row) % 13:02d}" for row in range(len(models[0].documents))])
    public_ids = [f"q{number}" for number in range(len(models[0].queries))]
    run = dense_run(models, chunk_ids, public_ids, depth)
    assert run.schema == dict(RUN)
    for public_id, expected in zip(public_ids, reference(models, chunk_ids, depth), strict=True):
        found = run.filter(pl.col("public_id") == public_id)
        assert found["rank"].to_list() == list(range(1, len(expected) + 1))
        np.testing.assert_allclose(found["score"], [score for _, score in expected], atol=1e-5)
        scores = np.array([score for _, score in expected])
        apart = bool((np.abs(np.diff(np.append(scores, -1.0))) > 1e-5).all())
        if apart:  # two sums that are equal but for rounding may change places
            assert found["row"].to_list() == [row for row, _ in expected]


def test_the_model_whose_cosines_spread_widest_does_not_decide() -> None:
    narrow = np.array([[0.90], [0.89], [0.88], [0.87], [0.86]], np.float32)
    wide = np.array([[0.1], [0.3], [0.5], [0.7], [0.9]], np.float32)
    query = np.array([[1.0]], np.float32)
    models = [DenseModel("narrow", narrow, query, weight=3.0), DenseModel("wide", wide, query)]
    run = dense_run(models, pl.Series(list("abcde")), ["q"], 5)
    assert run["row"][0] == 0  # best for the model of three times the weight
    assert int((0.75 * narrow + 0.25 * wide).argmax()) == 4  # as a mean of raw cosines would have it


def test_one_model_keeps_its_scores_and_norms_decide_the_order() -> None:
    documents, query = np.eye(2, dtype=np.float32)[[0, 0, 1]], np.array([[1.0, 0.0]], np.float32)
    ids = pl.Series(["a", "b", "c"])
    plain = dense_run([DenseModel("m", documents, query)], ids, ["q"], 3)
    scaled = dense_run([DenseModel("m", documents, query, np.array([2, 5, 9], np.float32))], ids, ["q"], 3)
    assert plain["row"].to_list() == [0, 1, 2]
    assert (scaled["row"].to_list(), scaled["score"].to_list()) == ([1, 0, 2], [5.0, 2.0, 0.0])


def test_no_model_and_weights_that_are_none_are_refused() -> None:
    with pytest.raises(StageError, match="at least one model"):
        dense_run([], pl.Series(["a"]), ["q"], 1)
    ones = np.ones((1, 2), np.float32)
    models = [DenseModel(name, ones, ones, weight=weight) for name, weight in (("a", 1.0), ("b", float("nan")))]
    with pytest.raises(SettingsError, match=r"weights are a=1\.0, b=nan"):
        dense_run(models, pl.Series(["a"]), ["q"], 1)
