"""Decide which device gets the next batch, which one waits for memory, and which one is given up.

There is one queue. A device may have two batches: one that it computes, and one that its worker prepares meanwhile.
When few rows are left, it gets its next batch only when it is free, so that devices end together. The decisions are
pure logic, with time as an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from ensemble_assets.common.errors import DeviceError, EnsembleError, StageError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.batching.assignment import Assignment, Hold
from ensemble_assets.compute.batching.batch_outcome import DidNotFit, Finished, Outcome
from ensemble_assets.compute.batching.planner import BatchPlanner
from ensemble_assets.compute.devices.ceiling import Headroom

WORKER_LOST = "worker_lost"  # the process died
NO_ANSWER = "no_answer"  # it hangs, in a batch or while loading
DEVICE_FAILED = "device_failed"
DEVICE_BUSY = "device_busy"  # other programs kept the memory

_MOST_LOSSES = 3
"""A device is given up after so many losses in a row without a finished batch: the device is to blame then, not a row.
Losses that narrow down a guilty row do not count."""

_MOST_RESTARTS = 24
"""A worker is started again at most so often without a finished batch. Halving finds one row among a million in as many
steps, and a start takes some 20 s."""


@dataclass(frozen=True)
class Patience:
    """Longest waiting times, in seconds: for others' memory, for a batch, between two measurements of memory."""

    memory: float = 120.0
    batch: float = 900.0
    measure: float = 0.5


@dataclass(frozen=True)
class Run:
    """Have a device run a batch."""

    device: str
    assignment: Assignment


@dataclass(frozen=True)
class Measure:
    """Have a device measure its memory."""

    device: str


@dataclass(frozen=True)
class Stop:
    """End a device's worker at once. It gets no more batches."""

    device: str


@dataclass(frozen=True)
class Start:
    """Start a worker for a device whose last one was lost. It joins when it is ready."""

    device: str


Action = Run | Measure | Stop | Start


@dataclass
class _Lane:
    """The state of one device's worker; ``permanent`` are bytes of other programs that did not come back in time.

    It computes the first of ``running`` since a time that is None until the next decision. A batch that must be
    ``alone`` waits here until the others are done.
    """

    headroom: Headroom
    permanent: int = 0
    running: deque[Assignment] = field(default_factory=deque)
    running_since: float | None = None
    alone: Assignment | None = None
    waiting_since: float | None = None
    measured_at: float = 0.0

    def sees(self, headroom: Headroom) -> Headroom:
        """Leave out the memory of other programs that did not come back in time."""
        return replace(headroom, others=max(0, headroom.others - self.permanent))

    def not_begun(self) -> list[Assignment]:
        """Return the batches behind the first one."""
        return [*list(self.running)[1:], *([self.alone] if self.alone else [])]

    def ends_by(self, limit: float) -> float:
        """Say when the first batch has taken ``limit`` seconds."""
        return (self.running_since or 0.0) + limit


@dataclass
class _Losses:
    """Losses of a device since it finished a batch: those without a row to blame, and workers started after one."""

    unexplained: int = 0
    restarts: int = 0


