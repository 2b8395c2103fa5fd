"""What must hold in every world, random capacities, models of memory, inputs, other programs and faults included.

A few hundred worlds by default, ten thousand with ``HYPOTHESIS_PROFILE=nightly`` and ``-m nightly``.
"""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings

from ensemble_assets.compute.batching.dispatcher import DEVICE_BUSY, DEVICE_FAILED, NO_ANSWER
from ensemble_assets.compute.batching.table_result import OUT_OF_MEMORY
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets_tests.simulated.device import SimulatedDevice
from ensemble_assets_tests.simulated.model import MemoryNeeds, SimulatedModel
from ensemble_assets_tests.simulated.simulation import SimulationReport, simulate
from ensemble_assets_tests.simulated.worlds import (
    MB,
    World,
    steady_worlds,
    troubled_steady_worlds,
    unequal_worlds,
    worlds,
)

nightly = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="thousands of runs: set HYPOTHESIS_PROFILE=nightly"
)

RAMP = 150
"""Batches after which sizes have been found, also where the first ones did not fit: every eighth tries a larger one."""


def run(world: World) -> SimulationReport:
    return simulate(world.lengths, world.model, world.devices, world.settings)


def check_any_world(world: World) -> SimulationReport:
    report = run(world)  # raises if it does not end
    hard_limit_is_never_crossed(world, report)
    it_ends_soon(world, report)
    every_row_is_done_once(world, report)
    rows_fail_only_for_a_reason(world, report)
    errors_are_justified(world, report)
    devices_do_not_idle_beside_work(world, report)
    return report


def hard_limit_is_never_crossed(world: World, report: SimulationReport) -> None:
    assert report.crossings == []
    if not any(device.others.changes or device.late_growth for device in world.devices):
        assert report.blind == []
        assert report.peak_used <= world.ceiling.hard_bytes


def it_ends_soon(world: World, report: SimulationReport) -> None:
    """Where nothing is ever done, 25 losses end a device's work, and a few sizes are refused before."""
    batches = sum(batch.outcome == "finished" for batch in report.trace) + len(report.failed)
    assert len(report.trace) <= 20 * batches + 30 * len(world.devices)


def every_row_is_done_once(world: World, report: SimulationReport) -> None:
    assert report.times_done.max() <= 1
    failed = np.isin(np.arange(len(world.lengths)), list(report.failed))
    assert not (failed & (report.times_done > 0)).any()
    if report.error is None:
        assert (failed | (report.times_done == 1)).all()


def rows_fail_only_for_a_reason(world: World, report: SimulationReport) -> None:
    faults = world.model.faults
    by_chance = faults.out_of_memory_share > 0
    # what a dead worker held looks like another program's memory to the next one
    lingering = world.devices[0].lingers > 0 and report.events.named("worker.lost")
    for row, reason in report.failed.items():
        if reason == OUT_OF_MEMORY:
            too_long = world.lengths[row] >= (faults.out_of_memory_from or np.inf)
            assert by_chance or lingering or too_long or world.needs_alone(row) > 0.97 * world.room
        elif reason == NO_ANSWER:
            assert faults.hangs_at is not None
        elif reason == DEVICE_FAILED:
            assert row in faults.poison_rows or faults.lost_at is not None
        else:
            assert row in faults.raises_on


def errors_are_justified(world: World, report: SimulationReport) -> None:
    if report.error is None:
        return
    ends = losses_since_the_last_finished_batch(report)
    assert set(ends) == {device.uuid for device in world.devices}
    for name, reasons in ends.items():
        (device,) = (device for device in world.devices if device.uuid == name)
        others = device.others.changes or ((0.0, 0),)
        faults = world.model.faults
        if reasons[-1] == DEVICE_BUSY:
            assert device.reserved_bytes or others[-1][1] > 0 or others[-1][0] > event_time_floor(report)
        elif reasons[-1] == NO_ANSWER:
            assert faults.hangs_at is not None
        elif reasons[-1] == DEVICE_FAILED:
            # a poison row explains all losses but its first; a device is given up after three without an explanation
            assert faults.lost_at is not None or reasons.count(NO_ANSWER) + len(faults.poison_rows) >= 3
        else:
            assert reasons[-1] == OUT_OF_MEMORY


def losses_since_the_last_finished_batch(report: SimulationReport) -> dict[str, list[str]]:
    """Why each device was lost, in order; nothing finished on it in between."""
    losses: dict[str, list[str]] = {}
    for event in report.events.events:
        device = str(event.facts.get("device"))
        if event.name == "batch.done":
            losses.pop(device, None)
        elif event.name == "worker.lost":
            losses.setdefault(device, []).append(str(event.facts["reason"]))
    return losses


def event_time_floor(report: SimulationReport) -> float:
    """The latest moment at which a device can have begun to wait for others' memory in vain."""
    return report.seconds - 30.0 - 1e-6


def devices_do_not_idle_beside_work(world: World, report: SimulationReport) -> None:
    """While rows wait that no device has, a device is idle only if it is lost or waits for others' memory."""
    if any(device.others.changes or device.late_growth for device in world.devices) or report.error is not None:
        return
    if len({device.total_bytes for device in world.devices}) > 1:  # a small device is idle beside rows that need more
        return
    finished_in_order = sorted(report.trace, key=lambda batch: batch.begin)
    last_begin = finished_in_order[-1].begin if finished_in_order else 0.0
    for device in world.devices:
        mine = [batch for batch in finished_in_order if batch.device == device.uuid]
        if any(batch.outcome in ("lost", "hung") for batch in report.trace):
            continue
        for one, following in itertools.pairwise(mine):
            if one.end < following.begin:  # a gap: it can only be that others' batches came back later
                assert following.begin <= last_begin
                assert any(
                    other.outcome in ("oom", "raised") and other.end == following.begin
                    for other in report.trace
                    if other.device != device.uuid
                )


