"""Use the host as a device. Its used memory is the resident memory of this program alone: a host is shared by design.

The memory that others leave free, and the control group's limit, bound it too.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.common.machine import process_family, resident_bytes, usable_cores
from ensemble_assets.compute.devices.device import DeviceSession, MemoryReading
from ensemble_assets.compute.devices.host_memory import host_memory

_STATUS = Path("/proc/self/status")


def _host_uuid() -> str:
    """Return a stable name for this host: a hash, since machine-id(5) asks programs not to show the machine id."""
    for source in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError):
            identity = Path(source).read_text().strip()
            if identity:
                return "cpu-" + hashlib.sha256(f"ensemble-assets {identity}".encode()).hexdigest()[:16]
    return "cpu-" + hashlib.sha256(platform.node().encode()).hexdigest()[:16]


def tree_resident_bytes() -> int:
    """Return the resident bytes of this process and all its descendants."""
    return sum(map(resident_bytes, process_family()))


@dataclass(frozen=True)
class CpuDevice:
    """The processors and memory of this host, as one device.

    Each worker may start ``threads`` compute threads; 0 leaves the libraries' own choice.
    """

    threads: int = 0
    uuid: str = field(default_factory=_host_uuid)

    @property
    def name(self) -> str:
        """Architecture and number of usable cores."""
        return f"{platform.machine()} CPU, {usable_cores()} cores"

    @property
    def kind(self) -> str:
        """Hosts of one architecture count as alike."""
        return f"cpu-{platform.machine()}"

    @property
    def torch_device(self) -> str:
        """Name for torch."""
        return "cpu"

    @property
    def total_bytes(self) -> int:
        """Physical memory, or the control group's limit if that is less."""
        return host_memory().total

    @property
    def frees_late(self) -> bool:
        """Never: the kernel takes memory back before a process is gone."""
        return False

    def memory(self) -> MemoryReading:
        """Read the memory of this process and its descendants, and the free memory of host and control group."""
        return MemoryReading(used=tree_resident_bytes(), free=host_memory().available)

    def holders(self) -> tuple[int, ...]:
        """List nobody: a host's memory is shared by all processes."""
        return ()

    def environment(self) -> Mapping[str, str]:
        """Set the thread count, which OpenMP and MKL read once, when they are loaded."""
        if not self.threads:
            return {}
        return {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}

    def open(self) -> DeviceSession:
        """Return a session; a host needs no opening."""
        return CpuSession() if watches_memory() else UnwatchedCpuSession()


class CpuSession:
    """Host memory of one process: its anonymous memory, interpreter and libraries included.

    Pages of mapped files (weights, token tables, results) do not count: the kernel can take them back at any time.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)

    def memory(self) -> MemoryReading:
        """Read this process's anonymous memory, and the free memory."""
        return MemoryReading(used=_status("RssAnon"), free=host_memory().available)

    def reserved_bytes(self) -> int:
        """Return this process's anonymous memory."""
        return _status("RssAnon")

    def limit_allocations(self, cap_bytes: int | None) -> None:
        """Let the kernel refuse memory beyond the cap (``RLIMIT_DATA``: private writable memory, since Linux 4.7).

        A refused allocation is a ``MemoryError`` in numpy and a ``RuntimeError`` in torch. Without the limit, the
        kernel would kill a process when the host runs out of memory.
        """
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if cap_bytes is None:
            wanted = most
        else:
            wanted = _status("VmData") + max(0, cap_bytes - self.reserved_bytes())
            wanted = wanted if most < 0 else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))

    def begin_peak(self) -> None:
        """Reset the kernel's high-water mark (proc(5), ``clear_refs``), which misses no spike."""
        self.release_cache()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Return the high-water mark, less the mapped files that are resident now."""
        return max(0, _status("VmHWM") - _status("RssFile") - _status("RssShmem"))

    def release_cache(self) -> None:
        """Let the C library return freed memory to the kernel, if it can."""
        trim = getattr(self._libc, "malloc_trim", None)
        if trim is not None:
            trim(0)


UNWATCHED = (
    "This system has no /proc, as macOS: of the host's memory only its size and the most that a process ever had are "
    "known, and the kernel limits nothing. Batches are planned as everywhere."
)


def watches_memory() -> bool:
    """Return whether the kernel tells the memory of a process by kind, and its peak."""
    return _STATUS.is_file()


class UnwatchedCpuSession:
    """Host memory of one process where there is no ``/proc``: the most that it ever had resident."""

    def memory(self) -> MemoryReading:
        """Read the most that this process had, and the memory of the host."""
        return MemoryReading(used=self.reserved_bytes(), free=host_memory().available)

    def reserved_bytes(self) -> int:
        """Return the most that this process had; it never falls."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    peak_bytes = reserved_bytes

    def limit_allocations(self, cap_bytes: int | None) -> None:
        """Do nothing: macOS accepts limits of data and does not hold them."""

    def begin_peak(self) -> None:
        """Do nothing: it cannot be reset."""

    def release_cache(self) -> None:
        """Do nothing: the C library there keeps to itself what it has."""


def _status(name: str) -> int:
    """Read a field of ``/proc/self/status`` in bytes; ``DeviceError`` if the kernel does not have it."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise DeviceError(f"{_STATUS} has no {name}, so host memory cannot be watched. Linux 4.7 or later is needed")
