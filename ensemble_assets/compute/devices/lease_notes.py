"""Who holds a device: the note inside a lock file, for people. The lock itself is ``leases``'s part and the only truth.

The note is written into the lock file in place, under the lock: in a folder that all users share, nobody may replace
another user's file, but everyone may write into it.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

LOCK_SUFFIX = ".lock"
_START_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class LeaseRecord:
    """What a holder says about itself.

    Attributes:
        uuid: the device.
        device: its name for people.
        run: the run's id.
        stage: what the device is used for.
        model: the model's slug.
        pid: the process that took the lease; its workers hold it too.
        process_start: when that process started, seconds since the epoch; tells it from a later one of the same id.
        user: who runs it.
        since: seconds since the epoch.
    """

    uuid: str
    device: str
    run: str
    stage: str
    model: str
    pid: int
    process_start: float
    user: str
    since: float

    def describe(self) -> str:
        """One phrase for messages."""
        process = f"process {self.pid} of user {self.user}"
        if not self.process_lives():
            process += ", which has ended: a worker it started still holds the device"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        held = max(0.0, time.time() - self.since)
        what = f"run {self.run or '(none)'}, stage {self.stage}, model {self.model}"
        return f"{what}, {process}, since {since} ({held:.0f} s)"

    def process_lives(self) -> bool:
        """Whether the process that wrote the record still runs (and is not another one with its id)."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_start) < _START_TOLERANCE_SECONDS
        except psutil.NoSuchProcess:
            return False


def record_of_this_process(uuid: str, device: str, run: str, stage: str, model: str) -> LeaseRecord:
    """The record that this process leaves."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        user = str(os.getuid())
    started = psutil.Process().create_time()
    return LeaseRecord(uuid, device, run, stage, model, os.getpid(), started, user, time.time())


def write_record(descriptor: int, record: LeaseRecord | None) -> None:
    """Replace the content of a locked file; None empties it."""
    content = b"" if record is None else json.dumps(asdict(record)).encode() + b"\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def read_record(path: Path) -> LeaseRecord | None:
    """What a lock file says; None where it says nothing that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return LeaseRecord(**json.loads(path.read_text()))
    return None


def list_leases(lock_folder: Path) -> list[LeaseRecord]:
    """Every lease that is held right now, by device. A record whose lock is free is a leftover and is not listed."""
    held = []
    for path in sorted(lock_folder.glob(f"*{LOCK_SUFFIX}")):
        record = read_record(path)
        if record is not None and _is_locked(path):
            held.append(record)
    return held


def _is_locked(path: Path) -> bool:
    """Asks by trying, for a moment and shared, so that two who ask do not disturb each other."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
