"""The ceiling: the allocator's cap, the measured reserve, the soft limit, the sampler, and others on the device."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import DeviceError, MemoryBudgetError
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.devices.ceiling import Ceiling, MemoryGuard, PeakSampler, Timeline
from ensemble_assets.compute.devices.device import MemoryReading
from ensemble_assets_tests.simulated.device import OtherProcesses, SimulatedDevice, SimulatedSession
from ensemble_assets_tests.simulated.simulation import VirtualClock

MB = 1_000_000
GB = 1_000 * MB
CEILING = Ceiling(12 * GB, 0.9, 256 * MB)


def opened(device: SimulatedDevice, ceiling: Ceiling = CEILING) -> tuple[SimulatedSession, MemoryGuard]:
    """A device as a worker opens it."""
    session = device.open()
    return session, MemoryGuard(session, ceiling.within(device.total_bytes))


def most_that_fits(session: SimulatedSession) -> int:
    """Bytes that the allocator takes before it refuses, in steps of 1 MB."""
    taken = 0
    while True:
        try:
            session.allocate(MB)
        except DeviceOutOfMemoryError:
            return taken
        taken += MB


def test_the_allocators_cap_is_the_ceiling_less_the_measured_reserve_less_the_margin() -> None:
    session, guard = opened(SimulatedDevice(context_bytes=600 * MB, block_bytes=1))
    assert guard.measure().cap == 12 * GB - 600 * MB - 256 * MB
    assert most_that_fits(session) == 12 * GB - 600 * MB - 256 * MB
    assert session.memory().used == 12 * GB - 256 * MB


def test_batches_are_planned_to_the_soft_limit_of_everything_in_use() -> None:
    _, guard = opened(SimulatedDevice(context_bytes=600 * MB))
    assert guard.measure().available == int(0.9 * 12 * GB) - 600 * MB


def test_what_is_in_use_when_the_model_is_loaded_is_never_waited_for() -> None:
    """Memory that a driver reserves, a desktop, kernels that load with the model: it does not come back."""
    clock = VirtualClock()
    others = OtherProcesses(((0.0, 3 * GB), (5.0, 4 * GB), (9.0, 5 * GB), (10.0, 1 * GB)))
    session, guard = opened(SimulatedDevice(context_bytes=600 * MB, others=others, lazy_bytes=100 * MB, clock=clock))
    assert guard.measure().others == 0
    assert guard.measure().cap == 12 * GB - 3 * GB - 600 * MB - 256 * MB
    session.load_lazily()
    clock.now = 6.0
    assert guard.measure().others == 1 * GB + 100 * MB
    assert guard.settle() == 4 * GB + 700 * MB
    assert guard.measure().others == 0
    clock.now = 9.5
    assert guard.measure().others == 1 * GB
    assert guard.measure().cap == 12 * GB - 5 * GB - 700 * MB - 256 * MB
    clock.now = 11.0
    assert guard.measure().others == 0
    assert guard.measure().cap == 12 * GB - 1 * GB - 700 * MB - 256 * MB


@pytest.mark.parametrize(("taken", "waited_for"), [(0, 0), (1 * GB, 1 * GB), (None, 6_600 * MB)])
def test_only_what_others_hold_is_waited_for_where_the_model_leaves_no_room(taken: int | None, waited_for: int) -> None:
    """Waiting helps if others' memory would make room; a device that is too small stays too small."""
    others = OtherProcesses(((0.0, taken or 0),))
    total = 6 * GB + (taken or 0)
    session = SimulatedDevice(total_bytes=total, context_bytes=600 * MB, others=others, block_bytes=1).open()
    guard = MemoryGuard(session, CEILING, taken)
    session.allocate(5_300 * MB)
    guard.settle()
    headroom = guard.measure()
    assert headroom.cap < session.reserved_bytes()
    assert headroom.others == waited_for


def test_what_came_while_the_model_loaded_is_waited_for() -> None:
    clock = VirtualClock()
    others = OtherProcesses(((5.0, 3 * GB),))
    session = SimulatedDevice(
        total_bytes=8 * GB, context_bytes=600 * MB, others=others, block_bytes=1, clock=clock
    ).open()
    guard = MemoryGuard(session, CEILING, 0)
    session.allocate(4_300 * MB)
    clock.now = 6.0
    guard.settle()
    assert guard.measure().others == 3 * GB


