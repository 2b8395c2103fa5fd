"""The memory ceiling of a device: the arithmetic of limits, the guard that keeps them, the sampler that watches.

All of it counts against the ceiling: context, libraries, other processes and this worker's allocator. Everything but
the allocator is measured, so what the allocator may hold is the ceiling less a margin less what was measured:

    held      = what this worker's allocator has taken
    outside   = used (NVML, all processes) - held
    cap       = min(hard - outside, held + free) - margin       the allocator refuses more than this
    available = min(soft - outside, cap)                        batches are planned within this

The cap is set before every batch and again whenever the sampler sees ``outside`` change. Which batches are planned,
and what happens when one does not fit, is ``planner``'s part.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ensemble_assets.common.errors import MemoryBudgetError
from ensemble_assets.compute.devices.device import DeviceSession

DEFAULT_CEILING_BYTES = 12_000_000_000
_CAP_STEP = 16 << 20  # changes of the cap below this are not worth a call
_TIMELINE = 240


@dataclass(frozen=True)
class Ceiling:
    """Limits of one device, in bytes used by everybody.

    Attributes:
        hard_bytes: never passed by anything this package does.
        soft_fraction: share of ``hard_bytes`` that batches are planned to.
        margin_bytes: kept free below ``hard_bytes`` for what grows between two samples (lazily loaded kernels).
    """

    hard_bytes: int = DEFAULT_CEILING_BYTES
    soft_fraction: float = 0.9
    margin_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if not 0 < self.soft_fraction <= 1 or self.margin_bytes < 0 or self.soft_bytes <= self.margin_bytes:
            raise MemoryBudgetError(
                f"a ceiling of {self.hard_bytes} bytes with a margin of {self.margin_bytes} and a soft limit of "
                f"{self.soft_fraction:.0%} leaves nothing to compute with; raise device.ceiling_gb"
            )

    @property
    def soft_bytes(self) -> int:
        """What batches are planned to."""
        return int(self.hard_bytes * self.soft_fraction)

    def within(self, total_bytes: int) -> Ceiling:
        """This ceiling, lowered to a device that has less memory than it."""
        return Ceiling(min(self.hard_bytes, total_bytes), self.soft_fraction, self.margin_bytes)

    def shared_by(self, workers: int) -> Ceiling:
        """The part of each of several workers on one device."""
        return Ceiling(self.hard_bytes // workers, self.soft_fraction, self.margin_bytes // workers)


@dataclass(frozen=True)
class Headroom:
    """What a worker's allocator may hold at one moment, in bytes.

    Attributes:
        available: batches are planned to this (soft limit).
        cap: the allocator refuses more than this (hard limit).
        others: what other processes hold, i.e. what could come back by waiting; 0 if it is within the margin.
        used: memory of the device in use by everybody.
    """

    available: int
    cap: int
    others: int
    used: int


class MemoryGuard:
    """Keeps one worker under the ceiling. Thread-safe: the sampler and the batch loop both call ``tick``."""

    def __init__(self, session: DeviceSession, ceiling: Ceiling) -> None:
        self._session = session
        self._ceiling = ceiling
        self._lock = threading.Lock()
        self._cap: int | None = None
        self.peak_used = 0
        self._reserve = 0
        self._reserve = self._outside()[0]  # context and libraries, and whoever was here before

    def measure_reserve(self, used_before: int) -> int:
        """Tell apart what opening the device cost (context, libraries) from what other processes hold.

        Args:
            used_before: the device's used bytes before this process opened it.

        Returns:
            The measured reserve in bytes.
        """
        with self._lock:
            self._reserve = max(0, self._outside()[0] - used_before)
        return self._reserve

    def tick(self) -> Headroom:
        """Measure, set the allocator's cap, and say what is left."""
        with self._lock:
            outside, held, used, free = self._outside()
            promised, possible = self._ceiling.hard_bytes - outside, held + free
            cap = max(0, min(promised, possible) - self._ceiling.margin_bytes)
            if self._cap is None or abs(cap - self._cap) >= _CAP_STEP or cap < self._cap:
                self._session.limit_allocations(cap)
                self._cap = cap
            self.peak_used = max(self.peak_used, used)
            others = max(0, outside - self._reserve) + max(0, promised - possible)
            if others <= self._ceiling.margin_bytes:
                others = 0  # kernels that this process loaded late look the same
            return Headroom(max(0, min(self._ceiling.soft_bytes - outside, cap)), cap, others, used)

    def before_batch(self) -> Headroom:
        """``tick``, after giving back cached memory if the allocator holds more than it now may."""
        headroom = self.tick()
        if self._session.reserved_bytes() > headroom.cap:
            self._session.release_cache()
            headroom = self.tick()
        return headroom

    def _outside(self) -> tuple[int, int, int, int]:
        """Bytes outside this allocator, bytes in it, used and free bytes of the device.

        The allocator is read on both sides of the device; the smaller reading errs towards a lower cap.
        """
        before = self._session.reserved_bytes()
        reading = self._session.memory()
        held = min(before, self._session.reserved_bytes())
        return max(0, reading.used - held), held, reading.used, reading.free


class PeakSampler:
    """A thread that calls the guard at once and then at a fixed period, and keeps a thinned timeline for pictures.

    A sampler can miss a spike between two samples; the allocator's cap cannot.
    """

    def __init__(self, guard: MemoryGuard, period_seconds: float = 0.05) -> None:
        self._guard = guard
        self._period = period_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)
        self.timeline = Timeline()

    def __enter__(self) -> PeakSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.timeline.add(time.time(), self._guard.tick().used)
            if self._stop.wait(self._period):
                return


class Timeline:
    """At most a few hundred (seconds since the epoch, peak bytes) points, evenly spread however long it runs."""

    def __init__(self, most: int = _TIMELINE) -> None:
        self._most = most
        self._stride = 1
        self._seen = 0
        self.points: list[tuple[float, int]] = []

    def add(self, at: float, used: int) -> None:
        """Take one sample: a point keeps the maximum of the samples it stands for."""
        if self._seen % self._stride == 0:
            self.points.append((at, used))
        else:
            self.points[-1] = (self.points[-1][0], max(used, self.points[-1][1]))
        self._seen += 1
        if len(self.points) > self._most:
            pairs = zip(self.points[::2], [*self.points[1::2], (0.0, 0)], strict=False)
            self.points = [(at, max(peak, other)) for (at, peak), (_, other) in pairs]
            self._stride *= 2
