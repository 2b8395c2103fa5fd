"""Real worker processes on simulated and host devices: what they promise when all goes well, and when it does not."""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import ModelUnavailableError, StageError
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.dispatcher import Dispatcher, Patience, Run
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets_tests.compute.running.worker_cases import (
    SECRET,
    ActingLog,
    FitsOnOne,
    HostMemoryModel,
    Overlapping,
    Together,
    Unloadable,
    assert_nothing_is_left,
    fixed_batches,
    kill_after,
    random_table,
    run_on,
    simulated,
)
from ensemble_assets_tests.simulated.device import OPEN_SESSIONS, SimulatedDevice
from ensemble_assets_tests.simulated.model import Faults, MemoryNeeds, SimulatedModel, Speed, expected_vector

TABLE = random_table()
EXPECTED = np.stack([expected_vector(TABLE, row) for row in range(len(TABLE))])
FAST = Speed(1e6, 0.002)


@pytest.fixture
def together(tmp_path):
    """A model of which every worker gets at least one batch."""

    def make(parties, speed=FAST, **facts):
        return Together(speed=speed, folder=tmp_path, parties=parties, journal=tmp_path / "journal", **facts)

    return make


def rows_run(tmp_path) -> Counter[int]:
    """How often each row was computed to its end."""
    lines = (tmp_path / "journal").read_text().splitlines()
    return Counter(int(row) for line in lines for row in line.split())


def lost(log) -> dict[str, str]:
    return {event.facts["device"]: event.facts["reason"] for event in log.named("worker.lost")}


def test_one_process_per_device_computes_and_none_of_the_memory_is_in_the_parent(tmp_path, together, monkeypatch):
    devices = simulated(2)
    for name in list(OPEN_SESSIONS):  # other tests of this process open devices in it
        monkeypatch.delitem(OPEN_SESSIONS, name)
    result, log = run_on(devices, TABLE, together(2), tmp_path)
    assert sorted(log.pids()) == ["SIM-0", "SIM-1"]
    assert len(log.named("worker.started")) == 2
    assert set(result.outputs["company"][:, 2].tolist()) == set(log.pids().values())
    assert os.getpid() not in log.pids().values()
    assert not set(OPEN_SESSIONS) & {device.torch_device for device in devices}
    assert_nothing_is_left(log, devices, tmp_path)


@pytest.mark.parametrize("count", [1, 3])
def test_every_row_is_computed_once_and_lands_at_its_number(tmp_path, together, count):
    result, log = run_on(simulated(count), TABLE, together(count), tmp_path)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert rows_run(tmp_path) == Counter(range(len(TABLE)))
    assert result.largest_batch == max(event.facts["rows"] for event in log.named("batch.done"))
    assert result.device == UsedDevices("cuda", tuple(f"SIM-{number}" for number in range(count)))


def test_batches_go_longest_first_from_one_queue(tmp_path, together):
    _, log = run_on(simulated(2), TABLE, together(2), tmp_path)
    done = sorted((event.facts["number"], event.facts["longest"]) for event in log.named("batch.done"))
    assert [number for number, _ in done] == list(range(len(done)))
    assert [longest for _, longest in done] == sorted((longest for _, longest in done), reverse=True)


def test_no_device_is_idle_while_rows_wait_also_beside_a_slow_one(tmp_path, together, monkeypatch):
    """Asserted on the log of what was dispatched: whoever is free gets a batch as long as any row is without one."""
    joined, running, given = set(), {}, Counter()
    decide, outcome, join = Dispatcher.decide, Dispatcher.outcome, Dispatcher.joined

    def logged_decide(self, now):
        actions = decide(self, now)
        for action in actions:
            if isinstance(action, Run):
                running.setdefault(action.device, []).append(action.assignment.number)
                assert len(running[action.device]) <= 2
                given[action.device] += 1
        if joined - {device for device, numbers in running.items() if numbers}:
            assert self.planner.waiting_rows == 0
        return actions

    def logged_outcome(self, device, what):
        assert running[device].pop(0) == what.number
        outcome(self, device, what)

    def logged_join(self, device, *facts):
        joined.add(device)
        join(self, device, *facts)

    monkeypatch.setattr(Dispatcher, "decide", logged_decide)
    monkeypatch.setattr(Dispatcher, "outcome", logged_outcome)
    monkeypatch.setattr(Dispatcher, "joined", logged_join)
    model = together(3, slow="SIM-1", slow_seconds=0.4)
    result, log = run_on(simulated(3), TABLE, model, tmp_path)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert sum(given.values()) == len(log.named("batch.done"))
    assert set(given) == {"SIM-0", "SIM-1", "SIM-2"}
    assert given["SIM-1"] < given.total() / 3


