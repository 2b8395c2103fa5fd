"""Simulate a GPU by arithmetic: memory, speed and faults are given, and time is any clock.

The simulation keeps what matters: context, libraries and other processes count, the allocator caches, rounds up and
fragments, a cap is a cap, memory grows in the middle of a batch, and what is read may be old. In a worker process the
device sleeps; in ``simulation`` the clock is moved. ``model`` holds the models that run on it.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

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
        lazy_bytes: memory outside the allocator that loading a model takes (kernels that load on first use).
        block_bytes: the allocator rounds what it needs up to multiples of this.
        granule_bytes: it then takes memory in multiples of this, without another look at the cap; 0 for no such step.
        fragmentation: most by which the allocator's memory may exceed what is allocated, as a share, drawn per batch.
        reserved_bytes: in use from the start and never given back: the driver, a desktop.
        late_growth: memory outside the allocator that a worker's batch of a number takes for good.
        racing: share of growths that fall between a reading of the allocator and the reading of the device after it.
        failing: share of the sampler's readings that fail.
        raw_errors: whether running out of memory raises what torch raises, of three kinds, and not our error.
        lingers: seconds for which the memory of a lost worker stays.
        others: memory of other programs, by ``clock``.
        clock: the machine's monotonic clock counted from ``started``, or a virtual one.
    """

    uuid: str = "SIM-0"
    name: str = "Simulated GPU"
    total_bytes: int = 16_000_000_000
    context_bytes: int = 400_000_000
    lazy_bytes: int = 0
    block_bytes: int = 2 << 20
    granule_bytes: int = 0
    fragmentation: float = 0.0
    reserved_bytes: int = 0
    late_growth: tuple[tuple[int, int], ...] = ()
    racing: float = 0.0
    failing: float = 0.0
    raw_errors: bool = False
    lingers: float = 0.0
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
        """Read the memory of other programs and what is reserved."""
        used = min(self.total_bytes, self.reserved_bytes + self.others.bytes_at(self.clock() - self.started))
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
        on_growth: called whenever this process took more.
        together: all sessions on the device, this one included: they see each other's memory.
        held: blocks of the caching allocator.
        outside: memory of this process outside its allocator.
    """

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.on_growth: Callable[[], None] = lambda: None
        self.together: list[SimulatedSession] = [self]
        self.held = 0
        self.outside = device.context_bytes
        self._random = random.Random(device.uuid)  # repeatable, not secret
        self._allocated = 0
        self._peak = 0
        self._cap: int | None = None
        self._fragmented = 0.0
        self._before_growth: int | None = None

    def memory(self) -> MemoryReading:
        """Everything in use, by everybody."""
        used = self.device.memory().used + sum(session.held + session.outside for session in self.together)
        return MemoryReading(used, max(0, self.device.total_bytes - used))

    def reserved_bytes(self) -> int:
        """Blocks of the caching allocator, now or just before it grew."""
        held, self._before_growth = self._before_growth, None
        return self.held if held is None else held

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
        self.held = self._pages(self._blocks(self._allocated))

    def load_lazily(self) -> None:
        """What a model makes the driver load; the allocator knows nothing of it."""
        if self.outside == self.device.context_bytes:
            self.grow_outside(self.device.lazy_bytes)

    def grow_outside(self, count: int) -> None:
        """Take memory past the allocator, as kernels and libraries do."""
        if count > self.memory().free:
            self._refuse("CUDA error: out of memory", by_launch=True)
        self.outside += count

    def fragment(self) -> None:
        """Draw how well the next batch's tensors pack."""
        self._fragmented = self._random.uniform(0.0, self.device.fragmentation)

    def allocate(self, count: int) -> None:
        """Take ``count`` bytes.

        Raises:
            DeviceOutOfMemoryError: beyond the cap, or beyond what the device has.
            RuntimeError: instead of it, if the device has ``raw_errors``.
        """
        wanted = self._blocks(int((self._allocated + count) * (1 + self._fragmented)))
        if wanted > self.held:
            self._grow(wanted)
        self._allocated += count
        self._peak = max(self._peak, self._allocated)

    def free(self, count: int) -> None:
        """Give ``count`` bytes back to the allocator's cache."""
        self._allocated -= count

    def _grow(self, wanted: int) -> None:
        if self._cap is not None and wanted > self._cap:
            self._refuse(f"CUDA out of memory: {wanted} bytes are over the cap of {self._cap}")
        before, pages = self.held, self._pages(wanted)
        if pages - before > self.memory().free:
            self._refuse("CUDA driver error: out of memory: the device has too little left", by_driver=True)
        self.held = pages
        if self._random.random() < self.device.racing:
            self._before_growth = before
        self.on_growth()

    def _refuse(self, message: str, *, by_driver: bool = False, by_launch: bool = False) -> NoReturn:
        if not self.device.raw_errors:
            raise DeviceOutOfMemoryError(message)
        import torch

        if by_launch:
            raise torch.AcceleratorError(message)
        raise (RuntimeError if by_driver else torch.OutOfMemoryError)(message)

    def _blocks(self, count: int) -> int:
        return -(-count // self.device.block_bytes) * self.device.block_bytes

    def _pages(self, count: int) -> int:
        granule = self.device.granule_bytes or self.device.block_bytes
        return -(-count // granule) * granule


OPEN_SESSIONS: dict[str, SimulatedSession] = {}
"""The devices that this process has opened, by torch name: as with a driver, a model is loaded by device name."""
