"""Keep a device below its memory ceiling: the limits, the guard that enforces them, the sampler that watches.

Everything counts against the ceiling: context, libraries, other processes and this worker's allocator. All but the
allocator is measured. So the allocator may hold the ceiling less a margin less the measured rest:

    held      = bytes in this worker's allocator
    outside   = used (NVML, all processes) - held
    room      = min(hard - outside, held + free)
    cap       = room - margin                                   the allocator refuses more than this
    available = min(soft - outside, cap)                        batches are planned within this
    others    = room when the model had been loaded - room      may come back by waiting

The cap is set before every batch and again whenever the sampler sees ``outside`` change. Memory that was in use before
the first batch is never waited for: a desktop, memory that a driver reserves, the kernels of the model.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ensemble_assets.common.defaults import CEILING_BYTES, SOFT_FRACTION
from ensemble_assets.common.errors import DeviceError, MemoryBudgetError
from ensemble_assets.compute.devices.device import DeviceSession

_CAP_STEP = 16 << 20
"""A cap that rises by less than this is not set anew: the sampler would call the allocator twenty times a second."""

_READINGS = 3
"""Most readings of a device whose allocator grows meanwhile. Growth is rare, so the second one nearly always agrees."""

SAMPLER = "memory-sampler"
"""Name of the thread that measures all the time."""

_TIMELINE = 240
"""Points of the memory timeline: as many as a picture of the report can show."""


@dataclass(frozen=True)
class Ceiling:
    """Limits of one device, in bytes used by everybody.

    Attributes:
        hard_bytes: this package never makes the use of the device exceed it.
        soft_fraction: share of ``hard_bytes`` within which batches are planned.
        margin_bytes: free below ``hard_bytes`` for growth between two samples (lazily loaded kernels).
    """

    hard_bytes: int = CEILING_BYTES
    soft_fraction: float = SOFT_FRACTION
    margin_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if not 0 < self.soft_fraction <= 1 or self.margin_bytes < 0 or self.soft_bytes <= self.margin_bytes:
            raise MemoryBudgetError(
                f"a ceiling of {self.hard_bytes} bytes with a margin of {self.margin_bytes} and a soft limit of "
                f"{self.soft_fraction:.0%} leaves nothing to compute with; raise device.ceiling_gb"
            )

    @property
    def soft_bytes(self) -> int:
        """The limit within which batches are planned."""
        return int(self.hard_bytes * self.soft_fraction)

    def within(self, total_bytes: int) -> Ceiling:
        """Lower this ceiling to a device that has less memory."""
        return Ceiling(min(self.hard_bytes, total_bytes), self.soft_fraction, self.margin_bytes)

    def shared_by(self, workers: int) -> Ceiling:
        """Divide this ceiling among the workers of one device."""
        return Ceiling(self.hard_bytes // workers, self.soft_fraction, self.margin_bytes // workers)


@dataclass(frozen=True)
class Headroom:
    """The bytes that a worker's allocator may hold at one moment.

    Attributes:
        available: batches are planned within this (soft limit).
        cap: the allocator refuses more than this (hard limit).
        others: bytes that were taken since the model was loaded, and that may come back by waiting; 0 if they are
            within the margin.
        used: memory of the device in use by all processes.
        peak: most memory of the device in use at any measurement so far.
    """

    available: int
    cap: int
    others: int
    used: int
    peak: int = 0


class MemoryGuard:
    """Keeps one worker under the ceiling. Thread-safe: the sampler and the batch loop both call ``measure``.

    ``peak_used`` is the most memory in use on the device at any measurement, in bytes, by all processes. ``taken`` is
    what was in use before this process opened the device; None if that cannot be told from its own.
    """

    def __init__(self, session: DeviceSession, ceiling: Ceiling, taken: int | None = None) -> None:
        self._session = session
        self._ceiling = ceiling
        self._taken = taken
        self._opened: int | None = None
        self._lock = threading.Lock()
        self._cap: int | None = None
        self.peak_used = 0
        self._room = 0
        self.settle()

    def settle(self) -> int:
        """Count all memory that is taken now as permanent; returns the bytes of it outside the allocator.

        To be called again when the model is loaded. If nothing is left to compute with, what others hold is waited
        for, unless that would not be enough either: then the device is too small for the model.
        """
        with self._lock:
            outside, held, _, free = self._outside()
            self._opened = outside if self._opened is None else self._opened
            room, needed = self._room_for(outside, held, free), held + self._ceiling.margin_bytes
            without_others = self._ceiling.hard_bytes
            if self._taken is not None:
                without_others = min(without_others, room + self._taken + max(0, outside - self._opened))
            self._room = without_others if room <= needed < without_others else room
        return outside

    def measure(self) -> Headroom:
        """Measure the device's memory, set the allocator's cap, and return the headroom."""
        with self._lock:
            outside, held, used, free = self._outside()
            room = self._room_for(outside, held, free)
            cap = max(0, room - self._ceiling.margin_bytes)
            if self._cap is None or abs(cap - self._cap) >= _CAP_STEP or cap < self._cap:
                self._session.limit_allocations(cap)
                self._cap = cap
            self.peak_used = max(self.peak_used, used)
            others = max(0, self._room - room)
            if others <= self._ceiling.margin_bytes:
                others = 0  # kernels that this process loads late look like another process
            available = max(0, min(self._ceiling.soft_bytes - outside, cap))
            return Headroom(available, cap, others, used, self.peak_used)

    def _room_for(self, outside: int, held: int, free: int) -> int:
        """Bytes that the allocator could hold at most: the ceiling and the device's memory both limit them."""
        return min(self._ceiling.hard_bytes - outside, held + free)

    def before_batch(self) -> Headroom:
        """Measure, and give cached memory back if the allocator holds more than it now may."""
        headroom = self.measure()
        if self._session.reserved_bytes() > headroom.cap:
            self._session.release_cache()
            headroom = self.measure()
        return headroom

    def _outside(self) -> tuple[int, int, int, int]:
        """Return bytes outside this allocator, bytes in it, used and free bytes of the device.

        The allocator is read before and after the device, and all of it again if it grew in between: its growth would
        count as another process's. After that, the smaller reading leads to a lower cap, which is safe.
        """
        for _ in range(_READINGS):
            before = self._session.reserved_bytes()
            reading = self._session.memory()
            held = self._session.reserved_bytes()
            if held == before:
                break
        held = min(before, held)
        return max(0, reading.used - held), held, reading.used, reading.free


