"""Simulate devices on a virtual clock, with the planner and the dispatcher of real workers.

Property tests take thousands of runs; ``benchmarks`` estimates how long a model takes on given devices.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, EnsembleError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.batching.assignment import Assignment, Tally
from ensemble_assets.compute.batching.batch_outcome import (
    DeviceOutOfMemoryError,
    DidNotFit,
    Finished,
    ModelFailed,
    ModelFailedError,
)
from ensemble_assets.compute.batching.dispatcher import DEVICE_FAILED, Dispatcher, Measure, Run, Start
from ensemble_assets.compute.batching.planner import BatchPlanner
from ensemble_assets.compute.batching.size_limits import KnownSizes
from ensemble_assets.compute.batching.table_result import OUT_OF_MEMORY
from ensemble_assets.compute.devices.ceiling import MemoryGuard
from ensemble_assets.compute.running.worker_process import LOAD_AGAIN_SECONDS
from ensemble_assets.compute.running.worker_settings import IN_FLIGHT, WorkerSettings, look_further
from ensemble_assets_tests.simulated.device import SimulatedDevice, SimulatedSession
from ensemble_assets_tests.simulated.model import SimulatedForward, SimulatedModel, is_padded

_MOST_STEPS = 2_000_000


@dataclass(frozen=True)
class BatchTrace:
    """One attempt at a batch.

    Attributes:
        device: where.
        number: of the assignment.
        rows: which.
        longest: tokens of the longest.
        begin: virtual seconds.
        end: virtual seconds.
        peak_used: bytes in use on the device at the batch's peak, by everybody, the allocator's unused cache left out.
        outcome: ``finished``, ``oom``, ``raised``, ``lost`` or ``hung``.
    """

    device: str
    number: int
    rows: tuple[int, ...]
    longest: int
    begin: float
    end: float
    peak_used: int
    outcome: str

    @property
    def tokens(self) -> int:
        """Padded tokens."""
        return len(self.rows) * self.longest


@dataclass
class SimulationReport:
    """What happened.

    Attributes:
        times_done: ``[n] int64``, how often each row was finished.
        failed: row -> why.
        trace: every attempt, in order of its end.
        seconds: virtual time until the last device was done.
        peak_used: most bytes in use at once on any device, by everybody, whenever we took more.
        crossings: bytes above the hard limit right after we took more memory that are more than what other programs,
            and kernels that load late, had taken since the last sample.
        blind: the same where it is no more: nobody could know.
        error: why it could not be finished, if so.
        events: everything that was decided.
        tally: the planner's counts.
        sizes: what was learned about batch sizes.
    """

    times_done: NDArray[np.int64]
    failed: dict[int, str] = field(default_factory=dict)
    trace: list[BatchTrace] = field(default_factory=list)
    seconds: float = 0.0
    peak_used: int = 0
    crossings: list[int] = field(default_factory=list)
    blind: list[int] = field(default_factory=list)
    error: EnsembleError | None = None
    events: EventLog = field(default_factory=EventLog)
    tally: Tally = field(default_factory=Tally)
    sizes: KnownSizes = field(default_factory=KnownSizes)

    def busy_share(self, devices: int) -> float:
        """Share of all device time that went into batches that finished."""
        busy = sum(batch.end - batch.begin for batch in self.trace if batch.outcome == "finished")
        return busy / (devices * self.seconds) if self.seconds else 0.0


class VirtualClock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def simulate(
    lengths: NDArray[np.int64],
    model: SimulatedModel,
    devices: Sequence[SimulatedDevice],
    settings: WorkerSettings,
    memory: KnownSizes | None = None,
    in_flight: int = IN_FLIGHT,
) -> SimulationReport:
    """Take rows of the given lengths through a model on simulated devices.

    Args:
        lengths: ``[n] int64`` tokens per row.
        model: memory, speed, faults.
        devices: their clock is replaced by the virtual one.
        settings: the ceiling, how batches are planned, how long to wait.
        memory: what earlier runs learned about batch sizes.
        in_flight: batches that a worker has at once.
    """
    return _Simulation(lengths, model, devices, settings, memory, in_flight).run()


@dataclass
class _Machine:
    """One simulated worker."""

    session: SimulatedSession
    guard: MemoryGuard
    forward: SimulatedForward
    seen_outside: int = 0
    assignment: Assignment | None = None
    prepared: deque[Assignment] = field(default_factory=deque)
    phases: Iterator[float] | None = None
    begin: float = 0.0

    @property
    def outside(self) -> int:
        """Bytes in use outside this worker's allocator."""
        return self.session.memory().used - self.session.held

    def tick(self) -> None:
        """The sampler's sample."""
        self.seen_outside = self.outside
        self.guard.measure()


