"""The gate ``latency_budget``: both ratios, which one decides, and what it tells people to do."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_assets.export.checks.stage_limits import StageCost, costs_of, latency_budget

COSTS = {
    stage: StageCost(seconds, 0, "cpu")
    for stage, seconds in {"dense": 10.0, "sparse": 2.0, "fusion": 1.0, "rerank": 3.0, "export": 4.0}.items()
}


def judged(against: str = "sla", plain: float | None = 100.0, **budget: Any):
    baseline = {"limit_ratio": 1.1, "budget": {"against": against, **budget}}
    return latency_budget(COSTS, baseline | ({"dense_only_seconds": plain} if plain else {}))


def test_within_the_sla_it_passes_and_reports_both_ratios() -> None:
    result = judged()
    assert result.passed
    assert result.numbers["vs_sla"] == pytest.approx(20 / 100)
    assert result.numbers["vs_own_dense"] == pytest.approx(16 / 10)
    assert "vs_sla decides, so this is no problem" in result.notes[0]


def test_above_the_sla_it_warns_with_the_seconds_and_never_fails() -> None:
    result = judged(plain=10.0, requested_depth=20, reached_depth=9, floor_depth=5)
    assert (result.passed, result.severity, result.failed) == (False, "WARN", False)
    assert "vs_sla: the whole run took 20.000 s, 2.000 times the dense-only baseline of 10.000 s" in result.problems[0]
    assert "the limit is 1.1" in result.problems[0]
    assert "Lower rerank.depth" in result.problems[0]
    assert (result.numbers["requested_depth"], result.numbers["reached_depth"]) == (20, 9)


def test_own_dense_decides_only_where_the_budget_is_held_against_it() -> None:
    assert judged("sla").passed
    result = judged("own_dense")
    assert not result.passed
    assert "vs_own_dense: dense, sparse, fusion and rerank took 16.000 s, 1.600 times" in result.problems[0]


def test_without_a_baseline_it_passes_and_says_how_to_measure_one() -> None:
    result = judged(plain=None)
    assert result.passed
    assert "ensemble-assets baseline sla" in result.notes[0]
    assert "vs_sla" not in result.numbers
    assert result.numbers["vs_own_dense"] == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("budget", "advice"),
    [
        ({"against": "off", "requested_depth": 20, "reached_depth": 20}, "set it to sla"),
        ({"requested_depth": 20, "reached_depth": 5, "floor_depth": 5}, "at its floor of 5 already"),
        ({"requested_depth": 20, "reached_depth": 20, "floor_depth": 5}, "Lower rerank.depth"),
        ({}, "Lower rerank.depth"),
    ],
)
def test_what_to_do_depends_on_whether_rerank_could_have_been_shorter(budget, advice) -> None:
    result = judged(plain=1.0, **budget)
    assert advice in result.problems[0]
    assert result.severity == "WARN"


def test_an_old_manifest_with_only_a_baseline_is_held_against_it() -> None:
    result = latency_budget(COSTS, {"dense_only_seconds": 0.001})
    assert "times the dense-only baseline of 0.001 s" in result.problems[0]
    assert latency_budget({}, {}).passed


def test_a_bundle_alone_has_the_wall_seconds_of_every_stage() -> None:
    walls = {"dense": 10.5, "sparse": 2.0, "fusion": 1.0, "rerank": 3.0, "export": 4.0}
    manifest = {
        "dense_run": {"seconds": 9.0, "peak_bytes": 7, "device": "cpu"},
        "rerank_run": {"payload": {"latency_ms": 2500.0}, "device": "cpu"},
        "performance_baseline": {"stage_seconds": walls},
    }
    costs = costs_of(manifest)
    assert {stage: cost.seconds for stage, cost in costs.items()} == {
        stage: seconds for stage, seconds in walls.items() if stage != "sparse"
    }
    assert costs["dense"].peak_bytes == 7
