"""Define the lease of compute devices: devices, the open lock files that hold them, and the purpose.

``leases`` takes leases with locks. ``unlocked_lease`` makes one without, for tests, single CPUs and Ray clusters.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.lease_notes import write_note


@dataclass(frozen=True)
class LeasePurpose:
    """The use of a lease, for its note and its events: slug of the model, stage, id of the run."""

    model: str = ""
    stage: str = ""
    run: str = ""


class Lease:
    """Devices that are ours until the ``with`` block of their lease ends, after ``waited_seconds``.

    They are sorted by UUID, and none if the nodes of a cluster lease their own. ``descriptors`` are open lock files,
    which a worker must inherit.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        descriptors: Sequence[int] = (),
        purpose: LeasePurpose | None = None,
        waited_seconds: float = 0.0,
    ) -> None:
        self.devices = tuple(devices)
        self.descriptors = tuple(descriptors)
        self.purpose = purpose or LeasePurpose()
        self.waited_seconds = waited_seconds
        self._abandoned = False

    @property
    def kinds(self) -> list[str]:
        """The distinct kinds of the devices, sorted."""
        return sorted({device.kind for device in self.devices})

    def abandon(self) -> None:
        """Leave the locks to a worker that could not be ended: the kernel frees them when that process is gone."""
        self._abandoned = True

    def release(self) -> None:
        """Give the devices back. Locks of an abandoned lease stay with the processes that inherited them."""
        for descriptor in self.descriptors:
            if self._abandoned:
                os.close(descriptor)
            else:
                unlock(descriptor)


def unlock(descriptor: int) -> None:
    """Empty the note in a lock file, unlock it and close it."""
    write_note(descriptor, None)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class LeaseMaker(Protocol):
    """Leases devices for one model in one stage; ``lease_devices`` with its other arguments given is one."""

    def __call__(self, *, model: str, stage: str) -> AbstractContextManager[Lease]:
        """Lease devices until the block ends."""


@contextmanager
def unlocked_lease(*, model: str, stage: str, devices: Sequence[Device] | None = None) -> Iterator[Lease]:
    """Hand out devices without a lock; None is the CPU, an empty list a cluster whose nodes lease their own."""
    yield Lease([CpuDevice()] if devices is None else devices, purpose=LeasePurpose(model, stage))
