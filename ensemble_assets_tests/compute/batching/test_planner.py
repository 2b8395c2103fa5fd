"""The planner and the dispatcher: every row once, only what failed again, waiting that ends, plans that repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, StageError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.batching.assignment import Assignment, Hold
from ensemble_assets.compute.batching.batch_outcome import DidNotFit, Finished
from ensemble_assets.compute.batching.dispatcher import (
    DEVICE_FAILED,
    NO_ANSWER,
    WORKER_LOST,
    Dispatcher,
    Measure,
    Patience,
    Run,
    Start,
    Stop,
)
from ensemble_assets.compute.batching.planner import BatchPlanner, PlannerSettings
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
    assert not plan.returned(lost.number, WORKER_LOST)
    assert planned(plan).batch.rows.tolist() == lost.batch.rows.tolist()
    assert plan.tally.lost_tokens == lost.batch.tokens


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.data())
def test_rows_that_devices_are_lost_of_are_found_and_all_others_are_done_once(values: list[int], data: st.DataObject):
    lengths = np.array(values)
    poison = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=3))
    plan = planner(lengths, initial_tokens=data.draw(st.sampled_from([64, 1024, 100_000])))
    done, losses = [], 0
    while not plan.done:
        assignment = planned(plan)
        rows = assignment.batch.rows.tolist()
        if poison & set(rows):
            plan.returned(assignment.number, WORKER_LOST)
            losses += 1
        else:
            plan.finished(assignment.number, 1_000_000_000)
            done += rows
    assert plan.failed == dict.fromkeys(poison, WORKER_LOST)
    assert sorted(done) == sorted(set(range(len(lengths))) - poison)
    assert losses <= len(poison) * (2 + len(lengths).bit_length())


def test_rows_that_may_be_to_blame_wait_until_all_others_are_done() -> None:
    plan, order, bad = planner(initial_tokens=2000), [], int(LENGTHS.argmax())
    while not plan.done:
        assignment = planned(plan)
        if bad in assignment.batch.rows:
            plan.returned(assignment.number, WORKER_LOST)
            order.append("lost")
        else:
            plan.finished(assignment.number, 1_000_000_000)
            order.append("done")
    assert order[:3] == ["lost", "lost", "done"], "the first time, the next device gets the rows at once"
    assert order.index("lost", 2) > 10
    assert plan.failed == {bad: WORKER_LOST}


SQUEEZED = Headroom(available=100_000_000, cap=200_000_000, others=11_000_000_000, used=11_800_000_000)


def test_a_row_that_others_push_out_again_and_again_has_failed_after_eight_attempts() -> None:
    plan, attempts = planner(np.array([100])), 0
    while not plan.done:
        plan.out_of_memory(planned(plan).number, SQUEEZED)
        attempts += 1
    assert attempts == 8
    assert plan.failed == {0: OUT_OF_MEMORY}


def test_a_row_that_will_not_fit_when_others_are_gone_is_not_waited_for() -> None:
    plan, attempts = planner(np.array([100, 1])), 0
    plan.sizes.model.observe(10, 10, 9_000_000_000)
    plan.sizes.model.observe(20, 20, 12_000_000_000)
    while not plan.failed:
        assignment = planned(plan, SQUEEZED)
        assert assignment.batch.longest == 100
        plan.out_of_memory(assignment.number, SQUEEZED)
        attempts += 1
    assert attempts == 2


def attempts_beside_others(plan: BatchPlanner, headroom: Headroom = SQUEEZED) -> int:
    """Refuse every batch that is planned until none is."""
    attempts = 0
    while isinstance(assignment := plan.plan(headroom), Assignment):
        plan.out_of_memory(assignment.number, headroom)
        attempts += 1
    return attempts


@pytest.mark.parametrize("lengths", [np.arange(100, 576), np.full(476, 100)], ids=["all different", "all equal"])
def test_the_shortest_row_shows_that_no_row_fits_beside_others(lengths: NDArray[np.int64]) -> None:
    """Each of 476 rows was tried once."""
    plan = planner(lengths, max_rows=1)
    assert attempts_beside_others(plan) <= 9
    assert not plan.failed
    assert plan.plan(SQUEEZED) is Hold.MEMORY
    assert not plan.fits_shortest(SQUEEZED.cap)
    assert attempts_beside_others(plan, replace(SQUEEZED, cap=205_000_000)) == 0, "it would need more than that"
    shortest = planned(plan, replace(SQUEEZED, cap=220_000_000))
    assert (shortest.batch.size, shortest.batch.longest) == (1, 100)
    plan.finished(shortest.number, 210_000_000)
    while not plan.done:
        plan.finished(planned(plan).number, 1_000_000_000)
    assert not plan.failed


def test_where_the_shortest_row_fits_the_long_ones_alone_wait_for_others() -> None:
    plan = planner(np.append(np.arange(600, 800), np.arange(10, 30)), max_rows=1)
    done: list[int] = []
    while isinstance(assignment := plan.plan(SQUEEZED), Assignment):
        if assignment.batch.longest >= 600:
            plan.out_of_memory(assignment.number, SQUEEZED)
        else:
            plan.finished(assignment.number, 150_000_000)
            done.append(assignment.batch.longest)
    assert sorted(done) == list(range(10, 30))
    assert plan.waiting_rows == 200
    assert not plan.failed


def test_all_rows_are_given_up_at_once_where_the_shortest_does_not_fit_and_nobody_could_make_room() -> None:
    log = EventLog()
    plan = planner(np.arange(100, 576), events=log, max_rows=1)
    assert attempts_beside_others(plan, replace(SQUEEZED, others=0)) <= 10
    assert plan.done
    assert plan.failed == dict.fromkeys(range(476), OUT_OF_MEMORY)
    assert len(log.named("mitigation.gave_up")) == 1


def test_a_shortest_row_on_which_the_model_raises_does_not_condemn_the_others() -> None:
    plan = planner(np.append(np.arange(500, 520), np.arange(1, 50)), max_rows=1)
    while not plan.done:
        assignment = planned(plan)
        if assignment.batch.longest >= 500:
            plan.out_of_memory(assignment.number, ROOMY)
        elif assignment.batch.longest == 1:
            plan.model_failed(assignment.number, "ValueError")
        else:
            plan.finished(assignment.number, 1_000_000_000)
    assert plan.failed == dict.fromkeys(range(20), OUT_OF_MEMORY) | {20: "ValueError"}


def test_a_row_that_may_cost_a_device_is_not_the_one_that_shows_whether_any_fits() -> None:
    plan = planner(np.append(np.full(20, 500), [2, 1]), max_rows=2)
    *long, short = [planned(plan) for _ in range(11)]
    plan.returned(short.number, WORKER_LOST)
    plan.returned(planned(plan).number, WORKER_LOST)
    for assignment in long:
        plan.out_of_memory(assignment.number, SQUEEZED)
    tried = []
    while isinstance(assignment := plan.plan(SQUEEZED), Assignment):
        plan.out_of_memory(assignment.number, SQUEEZED)
        tried.append(assignment.batch.longest)
    assert tried == [500] * 8
    assert plan.plan(SQUEEZED) is Hold.MEMORY


def test_long_rows_that_never_fit_do_not_condemn_a_short_one_that_may_cost_a_device() -> None:
    """The nightly worlds found it."""
    plan = planner(np.append(np.full(20, 500), [2, 1]), max_rows=2)
    *long, short = [planned(plan) for _ in range(11)]
    plan.returned(short.number, WORKER_LOST)
    plan.returned(planned(plan).number, WORKER_LOST)
    for assignment in long:
        plan.out_of_memory(assignment.number, replace(SQUEEZED, others=0))
    finished = []
    while not plan.done:
        assignment = planned(plan, replace(SQUEEZED, others=0))
        if assignment.batch.longest == 500:
            plan.out_of_memory(assignment.number, replace(SQUEEZED, others=0))
        else:
            plan.finished(assignment.number, 1_000_000_000)
            finished += assignment.batch.rows.tolist()
    assert sorted(finished) == [20, 21]
    assert plan.failed == dict.fromkeys(range(20), OUT_OF_MEMORY)


def test_a_run_in_which_nothing_fits_beside_others_ends_with_one_error_and_few_attempts() -> None:
    """Others leave as much as the weights take, and loading takes the rest."""
    device = SimulatedDevice(lazy_bytes=150_000_000, others=OtherProcesses(((0.0, 10_230_000_000),)))
    model, settings = SimulatedModel(MemoryNeeds(1_000_000_000)), WorkerSettings(patience=Patience(memory=30.0))
    report = simulate(np.arange(2_000, 2_476), model, [device], settings)
    assert isinstance(report.error, DeviceError)
    assert report.failed == {}
    assert 1 <= len(report.trace) <= 25
    assert len(report.events.named("worker.lost")) == 1


RESERVED = {
    "T4, 279 MB": SimulatedDevice(total_bytes=16_106_127_360, context_bytes=350_000_000, reserved_bytes=279_000_000),
    "T4 with ECC, 473 MB": SimulatedDevice(
        total_bytes=16_106_127_360, context_bytes=350_000_000, reserved_bytes=473_000_000, lazy_bytes=150_000_000
    ),
    "H200, 635 MB": SimulatedDevice(total_bytes=150_754_820_096, context_bytes=550_000_000, reserved_bytes=635_000_000),
    "workstation with a desktop": SimulatedDevice(
        total_bytes=25_757_220_864, context_bytes=450_000_000, reserved_bytes=920_000_000
    ),
    "late kernels, 700 MB": SimulatedDevice(
        total_bytes=16_106_127_360, late_growth=((2, 350_000_000), (40, 350_000_000))
    ),
}


@pytest.mark.parametrize("ceiling", [12_000_000_000, 4_000_000_000])
@pytest.mark.parametrize("device", RESERVED.values(), ids=list(RESERVED))
def test_a_row_that_can_never_fit_fails_alone_on_cards_whose_memory_is_never_free(
    device: SimulatedDevice, ceiling: int
) -> None:
    """Every real card reserves some memory, has a desktop, or loads kernels late."""
    lengths = np.append(LENGTHS, 200_000)
    model = SimulatedModel(MemoryNeeds(1_200_000_000))
    report = simulate(lengths, model, [device], WorkerSettings(ceiling=Ceiling(ceiling)))
    assert report.error is None
    assert report.failed == {len(LENGTHS): OUT_OF_MEMORY}
    assert report.times_done.sum() == len(LENGTHS)
    assert len(report.events.named("mitigation.oom")) <= 20


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
    assert actions[1] == Start("a")
    assert isinstance(actions[2], Run)
    assert actions[2].assignment.batch.rows.tolist() == runs["a"].batch.rows.tolist()
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
    dispatcher.lost("a", OUT_OF_MEMORY, "its weights do not fit")
    assert dispatcher.failure() is None
    dispatcher.lost("b", "RuntimeError", "RuntimeError at model.py:7")
    error = dispatcher.failure()
    assert isinstance(error, StageError)
    assert "its weights do not fit" in str(error)
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


def test_memory_that_was_waited_for_in_vain_only_costs_the_rows_that_need_it() -> None:
    """Another program comes and stays: the long rows have failed, the short ones are done."""
    hog = OtherProcesses(((0.3, 9_000_000_000),))
    lengths = np.append(np.full(2000, 100), np.full(20, 30_000))
    settings = WorkerSettings(patience=Patience(memory=30.0))
    report = simulate(lengths[::-1], SimulatedModel(), [SimulatedDevice(others=hog)], settings)
    assert report.error is None
    assert report.crossings == []
    assert set(report.failed.values()) == {OUT_OF_MEMORY}
    assert set(report.failed) < set(range(20))
    assert report.times_done.sum() + len(report.failed) == len(lengths)
    assert len(report.events.named("mitigation.back_off")) == 1


def test_a_lost_worker_is_started_again_and_given_up_after_three_losses() -> None:
    dispatcher = joined(EventLog(), ["a"])
    for _ in range(2):
        (run,) = dispatcher.decide(0.0)
        assert isinstance(run, Run)
        dispatcher.lost("a", WORKER_LOST, "the process died (exit status -9)")
        assert dispatcher.failure() is None
        assert dispatcher.decide(0.0) == [Start("a")]
        assert dispatcher.decide(0.0) == []
        dispatcher.joined("a", 1_000_000_000, ROOMY)
        (run,) = dispatcher.decide(0.0)
        assert isinstance(run, Run)
        dispatcher.lost("a", WORKER_LOST, "the process died (exit status -9)")  # its rows are halved: does not count
        assert dispatcher.decide(0.0) == [Start("a")]
        dispatcher.joined("a", 1_000_000_000, ROOMY)
    dispatcher.decide(0.0)
    dispatcher.lost("a", WORKER_LOST, "the process died (exit status -9)")
    assert dispatcher.decide(0.0) == []
    assert isinstance(dispatcher.failure(), StageError)


@pytest.mark.parametrize(
    ("reason", "starts"), [(WORKER_LOST, True), (DEVICE_FAILED, False), (NO_ANSWER, False), (OUT_OF_MEMORY, False)]
)
def test_only_a_worker_that_was_killed_while_loading_is_started_again(reason: str, starts: bool) -> None:
    dispatcher = Dispatcher(planner(), ["a"], EventLog())
    dispatcher.lost("a", reason, "while loading")
    assert dispatcher.decide(0.0) == ([Start("a")] if starts else [])
    assert (dispatcher.failure() is None) == starts


@pytest.mark.parametrize("devices", [1, 2])
def test_a_poison_row_fails_alone_and_no_device_is_given_up(devices: int) -> None:
    """A row beyond the vocabulary is an assertion in a kernel: it costs the process its device."""
    model = SimulatedModel(faults=Faults(poison_rows=frozenset({17, 400})))
    report = simulate(LENGTHS, model, simulated_devices(devices), WorkerSettings())
    assert report.error is None
    assert report.failed == {17: DEVICE_FAILED, 400: DEVICE_FAILED}
    assert report.times_done.sum() == len(LENGTHS) - 2
    assert {batch.device for batch in report.trace if batch.outcome == "finished"} == {
        f"SIM-{number}" for number in range(devices)
    }


def test_a_device_that_hangs_now_and_then_survives_a_poison_row() -> None:
    """Every worker hangs in its sixth batch, and one row costs it the device."""
    model = SimulatedModel(faults=Faults(hangs_at=5, poison_rows=frozenset({14})))
    report = simulate(LENGTHS, model, simulated_devices(2), WorkerSettings())
    assert report.error is None
    assert report.failed[14] == DEVICE_FAILED
    assert report.times_done.sum() == len(LENGTHS) - len(report.failed)


def test_a_device_that_is_lost_in_every_batch_is_given_up_after_few_starts() -> None:
    model = SimulatedModel(faults=Faults(lost_at=0, only_on=frozenset({"SIM-1"})))
    report = simulate(LENGTHS.repeat(10), model, simulated_devices(2), WorkerSettings())
    assert report.error is None
    assert (report.times_done == 1).all()
    lost = [event for event in report.events.named("worker.lost") if event.facts["device"] == "SIM-1"]
    assert 3 <= len(lost) <= 6


def simulated_devices(count: int) -> list[SimulatedDevice]:
    return [SimulatedDevice(f"SIM-{number}") for number in range(count)]


@pytest.mark.parametrize("faults", [Faults(lost_at=3), Faults(hangs_at=3)])
def test_every_row_is_done_when_one_of_two_devices_is_lost_or_hangs(faults: Faults) -> None:
    only_one = Faults(faults.out_of_memory_from, 0.0, faults.lost_at, faults.hangs_at, frozenset({"SIM-1"}))
    model = SimulatedModel(faults=only_one, speed=Speed(100_000.0))
    report = simulate(LENGTHS, model, [SimulatedDevice("SIM-0"), SimulatedDevice("SIM-1")], WorkerSettings())
    assert report.error is None
    assert (report.times_done == 1).all()
    assert report.events.named("mitigation.reassigned")