def check_steady_world(world: World) -> None:
    """Every batch that memory limits uses 85 % of the soft limit, unless one row more would not fit, or is a new size.

    Batches are whole rows: where rows are large, 85 % may lie between two of them. "Would not fit" leaves the 10 % by
    which the memory model may be off, after sizes were refused, and what the allocator rounds up. In one kind of world
    batches of 80 to 84 % were seen beside which a row would have made 90.4 to 94.5 %; their mean was 90 %. A new size
    takes more memory than any batch before, but for noise: only one batch in four may try that.
    """
    report = run(world)
    assert report.error is None
    assert report.crossings == report.blind == []
    assert (report.times_done == 1).all()
    finished = [batch for batch in report.trace if batch.outcome == "finished"]
    steady = [batch for batch in finished if RAMP <= batch.number < 0.95 * len(finished)]
    share_limit = world.settings.batches.sizes.share * world.lengths.sum()
    limited_by_memory = [batch for batch in steady if batch.tokens + 2 * batch.longest < share_limit]
    assert len(limited_by_memory) > 20
    most = np.maximum.accumulate([batch.peak_used for batch in finished])
    before = dict(zip((batch.number for batch in finished[1:]), most.tolist(), strict=False))
    for batch in limited_by_memory:
        with_a_row_more = batch.peak_used + world.model.needs.batch_bytes(batch.longest, batch.longest)
        whole_row_short = with_a_row_more > min(world.ceiling.soft_bytes * 0.90, before[batch.number] * 0.95)
        assert batch.peak_used >= 0.85 * world.ceiling.soft_bytes or whole_row_short
    used = np.array([batch.peak_used for batch in limited_by_memory]) / world.ceiling.soft_bytes
    assert used.mean() >= 0.85
    assert report.tally.redone_tokens <= 0.03 * report.tally.tokens


def check_troubled_world(world: World) -> None:
    report = run(world)
    assert report.crossings == report.blind == []
    assert len(report.failed) <= (world.lengths >= (world.model.faults.out_of_memory_from or np.inf)).sum()
    # planned for 3 %; batches that are in flight when the first of them fails may exceed it a little
    assert report.tally.redone_tokens <= 0.05 * report.tally.tokens


def check_unequal_world(world: World) -> None:
    """A row that fits on the largest device is done, whichever device got it first."""
    report = check_any_world(world)
    most = max(map(world.room_on, world.devices))
    assert all(world.needs_alone(row) > 0.97 * most for row in report.failed)


def test_a_device_that_is_too_small_for_the_model_waits_for_nobody() -> None:
    """The nightly worlds found it: two minutes were waited for memory that the worker itself held."""
    device = SimulatedDevice(total_bytes=2_597 * MB, context_bytes=146 * MB, lazy_bytes=46 * MB)
    model = SimulatedModel(MemoryNeeds(2_329 * MB, 3.6 * MB))
    report = simulate(
        np.array([16, 16, 8]), model, [device], WorkerSettings(ceiling=Ceiling(4_963 * MB, 0.95, 121 * MB))
    )
    assert (report.error, report.failed) == (None, dict.fromkeys(range(3), OUT_OF_MEMORY))
    assert report.seconds < 1
    assert not report.events.named("mitigation.back_off")


@settings(max_examples=60)
@given(unequal_worlds())
def test_a_row_fails_for_want_of_memory_only_if_no_device_of_the_lease_has_it(world: World) -> None:
    check_unequal_world(world)


@settings(max_examples=250)
@given(worlds())
def test_any_world_keeps_the_hard_limit_does_every_row_once_and_ends(world: World) -> None:
    check_any_world(world)


@settings(max_examples=80)
@given(steady_worlds())
def test_steady_work_uses_85_percent_of_the_soft_limit_and_redoes_at_most_3_percent(world: World) -> None:
    check_steady_world(world)


@settings(max_examples=60)
@given(troubled_steady_worlds())
def test_at_most_5_percent_is_redone_where_sizes_fail_or_chance_strikes(world: World) -> None:
    check_troubled_world(world)


@nightly
@pytest.mark.nightly
@pytest.mark.timeout(7200)
@settings(max_examples=10_000)
@given(worlds())
def test_ten_thousand_worlds(world: World) -> None:
    check_any_world(world)


@nightly
@pytest.mark.nightly
@pytest.mark.timeout(7200)
@settings(max_examples=1_000)
@given(unequal_worlds())
def test_one_thousand_unequal_worlds(world: World) -> None:
    check_unequal_world(world)


@nightly
@pytest.mark.nightly
@pytest.mark.timeout(7200)
@settings(max_examples=2_000)
@given(steady_worlds())
def test_two_thousand_steady_worlds(world: World) -> None:
    check_steady_world(world)


@nightly
@pytest.mark.nightly
@pytest.mark.timeout(7200)
@settings(max_examples=2_000)
@given(troubled_steady_worlds())
def test_two_thousand_troubled_worlds(world: World) -> None:
    check_troubled_world(world)
