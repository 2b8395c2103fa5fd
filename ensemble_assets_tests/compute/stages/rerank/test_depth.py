"""The latency budget: what rerank is given, and that the governor keeps to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.compute.stages.rerank.depth import (
    GROWTH,
    NO_LIMIT,
    Allowance,
    Governor,
    rerank_allowance,
)

SPENT = StageSeconds(dense=100.0, sparse=4.0, fusion=1.0, export=2.0)


class World:
    """A clock that only slices move, and what they really take: work over a speed that may change as it likes."""

    def __init__(self, per_rank: list[float], speeds: list[float], before: float = 0.0) -> None:
        self.work = np.concatenate([[0.0], np.cumsum(per_rank)])
        self.speeds, self.now, self.begun = speeds, before, 0.0
        self.slices: list[tuple[int, int, float, float]] = []

    def clock(self) -> float:
        return self.now

    def drive(self, allowance: Allowance, growth: float = GROWTH) -> Governor:
        """Run slices as the stage does; remembers (from, to, predicted seconds, seconds)."""
        governor = Governor(allowance, len(self.work) - 1, self.work, 0.0, growth, self.clock)
        busy = 0.0
        while (depth := governor.next_depth()) > governor.reached:
            cost = float(self.work[depth] - self.work[governor.reached])
            rate = self.work[governor.reached] / busy if busy else float("inf")
            took = cost / self.speeds[len(self.slices) % len(self.speeds)]
            self.slices.append((governor.reached, depth, cost / rate, took))
            self.now += took
            busy += took
            governor.record_slice(depth, took, cost)
        return governor


def test_sla_gives_rerank_what_is_left_of_the_plain_scripts_time_and_ten_percent() -> None:
    made = rerank_allowance("sla", 0.1, 5, SPENT, 200.0)
    assert made.seconds == pytest.approx(1.1 * 200 - (100 + 4 + 1 + 2))
    assert (made.against, made.floor, made.reason) == ("sla", 5, "")


def test_own_dense_gives_rerank_what_sparse_and_fusion_left_of_ten_percent_of_dense() -> None:
    made = rerank_allowance("own_dense", 0.1, 5, SPENT, 200.0)
    assert made.seconds == pytest.approx(10 - 4 - 1)
    overspent = rerank_allowance("own_dense", 0.1, 5, StageSeconds(dense=10, sparse=5), None)
    assert overspent.seconds == pytest.approx(-4)


@pytest.mark.parametrize(("against", "reason"), [("off", "budget_off"), ("sla", "no_baseline")])
def test_without_a_reference_there_is_no_limit_and_a_reason(against, reason) -> None:
    made = rerank_allowance(against, 0.1, 5, SPENT, None)
    assert (made.seconds, made.reason) == (None, reason)


def test_the_two_ratios_differ_in_what_is_counted_and_in_what_it_is_held_against() -> None:
    costs = StageSeconds(dense=10, sparse=2, fusion=1, rerank=3, export=4)
    assert costs.vs_own_dense() == pytest.approx(16 / 10)
    assert costs.vs_sla(40.0) == pytest.approx(20 / 40)
    assert StageSeconds(dense=0).vs_own_dense() is None
    assert costs.vs_sla(None) is None
    assert StageSeconds.from_stages({"dense": 10, "chunks": 99, "rerank": 3}) == StageSeconds(10, rerank=3)


def test_without_a_limit_everything_is_one_slice() -> None:
    world = World([1.0] * 20, [1.0])
    assert world.drive(NO_LIMIT).reached == 20
    assert [(low, high) for low, high, _, _ in world.slices] == [(0, 20)]


def test_with_time_enough_depths_are_the_same_whatever_the_speed() -> None:
    for speed in (1.0, 7.0, 1000.0):
        world = World([1.0] * 20, [speed])
        assert world.drive(Allowance("sla", 1000.0, 5, "")).reached == 20
        assert [(low, high) for low, high, _, _ in world.slices] == [(0, 5), (5, 10), (10, 20)]


def test_a_slice_that_would_not_fit_is_cut_to_what_does_and_is_the_last() -> None:
    world = World([1.0] * 20, [1.0])
    governor = world.drive(Allowance("sla", 12.5, 5, ""))
    assert [(low, high) for low, high, _, _ in world.slices] == [(0, 5), (5, 10), (10, 12)]
    assert governor.seconds_left() == pytest.approx(0.5)


def test_where_slices_have_a_large_fixed_cost_there_are_only_two() -> None:
    world = World([1.0] * 40, [1.0])
    world.drive(Allowance("sla", 1000.0, 5, ""), growth=float("inf"))
    assert [(low, high) for low, high, _, _ in world.slices] == [(0, 5), (5, 40)]


def test_reused_pairs_say_nothing_of_the_speed_and_a_slice_still_at_most_doubles() -> None:
    work = np.arange(41, dtype=np.float64)
    governor = Governor(Allowance("sla", 12.0, 5, ""), 40, work, 0.0, clock=lambda: 0.0)
    assert governor.next_depth() == 5
    governor.record_slice(5, 0.001, 0.0)
    assert governor.next_depth() == 10, "nothing was computed, so nothing is known"
    governor.record_slice(10, 5.0, 5.0)
    assert governor.next_depth() == 20, "one token a second leaves room for 12"
    governor.record_slice(20, 10.0, 10.0)
    governor.clock = lambda: 11.5
    assert governor.next_depth() == 20


def test_when_time_is_over_even_pairs_that_may_be_reused_are_left() -> None:
    governor = Governor(Allowance("sla", -1.0, 3, ""), 20, np.arange(21, dtype=np.float64), 0.0, clock=lambda: 0.0)
    assert governor.next_depth() == 3
    governor.record_slice(3, 0.001, 0.0)
    assert governor.next_depth() == 3


def test_a_floor_below_one_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"rerank\.floor is 0"):
        World([1.0], [1.0]).drive(Allowance("sla", 1.0, 0, ""))


@given(
    per_rank=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=60),
    speeds=st.lists(st.floats(0.05, 50.0), min_size=1, max_size=6),
    seconds=st.floats(-50.0, 2000.0),
    floor=st.integers(1, 70),
    before=st.floats(0.0, 20.0),
    growth=st.sampled_from([GROWTH, float("inf")]),
)
def test_the_budget_is_never_exceeded_by_more_than_one_slices_prediction_error(
    per_rank, speeds, seconds, floor, before, growth
) -> None:
    world = World(per_rank, speeds, before)
    governor = world.drive(Allowance("own_dense", seconds, floor, ""), growth)
    assert governor.reached >= min(floor, len(per_rank)), "never below the floor"
    assert [low for low, *_ in world.slices] == [0, *(high for _, high, *_ in world.slices[:-1])]
    if len(world.slices) > 1:
        _, _, predicted, took = world.slices[-1]
        error = took - predicted
        assert -governor.seconds_left() <= max(0.0, error) + 1e-6 * (1 + world.now)
    for _, _, predicted, took in world.slices[1:-1]:
        assert predicted <= seconds + 1e-6
        assert took >= 0


@given(
    per_rank=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=60),
    speed=st.floats(0.1, 10.0),
    seconds=st.floats(0.0, 200.0),
    floor=st.integers(1, 10),
)
def test_at_a_steady_speed_the_depth_is_the_deepest_that_fits(per_rank, speed, seconds, floor) -> None:
    """The reference: try every depth."""
    world = World(per_rank, [speed])
    reached = world.drive(Allowance("sla", seconds, floor, "")).reached
    fitting = [d for d in range(len(world.work)) if world.work[d] / speed <= seconds * (1 + 1e-9)]
    expected = max(*fitting, min(floor, len(per_rank)))
    assert abs(reached - expected) <= (1 if np.isclose(world.work / speed, seconds).any() else 0)
