"""What stages cost for how much work, kept between runs in one small JSON file: what plans are fitted to.

Calibrations and finished runs both add to it. A damaged file counts as empty: it is a hint and fills again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from ensemble_assets.common.atomic_files import atomic_write

Origin = Literal["calibration", "run"]

_VERSION = 1
_KEPT = 8
_KEYS = 256
_LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Observation:
    """One stage once: work (operations, or what the stage counts in), wall seconds, and where it was seen."""

    work: float
    seconds: float
    origin: Origin


class CostRecords:
    """Observations by key (machine, stage, models, precision, library versions); the newest few of each are kept.

    Args:
        path: the file, made when something is first stored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, key: str) -> list[Observation]:
        """Oldest first; empty if nothing is known."""
        return _observations(self._read().get(key))

    def add(self, observed: Mapping[str, Sequence[Observation]]) -> bool:
        """Remember; False where another process keeps the file locked (then these are forgotten)."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self._path}.lock", timeout=_LOCK_SECONDS):
                entries = self._read()
                for key, new in observed.items():
                    kept = [*_observations(entries.pop(key, None)), *new][-_KEPT:]
                    entries[key] = [asdict(one) for one in kept]
                newest = dict(list(entries.items())[-_KEYS:])
                with atomic_write(self._path) as file:
                    file.write(json.dumps({"version": _VERSION, "entries": newest}, indent=1).encode())
        except Timeout:
            return False
        return True

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            content = json.loads(self._path.read_bytes())
            if isinstance(content, dict) and content.get("version") == _VERSION:
                entries = content.get("entries")
                if isinstance(entries, dict):
                    return entries
        return {}


def _observations(entry: Any) -> list[Observation]:
    with suppress(TypeError, ValueError, KeyError):
        return [
            Observation(float(one["work"]), float(one["seconds"]), "run" if one["origin"] == "run" else "calibration")
            for one in entry
        ]
    return []
