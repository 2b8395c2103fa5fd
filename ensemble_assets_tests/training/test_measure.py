"""The figures are those of the lists: only the first ranks are reranked, and the difference is paired per query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.frame_schemas import QRELS
from ensemble_assets.pipeline.first_stage import fusion_rule
from ensemble_assets.retrieval.fusion import RankedList, fuse, zscore
from ensemble_assets.settings.options import Fusion
from ensemble_assets.training.collections import Collection
from ensemble_assets.training.measure import (
    FUSIONS,
    Candidates,
    Remembering,
    first_stage_runs,
    measured,
    stage_candidates,
)
from ensemble_assets.training.preparation import FirstStage


def ranked(lists: list[list[float]]) -> pl.DataFrame:
    rows = [
        (f"q{query}", rank, rank - 1, f"d{rank - 1}", score)
        for query, scores in enumerate(lists)
        for rank, score in enumerate(scores, start=1)
    ]
    schema = {
        "public_id": pl.String,
        "rank": pl.UInt32,
        "row": pl.UInt32,
        "chunk_id": pl.String,
        "score": pl.Float32,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


class Oracle:
    """Scores a passage by the number in its text; what a perfect reranker would do."""

    def __call__(self, queries: list[str], passages: list[str]) -> np.ndarray:
        return np.array([float(passage) for passage in passages], dtype=np.float32)


def test_figures_are_those_of_the_lists_and_the_difference_is_paired() -> None:
    one = [3.0, 2.0, 1.0]
    qrels = pl.DataFrame([("q0", "d2", 1), ("q1", "d0", 1)], schema=dict(QRELS), orient="row")
    lists = ranked([one, one])
    candidates = Candidates(lists, {"q0": "a", "q1": "b"}, ["1", "2", "3"], qrels)
    got = measured(candidates, {"first": lists}, Oracle(), 3, 1.0)
    third = 1 / np.log2(4)  # nDCG of a single relevant passage at rank 3
    assert got["queries"] == 2
    assert got["nDCG@10"]["first"] == pytest.approx((1 + third) / 2, abs=1e-4)
    assert got["reranked"]["0"] == got["nDCG@10"]["first"]
    assert got["reranked"]["1"] == pytest.approx((1 + third) / 2, abs=1e-4)
    assert got["difference"]["mean"] == 0.0
    assert got["difference"]["interval95"] == pytest.approx([third - 1, 1 - third], abs=1e-4)


def test_only_the_first_ranks_are_reranked() -> None:
    one = [3.0, 2.0, 1.0]
    qrels = pl.DataFrame([("q0", "d1", 1)], schema=dict(QRELS), orient="row")
    candidates = Candidates(ranked([one]), {"q0": "a"}, ["1", "2", "3"], qrels)
    assert measured(candidates, {}, Oracle(), 2, 1.0)["reranked"]["1"] == 1.0


def test_a_remembering_scorer_asks_for_a_pair_once_and_answers_in_order() -> None:
    asked: list[tuple[str, str]] = []

    def scorer(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
        asked.extend(zip(queries, passages, strict=True))
        return np.array([float(len(passage)) for passage in passages], dtype=np.float32)

    remembering = Remembering(scorer)
    assert remembering(["a", "b"], ["xx", "x"]).tolist() == [2.0, 1.0]
    assert remembering(["b", "a", "a"], ["x", "xxx", "xx"]).tolist() == [1.0, 3.0, 2.0]
    assert asked == [("a", "xx"), ("b", "x"), ("a", "xxx")]


def test_first_stage_runs_rank_by_score_and_fuse_as_the_pipeline_does() -> None:
    collection = Collection("toy", ("a", "b", "c"), ("1", "2", "3"), ("q",), ("x",), (frozenset({2}),), {})
    dense = np.array([[0.1, 0.9, 0.5]], dtype=np.float32)
    sparse = np.array([[0.0, 1.0, 7.0]], dtype=np.float32)
    lexical = np.array([[0.0, 0.0, 2.0]], dtype=np.float32)
    stage = FirstStage(collection, ["x"], [frozenset({2})], dense, sparse, lexical)
    runs = first_stage_runs(stage)
    assert runs["dense"]["chunk_id"].to_list() == ["b", "c", "a"]
    assert runs["sparse"]["chunk_id"].to_list() == ["c", "b"], "what shares no term was not found"
    assert runs["lexical"]["chunk_id"].to_list() == ["c"]
    lists = [RankedList("dense", runs["dense"], 0.8), RankedList("sparse", runs["sparse"], 0.8)]
    lists.append(RankedList("lexical", runs["lexical"], 0.4))
    expected = fuse(lists, pl.Series(collection.passage_ids), zscore())
    assert runs["fused"]["chunk_id"].to_list() == expected["chunk_id"].to_list()
    assert runs["fused"]["score"].to_list() == pytest.approx(expected["score"].to_list())


def test_the_measured_default_is_what_a_run_does() -> None:
    method, weights = FUSIONS["fused"]
    rule = fusion_rule(Fusion(), "any")
    assert method.name == rule.method.name
    assert {name: 2 * weight for name, weight in weights.items()} == pytest.approx(
        {name: rule.weight(name) for name in weights}
    )


def test_candidates_carry_texts_and_binary_judgements() -> None:
    collection = Collection("toy", ("a", "b", "c"), ("1", "2", "3"), ("q",), ("x",), (frozenset({2}),), {})
    scores = np.array([[0.1, 0.9, 0.5]], dtype=np.float32)
    stage = FirstStage(collection, ["x"], [frozenset({2})], scores, scores, scores)
    runs = first_stage_runs(stage)
    candidates = stage_candidates(stage, runs["fused"])
    assert candidates.qrels.rows() == [("0", "c", 1)]
    assert candidates.queries == {"0": "x"}
