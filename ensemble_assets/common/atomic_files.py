"""Files and folders that appear whole or not at all, also when the process is killed or the power fails.

``atomic_write`` replaces one file, ``atomic_folder`` a folder with everything in it. What goes in is the caller's.
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
    """A binary file to write to; ``path`` becomes it when the block ends, and stays as it was if the block raises.

    The data is in a hidden file beside ``path`` until then, and on disk (fsync) before it takes the name. Such files of
    writers that were killed are removed; those of living ones are locked and stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_partial_files(path)
    partial, locked = _locked_file(path)
    try:
        with locked as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)  # before the lock is given up
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path, keep: Callable[[str], bool] = lambda name: True) -> Iterator[Path]:
    """An empty folder to fill; it becomes ``path`` when the block ends, and ``path`` stays as it was if it raises.

    The folder is built as ``.<name>.<random>.partial`` beside ``path``. On Linux the two change places in one step
    (``renameat2`` with ``RENAME_EXCHANGE``), so at every instant ``path`` is the whole old folder or the whole new one.
    Where the system or the file system cannot do that, the old folder is renamed away and the new one renamed in: for
    the moment between the two, ``path`` does not exist; a run killed there is put right by the next one.

    Nothing of a user's is lost: entries of the old folder that the block did not write and that ``keep`` accepts are in
    the new one too (hard links, copies where links cannot be made). Folders left by killed runs are removed; those of a
    run that is alive are locked and stay.

    Args:
        path: the folder; a symbolic link to a folder is followed.
        keep: whether an entry of the old folder, by name, is carried over.

    Raises:
        ArtefactError: if ``path`` exists and is no folder.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise ArtefactError(f"{path.name}: a file stands where a folder is to be written. Move it away and run again")
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    partial, lock = _locked_folder(path)
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


def put_in_place(partial: Path, path: Path, exchange: Callable[[Path, Path], bool] | None = None) -> None:
    """Make ``partial`` be ``path``; what was at ``path`` is afterwards at ``partial``.

    Args:
        partial: a folder beside ``path``.
        path: a folder, or nothing yet.
        exchange: swaps two existing folders and says whether it could; the system's own call unless given.
    """
    if not path.exists():
        try:
            partial.rename(path)
        except OSError as error:  # another run was first
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    if not (exchange or exchange_folders)(partial, path):
        _rename_twice(partial, path)


def _rename_twice(partial: Path, path: Path) -> None:
    aside = partial.with_suffix(".old")
    with _lock(path):
        path.rename(aside)
        partial.rename(path)
        aside.rename(partial)


def exchange_folders(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system has no such call.

    Raises:
        OSError: if the system has the call and it fails for another reason.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def clear_leftovers(path: Path) -> None:
    """Remove what killed runs left beside ``path``, and put back a folder whose run was killed between two renames."""
    for leftover in sorted(path.parent.glob(f".{glob.escape(path.name)}.*")):
        if leftover.suffix not in (".old", ".partial") or not leftover.is_dir():
            continue
        with _lock(leftover) as abandoned:
            if abandoned and leftover.suffix == ".old" and not path.exists():
                leftover.rename(path)
            elif abandoned:
                shutil.rmtree(leftover, ignore_errors=True)


def _clear_partial_files(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if leftover.is_file() and not leftover.is_symlink():
            with _lock(leftover) as abandoned:
                if abandoned:
                    leftover.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Have every file and folder below ``folder``, and itself, on disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                _sync(Path(parent, name))
        _sync(Path(parent))


def _locked_file(path: Path) -> tuple[Path, IO[bytes]]:
    """A new hidden file beside ``path``, open, empty and locked."""
    while True:
        partial = path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"
        file = partial.open("xb")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if partial.exists():
            return partial, file
        file.close()  # another writer's clearing was faster than the lock


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A new hidden folder beside ``path`` and the open descriptor that holds its lock."""
    while True:
        partial = path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"
        partial.mkdir()
        with suppress(FileNotFoundError):  # another run's clearing can be faster than the lock
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if partial.exists():
                return partial, descriptor
            os.close(descriptor)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether the lock of a file or folder was free; it is held inside the block.

    The kernel frees a lock when its process dies. A file system without locks gives no answer, which counts as taken.
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


def file_hash(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, 32 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
