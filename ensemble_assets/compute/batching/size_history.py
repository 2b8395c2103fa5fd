"""Remember working batch sizes between runs, per model and kind of device.

An entry is a hint: a damaged one is ignored, and a wrong size is corrected like any other.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.compute.batching.memory_model import Observation
from ensemble_assets.compute.batching.size_limits import Failure, KnownSizes

_MOST_ENTRIES = 64
"""Models times kinds of devices that one machine uses; an entry has some kilobytes."""


class SizeHistory:
    """The file of working batch sizes. Several runs may read and write it at once; None remembers nothing."""

    def __init__(self, path: Path | None) -> None:
        self._cache = JsonCache(path, _MOST_ENTRIES)

    def recall(self, identity: str, kind: str) -> KnownSizes:
        """Return what earlier runs learned about ``ForwardFactory.identity`` on devices of this kind."""
        entry = self._cache.read().get(_key(identity, kind), {})
        with suppress(TypeError, ValueError, KeyError, OverflowError):
            observations = tuple(Observation(*map(_count, values)) for values in entry["observations"])
            failures = tuple(Failure(*map(_count, values)) for values in entry["failures"])
            return KnownSizes(observations, _count(entry["worked_tokens"]), _count(entry["worked_square"]), failures)
        return KnownSizes()

    def keep(self, identity: str, kind: str, sizes: KnownSizes) -> bool:
        """Store what a run learned. False if the file cannot be written: that costs a few small batches, no run."""
        return self._cache.put({_key(identity, kind): asdict(sizes)})


def _key(identity: str, kind: str) -> str:
    return f"{identity}|{kind}"


def _count(value: Any) -> int:
    """Convert to a whole number; ``ValueError`` if it is negative."""
    number = int(value)
    if number < 0:
        raise ValueError
    return number
