"""Write files and folders that appear whole or not at all, even if the process is killed or the power fails.

``atomic_write`` replaces one file, ``atomic_folder`` a folder with all its content. Both build the new content under a
hidden name beside the old one. A lock on the hidden name tells writers that are alive from those that were killed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ensemble_assets.common.errors import ArtefactError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV}


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes ``path`` when the block ends. If the block raises, ``path`` stays as it was.

    The data is on disk (fsync) before it takes the name. Hidden files of killed writers are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    partial, lock = locked_partial(path, Path.touch)
    try:
        with os.fdopen(lock, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)  # while the lock is held: without it, another writer could remove the file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path, keep: Callable[[str], bool] = lambda name: True) -> Iterator[Path]:
    """Make an empty folder that becomes ``path`` when the block ends. If the block raises, ``path`` stays as it was.

    The folder is built as ``.<name>.<random>.partial`` beside ``path``. On Linux the two are exchanged in one step
    (``renameat2`` with ``RENAME_EXCHANGE``), so at every instant ``path`` is the whole old folder or the whole new one.
    Without that call the old folder is renamed away and the new one renamed in. Between these two steps ``path`` does
    not exist; if a run is killed there, the next one restores the old folder.

    Entries of the old folder that the block did not write, and whose names ``keep`` accepts, are carried over as hard
    links or copies. A link to a folder is followed. A file at ``path`` is an ``ArtefactError``.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise ArtefactError(f"{path.name}: a file stands where a folder is to be written. Move it away and run again")
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    partial, lock = locked_partial(path, Path.mkdir)
    try:
        yield partial
        if path.is_dir():
            _carry_over(path, partial, keep)
        sync_tree(partial)
        put_in_place(partial, path)
        if partial.exists():
            _carry_over(partial, path, keep)
        _sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def put_in_place(partial: Path, path: Path) -> None:
    """Rename the folder ``partial`` to ``path`` beside it. A folder that was at ``path`` is then at ``partial``."""
    if not path.exists():
        try:
            partial.rename(path)
            return
        except OSError as error:  # another run was first
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    if not exchange_folders(partial, path):
        aside = partial.with_suffix(".old")
        with _lock(path):
            path.rename(aside)
            partial.rename(path)
            aside.rename(partial)


def exchange_folders(folder: Path, other: Path) -> bool:
    """Swap two folders in one step. False if the system or the file system has no such call."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(folder), None, str(other))


def clear_leftovers(path: Path) -> None:
    """Remove hidden files and folders of killed writers of ``path``, and restore a folder lost between two renames."""
    for leftover in sorted(path.parent.glob(f".{glob.escape(path.name)}.*")):
        is_file = leftover.is_file()
        if leftover.suffix not in ((".partial",) if is_file else (".old", ".partial")) or leftover.is_symlink():
            continue
        with _lock(leftover) as abandoned:
            if abandoned and is_file:
                leftover.unlink(missing_ok=True)
            elif abandoned and leftover.suffix == ".old" and not path.exists():
                leftover.rename(path)
            elif abandoned:
                shutil.rmtree(leftover, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Write ``folder`` and every file and folder below it to disk (fsync)."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                _sync(Path(parent, name))
        _sync(Path(parent))


def locked_partial(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Make a hidden file or folder beside ``path``; return it with the open descriptor that holds its lock."""
    while True:
        partial = path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"
        make(partial)
        with suppress(FileNotFoundError):  # another writer cleared it before it was locked: make a new one
            descriptor = os.open(partial, os.O_RDONLY if partial.is_dir() else os.O_WRONLY)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if partial.exists():
                return partial, descriptor
            os.close(descriptor)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Yield whether the lock of a file or folder was free. Inside the block it is held.

    The kernel frees a lock when its process dies. On a file system without locks, every lock counts as taken.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def _carry_over(old: Path, new: Path, keep: Callable[[str], bool]) -> None:
    for entry in sorted(os.listdir(old)):
        target = new / entry
        if keep(entry) and not os.path.lexists(target):
            source = old / entry
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy)
            else:
                _link_or_copy(str(source), str(target))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_hash(content: bytes) -> str:
    """Return the ``file_hash`` that a file of this content has."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_hash(path: Path) -> str:
    """Return BLAKE2b-128 of a file's bytes, 32 hex digits.

    A process reads a file once, as long as its inode, its size and the time of its last change are the same: ``ctime``,
    which programs cannot set back. Writing through a mapping may leave it as it is: nothing here does that twice.
    """
    with path.open("rb") as stream:
        facts = os.fstat(stream.fileno())
        key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_ctime_ns)
        if key in _HASHES:
            return _HASHES[key]
        began = time.time_ns()
        content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if began - facts.st_ctime_ns > _SETTLED_NANOSECONDS:
        if len(_HASHES) >= _MOST_HASHES:
            _HASHES.clear()
        _HASHES[key] = content
    return content


_MOST_HASHES = 4096
"""Hashes that a process holds: some 600 kB, and more than a run has files to hash twice."""

_HASHES: dict[tuple[int, int, int, int], str] = {}
_SETTLED_NANOSECONDS = 2_000_000_000
"""A file that was changed less than 2 s ago is read again: a further change may leave it the same time, which file
systems count in steps."""
