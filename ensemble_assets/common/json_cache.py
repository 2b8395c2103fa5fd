"""Keep small JSON values between runs in one file that several processes share.

The file is a hint: a damaged or foreign file counts as empty, and a write that cannot happen is given up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ensemble_assets.common.atomic_files import atomic_write

VERSION = 1
"""Files with another version count as empty."""

LOCK_SECONDS = 10.0
"""Longest wait for another writer. Writing takes milliseconds, so a longer wait means that its process hangs."""

Entries = dict[str, Any]


class JsonCache:
    """Values by key, the most recently stored ones last. Without a path it stores nothing.

    More than ``most_entries`` drop the oldest ones; None keeps all.
    """

    def __init__(self, path: Path | None, most_entries: int | None = None) -> None:
        self.path = path
        self._most_entries = most_entries

    def read(self) -> Entries:
        """Return all entries. Empty if the file is missing, damaged or of another version."""
        with suppress(OSError, ValueError):
            content = json.loads(self.path.read_bytes()) if self.path is not None else None
            if isinstance(content, dict) and content.get("version") == VERSION:
                entries = content.get("entries")
                return entries if isinstance(entries, dict) else {}
        return {}

    def put(self, entries: Mapping[str, Any]) -> bool:
        """Store ``entries`` as the most recent ones. False if they could not be written."""
        return self.update(lambda stored: {key: stored[key] for key in stored if key not in entries} | dict(entries))

    def update(self, change: Callable[[Entries], Mapping[str, Any]]) -> bool:
        """Replace the stored entries by ``change(entries)`` while no other process writes.

        False if the file is not writable, or another process holds its lock for longer than ``LOCK_SECONDS``.
        """
        if self.path is None:
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS):
                entries = list(change(self.read()).items())
                dropped = max(0, len(entries) - self._most_entries) if self._most_entries is not None else 0
                with atomic_write(self.path) as file:
                    content = {"version": VERSION, "entries": dict(entries[dropped:])}
                    file.write(json.dumps(content, indent=1).encode())
        except (Timeout, OSError):
            return False
        return True