class _Simulation:
    def __init__(
        self,
        lengths: NDArray[np.int64],
        model: SimulatedModel,
        devices: Sequence[SimulatedDevice],
        settings: WorkerSettings,
        memory: KnownSizes | None,
        in_flight: int,
    ) -> None:
        self._clock = VirtualClock()
        self._lengths = lengths
        self._model = model
        self._random = random.Random(model.seed)  # repeatable, not secret
        self._settings = settings
        self._order = count()
        self._steps = 0
        self._queue: list[tuple[float, int, str, str, int]] = []
        self.report = SimulationReport(np.zeros(len(lengths), np.int64))
        rows = np.arange(len(lengths))
        batches = look_further(settings.batches) if in_flight > 1 else settings.batches
        self._planner = BatchPlanner(lengths, rows, batches, self.report.events, memory)
        names = [device.uuid for device in devices]
        self._dispatcher = Dispatcher(self._planner, names, self.report.events, settings.patience, in_flight)
        self._machines: dict[str, _Machine] = {}
        self._opened_at: dict[str, float] = {}
        self._devices = {device.uuid: replace(device, clock=self._clock) for device in devices}
        self._sessions: dict[str, list[SimulatedSession]] = {name: [] for name in names}
        for device in self._devices.values():
            self._start(device)
            for at, _ in device.others.changes:  # between changes a sample changes nothing
                self._push(self._next_sample(at), "tick", device.uuid)

    def run(self) -> SimulationReport:
        try:
            for action in self._dispatcher.actions(self._clock, self._advance):
                if isinstance(action, Run):
                    self._begin(action.device, action.assignment)
                elif isinstance(action, Measure):
                    machine = self._machines[action.device]
                    machine.tick()
                    self._dispatcher.measured(action.device, machine.guard.measure())
                elif isinstance(action, Start):
                    self._start(self._devices[action.device])
                else:
                    self._remove(action.device, "hung")
        except EnsembleError as error:
            self.report.error = error
        return self._close()

    def _start(self, device: SimulatedDevice) -> None:
        """Start a worker; it joins once it has loaded its model."""
        seconds = self._model.speed.start + self._model.speed.load
        self._opened_at[device.uuid] = self._clock.now + seconds
        if seconds:
            self._push(self._clock.now + seconds, "open", device.uuid)
        else:
            self._open(device)

    def _open(self, device: SimulatedDevice) -> None:
        session = device.open()
        session.together = self._sessions[device.uuid]
        taken = device.memory().used + sum(other.held + other.outside for other in session.together)
        session.together.append(session)
        guard = MemoryGuard(session, self._settings.ceiling.within(device.total_bytes), taken)
        guard.measure()
        try:
            forward = self._model.place(session)
        except DeviceOutOfMemoryError:
            session.together.remove(session)
            if self._clock.now < self._opened_at[device.uuid] + self._settings.freed_seconds:
                self._push(self._clock.now + LOAD_AGAIN_SECONDS, "open", device.uuid)
                return
            self._dispatcher.lost(device.uuid, OUT_OF_MEMORY, "its model does not fit")
            return
        guard.settle()
        machine = _Machine(session, guard, forward)
        machine.tick()
        self._machines[device.uuid] = machine
        session.on_growth = lambda: self._grew(machine)
        self._dispatcher.joined(device.uuid, session.held, guard.measure())

    def _next_sample(self, at: float) -> float:
        return math.floor(at / self._settings.sampler_seconds + 1) * self._settings.sampler_seconds

    def _grew(self, machine: _Machine) -> None:
        used = machine.session.memory().used
        self.report.peak_used = max(self.report.peak_used, used)
        above = used - self._settings.ceiling.within(machine.session.device.total_bytes).hard_bytes
        if above > 0:
            unseen = machine.outside - machine.seen_outside
            (self.report.blind if above <= unseen else self.report.crossings).append(above)

    def _push(self, at: float, kind: str, device: str, number: int = -1) -> None:
        heapq.heappush(self._queue, (at, next(self._order), kind, device, number))

    def _advance(self, wakeup: float | None) -> None:
        """Move the clock to the next event, or to ``wakeup``, and let the event happen."""
        self._steps += 1
        assert self._steps < _MOST_STEPS, "the simulated run does not end"
        next_event = self._queue[0][0] if self._queue else math.inf
        if wakeup is not None and wakeup < next_event:
            self._clock.now = max(self._clock.now, wakeup)
            return
        assert self._queue, "nothing is left to happen"
        at, _, kind, name, number = heapq.heappop(self._queue)
        self._clock.now = max(self._clock.now, at)
        machine = self._machines.get(name)
        if kind == "open":
            self._open(self._devices[name])
        elif kind == "gone":
            self._sessions[name].pop(0)
        elif machine is None:
            return
        elif kind == "tick":
            if self._random.random() < machine.session.device.failing:
                self._push(self._next_sample(self._clock.now), "tick", name)
            else:
                machine.tick()
        elif machine.assignment is not None and machine.assignment.number == number:
            self._step(name, machine)

    def _begin(self, name: str, assignment: Assignment) -> None:
        """Begin a batch; one that comes while the device computes is prepared meanwhile."""
        machine = self._machines[name]
        if machine.assignment is not None:
            machine.prepared.append(assignment)
        else:
            self._compute(name, machine, assignment, self._model.speed.host)

    def _compute(self, name: str, machine: _Machine, assignment: Assignment, pause: float) -> None:
        machine.tick()
        machine.guard.before_batch()
        machine.session.begin_peak()
        machine.assignment, machine.begin = assignment, self._clock.now
        machine.phases = machine.forward.phases(assignment.batch, is_padded(self._lengths, assignment.batch))
        machine.begin += pause
        self._push(machine.begin, "step", name, assignment.number)

    def _step(self, name: str, machine: _Machine) -> None:
        """Let a batch go on to its next change of memory, or to its end."""
        self._advance_batch(name, machine)
        if name in self._machines and machine.assignment is None and machine.prepared:
            self._compute(name, machine, machine.prepared.popleft(), 0.0)

    def _advance_batch(self, name: str, machine: _Machine) -> None:
        assert machine.phases is not None
        assert machine.assignment is not None
        number = machine.assignment.number
        try:
            pause = next(machine.phases)
        except StopIteration:
            peak = machine.session.peak_bytes()
            self.report.times_done[machine.assignment.batch.rows] += 1
            self._end(machine, "finished")
            seconds = self._clock.now - machine.begin
            self._dispatcher.outcome(name, Finished(number, peak, seconds, machine.guard.measure()))
        except DeviceOutOfMemoryError:
            at_failure = machine.guard.measure()
            machine.session.release_cache()
            self._end(machine, "oom")
            self._dispatcher.outcome(name, DidNotFit(number, at_failure, machine.guard.measure()))
        except ModelFailedError as error:
            self._end(machine, "raised")
            self._dispatcher.outcome(name, ModelFailed(number, error.reason, machine.guard.measure()))
        except DeviceError:
            self._dispatcher.lost(name, DEVICE_FAILED, "the device was lost")
            self._remove(name, "lost")
        else:
            if math.isfinite(pause):
                self._push(self._clock.now + pause, "step", name, number)
            if machine.outside > machine.seen_outside:
                self._push(self._next_sample(self._clock.now), "tick", name)

    def _end(self, machine: _Machine, outcome: str) -> None:
        assert machine.assignment is not None
        batch, reading = machine.assignment.batch, machine.session.memory().used
        self.report.trace.append(
            BatchTrace(
                machine.session.device.uuid,
                machine.assignment.number,
                tuple(batch.rows.tolist()),
                batch.longest,
                machine.begin,
                self._clock.now,
                reading - machine.session.held + machine.session.peak_bytes(),
                outcome,
            )
        )
        machine.assignment = machine.phases = None

    def _remove(self, name: str, why: str) -> None:
        machine = self._machines.pop(name)
        if machine.assignment is not None:
            self._end(machine, why)
        if machine.session.device.lingers:
            self._push(self._clock.now + machine.session.device.lingers, "gone", name)
        else:
            self._sessions[name].remove(machine.session)

    def _close(self) -> SimulationReport:
        self.report.seconds = self._clock.now
        self.report.failed = self._planner.failed
        self.report.tally = self._planner.tally
        self.report.sizes = self._planner.sizes.learned()
        return self.report
