"""Decide which device gets the next batch, which one waits for memory, and which one is given up.

There is one queue: a device that is free gets its next batch, so no device holds batches that another could run. The
decisions are pure logic, with time as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ensemble_assets.common.errors import DeviceError, EnsembleError, StageError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.batching.batch_outcome import DidNotFit, Finished, Outcome
from ensemble_assets.compute.batching.planner import Assignment, BatchPlanner, Hold
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
    """The state of one device's worker; ``permanent`` are bytes of other programs that did not come back in time."""

    headroom: Headroom
    permanent: int = 0
    running: Assignment | None = None
    running_since: float = 0.0
    waiting_since: float | None = None
    measured_at: float = 0.0

    def sees(self, headroom: Headroom) -> Headroom:
        """Leave out the memory of other programs that did not come back in time."""
        return replace(headroom, others=max(0, headroom.others - self.permanent))


@dataclass
class _Losses:
    """Losses of a device since it finished a batch: those without a row to blame, and workers started after one."""

    unexplained: int = 0
    restarts: int = 0


class Dispatcher:
    """Feeds devices, given by name, with planned batches until all rows are done or no device is left.

    ``largest_batch`` counts the rows of the largest batch that worked.
    """

    def __init__(
        self, planner: BatchPlanner, devices: Sequence[str], events: EventSink, patience: Patience | None = None
    ) -> None:
        self.planner = planner
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
        assert lane.running is not None
        assert lane.running.number == outcome.number
        batch, lane.running = lane.running.batch, None
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
                self.planner.out_of_memory(outcome.number, lane.sees(outcome.at_failure))
            case _:
                self.planner.model_failed(outcome.number, outcome.reason)

    def lost(self, device: str, reason: str, detail: str) -> None:
        """Record that a device's worker is gone. Its batch is handed out again, and it is started again if that helps.

        ``reason`` is a fixed word for the event: a constant of this module, ``out_of_memory`` or a ``failure_word``.
        ``detail`` says it in a few words and numbers, for the error if no other device is left.
        """
        self._expected.discard(device)
        lane = self._lanes.pop(device, None)
        self._ends[device] = detail
        self._events.emit("worker.lost", device=device, reason=reason)
        narrowed = False
        if lane is not None and lane.running is not None:
            self._events.emit("mitigation.reassigned", device=device, rows=lane.running.batch.size)
            narrowed = self.planner.returned(lane.running.number, reason)
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
        hung = [name for name, lane in self._lanes.items() if lane.running and now >= lane.running_since + limit]
        for device in hung:
            self.lost(device, NO_ANSWER, f"no answer for {limit:.0f} s")
        starts: list[Action] = [] if self.planner.done else [Start(device) for device in self._starts]
        self._starts.clear()
        # After the hung devices, whose batches are handed out again here.
        fed = [self._feed(device, lane, now) for device, lane in list(self._lanes.items()) if lane.running is None]
        return [*map(Stop, hung), *starts, *(action for action in fed if action is not None)]

    def wakeup(self) -> float | None:
        """Say when to decide again although nothing happened; None if only an event can change the decision."""
        times = [lane.running_since + self._patience.batch for lane in self._lanes.values() if lane.running is not None]
        waiting = [lane for lane in self._lanes.values() if lane.running is None and lane.waiting_since is not None]
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

    def _feed(self, device: str, lane: _Lane, now: float) -> Action | None:
        plan = self.planner.plan(lane.headroom)
        if isinstance(plan, Assignment):
            lane.running, lane.running_since, lane.waiting_since = plan, now, None
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
