"""Verdicts and gates: what passes, what fails, and what they say."""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.retrieval import quality_verdicts
from ensemble_assets.retrieval.quality_verdicts import (
    fusion_not_worse,
    losses,
    quality_regression,
    rerank_not_worse,
)

compare = partial(quality_verdicts.compare, minimum_effect=0.005, alpha=0.05)
compare_common = partial(quality_verdicts.compare_common, minimum_effect=0.005, alpha=0.05)


def frame(values):
    return pl.DataFrame({"public_id": [f"q{i:03d}" for i in range(len(values))], "value": values})


def noisy(mean, n=200, spread=0.1, seed=0):
    return np.random.default_rng(seed).normal(mean, spread, n)


BASELINE = noisy(0.6)


@pytest.mark.parametrize(
    ("current", "outcome"),
    [
        (BASELINE, "equal"),
        (BASELINE - 0.02, "worse"),
        (BASELINE + 0.02, "better"),
        (BASELINE - 0.004, "equal"),  # certain, but smaller than the minimum effect
        (BASELINE + noisy(-0.01, spread=0.5, seed=1) * 0.5, "equal"),  # as large, but not more than chance
    ],
)
def test_a_run_is_better_or_worse_only_if_the_difference_is_large_and_significant(current, outcome):
    comparison = compare(frame(BASELINE), frame(current))
    assert comparison.outcome == outcome
    assert comparison.delta == pytest.approx(np.mean(current - BASELINE))
    assert comparison.low <= comparison.delta <= comparison.high
    assert comparison.queries == 200
    assert comparison.decided_by == "test"


def test_exactly_the_minimum_effect_counts():
    values = np.full(200, 0.014)
    assert (values + 0.005 - values).mean() < 0.005  # in floating point
    assert compare(frame(values), frame(values + 0.005), minimum_effect=0.005).outcome == "better"


def test_with_too_few_queries_for_a_test_the_effect_decides():
    before, after = np.full(5, 1.0), np.zeros(5)
    comparison = compare(frame(before), frame(after))
    assert comparison.p_value > 0.05
    assert (comparison.outcome, comparison.decided_by) == ("worse", "effect")
    assert compare(frame(np.full(6, 1.0)), frame(np.zeros(6))).decided_by == "test"


def test_without_a_minimum_effect_no_difference_is_still_equal():
    assert compare(frame(BASELINE[:3]), frame(BASELINE[:3]), minimum_effect=0).outcome == "equal"


def test_queries_are_paired_by_id_and_not_by_place():
    shuffled = frame(BASELINE).sample(fraction=1, shuffle=True, seed=3)
    comparison = compare(frame(BASELINE), shuffled)
    assert (comparison.delta, comparison.p_value) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("baseline", "current", "message"),
    [
        (frame([0.1, 0.2]), frame([0.1]), r"1 are only in the first \(2 values\), 0 only in the second \(1 values\)"),
        (frame([0.1]), frame([0.1]).extend(frame([0.2])), r"0 only in the second \(2 values\)"),
        (frame([]), frame([]), "no judged query"),
    ],
)
def test_runs_over_different_queries_are_not_compared(baseline, current, message):
    with pytest.raises(ArtefactError, match=message):
        compare(baseline, current)


@pytest.mark.parametrize(
    ("change", "passed", "says"),
    [
        (0.0, True, "equal to the accepted baseline"),
        (0.05, True, "ensemble-assets baseline accept BUNDLE"),
        (-0.05, False, "Look at the queries that lost most"),
    ],
)
def test_the_regression_gate_fails_only_when_worse_and_says_what_to_do(change, passed, says):
    result = quality_regression(compare(frame(BASELINE), frame(BASELINE + change)))
    assert result.name == "quality_regression"
    assert result.passed is passed
    assert says in result.message
    assert f"nDCG@10 {change:+.4f} over 200 queries" in result.message
    assert result.numbers["delta"] == pytest.approx(change)
    assert {"p_value", "delta_low", "delta_high", "queries"} <= set(result.numbers)


@pytest.mark.parametrize(
    ("change", "passed"), [(0.1, True), (0.0, True), (-0.005, True), (-0.0051, False), (-0.1, False)]
)
def test_reranked_may_lose_epsilon_and_no_more(change, passed):
    result = rerank_not_worse(frame(BASELINE), frame(BASELINE + change))
    assert result.name == "rerank_not_worse"
    assert result.passed is passed
    assert result.numbers["fused"] == pytest.approx(BASELINE.mean())
    assert result.numbers["reranked"] == pytest.approx(BASELINE.mean() + change)
    assert ("Lower the reranker's share" in result.message) is not passed


def test_a_loss_that_is_not_significant_still_fails_the_rerank_gate():
    reranked = BASELINE + noisy(0, spread=2.0, seed=2)
    reranked -= reranked.mean() - BASELINE.mean() + 0.02
    result = rerank_not_worse(frame(BASELINE), frame(reranked))
    assert result.numbers["p_value"] > 0.05
    assert not result.passed


@pytest.mark.parametrize(
    ("fused", "passed", "only_warns"),
    [(0.70, True, True), (0.645, True, True), (0.64, False, True), (0.50, False, True), (0.49, False, False)],
)
def test_fused_must_reach_the_best_single_list_and_may_never_be_below_the_weakest(fused, passed, only_warns):
    singles = {name: frame(np.full(10, mean)) for name, mean in (("dense", 0.55), ("sparse", 0.5), ("lexical", 0.65))}
    result = fusion_not_worse(frame(np.full(10, fused)), singles)
    assert result.name == "fusion_not_worse"
    assert (result.passed, result.only_warns) == (passed, only_warns)
    assert result.numbers == pytest.approx({"fused": fused, "weakest": 0.5, "strongest": 0.65, "epsilon": 0.005})
    assert ("use BM25 alone" in result.message) is not passed


def test_fusion_cannot_be_judged_without_single_lists_or_on_other_queries():
    with pytest.raises(ArtefactError, match="without a single list"):
        fusion_not_worse(frame([0.5]), {})
    with pytest.raises(ArtefactError, match="on the same queries"):
        fusion_not_worse(frame([0.5]), {"dense": frame([0.5, 0.6])})


def test_a_collection_that_gained_and_lost_a_few_queries_is_compared_on_the_common_ones():
    current = frame(BASELINE - 0.02).tail(180)
    comparison = compare_common(frame(BASELINE), current)
    assert (comparison.outcome, comparison.queries) == ("worse", 180)
    assert comparison.delta == pytest.approx(-0.02)


def test_too_few_common_queries_are_not_compared():
    for baseline, current in ((frame(BASELINE), frame(BASELINE).head(150)), (frame(BASELINE).head(0), frame(BASELINE))):
        with pytest.raises(ArtefactError, match="too few to compare"):
            compare_common(baseline, current)


def test_losses_are_said_by_the_means_alone_as_the_gates_judge_them():
    def said(**means):
        return list(losses({name: {"nDCG@10": mean} for name, mean in means.items()}))

    assert said(dense=0.6, lexical=0.65, fused=0.645, reranked=0.64) == [], "all within the tolerated loss"
    assert said(dense=0.6, lexical=0.65, fused=0.64, reranked=0.63) == [
        "reranking loses 0.0100 nDCG@10 against the fused list",
        "the fused list loses 0.0100 nDCG@10 against BM25 alone",
    ]
    assert said(dense=0.6) == []