@pytest.mark.parametrize("last", ["stage", "launch"])
def test_the_next_batch_is_prepared_and_launched_before_this_one_is_done(tmp_path, last):
    """A batch ends only when the next one has been staged, or launched: else the worker would be lost."""
    log = ActingLog()
    model = Overlapping(last=last)
    result, _ = run_on(simulated(1), TABLE, model, tmp_path, log, patience=Patience(batch=20.0))
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert len(log.named("batch.done")) > 10
    assert not log.named("worker.lost")


def test_failures_of_two_batches_in_flight_are_told_apart(tmp_path):
    longest = np.argsort(-TABLE.lengths, kind="stable").tolist()
    model = Overlapping(raises_on=frozenset(longest[3:5]), refuses_from=200, last="")
    result, log = run_on(simulated(1), TABLE, model, tmp_path)
    assert result.failed_rows == dict.fromkeys(sorted(longest[3:5]), "ValueError")
    others = np.delete(np.arange(len(TABLE)), longest[3:5])
    np.testing.assert_array_equal(result.outputs["vector"][others], EXPECTED[others])
    assert log.named("mitigation.oom")


def test_a_batch_behind_the_one_that_costs_a_worker_is_not_to_blame(tmp_path):
    """Rows go alone once a worker was lost with them, so that the guilty row fails and its neighbours do not."""
    longest = np.argsort(-TABLE.lengths, kind="stable").tolist()
    batches = PlannerSettings(SizeSettings(initial_tokens=60, max_tokens=60, max_rows=1))
    guilty = longest[2]
    model = Overlapping(poison=frozenset({guilty}), last="")
    log = ActingLog()
    result, _ = run_on(simulated(1), TABLE, model, tmp_path, log, batches=batches)
    assert result.failed_rows == {guilty: "device_failed"}
    others = np.delete(np.arange(len(TABLE)), guilty)
    np.testing.assert_array_equal(result.outputs["vector"][others], EXPECTED[others])
    assert len(log.named("worker.started")) == 3


@pytest.mark.parametrize("count", [2, 3])
def test_the_plan_and_the_result_do_not_depend_on_the_number_of_devices(tmp_path, together, count):
    alone, _ = run_on(simulated(1), TABLE, together(1), tmp_path / "alone")
    several, _ = run_on(simulated(count), TABLE, together(count), tmp_path / "several")
    np.testing.assert_array_equal(several.outputs["company"][:, :2], alone.outputs["company"][:, :2])
    assert several.outputs["vector"].tobytes() == alone.outputs["vector"].tobytes()


def test_a_killed_workers_batch_goes_to_the_others(tmp_path, together):
    log = ActingLog(act=kill_after(3, "SIM-1"))
    devices = simulated(2)
    result, _ = run_on(devices, TABLE, together(2, slow="SIM-1", slow_seconds=5.0), tmp_path, log)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert (result.failed_rows, lost(log)) == ({}, {"SIM-1": "worker_lost"})
    (given,) = log.named("mitigation.reassigned")
    assert given.facts["rows"] > 0
    assert rows_run(tmp_path) == Counter(range(len(TABLE)))  # it was killed before it had computed a row
    assert set(result.outputs["company"][:, 2].tolist()) == {log.pids()["SIM-0"]}
    assert_nothing_is_left(log, devices, tmp_path)


def test_a_killed_worker_is_started_again_and_all_rows_are_done(tmp_path, together):
    log, devices = ActingLog(act=kill_after(3, "SIM-0")), simulated(1)
    result, _ = run_on(devices, TABLE, together(1), tmp_path, log)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert (result.failed_rows, lost(log)) == ({}, {"SIM-0": "worker_lost"})
    assert len(log.named("worker.started")) == 2
    assert_nothing_is_left(log, devices, tmp_path)


