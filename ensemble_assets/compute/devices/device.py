"""What the rest of the package may ask of a compute device, whatever it is.

Two protocols: ``Device`` is a name tag that any process may hold, list and lock; ``DeviceSession`` is the device as the
one process that computes on it sees it. Limits, leases and batches are decided elsewhere.
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
        used: what counts against the ceiling. On a GPU that is everything in use by all processes (context, libraries,
            allocators, other programs); on a host it is what this program holds.
        free: what could still be taken before the device, or the control group, has none left.
    """

    used: int
    free: int


class DeviceSession(Protocol):
    """A device opened by the process that computes on it. Memory is in bytes throughout."""

    def memory(self) -> MemoryReading:
        """The device's memory now; cheap enough to be asked twenty times a second."""
        ...

    def reserved_bytes(self) -> int:
        """What this process's allocator has taken from the device, unused cache included."""
        ...

    def limit_allocations(self, cap_bytes: int | None) -> None:
        """From now on the allocator refuses to hold more than this (None: no limit); what it already holds stays."""
        ...

    def begin_peak(self) -> None:
        """Start a new measurement of the allocator's peak."""
        ...

    def peak_bytes(self) -> int:
        """The most that was allocated at once since ``begin_peak``."""
        ...

    def release_cache(self) -> None:
        """Give memory that the allocator holds but does not use back to the device."""
        ...


class Device(Protocol):
    """A compute device's identity and facts. Picklable, so that a worker process can be handed one.

    Attributes:
        uuid: identity on this machine, the same for every process and user; names the lock.
        name: for people, e.g. ``"Tesla T4"``.
        kind: devices of one kind have the same memory behaviour; part of the key of remembered batch sizes.
        total_bytes: memory of the device.
        frees_late: whether a dead process's memory comes back only some time after its death, as with GPU drivers.
        torch_device: what a worker that was given this device passes to torch.
    """

    @property
    def uuid(self) -> str:
        """Identity on this machine."""
        ...

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def kind(self) -> str:
        """Key of what is remembered about such devices."""
        ...

    @property
    def total_bytes(self) -> int:
        """Memory of the device."""
        ...

    @property
    def torch_device(self) -> str:
        """Device name for torch inside a worker."""
        ...

    @property
    def frees_late(self) -> bool:
        """Whether a dead process's memory comes back only some time after its death."""
        ...

    def memory(self) -> MemoryReading:
        """Memory now, as seen without opening the device."""
        ...

    def holders(self) -> tuple[int, ...]:
        """Ids of processes that hold memory, as far as the driver says; for messages only."""
        ...

    def environment(self) -> Mapping[str, str]:
        """Environment variables that a worker must have before it imports a compute library."""
        ...

    def open(self) -> DeviceSession:
        """Make this process one that computes on the device: context and libraries are loaded afterwards.

        Raises:
            DeviceError: if the device cannot be used.
        """
        ...


def used_devices(devices: Sequence[Device]) -> UsedDevices:
    """Name devices of one kind for the record of a run: a host without a UUID, GPUs by theirs."""
    if all(device.torch_device == "cpu" for device in devices):
        return UsedDevices("cpu")
    return UsedDevices("cuda", tuple(dict.fromkeys(device.uuid for device in devices)))