class PeakSampler:
    """A thread that measures at once and then at a fixed period, and keeps a thinned timeline for pictures.

    A sampler can miss a spike between two samples. The allocator's cap cannot. A reading that fails is counted: the
    device is given up by the batch that cannot be measured, not by this thread.
    """

    def __init__(self, guard: MemoryGuard, period_seconds: float = 0.05) -> None:
        self._guard = guard
        self._period = period_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=SAMPLER, daemon=True)
        self.timeline = Timeline()
        self.failures = 0

    def __enter__(self) -> PeakSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self.timeline.add(time.time(), self._guard.measure().used)
            except DeviceError:
                self.failures += 1
            if self._stop.wait(self._period):
                return


class Timeline:
    """Points (seconds since the epoch, peak bytes), at most ``most``, evenly spread over the time of the run."""

    def __init__(self, most: int = _TIMELINE) -> None:
        self._most = most
        self._stride = 1
        self._seen = 0
        self.points: list[tuple[float, int]] = []

    def add(self, at: float, used: int) -> None:
        """Add one sample. A point holds the maximum of its samples."""
        if self._seen % self._stride == 0:
            self.points.append((at, used))
        else:
            self.points[-1] = (self.points[-1][0], max(used, self.points[-1][1]))
        self._seen += 1
        if len(self.points) > self._most:
            pairs = zip(self.points[::2], [*self.points[1::2], (0.0, 0)], strict=False)
            self.points = [(at, max(peak, other)) for (at, peak), (_, other) in pairs]
            self._stride *= 2
