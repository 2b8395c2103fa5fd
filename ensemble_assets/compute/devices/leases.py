"""Lease compute devices exclusively, across threads, processes and users of one machine.

A lease is an ``flock`` on one file per device UUID, taken in sorted order in one machine-wide folder. Workers inherit
the open files, so the kernel frees the device when the last process that could hold its memory is dead. There is no
heartbeat and nothing to clean up. After the locks, a lease waits until the memory is really free.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.common.defaults import CEILING_BYTES, LEASE_SECONDS
from ensemble_assets.common.errors import DeviceError, LeaseTimeoutError, SettingsError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.discovery import discover_devices
from ensemble_assets.compute.devices.lease import Lease, LeasePurpose, unlock
from ensemble_assets.compute.devices.lease_notes import LOCK_SUFFIX, note_of_this_process, read_note, write_note

_POLL_SECONDS = 0.05
"""Period of the attempts to lock and to find memory free."""

_STEADY_BYTES = 16 << 20
"""Changes of used memory below this count as none: drivers move some megabytes at any time."""

_LEAST_ATTEMPTS = 3
"""Attempts before a lease without waiting time fails. One may collide with the momentary lock of ``list_leases``."""

_ESCAPED = re.compile(r"\\(\d{3})")
"""A blank in a mount point, as the kernel writes it."""

_NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|gpfs|beegfs|ocfs2|gfs2|fuse\.(sshfs|.*gluster.*|.*s3.*|.*rclone.*)"
)


@dataclass(frozen=True)
class MemoryGate:
    """The rule by which the memory of a locked device counts as free.

    The driver frees the memory of a killed process a little after its death. So the gate waits until little memory is
    used, or until the use no longer changes (it then belongs to a program that takes no leases) and enough is left. A
    host's kernel frees memory at once, so a CPU is granted without waiting.

    Attributes:
        ceiling_bytes: the device may be used up to this.
        needed_bytes: at least this much must be left below the ceiling.
        idle_bytes: use up to this counts as free: drivers and display servers.
        settle_seconds: use that is unchanged for this time counts as permanent.
    """

    ceiling_bytes: int = CEILING_BYTES
    needed_bytes: int = 2_000_000_000
    idle_bytes: int = 700_000_000
    settle_seconds: float = 1.0


@contextmanager
def lease_devices(
    model: str,
    stage: str,
    *,
    lock_folder: Path | None,
    events: EventSink,
    devices: Sequence[Device] | None = None,
    timeout: float = LEASE_SECONDS,
    run: str = "",
    gate: MemoryGate | None = None,
) -> Iterator[Lease]:
    """Lease GPUs or the CPU exclusively until the block ends; by default all that ``discover_devices`` chooses.

    ``timeout`` is in seconds, for the locks and the memory together; 0 tries without waiting. Without
    a lock folder, others may use the devices meanwhile.

    Raises:
        LeaseTimeoutError: if a device stays taken; names the holder.
        SettingsError: if the folder is on a network file system or cannot be used by all.
        DeviceError: if there are no devices.
    """
    wanted = sorted(discover_devices().chosen if devices is None else devices, key=lambda device: device.uuid)
    if not wanted:
        raise DeviceError("there is no device to lease. Name at least one, or leave the choice to discovery")
    purpose = LeasePurpose(model, stage, run)
    started = time.monotonic()
    with ExitStack() as stack:
        descriptors = []
        if lock_folder is not None:
            prepare_folder(lock_folder)
            for device in wanted:
                descriptor = _acquire(device, lock_folder, purpose, started + timeout, events)
                stack.callback(unlock, descriptor)
                descriptors.append(descriptor)
        for device in wanted:
            _wait_for_memory(device, gate or MemoryGate(), started + timeout)
        stack.pop_all()
        lease = Lease(wanted, descriptors, purpose, time.monotonic() - started)
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
    """Make the lock folder if it is missing. Everybody may create files, nobody may remove another's (mode 1777).

    A folder without write access is a ``SettingsError``. So is a network file system: its ``flock`` may not exclude
    other machines, or may not be inherited.
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


def _mounted() -> list[str]:
    with suppress(OSError):
        return Path("/proc/self/mounts").read_text().splitlines()
    return []


def _plain(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))


def filesystem_type(path: Path) -> str:
    """Name the type of the file system that holds ``path``, as the kernel does; empty if it is unknown."""
    real = path.resolve()
    mounts = {Path(_ESCAPED.sub(_plain, where)): kind for _, where, kind, *_ in map(str.split, _mounted())}
    return next((mounts[parent] for parent in (real, *real.parents) if parent in mounts), "")


def lock_path(folder: Path, uuid: str) -> Path:
    """Return the lock file of a device."""
    return folder / (re.sub(r"[^A-Za-z0-9._-]", "_", uuid) + LOCK_SUFFIX)


def _acquire(device: Device, folder: Path, purpose: LeasePurpose, deadline: float, events: EventSink) -> int:
    """Lock one device and write the note; returns the descriptor."""
    descriptor = _open_lock_file(lock_path(folder, device.uuid))
    try:
        attempts = 0
        while not _try_lock(descriptor):
            attempts += 1
            if attempts == 1:
                events.emit("lease.waiting", device=device.uuid, stage=purpose.stage, model=purpose.model)
            if time.monotonic() >= deadline and attempts >= _LEAST_ATTEMPTS:
                raise LeaseTimeoutError(_taken(device, folder, purpose))
            time.sleep(_POLL_SECONDS)
        write_note(
            descriptor, note_of_this_process(device.uuid, device.name, purpose.run, purpose.stage, purpose.model)
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _taken(device: Device, folder: Path, purpose: LeasePurpose) -> str:
    return (
        f"{purpose.stage}: {device.name} ({device.uuid}) is leased by {holder_of(folder, device.uuid)}. "
        "Wait for it, raise device.lease_timeout, or end that process: the lease ends with it"
    )


def holder_of(folder: Path, uuid: str) -> str:
    """Describe who has a device now, in one phrase."""
    note = read_note(lock_path(folder, uuid))
    return note.describe() if note is not None else "a process that left no note"


def _open_lock_file(path: Path) -> int:
    """Open a lock file, made on first use so that every user can lock it. Lock files are never removed.

    The first attempt is without ``O_CREAT``: Linux (``fs.protected_regular``) refuses that flag on other users' files
    in a sticky folder.
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


def _wait_for_memory(device: Device, gate: MemoryGate, deadline: float) -> None:
    """Wait until the device's memory is free, or unchanged with enough left; else ``LeaseTimeoutError``."""
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
