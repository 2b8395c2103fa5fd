"""Define the protocols of a compute device, of its open session, and of its memory.

Any process may list and lock a ``Device``. A ``DeviceSession`` is opened by the process that computes on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ensemble_assets.common.compute_devices import UsedDevices


@dataclass(frozen=True)
class MemoryReading:
    """Memory of a device at one moment, in bytes.

    Attributes:
        used: counts against the ceiling: on a GPU the memory in use by all processes, on a host this program's own.
        free: can still be taken before the device, or the control group, has none left.
    """

    used: int
    free: int


class DeviceSession(Protocol):
    """A device opened by the process that computes on it. Memory is in bytes throughout."""

    def memory(self) -> MemoryReading:
        """Read the device's memory now; cheap enough for twenty calls a second."""

    def reserved_bytes(self) -> int:
        """Return the bytes that this process's allocator has taken from the device, unused cache included."""

    def limit_allocations(self, cap_bytes: int | None) -> None:
        """Make the allocator refuse to hold more than this from now on (None: no limit). It frees nothing."""

    def begin_peak(self) -> None:
        """Start a new measurement of the allocator's peak."""

    def peak_bytes(self) -> int:
        """Return the most bytes that were allocated at once since ``begin_peak``."""

    def release_cache(self) -> None:
        """Give unused memory of the allocator back to the device."""


class Device(Protocol):
    """Identity and facts of a compute device. Picklable, since worker processes get one."""

    @property
    def uuid(self) -> str:
        """Identity on this machine, the same for every process and user; names the lock file."""

    @property
    def name(self) -> str:
        """Name for people, e.g. ``"Tesla T4"``."""

    @property
    def kind(self) -> str:
        """Key of remembered batch sizes: devices of one kind have the same memory behaviour."""

    @property
    def total_bytes(self) -> int:
        """Memory of the device."""

    @property
    def torch_device(self) -> str:
        """Device name for torch inside a worker."""

    @property
    def frees_late(self) -> bool:
        """Whether a dead process's memory comes back some time after its death, as with GPU drivers."""

    def memory(self) -> MemoryReading:
        """Read the memory now, without opening the device."""

    def holders(self) -> tuple[int, ...]:
        """List the processes that hold memory, as far as the driver knows them; for messages only."""

    def environment(self) -> Mapping[str, str]:
        """Return the variables that a worker must have before it imports a compute library."""

    def open(self) -> DeviceSession:
        """Open the device in this process: load context and libraries; ``DeviceError`` if it cannot be used."""


def used_devices(devices: Sequence[Device]) -> UsedDevices:
    """Name devices of one kind for the record of a run: a host without a UUID, GPUs by theirs."""
    if all(device.torch_device == "cpu" for device in devices):
        return UsedDevices("cpu")
    return UsedDevices("cuda", tuple(dict.fromkeys(device.uuid for device in devices)))
