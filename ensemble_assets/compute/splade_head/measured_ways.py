"""Keep how fast the ways of the sparse head were on this machine, for the manifest and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.common.machine import digest, instruction_sets, usable_cores

_MOST_PROCESSORS = 20
"""Kinds of processors that share a cache folder, as in a cluster with one home."""


@dataclass(frozen=True)
class MeasuredWays:
    """The way that the last run of a sparse encoder took on this machine, its reason, and the ways that it tried.

    ``path`` and ``reason`` are those of ``HeadPath``; ``tokens_per_second`` is by path, on one thread.
    """

    path: str
    reason: str
    tokens_per_second: Mapping[str, int]


def keep_ways(cache_folder: Path | None, ways: MeasuredWays) -> None:
    """Store the measurements of a run."""
    _cache(cache_folder).put({_key(): asdict(ways)})


def stored_ways(cache_folder: Path | None) -> MeasuredWays | None:
    """Give the measurements of the last run on this machine, if there was one that was large enough to measure."""
    stored: Any = _cache(cache_folder).read().get(_key())
    return MeasuredWays(**stored) if isinstance(stored, dict) else None


def _cache(folder: Path | None) -> JsonCache:
    return JsonCache(None if folder is None else folder / "sparse-heads.json", _MOST_PROCESSORS)


def _key() -> str:
    return digest([instruction_sets(), usable_cores()])