def test_a_worker_that_dies_again_and_again_fails_the_stage_and_leaves_nothing(tmp_path, together):
    def act(log, name, facts):
        if name == "worker.ready":
            os.kill(log.pids()["SIM-0"], signal.SIGKILL)

    log, devices = ActingLog(act=act), simulated(1)
    with pytest.raises(StageError, match=r"rows are left and no worker .*exit status -9"):
        run_on(devices, TABLE, together(1, speed=Speed(1e6, 0.2)), tmp_path, log)
    assert lost(log) == {"SIM-0": "worker_lost"}
    assert 3 <= len(log.named("worker.started")) <= 6
    assert_nothing_is_left(log, devices, tmp_path)


def test_a_row_that_kills_its_worker_fails_alone(tmp_path, together):
    longest = np.argsort(-TABLE.lengths, kind="stable")
    model = together(1, faults=Faults(poison_rows=frozenset({int(longest[1])})))
    batches = PlannerSettings(SizeSettings(initial_tokens=120, max_tokens=120, max_rows=2))
    log, devices = ActingLog(), simulated(1)
    result, _ = run_on(devices, TABLE, model, tmp_path, log, batches=batches)
    assert result.failed_rows == {int(longest[1]): "device_failed"}
    others = np.delete(np.arange(len(TABLE)), longest[1])
    np.testing.assert_array_equal(result.outputs["vector"][others], EXPECTED[others])
    assert len(log.named("worker.started")) == 3  # after the third loss nothing is left to do
    assert_nothing_is_left(log, devices, tmp_path)


def test_an_interrupted_stage_leaves_nothing(tmp_path, together):
    def interrupt(log, name, facts):
        if name == "batch.done":
            raise KeyboardInterrupt

    log, devices = ActingLog(act=interrupt), simulated(2)
    with pytest.raises(KeyboardInterrupt):
        run_on(devices, TABLE, together(2), tmp_path, log)
    assert_nothing_is_left(log, devices, tmp_path)


def test_a_hanging_worker_is_ended_and_its_batch_goes_to_the_others(tmp_path, together):
    log, devices = ActingLog(), simulated(2)
    model = together(2, faults=Faults(hangs_at=0, only_on=frozenset({"SIM-1"})))
    result, _ = run_on(devices, TABLE, model, tmp_path, log, patience=Patience(batch=2.0))
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert lost(log) == {"SIM-1": "no_answer"}
    assert_nothing_is_left(log, devices, tmp_path)


def test_a_worker_that_never_finishes_loading_is_given_up(tmp_path):
    log, devices = ActingLog(), simulated(2)
    model = Unloadable(speed=Speed(1e6, 0.5), error="hangs", on="SIM-1")
    result, _ = run_on(devices, TABLE, model, tmp_path, log, load_seconds=8.0)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert lost(log) == {"SIM-1": "no_answer"}
    assert_nothing_is_left(log, devices, tmp_path)


def test_a_lost_device_costs_only_itself(tmp_path, together):
    model = together(2, faults=Faults(lost_at=0, only_on=frozenset({"SIM-0"})))
    result, log = run_on(simulated(2), TABLE, model, tmp_path)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert lost(log) == {"SIM-0": "device_failed"}


def test_rows_that_are_not_finite_are_done_again_in_full_precision(tmp_path, together):
    bad = frozenset({3, 50, 51, 199})
    result, log = run_on(simulated(2), TABLE, together(2, faults=Faults(not_finite_on=bad)), tmp_path)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert (result.precision_redone, result.failed_rows, result.precision) == (4, {}, "fp16")
    assert [event.facts for event in log.named("mitigation.precision")] == [{"rows": 4, "precision": "fp32"}]
    assert rows_run(tmp_path) == Counter(range(len(TABLE))) + Counter(bad)
    assert len(log.named("worker.started")) == 2  # they load the second model where the first one was
    assert len(log.named("worker.ready")) in (3, 4)  # one may have done all four rows before the other has loaded


def test_a_batch_that_does_not_fit_is_split_and_finished_rows_stay(tmp_path, together):
    model = together(2, faults=Faults(out_of_memory_from=150))
    result, log = run_on(simulated(2), TABLE, model, tmp_path)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert log.named("mitigation.oom")
    assert result.failed_rows == {}
    assert rows_run(tmp_path) == Counter(range(len(TABLE)))


