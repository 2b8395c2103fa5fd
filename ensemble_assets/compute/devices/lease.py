"""What a stage and its runner see of a lease, and the lease that leases nothing. Taking locks is ``leases``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.device import Device


class Lease(Protocol):
    """Devices that are ours while the lease's ``with`` lasts."""

    @property
    def devices(self) -> Sequence[Device]:
        """At least one."""
        ...

    @property
    def descriptors(self) -> Sequence[int]:
        """Open lock files; a worker must inherit all of them."""
        ...

    def abandon(self) -> None:
        """A worker could not be ended: whoever gives the lease back must leave its locks to that process."""
        ...


@dataclass(frozen=True)
class LocalDevices:
    """A lease that leases nothing: the devices, taken as free."""

    devices: tuple[Device, ...] = field(default_factory=lambda: (CpuDevice(),))
    descriptors: tuple[int, ...] = ()

    def abandon(self) -> None:
        """There is no lock."""


class LeaseMaker(Protocol):
    """``lease_gpus`` or something of its shape."""

    def __call__(self, *, model: str, stage: str) -> AbstractContextManager[Lease]:
        """Lease devices for one model in one stage."""
        ...


def local_lease(*, model: str, stage: str) -> AbstractContextManager[Lease]:
    """The CPU, without a lock."""
    return nullcontext(LocalDevices())
