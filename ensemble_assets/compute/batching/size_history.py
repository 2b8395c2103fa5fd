"""What batch sizes worked, kept between runs per model, kind of device and precision, in one small JSON file.

It is a hint: a damaged or foreign file is ignored and replaced, and a wrong size is corrected like any other.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.compute.batching.failed_sizes import Failure
from ensemble_assets.compute.batching.memory_model import Observation
from ensemble_assets.compute.batching.size_limits import SizeMemory

_VERSION = 1
_MOST_ENTRIES = 64
_LOCK_SECONDS = 10.0


class BatchMemory:
    """The file of working batch sizes; several runs may read and write it at once.

    Args:
        path: the file, made when something is first stored; None remembers nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def recall(self, identity: str, kind: str) -> SizeMemory:
        """What is known about a model (slug, fingerprint, precision) on a kind of device; empty if nothing is."""
        if self._path is None:
            return SizeMemory()
        entry = self._read(self._path).get(_key(identity, kind), {})
        with suppress(TypeError, ValueError, KeyError, OverflowError):
            seen = tuple(Observation(*map(_count, one)) for one in entry["observations"])
            failures = tuple(Failure(*map(_count, one)) for one in entry["failures"])
            return SizeMemory(seen, _count(entry["worked_tokens"]), _count(entry["worked_square"]), failures)
        return SizeMemory()

    def keep(self, identity: str, kind: str, sizes: SizeMemory) -> bool:
        """Remember; False where the file cannot be written or another process keeps it locked."""
        if self._path is None:
            return False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock", timeout=_LOCK_SECONDS):
                entries = self._read(self._path)
                entries[_key(identity, kind)] = {**asdict(sizes), "updated": time.time()}
                newest = sorted(entries, key=lambda key: _age(entries[key]))[-_MOST_ENTRIES:]
                content = {"version": _VERSION, "entries": {key: entries[key] for key in newest}}
                with atomic_write(self._path) as file:
                    file.write(json.dumps(content, indent=1).encode())
        except (Timeout, OSError):  # a hint that is lost costs a few small batches; a run must not
            return False
        return True

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            content = json.loads(path.read_bytes())
            if isinstance(content, dict) and content.get("version") == _VERSION:
                entries = content.get("entries")
                if isinstance(entries, dict):
                    return {key: entry for key, entry in entries.items() if isinstance(entry, dict)}
        return {}


def _key(identity: str, kind: str) -> str:
    return f"{identity}|{kind}"


def _count(value: Any) -> int:
    """A whole number that cannot be negative.

    Raises:
        ValueError: if it is.
    """
    number = int(value)
    if number < 0:
        raise ValueError
    return number


def _age(entry: dict[str, Any]) -> float:
    updated = entry.get("updated")
    return float(updated) if isinstance(updated, int | float) else 0.0
