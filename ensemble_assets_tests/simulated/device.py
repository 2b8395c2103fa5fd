"""Simulate a GPU by arithmetic: memory, speed and faults are given, and time is any clock.

The simulation keeps what matters: context, libraries and other processes count, the allocator caches and rounds up, a
cap is a cap, and memory grows in the middle of a batch. In a worker process the device sleeps; in ``simulation`` the
clock is moved. ``model`` holds the models that run on it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.devices.device import MemoryReading

Clock = Callable[[], float]


@dataclass(frozen=True)
class OtherProcesses:
    """Memory of other programs over time: pairs of a moment in seconds and the bytes in use from then on."""

    changes: tuple[tuple[float, int], ...] = ()

    def bytes_at(self, seconds: float) -> int:
        """Return the bytes in use at a moment."""
        index = bisect_right([at for at, _ in self.changes], seconds)
        return self.changes[index - 1][1] if index else 0


@dataclass(frozen=True)
class SimulatedDevice:
    """A device of the kind ``cuda``, with a UUID ``SIM-n``. Memory is in bytes, time in seconds.

    Attributes:
        context_bytes: memory that opening the device takes.
        lazy_bytes: memory that the first batch takes besides its own (kernels that load on first use).
        block_bytes: the allocator takes memory in multiples of this.
        others: memory of other programs, by ``clock``.
        clock: the machine's monotonic clock counted from ``started``, or a virtual one.
    """

    uuid: str = "SIM-0"
    name: str = "Simulated GPU"
    total_bytes: int = 16_000_000_000
    context_bytes: int = 400_000_000
    lazy_bytes: int = 0
    block_bytes: int = 2 << 20
    others: OtherProcesses = field(default_factory=OtherProcesses)
    started: float = 0.0
    clock: Clock = time.monotonic

    @property
    def kind(self) -> str:
        """Its name."""
        return self.name

    @property
    def torch_device(self) -> str:
        """A name that only simulated models accept."""
        return f"simulated:{self.uuid}"

    @property
    def frees_late(self) -> bool:
        """Always, as with a real GPU."""
        return True

    def memory(self) -> MemoryReading:
        """Read the memory of other programs."""
        used = min(self.total_bytes, self.others.bytes_at(self.clock() - self.started))
        return MemoryReading(used, self.total_bytes - used)

    def holders(self) -> tuple[int, ...]:
        """List nobody: other programs are simulated too."""
        return ()

    def environment(self) -> Mapping[str, str]:
        """Set nothing."""
        return {}

    def open(self) -> SimulatedSession:
        """Take the context's memory."""
        session = SimulatedSession(self)
        OPEN_SESSIONS[self.torch_device] = session
        return session


class SimulatedSession:
    """One process's view of a simulated device: a caching allocator under a cap.

    Attributes:
        on_growth: called with (bytes in use by all, bytes of other programs) whenever this process took more.
    """

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.on_growth: Callable[[int, int], None] = lambda used, others: None
        self._outside = device.context_bytes
        self._allocated = 0
        self._reserved = 0
        self._peak = 0
        self._cap: int | None = None

    def memory(self) -> MemoryReading:
        """Everything in use, by everybody."""
        used = self.device.memory().used + self._outside + self._reserved
        return MemoryReading(used, max(0, self.device.total_bytes - used))

    def reserved_bytes(self) -> int:
        """Blocks of the caching allocator."""
        return self._reserved

    def limit_allocations(self, cap_bytes: int | None) -> None:
        """Sets the allocator's cap."""
        self._cap = cap_bytes

    def begin_peak(self) -> None:
        """Resets the peak of allocated bytes."""
        self._peak = self._allocated

    def peak_bytes(self) -> int:
        """The peak of allocated bytes."""
        return self._peak

    def release_cache(self) -> None:
        """Returns unused blocks."""
        self._reserved = self._blocks(self._allocated)

    def load_lazily(self) -> None:
        """What the first batch makes the driver load; the allocator knows nothing of it."""
        if self._outside == self.device.context_bytes:
            self._outside += self.device.lazy_bytes

    def allocate(self, count: int) -> None:
        """Take ``count`` bytes.

        Raises:
            DeviceOutOfMemoryError: beyond the cap, or beyond what the device has.
        """
        wanted = self._blocks(self._allocated + count)
        if wanted > self._reserved:
            self._grow(wanted)
        self._allocated += count
        self._peak = max(self._peak, self._allocated)

    def free(self, count: int) -> None:
        """Give ``count`` bytes back to the allocator's cache."""
        self._allocated -= count

    def _grow(self, wanted: int) -> None:
        if self._cap is not None and wanted > self._cap:
            raise DeviceOutOfMemoryError(f"{wanted} bytes are over the cap of {self._cap}")
        reading = self.memory()
        if wanted - self._reserved > reading.free:
            raise DeviceOutOfMemoryError(f"the device has {reading.free} bytes left")
        self._reserved = wanted
        self.on_growth(self.memory().used, self.device.memory().used)

    def _blocks(self, count: int) -> int:
        return -(-count // self.device.block_bytes) * self.device.block_bytes


OPEN_SESSIONS: dict[str, SimulatedSession] = {}
"""The devices that this process has opened, by torch name: as with a driver, a model is loaded by device name."""
