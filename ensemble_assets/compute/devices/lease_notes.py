"""Note in a lock file which process holds the device, for people. Only the lock itself excludes others.

The note is written in place: in a shared folder nobody may replace another user's file.
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

from ensemble_assets.common.machine import process_began

LOCK_SUFFIX = ".lock"
_START_TOLERANCE_SECONDS = 2.0
"""The kernel gives a process's start with the precision of a clock tick, relative to a boot time that is rounded."""


@dataclass(frozen=True)
class LeaseNote:
    """The holder of a device; times are seconds since the epoch.

    ``pid`` is the process that took the lease; its workers hold it too. ``process_start`` tells it from a later process
    with the same id.
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
        """Describe the holder in one phrase for messages."""
        process = f"process {self.pid} of user {self.user}"
        if not self.process_lives():
            process += ", which has ended: a worker it started still holds the device"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        held = max(0.0, time.time() - self.since)
        what = f"run {self.run or '(none)'}, stage {self.stage}, model {self.model}"
        return f"{what}, {process}, since {since} ({held:.0f} s)"

    def process_lives(self) -> bool:
        """Whether the process that wrote the note still runs."""
        began = process_began(self.pid)
        return began is not None and abs(began - self.process_start) < _START_TOLERANCE_SECONDS


def note_of_this_process(uuid: str, device: str, run: str, stage: str, model: str) -> LeaseNote:
    """Make the note of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        user = str(os.getuid())
    started = process_began(os.getpid()) or 0.0
    return LeaseNote(uuid, device, run, stage, model, os.getpid(), started, user, time.time())


def write_note(descriptor: int, note: LeaseNote | None) -> None:
    """Replace the content of a locked file; None empties it."""
    content = b"" if note is None else json.dumps(asdict(note)).encode() + b"\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def read_note(path: Path) -> LeaseNote | None:
    """Read the note of a lock file; None if there is none, or it is damaged."""
    with suppress(OSError, ValueError, TypeError):
        return LeaseNote(**json.loads(path.read_text()))
    return None


def list_leases(lock_folder: Path) -> list[LeaseNote]:
    """List every lease that is held now, by device. A note in a file without a lock is a leftover."""
    held = []
    for path in sorted(lock_folder.glob(f"**/*{LOCK_SUFFIX}")):
        note = read_note(path)
        if note is not None and _is_locked(path):
            held.append(note)
    return held


def _is_locked(path: Path) -> bool:
    """Try to lock the file, for a moment and shared, so that two callers do not disturb each other."""
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