class RacingSession:
    """A session whose allocator grows between the guard's reading of the allocator and that of the device."""

    def __init__(self, session: SimulatedSession) -> None:
        self._session = session
        self.grow = 0

    def memory(self) -> MemoryReading:
        count, self.grow = self.grow, 0
        if count:
            self._session.allocate(count)
        return self._session.memory()

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


def test_growth_between_two_readings_is_not_taken_for_another_process() -> None:
    session = RacingSession(SimulatedDevice(block_bytes=1).open())
    guard = MemoryGuard(session, CEILING)  # type: ignore[arg-type]
    quiet = guard.measure()
    session.grow = 4 * GB
    assert guard.measure() == replace(quiet, used=quiet.used + 4 * GB, peak=quiet.peak + 4 * GB)


class FailingSession:
    """A session some of whose readings fail."""

    def __init__(self, session: SimulatedSession, fails: set[int]) -> None:
        self._session, self._fails = session, fails
        self.readings = 0
        self.seen_enough = threading.Event()

    def memory(self) -> MemoryReading:
        self.readings += 1
        if self.readings >= 10:
            self.seen_enough.set()
        if self.readings in self._fails:
            raise DeviceError("the device's memory cannot be read")
        return self._session.memory()

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


def test_the_sampler_goes_on_after_readings_that_fail() -> None:
    session = FailingSession(SimulatedDevice(block_bytes=1).open(), fails={3, 4})
    guard = MemoryGuard(session, CEILING)  # type: ignore[arg-type]
    with PeakSampler(guard, period_seconds=0.001) as sampler:
        assert session.seen_enough.wait(30)
    assert sampler.failures == 2
    assert len(sampler.timeline.points) >= 7


def test_others_within_the_margin_are_not_waited_for() -> None:
    """Kernels that load late look like another program of that size."""
    clock = VirtualClock()
    session, guard = opened(SimulatedDevice(clock=clock, others=OtherProcesses(((5.0, 200 * MB),))))
    session.load_lazily()
    clock.now = 6.0
    assert guard.measure().others == 0
    assert guard.measure().cap == 12 * GB - 400 * MB - 200 * MB - 256 * MB


def test_a_device_smaller_than_the_ceiling_is_its_own_ceiling() -> None:
    session, guard = opened(SimulatedDevice(total_bytes=8 * GB, context_bytes=500 * MB, block_bytes=1))
    assert guard.measure().cap == 8 * GB - 500 * MB - 256 * MB
    most_that_fits(session)
    assert session.memory().used <= 8 * GB - 256 * MB


def test_workers_on_one_device_share_its_ceiling() -> None:
    assert CEILING.shared_by(2) == Ceiling(6 * GB, 0.9, 128 * MB)


@pytest.mark.parametrize("ceiling", [(100 * MB, 0.9, 256 * MB), (12 * GB, 0.0, 0), (12 * GB, 1.5, 0), (GB, 0.9, -1)])
def test_a_ceiling_that_leaves_nothing_is_refused_naming_the_setting(ceiling: tuple[int, float, int]) -> None:
    with pytest.raises(MemoryBudgetError, match=r"device\.ceiling_gb"):
        Ceiling(*ceiling)


def test_cached_memory_is_given_back_when_others_leave_less_than_we_hold() -> None:
    clock = VirtualClock()
    session, guard = opened(SimulatedDevice(clock=clock, others=OtherProcesses(((5.0, 6 * GB),))))
    guard.measure()
    session.allocate(8 * GB)
    session.free(7 * GB)  # freed, but the allocator keeps it
    clock.now = 6.0
    headroom = guard.before_batch()
    assert session.reserved_bytes() < 1.01 * GB
    assert headroom.cap == pytest.approx(12 * GB - 6 * GB - 400 * MB - 256 * MB)


