"""The one way to a compute device: exclusive leases across threads, processes and users of one machine.

A lease is an ``flock`` on one file per device UUID, taken in sorted order in one machine-wide folder. Workers inherit
the open files, so the kernel frees the device when the last process that could hold its memory is dead: there is no
heartbeat, no time-out of the lock and nothing to clean up. After the locks, a lease waits until the memory is really
free. Who holds what, for people, is ``lease_records``.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from ensemble_assets.common.errors import DeviceError, LeaseTimeoutError, SettingsError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.discovery import discover_devices
from ensemble_assets.compute.devices.lease_notes import LOCK_SUFFIX, read_record, record_of_this_process, write_record

_POLL_SECONDS = 0.05
_STEADY_BYTES = 16 << 20
_LEAST_ATTEMPTS = 3  # one may collide with somebody who only looks
_NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|gpfs|beegfs|ocfs2|gfs2|fuse\.(sshfs|.*gluster.*|.*s3.*|.*rclone.*)"
)


@dataclass(frozen=True)
class MemoryGate:
    """When a device that nobody leases counts as free.

    The memory of a process that was killed comes back a little later. So the gate waits until little is used, or until
    what is used no longer changes (then it belongs to a program that takes no leases) and enough is left. A host's
    memory is everybody's, and nothing comes back late: there is nothing to wait for before a CPU is granted.

    Attributes:
        ceiling_bytes: the device may be used up to this.
        needed_bytes: at least so much must be left below it.
        idle_bytes: with no more than this in use, there is nothing to wait for.
        settle_seconds: unchanged for so long counts as permanent.
    """

    ceiling_bytes: int = 12_000_000_000
    needed_bytes: int = 2_000_000_000
    idle_bytes: int = 700_000_000
    settle_seconds: float = 1.0


@dataclass(frozen=True)
class LeasePurpose:
    """What a lease is for; goes into the record and the events."""

    model: str
    stage: str
    run: str = ""


class Lease:
    """Devices that are ours until the ``with`` block ends.

    Attributes:
        devices: in sorted order of their UUIDs.
        descriptors: open lock files; a worker must inherit all of them.
        waited_seconds: time until the lease was granted.
    """

    def __init__(self, devices: Sequence[Device], descriptors: Sequence[int], waited_seconds: float) -> None:
        self.devices = tuple(devices)
        self.descriptors = tuple(descriptors)
        self.waited_seconds = waited_seconds
        self._abandoned = False

    def abandon(self) -> None:
        """A worker could not be ended: do not unlock; the kernel will when that process is gone."""
        self._abandoned = True

    def release(self) -> None:
        """Give the devices back. The locks of an abandoned lease stay with the processes that inherited them."""
        for descriptor in self.descriptors:
            if self._abandoned:
                os.close(descriptor)
            else:
                _unlock(descriptor)


@contextmanager
def lease_gpus(
    model: str,
    stage: str,
    *,
    lock_folder: Path,
    events: EventSink,
    devices: Sequence[Device] | None = None,
    timeout: float = 3600.0,
    run: str = "",
    gate: MemoryGate | None = None,
) -> Iterator[Lease]:
    """Exclusive use of devices inside the block. Despite the name, a CPU is leased the same way.

    Args:
        model: slug of the model that will be on the devices.
        stage: what they are used for.
        lock_folder: one folder per machine, the same for every user and every program version.
        events: gets ``lease.waiting``, ``lease.acquired`` and ``lease.released``.
        devices: which ones; None takes all that ``discover_devices`` chooses.
        timeout: seconds to wait for the locks and the memory together; 0 tries without waiting.
        run: id of the run, for the record.
        gate: when a device's memory counts as free.

    Raises:
        LeaseTimeoutError: if a device stays taken; says by whom.
        SettingsError: if the folder is on a network file system or cannot be used by all.
        DeviceError: if there are no devices.
    """
    wanted = sorted(discover_devices().chosen if devices is None else devices, key=lambda device: device.uuid)
    if not wanted:
        raise DeviceError("there is no device to lease. Name at least one, or leave the choice to discovery")
    purpose = LeasePurpose(model, stage, run)
    started = time.monotonic()
    prepare_folder(lock_folder)
    with ExitStack() as stack:
        descriptors = []
        for device in wanted:
            descriptor = _acquire(device, lock_folder, purpose, started + timeout, events)
            stack.callback(_unlock, descriptor)
            descriptors.append(descriptor)
        for device in wanted:
            _wait_for_memory(device, gate or MemoryGate(), started + timeout)
        stack.pop_all()
        lease = Lease(wanted, descriptors, time.monotonic() - started)
    granted = time.monotonic()
    for device in wanted:
        events.emit("lease.acquired", device=device.uuid, stage=stage, model=model, wait_seconds=lease.waited_seconds)
    try:
        yield lease
    finally:
        lease.release()
        held = time.monotonic() - granted
        for device in wanted:
            events.emit("lease.released", device=device.uuid, stage=stage, model=model, held_seconds=held)


def prepare_folder(folder: Path, filesystem_of: Callable[[Path], str] | None = None) -> None:
    """Make the lock folder if need be: everybody may create files, nobody may remove another's (mode 1777).

    Raises:
        SettingsError: if it is on a network file system, where ``flock`` may not exclude other machines or may not be
            inherited, or if it cannot be written to.
    """
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    except FileExistsError:
        pass
    except OSError as error:
        raise SettingsError(f"paths.lock_dir: the folder cannot be made ({error.strerror}). Choose another") from error
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError("paths.lock_dir: not a folder that this user may write to. Make its mode 1777")
    kind = (filesystem_of or filesystem_type)(folder)
    if _NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise SettingsError(
            f"paths.lock_dir: the folder is on a network file system ({kind}), where device locks are not reliable. "
            "Choose a folder on a local disk, for instance below /run/lock or /tmp"
        )


def filesystem_type(path: Path) -> str:
    """Type of the file system that holds ``path``, as the kernel calls it; empty where that is unknown."""
    real = path.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (real, *real.parents) if parent in mounts), "")


def lock_path(folder: Path, uuid: str) -> Path:
    """The lock file of a device."""
    return folder / (re.sub(r"[^A-Za-z0-9._-]", "_", uuid) + LOCK_SUFFIX)


def _acquire(device: Device, folder: Path, purpose: LeasePurpose, deadline: float, events: EventSink) -> int:
    """Lock one device and leave the record; the descriptor."""
    path = lock_path(folder, device.uuid)
    descriptor = _open_lock_file(path)
    try:
        attempts = 0
        while not _try_lock(descriptor):
            attempts += 1
            if attempts == 1:
                events.emit("lease.waiting", device=device.uuid, stage=purpose.stage, model=purpose.model)
            if time.monotonic() >= deadline and attempts >= _LEAST_ATTEMPTS:
                raise LeaseTimeoutError(_taken(device, path, purpose))
            time.sleep(_POLL_SECONDS)
        record = record_of_this_process(device.uuid, device.name, purpose.run, purpose.stage, purpose.model)
        write_record(descriptor, record)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _taken(device: Device, path: Path, purpose: LeasePurpose) -> str:
    holder = read_record(path)
    who = holder.describe() if holder is not None else "a process that has not said who it is"
    return (
        f"{purpose.stage}: {device.name} ({device.uuid}) is leased by {who}. "
        "Wait for it, raise device.lease_timeout, or end that process: the lease ends with it"
    )


def _open_lock_file(path: Path) -> int:
    """The lock file, made if need be so that every user can lock it. Lock files are never removed.

    Opened without ``O_CREAT`` first: Linux (``fs.protected_regular``) refuses that flag on other users' files in a
    sticky folder.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SettingsError(
                f"paths.lock_dir: {path.name} cannot be opened ({error.strerror}). "
                "It must be a plain file of mode 666; ask its owner to set that"
            ) from error
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        os.fchmod(descriptor, 0o666)  # the umask took bits away
        return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    write_record(descriptor, None)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _wait_for_memory(device: Device, gate: MemoryGate, deadline: float) -> None:
    """Until the device's memory is free, or stays as it is with enough left."""
    if not device.frees_late:
        return
    last, since = device.memory().used, time.monotonic()
    while True:
        reading, now = device.memory(), time.monotonic()
        if abs(reading.used - last) > _STEADY_BYTES:
            last, since = reading.used, now
        settled = reading.used <= gate.idle_bytes or now - since >= gate.settle_seconds
        left = min(gate.ceiling_bytes - reading.used, reading.free)
        if left >= gate.needed_bytes and (settled or now >= deadline):
            return
        if now >= deadline:
            holders = ", ".join(str(pid) for pid in device.holders()) or "processes the driver does not name"
            raise LeaseTimeoutError(
                f"{device.name} ({device.uuid}) is not leased, but {reading.used} bytes of it are in use "
                f"by {holders}; {gate.needed_bytes} are needed below the ceiling of {gate.ceiling_bytes}. "
                "End those processes or raise device.ceiling_gb"
            )
        time.sleep(_POLL_SECONDS)
