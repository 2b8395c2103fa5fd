"""Plans: costs fitted to what was observed, and the depth that the governor would reach with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.planning.cost_fit import PlannedBudget, PlannedWork, StageCost, fit, plan
from ensemble_assets.planning.cost_records import Observation

COSTS = {
    "dense": StageCost(1.0, 1.0),
    "sparse": StageCost(0.0, 1.0),
    "fusion": StageCost(0.0, 1.0),
    "rerank": StageCost(0.5, 1.0),
    "export": StageCost(0.0, 1.0),
}
WORK = PlannedWork(dense=9.0, sparse=2.0, fusion=1.0, rerank=np.arange(21) * 0.5, export=3.0)


@given(
    fixed=st.floats(0.0, 10.0),
    rate=st.floats(0.1, 1e3),
    works=st.lists(st.floats(1.0, 1e4), min_size=2, max_size=6, unique=True),
    scale=st.sampled_from([1.0, 1e12]),
)
def test_exact_observations_are_predicted_exactly(fixed, rate, works, scale) -> None:
    seen = [Observation(work * scale, fixed + work / rate, "calibration") for work in works]
    cost = fit(seen)
    assert cost.fixed >= 0
    assert cost.per_work >= 0
    for one in seen:
        assert cost.seconds(one.work) == pytest.approx(one.seconds, rel=1e-4)


def test_one_observation_is_taken_as_proportional() -> None:
    assert fit([Observation(10.0, 5.0, "run")]).seconds(20.0) == 10.0


def test_the_last_real_run_outweighs_calibrations_that_disagree() -> None:
    calibrations = [Observation(1.0, 2.0, "calibration"), Observation(4.0, 8.0, "calibration")]
    run = Observation(100.0, 100.0, "run")
    assert abs(fit([*calibrations, run]).seconds(100.0) - 100) < abs(fit(calibrations).seconds(100.0) - 100)


def test_nothing_observed_is_an_error_and_no_work_costs_nothing() -> None:
    with pytest.raises(ValueError, match="observed"):
        fit([])
    assert COSTS["dense"].seconds(0.0) == 0.0


def test_a_plan_adds_up_the_stages_and_finds_the_deepest_depth_of_each_ratio() -> None:
    made = plan(WORK, COSTS, PlannedBudget("off", 0.1, 5, plain_dense=20.0))
    assert (made.depth, made.requested) == (20, 20)
    assert made.full == made.seconds
    assert made.seconds.total == pytest.approx(10 + 2 + 1 + 10.5 + 3)
    # sla: 16 + 0.5 + d/2 <= 22; own dense: 13 + 0.5 + d/2 <= 11 never
    assert made.deepest == {"vs_sla": 11, "vs_own_dense": 0}


@pytest.mark.parametrize(("plain", "depth"), [(20.0, 11), (100.0, 20), (1.0, 5), (None, 20)])
def test_the_planned_depth_is_what_the_budget_leaves_and_never_below_the_floor(plain, depth) -> None:
    made = plan(WORK, COSTS, PlannedBudget("sla", 0.1, 5, plain))
    assert made.depth == depth
    assert made.seconds.rerank == pytest.approx(COSTS["rerank"].seconds(float(WORK.rerank[depth])))


def test_own_dense_leaves_only_the_floor_where_sparse_takes_it_all() -> None:
    made = plan(WORK, COSTS, PlannedBudget("own_dense", 0.1, 3, None))
    assert made.depth == 3
    assert "vs_sla" not in made.deepest


def test_without_rerank_there_is_no_depth() -> None:
    work = PlannedWork(9.0, 2.0, 1.0, np.zeros(1), 3.0)
    assert plan(work, COSTS, PlannedBudget("sla", 0.1, 5, 1.0)).depth == 0
