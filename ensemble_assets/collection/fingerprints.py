"""What a collection's folder holds, as one short word that changes when the content does.

Only files that the readers would read count: chunks, queries, judgements. Their bytes are hashed; touching a file
changes nothing. Which collections there are is ``core.collections``; what to do about a change is ``orchestration``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_assets.collection.readers.formats import feeds_collection
from ensemble_assets.collection.readers.walk import visible_files
from ensemble_assets.common.atomic_files import atomic_write, file_hash

UNREADABLE = "unreadable"
"""Stands for the content of a file that cannot be read, so that a change of rights is a change."""

_SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was hashed may change again within the clock's step: not remembered."""


@dataclass
class KnownHashes:
    """Content hashes of files by where they are, how long, and when they were changed; kept in one JSON file.

    The time of the last change of the inode (``ctime``) is part of it, which programs cannot set back.

    Attributes:
        file: where they are kept; None keeps them in memory.
        hashes: hash by the file's place and state.
    """

    file: Path | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    _used: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> KnownHashes:
        """The hashes kept in ``file``; none where it is missing or damaged, since they can be made again."""
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        usable = isinstance(kept, dict) and all(isinstance(value, str) for value in kept.values())
        return cls(file, kept if usable else {})

    def keep(self, *, all_seen: bool = True) -> None:
        """Write what was asked for since; with ``all_seen``, the rest belongs to no file and is dropped."""
        kept = self._used if all_seen else self.hashes | self._used
        if self.file is not None and kept != self.hashes:
            with atomic_write(self.file) as stream:
                stream.write(json.dumps(kept).encode())

    def of(self, path: Path) -> str:
        """The content hash of a file, from memory where its state is known."""
        try:
            state = path.stat()
            place = f"{path}|{state.st_ino}|{state.st_size}|{state.st_mtime_ns}|{state.st_ctime_ns}"
            known = self._used.get(place) or self.hashes.get(place) or file_hash(path)
        except OSError:
            return UNREADABLE
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED_NS:
            self._used[place] = known
        return known


def collection_fingerprint(folder: Path, hash_of: Callable[[Path], str] = file_hash) -> str:
    """BLAKE2b over the names and contents of a collection's files, 32 hex digits.

    Args:
        folder: the collection's folder.
        hash_of: content hash of a file; ``KnownHashes.of`` remembers.
    """
    digest = hashlib.blake2b(digest_size=16)
    for relative, path in sorted(collection_files(folder)):
        digest.update(os.fsencode(relative) + b"\0" + _hash_or_mark(path, hash_of).encode() + b"\0")
    return digest.hexdigest()


def _hash_or_mark(path: Path, hash_of: Callable[[Path], str]) -> str:
    try:
        return hash_of(path)
    except OSError:
        return UNREADABLE


def last_change(folder: Path) -> float:
    """When one of the collection's files was last changed, in seconds since the epoch; 0 where there is none."""
    times = [0.0]
    for _, path in collection_files(folder):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def collection_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file that readers would look at, as (POSIX path relative to ``folder``, path); each folder once."""
    for relative, path in visible_files(folder):
        if path.is_file() and feeds_collection(relative):
            yield relative, path
