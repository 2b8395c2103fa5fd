"""Share arrays between a parent and its workers: token table in, outputs out, memory-mapped from one folder.

The folder is locked while its run lives. So the next run recognises the folder of a killed run and removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.tokens.token_tables import TokenTable

_PREFIX = ".ensemble-work-"
_TABLE = ("ids", "offsets", "truncated", "second_from")


@contextmanager
def work_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder below ``parent`` (None: the system's temporary folder), and remove it when the block ends.

    Folders that killed runs left beside it are removed first.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder; returns it and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with suppress(FileNotFoundError):  # another run removed it before it was locked
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def sweep(parent: Path) -> int:
    """Remove work folders of this user whose run is gone; returns how many."""
    removed = 0
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
            finally:
                os.close(lock)
    return removed


def save_table(folder: Path, table: TokenTable) -> None:
    """Write a table's arrays for workers to map."""
    for name in _TABLE:
        values = getattr(table, name)
        if values is not None:
            np.save(folder / f"table-{name}.npy", values)


def load_table(folder: Path) -> TokenTable:
    """Map the table's arrays."""
    paths = {name: folder / f"table-{name}.npy" for name in _TABLE}
    return TokenTable(**{name: np.load(path, mmap_mode="r") for name, path in paths.items() if path.exists()})


def create_outputs(folder: Path, outputs: Mapping[str, OutputSpec], rows: int) -> dict[str, NDArray[Any]]:
    """Make zeroed ``[rows, *shape]`` arrays that every process can map."""
    return {
        name: np.lib.format.open_memmap(
            _output(folder, name), mode="w+", dtype=np.dtype(spec.dtype), shape=(rows, *spec.shape)
        )
        for name, spec in outputs.items()
    }


def open_outputs(folder: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Map the arrays for writing rows."""
    return {name: np.load(_output(folder, name), mmap_mode="r+") for name in names}


def load_outputs(folder: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Read the arrays into memory."""
    return {name: np.load(_output(folder, name)) for name in names}


def _output(folder: Path, name: str) -> Path:
    return folder / f"output-{name}.npy"
