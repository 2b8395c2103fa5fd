"""Costs drawn through observations, and the depth that the governor would reach with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.planning.history import Observation
from ensemble_assets.planning.planner import StageCost, fit, predict
from ensemble_assets.settings.options import Rerank

COSTS = {
    "dense": StageCost(1.0, 1.0),
    "sparse": StageCost(0.0, 1.0),
    "fusion": StageCost(0.0, 1.0),
    "rerank": StageCost(0.5, 1.0),
    "export": StageCost(0.0, 1.0),
}
WORK = {"dense": 9.0, "sparse": 2.0, "fusion": 1.0, "rerank": 10.0, "export": 3.0}


@given(
    fixed=st.floats(0.0, 10.0),
    rate=st.floats(0.1, 1e3),
    works=st.lists(st.floats(1.0, 1e4), min_size=2, max_size=2, unique=True),
    scale=st.sampled_from([1.0, 1e12]),
)
def test_exact_observations_are_predicted_exactly(fixed, rate, works, scale) -> None:
    observations = [Observation(work * scale, fixed + work / rate, "calibration") for work in works]
    cost = fit(observations)
    assert cost.fixed >= -1e-9 * observations[-1].seconds
    assert cost.per_work >= 0
    assert cost.seconds(observations[-1].work) == pytest.approx(observations[-1].seconds, rel=1e-6)
    if abs(works[0] - works[1]) > 1:
        assert cost.seconds(observations[0].work) == pytest.approx(observations[0].seconds, rel=1e-4)


def test_one_observation_is_taken_as_proportional() -> None:
    assert fit([Observation(10.0, 5.0, "run")]).seconds(20.0) == 10.0


def test_a_line_that_would_fall_or_begin_below_zero_is_not_drawn() -> None:
    falls = fit([Observation(1.0, 9.0, "run"), Observation(2.0, 8.0, "run")])
    assert (falls.fixed, falls.per_work) == (8.0, 0.0)
    steep = fit([Observation(1.0, 1.0, "run"), Observation(2.0, 8.0, "run")])
    assert (steep.fixed, steep.per_work) == (0.0, 4.0)


def test_the_last_real_run_outweighs_calibrations_that_disagree() -> None:
    calibration = Observation(1.0, 2.0, "calibration")
    assert fit([calibration, Observation(100.0, 100.0, "run")]).seconds(100.0) == pytest.approx(100.0)


def test_nothing_observed_is_an_error_and_no_work_costs_nothing() -> None:
    with pytest.raises(ValueError, match="observed"):
        fit([])
    assert COSTS["dense"].seconds(0.0) == 0.0


def test_a_prediction_adds_up_the_stages() -> None:
    seconds, depth = predict(WORK, COSTS, 20, Rerank(budget="off"), plain_dense=20.0)
    assert depth == 20
    assert seconds.total == pytest.approx(10 + 2 + 1 + 10.5 + 3)


@pytest.mark.parametrize(("plain", "reached"), [(20.0, 11), (100.0, 20), (1.0, 5), (None, 20)])
def test_the_planned_depth_is_what_the_budget_leaves_and_never_below_the_floor(plain, reached) -> None:
    """Rerank takes 0.5 + depth / 2 seconds; the other stages take 16 of 1.1 * ``plain``."""
    seconds, depth = predict(WORK, COSTS, 20, Rerank(budget="sla", floor=5), plain)
    assert depth == reached
    assert seconds.rerank == pytest.approx(0.5 + depth / 2)


def test_own_dense_leaves_only_the_floor_where_sparse_takes_it_all() -> None:
    assert predict(WORK, COSTS, 20, Rerank(budget="own_dense", floor=3), None)[1] == 3


def test_without_rerank_there_is_no_depth() -> None:
    seconds, depth = predict({**WORK, "rerank": 0.0}, COSTS, 0, Rerank(budget="sla", floor=5), 1.0)
    assert (seconds.rerank, depth) == (0.0, 0)
