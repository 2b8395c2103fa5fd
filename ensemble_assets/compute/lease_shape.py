"""What a stage sees of a lease: devices by name. Taking and keeping leases is ``leases``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol


class LeasedDevice(Protocol):
    """A device of a lease."""

    @property
    def torch_device(self) -> str:
        """Its name as torch takes it."""
        ...


class Lease(Protocol):
    """Devices that are ours while the lease's ``with`` lasts."""

    @property
    def devices(self) -> Sequence[LeasedDevice]:
        """At least one."""
        ...


@dataclass(frozen=True)
class NamedDevice:
    """A device known by its torch name only."""

    torch_device: str


@dataclass(frozen=True)
class LocalDevices:
    """A lease that leases nothing: the named devices, taken as free."""

    devices: tuple[NamedDevice, ...] = (NamedDevice("cpu"),)


LOCAL_DEVICES = LocalDevices()


class LeaseMaker(Protocol):
    """``lease_gpus`` or something of its shape."""

    def __call__(self, *, model: str, stage: str) -> AbstractContextManager[Lease]:
        """Lease devices for one model in one stage."""
        ...


def local_lease(*, model: str, stage: str) -> AbstractContextManager[Lease]:
    """The CPU, without a lock."""
    return nullcontext(LOCAL_DEVICES)
