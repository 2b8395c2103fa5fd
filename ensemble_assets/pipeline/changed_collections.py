"""Find out which collections below the corpora root changed since they were last read.

``orchestration/sensors/corpora.py`` asks Dagster for runs; ``pipeline/staleness.py`` knows the other reasons for a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.collection.fingerprints import FileHashes, collection_fingerprint, last_change
from ensemble_assets.collection.folders import discover
from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.common.stages import STAGE
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import cache_folder


@dataclass(frozen=True)
class Seen:
    """The collections below the corpora root now: their fingerprints, by name.

    ``waiting`` are collections whose files are still being changed, or that there was no time to read. ``refused``
    gives the reason for each folder that is no collection.
    """

    fingerprints: Mapping[str, str]
    waiting: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class CorporaDiff:
    """The changes since the last scan; all names are sorted.

    ``new`` are to be added as partitions. ``added``, never read, and ``changed``, read with other content, are to be
    run. ``removed`` are partitions without a folder; artefacts and bundles stay. ``requested`` has the fingerprints for
    which a run has been asked for, this time included.
    """

    new: tuple[str, ...]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    requested: Mapping[str, str]

    @property
    def to_run(self) -> tuple[str, ...]:
        """All collections that need a run."""
        return tuple(sorted((*self.added, *self.changed)))


def diff_corpora(
    seen: Seen, read: Mapping[str, str], requested: Mapping[str, str], partitions: Collection[str]
) -> CorporaDiff:
    """Compare the collections with the content that was read last, and with the content that was asked for last.

    A run is asked for once per content. If it fails, the nightly schedule tries again. ``read`` and ``requested`` have
    fingerprints by collection; ``partitions`` are the collections that Dagster knows.
    """
    now = seen.fingerprints
    due = [name for name in now if name not in seen.waiting and now[name] not in (read.get(name), requested.get(name))]
    open_requests = {name: requested[name] for name in requested if name in now or name in seen.waiting}
    return CorporaDiff(
        new=tuple(sorted(set(now) - set(partitions))),
        added=tuple(sorted(name for name in due if name not in read)),
        changed=tuple(sorted(name for name in due if name in read)),
        removed=tuple(sorted(set(partitions) - set(now) - set(seen.waiting))),
        requested=open_requests | {name: now[name] for name in due},
    )


def scan_corpora(settings: Settings, seconds: float = 40.0, clock: Callable[[], float] = time.time) -> Seen:
    """Scan the collections below ``paths.chunked_dir``; ``InputError`` if it cannot be used.

    Collections not reached in ``seconds`` wait; hashes are stored, so the next scan is faster.
    """
    discovered = discover(Path(settings.paths.chunked_dir))
    hashes = FileHashes(JsonCache(cache_folder(settings.paths) / "collection_hashes.json"))
    until = clock() + seconds
    fingerprints: dict[str, str] = {}
    waiting: list[str] = []
    for collection in discovered.collections:
        age = clock() - last_change(collection.folder)
        if 0 <= age < settings.operations.settle_seconds or clock() > until:
            waiting.append(collection.name)
        else:
            fingerprints[collection.name] = collection_fingerprint(collection.folder, hashes.hash_of)
    hashes.store(all_seen=not waiting)
    problems = (*discovered.refused.values(), *discovered.uncut.values())
    return Seen(fingerprints, tuple(waiting), tuple(map(str, problems)))


def read_fingerprints(settings: Settings, names: Collection[str]) -> dict[str, str]:
    """Read the fingerprint of the content that each collection's chunks were last read from, where there are chunks."""
    store = open_store(settings)
    chunks = {name: store.peek(name, STAGE["chunks"].asset) for name in names}
    return {name: artefact.record.source_fingerprint for name, artefact in chunks.items() if artefact is not None}
