"""Fingerprint a collection's folder: one short word that changes when its content changes.

Chunks, queries and judgements count, by their bytes. A new modification time alone changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ensemble_assets.collection.readers.formats import feeds_collection
from ensemble_assets.collection.readers.input_files import files_below
from ensemble_assets.common.atomic_files import file_hash
from ensemble_assets.common.json_cache import JsonCache

UNREADABLE = "unreadable"
"""Stands for the content of an unreadable file, so that a change of its access rights changes the fingerprint."""

_SETTLED_NS = 2_000_000_000
"""The hash of a file changed less than this long ago is not stored: some file systems count time in steps of 2 s."""


class FileHashes:
    """Content hashes of files, stored between runs by the file's path and state.

    The state has the inode, the size and the times of the last change. One of them is ``ctime``, which programs cannot
    set back.
    """

    def __init__(self, cache: JsonCache) -> None:
        self._cache = cache
        self._stored: dict[str, str] = {key: value for key, value in cache.read().items() if isinstance(value, str)}
        self._asked: dict[str, str] = {}

    def hash_of(self, path: Path) -> str:
        """Return a file's content hash, computed only if its state is new. ``UNREADABLE`` if it cannot be read."""
        try:
            state = path.stat()
            key = f"{path}|{state.st_ino}|{state.st_size}|{state.st_mtime_ns}|{state.st_ctime_ns}"
            content = self._asked.get(key) or self._stored.get(key) or file_hash(path)
        except OSError:
            return UNREADABLE
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED_NS:
            self._asked[key] = content
        return content

    def store(self, *, all_seen: bool = True) -> None:
        """Store the hashes that were asked for. If that was every file (``all_seen``), drop all other hashes."""
        hashes = self._asked if all_seen else self._stored | self._asked
        if hashes != self._stored:
            self._cache.update(lambda stored: hashes if all_seen else stored | hashes)


def collection_fingerprint(folder: Path, hash_of: Callable[[Path], str] = file_hash) -> str:
    """Return BLAKE2b over the names and contents of a collection's files, 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for relative, path in sorted(collection_files(folder)):
        try:
            content = hash_of(path)
        except OSError:
            content = UNREADABLE
        digest.update(os.fsencode(relative) + b"\0" + content.encode() + b"\0")
    return digest.hexdigest()


def last_change(folder: Path) -> float:
    """Return when a file of the collection was last changed, in seconds since the epoch. 0 if it has no file."""
    times = [0.0]
    for _, path in collection_files(folder):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def collection_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every input file as (POSIX path relative to ``folder``, path). Each folder is listed once."""
    for relative, path in files_below(folder):
        if path.is_file() and feeds_collection(relative):
            yield relative, path
