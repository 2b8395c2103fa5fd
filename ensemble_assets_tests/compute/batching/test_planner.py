"""The planner and the dispatcher: every row once, only what failed again, waiting that ends, plans that repeat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, StageError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.batching.batch_outcome import DidNotFit, Finished
from ensemble_assets.compute.batching.dispatcher import NO_ANSWER, WORKER_LOST, Dispatcher, Measure, Patience, Run, Stop
from ensemble_assets.compute.batching.planner import Assignment, BatchPlanner, Hold, PlannerSettings
from ensemble_assets.compute.batching.size_limits import KnownSizes, SizeSettings
from ensemble_assets.compute.batching.table_result import OUT_OF_MEMORY
from ensemble_assets.compute.devices.ceiling import Ceiling, Headroom
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets_tests.simulated.device import OtherProcesses, SimulatedDevice
from ensemble_assets_tests.simulated.model import Faults, MemoryNeeds, SimulatedModel, Speed
from ensemble_assets_tests.simulated.simulation import SimulationReport, simulate

ROOMY = Headroom(available=10_000_000_000, cap=11_000_000_000, others=0, used=500_000_000)
LENGTHS = np.random.default_rng(5).integers(1, 300, 500)


def planner(
    lengths: NDArray[np.int64] = LENGTHS, events: EventLog | None = None, memory: KnownSizes | None = None, **sizes: int
) -> BatchPlanner:
    settings = PlannerSettings(SizeSettings(**sizes))  # type: ignore[arg-type]
    log = events if events is not None else EventLog()
    return BatchPlanner(lengths, np.arange(len(lengths)), settings, log, memory)


def planned(source: BatchPlanner, headroom: Headroom = ROOMY) -> Assignment:
    assignment = source.plan(headroom)
    assert isinstance(assignment, Assignment)
    return assignment


def test_rows_go_longest_first_and_every_row_once() -> None:
    plan, seen, longest = planner(), [], []
    while not plan.done:
        assignment = planned(plan)
        seen += assignment.batch.rows.tolist()
        longest.append(assignment.batch.longest)
        plan.finished(assignment.number, 1_000_000_000)
    assert sorted(seen) == list(range(len(LENGTHS)))
    assert longest == sorted(longest, reverse=True)
    assert plan.plan(ROOMY) is Hold.DONE


def test_only_some_rows_of_a_table_can_be_asked_for() -> None:
    rows = np.array([3, 5, 400])
    plan = BatchPlanner(LENGTHS, rows, PlannerSettings(), EventLog())
    assert sorted(planned(plan).batch.rows.tolist()) == [3, 5, 400]


def test_out_of_memory_splits_that_batch_and_keeps_finished_rows() -> None:
    log = EventLog()
    plan = planner(events=log, initial_tokens=2000)
    first, second = planned(plan), planned(plan)
    plan.finished(second.number, 1_000_000_000)
    plan.out_of_memory(first.number, ROOMY)
    again: list[int] = []
    while len(again) < first.batch.size:
        part = planned(plan)
        assert part.batch.size < first.batch.size
        again += part.batch.rows.tolist()
        plan.finished(part.number, 1_000_000_000)
    assert sorted(again) == sorted(first.batch.rows.tolist())
    assert [event.name for event in log.events][:2] == ["mitigation.oom", "mitigation.split"]


def test_a_row_that_never_fits_fails_after_a_second_try_and_the_rest_goes_on() -> None:
    log = EventLog()
    plan = planner(np.array([5000, 10, 10]), events=log, initial_tokens=4096)
    for _ in range(2):
        giant = planned(plan)
        assert giant.batch.rows.tolist() == [0]
        plan.out_of_memory(giant.number, ROOMY)
    rest = planned(plan)
    plan.finished(rest.number, 1_000_000_000)
    while not plan.done:
        plan.finished(planned(plan).number, 1_000_000_000)
    assert plan.failed == {0: OUT_OF_MEMORY}
    (event,) = log.named("mitigation.row_failed")
    assert event.facts == {"row": 0, "longest": 5000, "reason": OUT_OF_MEMORY}


def test_a_lost_devices_rows_are_handed_out_again() -> None:
    plan = planner(initial_tokens=2000)
    lost = planned(plan)
    plan.returned(lost.number)
    assert planned(plan).batch.rows.tolist() == lost.batch.rows.tolist()
    assert plan.tally.lost_tokens == lost.batch.tokens


def test_a_model_error_fails_only_the_rows_to_blame() -> None:
    plan = planner(initial_tokens=4096)
    while not plan.done:
        assignment = planned(plan)
        if {17, 300} & set(assignment.batch.rows.tolist()):
            plan.model_failed(assignment.number, "ValueError")
        else:
            plan.finished(assignment.number, 1_000_000_000)
    assert plan.failed == {17: "ValueError", 300: "ValueError"}


def test_a_model_that_fails_on_everything_is_given_up_early() -> None:
    log = EventLog()
    plan, attempts = planner(events=log, initial_tokens=4096), 0
    while not plan.done:
        plan.model_failed(planned(plan).number, "RuntimeError")
        attempts += 1
    assert attempts < 60
    assert set(plan.failed) == set(range(len(LENGTHS)))
    assert len(log.named("mitigation.gave_up")) == 1


def test_long_rows_that_all_fail_do_not_condemn_the_short_ones() -> None:
    lengths = np.array([500] * 30 + [10] * 30)
    plan = planner(lengths)
    while not plan.done:
        assignment = planned(plan)
        if assignment.batch.longest == 500:
            plan.model_failed(assignment.number, "IndexError")
        else:
            plan.finished(assignment.number, 1_000_000_000)
    assert sorted(plan.failed) == list(range(30))


def traced(devices: int, needs: MemoryNeeds | None = None, lookahead: int = 4) -> SimulationReport:
    settings = WorkerSettings(PlannerSettings(lookahead=lookahead))
    lengths = np.random.default_rng(1).integers(5, 400, 4000)
    hosts = [SimulatedDevice(f"SIM-{index}") for index in range(devices)]
    return simulate(lengths, SimulatedModel(needs or MemoryNeeds()), hosts, settings)


def batches_of(report: SimulationReport) -> list[tuple[int, tuple[int, ...]]]:
    return sorted((batch.number, batch.rows) for batch in report.trace)


@pytest.mark.parametrize(("devices", "lookahead"), [(2, 4), (3, 8), (4, 8)])
@pytest.mark.parametrize("needs", [MemoryNeeds(), MemoryNeeds(2 * 10**9, 400_000, 300, 10**6)])
def test_the_plan_does_not_depend_on_the_number_of_devices(devices: int, lookahead: int, needs: MemoryNeeds) -> None:
    one, several = traced(1, needs, lookahead), traced(devices, needs, lookahead)
    assert several.tally.out_of_step == 0
    assert batches_of(one) == batches_of(several)
    assert len({batch.device for batch in several.trace}) == devices


def test_two_devices_take_little_more_than_half_the_time_of_one() -> None:
    assert traced(1).seconds / traced(2).seconds >= 1.9


def test_a_second_run_that_remembers_starts_with_large_batches() -> None:
    lengths = np.random.default_rng(1).integers(5, 400, 20_000)
    first = simulate(lengths, SimulatedModel(), [SimulatedDevice()], WorkerSettings())
    second = simulate(lengths, SimulatedModel(), [SimulatedDevice()], WorkerSettings(), first.sizes)
    assert first.trace[0].tokens <= 4096
    assert second.trace[0].tokens > 10 * first.trace[0].tokens
    assert second.tally.redone_tokens == 0


def joined(events: EventLog, names: Sequence[str] = ("a", "b"), **patience: float) -> Dispatcher:
    plan = planner(events=events, initial_tokens=2000)
    dispatcher = Dispatcher(plan, names, events, Patience(**patience))
    for name in names:
        dispatcher.joined(name, 1_000_000_000, ROOMY)
    return dispatcher


def test_a_device_that_hangs_is_ended_and_its_batch_goes_to_another_at_once() -> None:
    log = EventLog()
    dispatcher = joined(log, batch=10.0)
    runs = {run.device: run.assignment for run in dispatcher.decide(0.0) if isinstance(run, Run)}
    dispatcher.outcome("b", Finished(runs["b"].number, 10**9, 1.0, ROOMY))
    (again,) = dispatcher.decide(1.0)
    assert isinstance(again, Run)
    dispatcher.outcome("b", Finished(again.assignment.number, 10**9, 1.0, ROOMY))
    assert dispatcher.wakeup() == 10.0
    actions = dispatcher.decide(10.0)
    assert actions[0] == Stop("a")
    assert isinstance(actions[1], Run)
    assert actions[1].assignment.batch.rows.tolist() == runs["a"].batch.rows.tolist()
    assert [event.facts["reason"] for event in log.named("worker.lost")] == [NO_ANSWER]


def test_waiting_for_others_memory_is_bounded_and_ends_in_a_clear_error() -> None:
    log = EventLog()
    plan = BatchPlanner(np.array([400]), np.arange(1), PlannerSettings(), log)
    dispatcher = Dispatcher(plan, ["a"], log, Patience(memory=5.0, measure=1.0))
    plan.sizes.model.observe(1000, 100, 5_000_000_000)
    taken = Headroom(available=100, cap=200, others=9_000_000_000, used=11_000_000_000)
    dispatcher.joined("a", 1_000_000_000, taken)
    assert dispatcher.decide(0.0) == []
    assert dispatcher.decide(1.0) == [Measure("a")]
    dispatcher.measured("a", taken)
    assert dispatcher.decide(5.0) == [Stop("a")]
    error = dispatcher.failure()
    assert isinstance(error, DeviceError)
    assert "9000000000 bytes" in str(error)
    assert "device.ceiling_gb" in str(error)


def test_work_goes_on_when_others_give_memory_back() -> None:
    log = EventLog()
    plan = BatchPlanner(np.array([400]), np.arange(1), PlannerSettings(), log)
    dispatcher = Dispatcher(plan, ["a"], log, Patience())
    plan.sizes.model.observe(1000, 100, 5_000_000_000)
    dispatcher.joined("a", 1_000_000_000, Headroom(100, 200, 9_000_000_000, 11_000_000_000))
    assert dispatcher.decide(0.0) == []
    dispatcher.measured("a", ROOMY)
    assert isinstance(dispatcher.decide(0.5)[0], Run)


def test_the_last_device_lost_is_an_error_that_says_how_each_ended() -> None:
    dispatcher = joined(EventLog())
    dispatcher.decide(0.0)
    dispatcher.lost("a", WORKER_LOST, "the process died (exit status -9)")
    assert dispatcher.failure() is None
    dispatcher.lost("b", "RuntimeError", "RuntimeError at model.py:7")
    error = dispatcher.failure()
    assert isinstance(error, StageError)
    assert "exit status -9" in str(error)
    assert "model.py:7" in str(error)


def test_memory_that_others_took_during_a_batch_is_not_held_against_its_size() -> None:
    log = EventLog()
    dispatcher = joined(log, ["a"])
    (run,) = dispatcher.decide(0.0)
    assert isinstance(run, Run)
    dispatcher.planner.sizes.model.observe(1000, 100, 2_000_000_000)
    dispatcher.outcome("a", Finished(run.assignment.number, 2_000_000_000, 1.0, ROOMY))
    (run,) = dispatcher.decide(1.0)
    assert isinstance(run, Run)
    squeezed = Headroom(available=10, cap=20, others=10_000_000_000, used=11_000_000_000)
    dispatcher.outcome("a", DidNotFit(run.assignment.number, squeezed, squeezed))
    assert dispatcher.planner.sizes.learned().failures == ()


def test_a_push_by_others_in_the_middle_backs_off_waits_and_finishes() -> None:
    hog = OtherProcesses(((2.0, 11_000_000_000), (20.0, 0)))
    settings = WorkerSettings(ceiling=Ceiling(), patience=Patience(memory=60.0))
    report = simulate(LENGTHS.repeat(20), SimulatedModel(), [SimulatedDevice(others=hog)], settings)
    assert report.error is None
    assert (report.times_done == 1).all()
    assert report.crossings == []
    assert report.events.named("mitigation.back_off")
    running_meanwhile = [batch for batch in report.trace if 3.0 < batch.begin < 19.0]
    assert running_meanwhile == []


def test_a_push_that_stays_fails_with_a_clear_error_instead_of_crossing() -> None:
    hog = OtherProcesses(((2.0, 11_800_000_000),))
    settings = WorkerSettings(patience=Patience(memory=30.0))
    report = simulate(LENGTHS.repeat(20), SimulatedModel(), [SimulatedDevice(others=hog)], settings)
    assert isinstance(report.error, DeviceError)
    assert report.crossings == []
    assert report.seconds < 40.0


@pytest.mark.parametrize("faults", [Faults(lost_at=3), Faults(hangs_at=3)])
def test_every_row_is_done_when_one_of_two_devices_is_lost_or_hangs(faults: Faults) -> None:
    only_one = Faults(faults.out_of_memory_from, 0.0, faults.lost_at, faults.hangs_at, frozenset({"SIM-1"}))
    model = SimulatedModel(faults=only_one, speed=Speed(100_000.0))
    report = simulate(LENGTHS, model, [SimulatedDevice("SIM-0"), SimulatedDevice("SIM-1")], WorkerSettings())
    assert report.error is None
    assert (report.times_done == 1).all()
    assert report.events.named("mitigation.reassigned")