def test_rows_on_which_the_model_raises_fail_alone_and_without_their_text(tmp_path, together):
    result, log = run_on(simulated(2), TABLE, together(2, faults=Faults(raises_on=frozenset({7, 8}))), tmp_path)
    assert result.failed_rows == {7: "ValueError", 8: "ValueError"}
    assert not result.outputs["vector"][[7, 8]].any()
    np.testing.assert_array_equal(np.delete(result.outputs["vector"], [7, 8], 0), np.delete(EXPECTED, [7, 8], 0))
    assert SECRET not in repr(log.events)


def test_a_model_that_cannot_be_loaded_is_the_callers_error(tmp_path):
    log, devices = ActingLog(), simulated(2)
    with pytest.raises(ModelUnavailableError, match="not here"):
        run_on(devices, TABLE, Unloadable(), tmp_path, log)
    assert_nothing_is_left(log, devices, tmp_path)


def test_weights_that_fit_on_one_device_only_cost_the_other(tmp_path):
    small = SimulatedDevice(uuid="SIM-1", total_bytes=2_000_000_000)
    model = FitsOnOne(MemoryNeeds(weights=3_000_000_000), FAST, folder=tmp_path, parties=2)
    result, log = run_on((*simulated(1), small), TABLE, model, tmp_path, freed_seconds=0.0)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert lost(log) == {"SIM-1": "out_of_memory"}
    with pytest.raises(DeviceOutOfMemoryError):
        run_on((small,), TABLE, model, tmp_path, freed_seconds=0.0)


@pytest.mark.parametrize("error", ["foreign", "two arguments", "end of file"])
def test_whatever_a_worker_dies_of_the_parent_learns_a_word_and_no_text(tmp_path, error):
    log, devices = ActingLog(), simulated(1)
    with pytest.raises(StageError) as caught:
        run_on(devices, TABLE, Unloadable(error=error), tmp_path, log)
    expected = {"foreign": "ValueError", "two arguments": "Exception", "end of file": "EOFError"}[error]
    assert lost(log) == {"SIM-0": expected}
    assert f"{expected} at worker_cases.py:" in str(caught.value)
    assert SECRET not in str(caught.value) + repr(log.events)


def test_the_kernel_refuses_host_memory_over_the_ceiling_and_the_batch_is_split(tmp_path):
    """Real memory: a batch of all rows would take 1.3 GB of a ceiling of 600 MB."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    table = random_table(40, 8)
    host = (CpuDevice(threads=1),)
    ceiling = Ceiling(600_000_000, margin_bytes=32 << 20)
    needs = 1_300_000_000 // int(table.lengths.sum())
    batches = fixed_batches(int(table.lengths.sum()) * 2)
    result, log = run_on(
        host, table, HostMemoryModel(needs), tmp_path, batches=batches, ceiling=ceiling, sampler_seconds=0.01
    )
    np.testing.assert_array_equal(
        result.outputs["vector"], np.stack([expected_vector(table, row) for row in range(len(table))])
    )
    assert log.named("mitigation.oom")
    assert 0 < result.peak_bytes <= ceiling.hard_bytes
    assert resource.getrlimit(resource.RLIMIT_DATA) == before  # it is the worker that is limited


def test_workers_of_one_device_share_its_ceiling(tmp_path):
    result, log = run_on((CpuDevice(threads=1),), TABLE, HostMemoryModel(10), tmp_path, workers_per_device=2)
    np.testing.assert_array_equal(result.outputs["vector"], EXPECTED)
    assert sorted(name.split("#")[1] for name in log.pids()) == ["0", "1"]


def test_repeated_rows_are_computed_once(tmp_path):
    table = random_table(30)
    twice = replace(
        table,
        ids=np.concatenate([table.ids, table.ids]),
        offsets=np.concatenate([table.offsets, table.offsets[1:] + table.offsets[-1]]),
        truncated=np.concatenate([table.truncated, table.truncated]),
    )
    result, _ = run_on(simulated(1), twice, SimulatedModel(speed=FAST, journal=tmp_path / "journal"), tmp_path)
    assert rows_run(tmp_path) == Counter(range(30))
    np.testing.assert_array_equal(result.outputs["vector"][:30], result.outputs["vector"][30:])
    assert (result.distinct_rows, result.outputs["vector"].any(axis=1).all()) == (30, True)