@st.composite
def moments(draw: st.DrawFn) -> tuple[SimulatedDevice, Ceiling, int]:
    """A device at some moment, its ceiling, and what our allocator holds."""
    hard = draw(st.integers(1_000, 24_000)) * MB
    ceiling = Ceiling(hard, draw(st.floats(0.5, 1.0)), draw(st.integers(0, 300)) * MB)
    total = draw(st.integers(2_000, 32_000)) * MB
    device = SimulatedDevice(
        total_bytes=total,
        context_bytes=draw(st.integers(0, 800)) * MB,
        others=OtherProcesses(((0.0, draw(st.integers(0, total // MB)) * MB),)),
        block_bytes=1,
        clock=VirtualClock(),
    )
    return device, ceiling, draw(st.integers(0, 20_000)) * MB


def reference_cap(device: SimulatedDevice, ceiling: Ceiling) -> int:
    """What our allocator may hold, byte counts added up by hand: the ceiling or the device, less everybody else."""
    limit = min(ceiling.hard_bytes, device.total_bytes)
    everybody_else = device.memory().used + device.context_bytes
    return max(0, limit - everybody_else - ceiling.margin_bytes)


@given(moments())
def test_cap_and_plan_follow_from_what_everybody_else_holds(moment: tuple[SimulatedDevice, Ceiling, int]) -> None:
    device, ceiling, held = moment
    session, guard = opened(device, ceiling)
    if held <= session.memory().free:
        session.allocate(held)
    headroom = guard.measure()
    limits = ceiling.within(device.total_bytes)
    assert headroom.cap == reference_cap(device, ceiling)
    others = device.memory().used + device.context_bytes
    assert headroom.available == min(headroom.cap, max(0, limits.soft_bytes - others))
    assert headroom.used == session.memory().used


@given(moments(), st.lists(st.integers(1, 3_000), max_size=30))
def test_whatever_is_allocated_the_hard_limit_is_not_crossed(
    moment: tuple[SimulatedDevice, Ceiling, int], requests: list[int]
) -> None:
    device, ceiling, _ = moment
    session, guard = opened(device, ceiling)
    used_before = session.memory().used
    for request in requests:
        guard.before_batch()
        try:
            session.allocate(request * MB)
        except DeviceOutOfMemoryError:
            session.release_cache()
        assert session.memory().used <= max(min(ceiling.hard_bytes, device.total_bytes), used_before)


class StepSession:
    """A session whose every look at the memory moves the clock on; tells when it was looked at often enough."""

    def __init__(self, session: SimulatedSession, clock: VirtualClock, looks: int) -> None:
        self._session, self._clock, self._left = session, clock, looks
        self.seen_enough = threading.Event()

    def memory(self) -> MemoryReading:
        self._clock.now += 1.0
        self._left -= 1
        if self._left <= 0:
            self.seen_enough.set()
        return self._session.memory()

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)


def test_the_sampler_lowers_the_cap_in_the_middle_of_a_batch() -> None:
    clock = VirtualClock()
    device = SimulatedDevice(clock=clock, others=OtherProcesses(((20.0, 9 * GB),)))
    session = StepSession(device.open(), clock, looks=30)
    guard = MemoryGuard(session, CEILING)  # type: ignore[arg-type]
    assert guard.measure().cap > 11 * GB
    session.allocate(GB)
    with PeakSampler(guard, period_seconds=0.001) as sampler:
        assert session.seen_enough.wait(30)
    with pytest.raises(DeviceOutOfMemoryError, match="over the cap"):
        session.allocate(3 * GB)
    assert max(used for _, used in sampler.timeline.points) == guard.peak_used >= 10 * GB


def test_what_is_over_before_the_first_period_has_a_sample_too() -> None:
    session, guard = opened(SimulatedDevice(block_bytes=1))
    session.allocate(GB)
    with PeakSampler(guard, period_seconds=3600) as sampler:
        pass
    assert [used for _, used in sampler.timeline.points] == [guard.peak_used]


def test_a_spike_between_two_samples_is_missed_but_the_cap_is_not() -> None:
    session, guard = opened(SimulatedDevice(block_bytes=1))
    guard.measure()
    session.allocate(5 * GB)
    session.free(5 * GB)
    session.release_cache()  # up and down between two samples
    guard.measure()
    assert guard.peak_used < GB
    with pytest.raises(DeviceOutOfMemoryError):
        session.allocate(12 * GB)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=600), st.integers(2, 40))
def test_a_thinned_timeline_keeps_the_peak_and_the_order(samples: list[int], most: int) -> None:
    timeline = Timeline(most)
    for at, used in enumerate(samples):
        timeline.add(float(at), used)
    assert len(timeline.points) <= most + 1
    assert max(used for _, used in timeline.points) == max(samples)
    times = [at for at, _ in timeline.points]
    assert times == sorted(times)
    for (at, used), (following, _) in zip(timeline.points, [*timeline.points[1:], (len(samples), 0)], strict=True):
        assert used == max(samples[int(at) : int(following)])  # each point is the maximum of what it stands for


def test_a_ceiling_is_lowered_but_never_raised_to_a_device() -> None:
    assert CEILING.within(8 * GB) == replace(CEILING, hard_bytes=8 * GB)
    assert CEILING.within(80 * GB) == CEILING