class Dispatcher:
    """Feeds devices, given by name, with planned batches until all rows are done or no device is left.

    A device has up to ``in_flight`` batches, and reports their outcomes in order. ``largest_batch`` counts the rows of
    the largest batch that worked.
    """

    def __init__(
        self,
        planner: BatchPlanner,
        devices: Sequence[str],
        events: EventSink,
        patience: Patience | None = None,
        in_flight: int = 1,
    ) -> None:
        self.planner = planner
        self._in_flight = in_flight
        self._patience = patience or Patience()
        self._events = events
        self.largest_batch = 0
        self._expected = set(devices)
        self._lanes: dict[str, _Lane] = {}
        self._ends: dict[str, str] = {}
        self._losses: dict[str, _Losses] = {}
        self._starts: list[str] = []
        self._starved = False

    @property
    def expected(self) -> frozenset[str]:
        """Devices whose workers are still loading."""
        return frozenset(self._expected)

    def actions(self, now: Callable[[], float], wait: Callable[[float | None], None]) -> Iterator[Action]:
        """Yield one action after another until all rows are done; then raise ``failure`` if there is one.

        The caller performs every action and reports what happens with ``outcome``, ``measured``, ``joined`` and
        ``lost``: right away, or while it waits. ``wait`` is called when there is nothing to do, with the time of the
        next decision. ``now`` is the time in seconds; it never goes back.
        """
        while not self.planner.done:
            actions = self.decide(now())
            yield from actions
            failure = self.failure()
            if failure is not None:
                raise failure
            if not actions and not self.planner.done:
                wait(self.wakeup())

    def joined(self, device: str, base_bytes: int, headroom: Headroom) -> None:
        """Record that a device's worker is ready; its model takes ``base_bytes`` of the allocator."""
        self._expected.discard(device)
        self.planner.loaded(base_bytes)
        self._lanes[device] = _Lane(headroom)

    def measured(self, device: str, headroom: Headroom) -> None:
        """Record a device's answer to ``Measure``."""
        if device in self._lanes:
            self._lanes[device].headroom = self._lanes[device].sees(headroom)

    def outcome(self, device: str, outcome: Outcome) -> None:
        """Record the end of a device's batch; the device is still usable."""
        lane = self._lanes[device]
        assert lane.running
        assert lane.running[0].number == outcome.number
        batch, lane.running_since = lane.running.popleft().batch, None
        lane.headroom = lane.sees(outcome.headroom)
        match outcome:
            case Finished():
                self._losses.pop(device, None)
                self.planner.finished(outcome.number, outcome.peak_bytes)
                self.largest_batch = max(self.largest_batch, batch.size)
                self._events.emit(
                    "batch.done",
                    device=device,
                    number=outcome.number,
                    rows=batch.size,
                    longest=batch.longest,
                    seconds=outcome.seconds,
                    peak_bytes=outcome.peak_bytes,
                    used_bytes=outcome.headroom.used,
                )
            case DidNotFit():
                self.planner.elsewhere_bytes = self._elsewhere(device)
                self.planner.out_of_memory(outcome.number, lane.sees(outcome.at_failure))
            case _:
                self.planner.model_failed(outcome.number, outcome.reason)

    def lost(self, device: str, reason: str, detail: str) -> None:
        """Record that a device's worker is gone. Its batches are planned again, and it is started again if that helps.

        Only the first batch may be to blame: the device had not begun another one, or would have reported the first.

        ``reason`` is a fixed word for the event: a constant of this module, ``out_of_memory`` or a ``failure_word``.
        ``detail`` says it in a few words and numbers, for the error if no other device is left.
        """
        self._expected.discard(device)
        lane = self._lanes.pop(device, None)
        self._ends[device] = detail
        self._events.emit("worker.lost", device=device, reason=reason)
        narrowed = False
        if lane is not None and lane.running:
            rows = sum(assignment.batch.size for assignment in lane.running)
            self._events.emit("mitigation.reassigned", device=device, rows=rows)
        for assignment in reversed(lane.not_begun() if lane else []):
            self.planner.withdrawn(assignment.number)
        if lane is not None and lane.running:
            narrowed = self.planner.returned(lane.running[0].number, reason)
        # a worker that cannot open its device or load its model would fail again; one that was killed need not
        if reason == WORKER_LOST or (lane is not None and reason in (DEVICE_FAILED, NO_ANSWER)):
            losses = self._losses.setdefault(device, _Losses())
            losses.unexplained += not (narrowed and reason != NO_ANSWER)  # a batch that hangs takes many minutes
            losses.restarts += 1
            if losses.unexplained < _MOST_LOSSES and losses.restarts <= _MOST_RESTARTS:
                self._expected.add(device)
                self._starts.append(device)

    def decide(self, now: float) -> list[Action]:
        """Decide what to do at ``now``, in seconds that never go back."""
        limit = self._patience.batch
        for lane in self._lanes.values():
            if lane.running and lane.running_since is None:
                lane.running_since = now
        hung = [name for name, lane in self._lanes.items() if lane.running and now >= lane.ends_by(limit)]
        for device in hung:
            self.lost(device, NO_ANSWER, f"no answer for {limit:.0f} s")
        starts: list[Action] = [] if self.planner.done else [Start(device) for device in self._starts]
        self._starts.clear()
        # After the hung devices, whose batches are handed out again here. A first batch for each before any second one.
        fed: list[Action | None] = []
        for busy in range(self._in_flight):
            lanes = [(device, lane) for device, lane in self._lanes.items() if len(lane.running) == busy]
            fed += [self._feed_behind(*each) if busy else self._feed(*each, now) for each in lanes]
        return [*map(Stop, hung), *starts, *(action for action in fed if action is not None)]

    def wakeup(self) -> float | None:
        """Say when to decide again although nothing happened; None if only an event can change the decision."""
        times = [lane.ends_by(self._patience.batch) for lane in self._lanes.values() if lane.running]
        waiting = [lane for lane in self._lanes.values() if not lane.running and lane.waiting_since is not None]
        times += [lane.measured_at + self._patience.measure for lane in waiting]
        return min(times, default=None)

    def failure(self) -> EnsembleError | None:
        """Return the error if no device is left to finish the work, else None."""
        if self.planner.done or self._lanes or self._expected:
            return None
        left = self.planner.waiting_rows
        ends = "; ".join(f"{device}: {reason}" for device, reason in self._ends.items())
        if self._starved:
            return DeviceError(
                f"{left} rows are left and no device has the memory for them ({ends}). "
                "End the programs that use the devices, or raise device.ceiling_gb"
            )
        return StageError(f"{left} rows are left and no worker ({ends}). Look at the first cause and run again")

    def _plan(self, device: str, lane: _Lane) -> Assignment | Hold:
        self.planner.elsewhere_bytes = self._elsewhere(device)
        return self.planner.plan(lane.headroom)

    def _elsewhere(self, device: str) -> float:
        """Return what another device could hold if other programs went; anything, while a worker is loading."""
        others = [lane.headroom for name, lane in self._lanes.items() if name != device]
        return inf if self._expected else max((room.cap + room.others for room in others), default=0)

    def _feed_behind(self, device: str, lane: _Lane) -> Action | None:
        """Plan the batch that the worker prepares while its device computes, if there are rows enough for all devices.

        A batch without room for it is planned when the device is free, since its memory is measured then.
        """
        last = lane.running[-1]
        if last.alone or lane.alone:
            return None
        if len(self._lanes) > 1 and self.planner.waiting_rows <= len(self._lanes) * last.batch.size:
            return None
        plan = self._plan(device, lane)
        if not isinstance(plan, Assignment):
            return None
        if plan.alone:
            lane.alone = plan
            return None
        lane.running.append(plan)
        return Run(device, plan)

    def _feed(self, device: str, lane: _Lane, now: float) -> Action | None:
        plan = lane.alone or self._plan(device, lane)
        lane.alone = None
        if isinstance(plan, Assignment):
            lane.running.append(plan)
            lane.running_since, lane.waiting_since = now, None
            return Run(device, plan)
        if plan is not Hold.MEMORY:
            lane.waiting_since = None
            return None
        if lane.waiting_since is None:
            lane.waiting_since, lane.measured_at = now, now
            others = lane.headroom.others
            self._events.emit("mitigation.back_off", device=device, others_bytes=others, used_bytes=lane.headroom.used)
        if now - lane.waiting_since >= self._patience.memory:
            if self.planner.fits_shortest(lane.headroom.cap):  # memory that does not come back costs the long rows only
                lane.permanent += lane.headroom.others
                lane.headroom = replace(lane.headroom, others=0)
                return self._feed(device, lane, now)
            self._starved = True
            self.lost(
                device,
                DEVICE_BUSY,
                f"other processes held {lane.headroom.others} bytes for {self._patience.memory:.0f} s and "
                f"{lane.headroom.available} were left",
            )
            return Stop(device)
        if now >= lane.measured_at + self._patience.measure:  # the same sum as in wakeup: no rounding between
            lane.measured_at = now
            return Measure(device)
        return None
