"""Share arrays between a parent and its workers: token table in, outputs out, memory-mapped from one folder.

The folder is locked while its run lives, so the next run can remove the folder of a killed one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.array_files import save_array
from ensemble_assets.common.atomic_files import clear_leftovers, locked_partial
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.tokens.token_tables import TokenTable

WORK_NAME = "ensemble-work"
"""Start of the hidden names of work folders."""

_ALWAYS = ("ids", "offsets", "truncated")
_TABLE = (*_ALWAYS, "second_from", "tasks", "lost")


@contextmanager
def work_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder below ``parent`` (None: the system's temporary folder), and remove it when the block ends.

    Folders that killed runs left beside it are removed first.
    """
    place = (Path(tempfile.gettempdir()) if parent is None else parent) / WORK_NAME
    place.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(place)
    folder, lock = locked_partial(place, lambda path: path.mkdir(mode=0o700))  # texts are in it, as token ids
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def save_table(folder: Path, table: TokenTable) -> None:
    """Write a table's arrays for workers to map."""
    for name in _TABLE:
        values = getattr(table, name)
        if values is not None:
            save_array(folder / f"table-{name}.npy", values)
    for name, values in table.arrays.items():
        save_array(folder / f"input-{name}.npy", values)


def load_table(folder: Path) -> TokenTable:
    """Map the table's arrays; ``FileNotFoundError`` if the folder is gone."""
    paths = {name: folder / f"table-{name}.npy" for name in _TABLE}
    inputs = {path.stem.removeprefix("input-"): np.load(path, mmap_mode="r") for path in folder.glob("input-*.npy")}
    parts = {name: np.load(path, mmap_mode="r") for name, path in paths.items() if name in _ALWAYS or path.exists()}
    return TokenTable(**parts, arrays=inputs)


def create_outputs(folder: Path, outputs: Mapping[str, OutputSpec], table: TokenTable) -> dict[str, NDArray[Any]]:
    """Make zeroed arrays for all rows of a table that every process can map.

    They are results as they are: the mapping stays when the folder is gone, and nothing is copied.
    """
    return {
        name: np.lib.format.open_memmap(
            _output(folder, name), mode="w+", dtype=np.dtype(spec.dtype), shape=spec.size(table)
        ).view(np.ndarray)
        for name, spec in outputs.items()
    }


def open_outputs(folder: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Map the arrays for writing rows."""
    return {name: np.load(_output(folder, name), mmap_mode="r+") for name in names}


def _output(folder: Path, name: str) -> Path:
    return folder / f"output-{name}.npy"
