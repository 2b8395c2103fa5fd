"""Write and read the artefact of a stage: named arrays, named frames and the stage's record, in one folder.

A stage writes into a new version folder and seals it; ``artefacts/store.py`` publishes it. Arrays are ``.npy``, frames
are Parquet, the record is JSON. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import numpy as np
import polars as pl
from numpy.typing import NDArray
from typing_extensions import TypeVar

from ensemble_assets.artefacts.array_files import map_new_array, save_array
from ensemble_assets.artefacts.read_record import read_record
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.common.atomic_files import file_hash
from ensemble_assets.common.errors import ArtefactError, MemoryBudgetError
from ensemble_assets.common.stages import PIPELINE

INDEX_NAME = "artefact.json"
_FORMAT = 1

R = TypeVar("R", bound=Record, default=Any)
"""The record of the stage that made an artefact, such as ``DenseRecord``."""


@dataclass(frozen=True)
class Artefact(Generic[R]):
    """A sealed version folder. It holds no data itself: an array is mapped and a frame is scanned on demand.

    Attributes:
        index: parsed ``artefact.json``: shapes, types, sizes, content hashes and the record as JSON.
        budget_bytes: most host memory that one frame of it may take; None for no limit.
    """

    folder: Path
    index: Mapping[str, Any]
    budget_bytes: int | None = None

    @property
    def version(self) -> str:
        """Content hash over arrays and frames, 32 hex digits: Dagster's data version."""
        return str(self.index["version"])

    @property
    def inputs(self) -> Mapping[str, str]:
        """Versions of the artefacts that its stage read, by asset; empty in those of older programs."""
        inputs: Mapping[str, str] = self.index.get("inputs", {})
        return inputs

    @cached_property
    def record(self) -> R:
        """The stage's record of its run; ``ArtefactError`` if this version of the program cannot read it."""
        return read_record(self.index["facts"])  # type: ignore[return-value]

    @property
    def began(self) -> str:
        """UTC second at which the stage began, as text that sorts by time."""
        return self.folder.name.partition("-")[0]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes on disk, arrays and frames together."""
        return sum(int(entry["bytes"]) for entry in self.index["files"].values())

    def has(self, name: str) -> bool:
        """Whether an array or a frame of that name is in it."""
        return f"{name}.npy" in self.index["files"] or f"{name}.parquet" in self.index["files"]

    def array(self, name: str) -> NDArray[Any]:
        """Map the array, read-only; ``ArtefactError`` if it is missing or differs from its recorded shape and type."""
        entry = self._entry(f"{name}.npy")
        array: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
            raise ArtefactError(
                f"{self.folder.name}/{name}.npy: recorded as {entry['shape']} {entry['dtype']}, "
                f"found {list(array.shape)} {array.dtype.str}. Materialise the asset again"
            )
        return array

    def scan(self, name: str, *, columns: list[str] | None = None) -> pl.LazyFrame:
        """Scan the frame or the named columns of it; nothing is read until it is collected."""
        self._entry(f"{name}.parquet")
        whole = pl.scan_parquet(self.folder / f"{name}.parquet")
        return whole.select(list(self._column_bytes(name, columns))) if columns else whole

    def frame(self, name: str, *, columns: list[str] | None = None) -> pl.DataFrame:
        """Read the frame, or the named columns of it, into memory; ``ArtefactError`` if a column is not there.

        Columns whose recorded size in memory exceeds the budget are a ``MemoryBudgetError``; nothing is read then.
        """
        needed = sum(self._column_bytes(name, columns).values())
        if self.budget_bytes is not None and needed > self.budget_bytes:
            raise MemoryBudgetError(
                f"{name}: needs {needed / 1e6:.1f} MB of host memory; the budget is {self.budget_bytes / 1e6:.1f} MB. "
                "Raise device.host_budget_gb or split the collection"
            )
        return pl.read_parquet(self.folder / f"{name}.parquet", columns=columns)

    def verify(self) -> None:
        """Compare every file with its recorded size and hash; an ``ArtefactError`` names the first that differs."""
        for name, entry in self.index["files"].items():
            path = self.folder / name
            if not path.is_file():
                raise ArtefactError(f"{path.name} of {self.folder.name} is missing. Materialise the asset again")
            if path.stat().st_size != entry["bytes"] or file_hash(path) != entry["blake2b"]:
                raise ArtefactError(
                    f"{path.name} of {self.folder.name} is not what was written (size or content hash differ). "
                    "Materialise the asset again"
                )

    def _column_bytes(self, name: str, columns: list[str] | None) -> dict[str, int]:
        """Bytes in memory of the named columns of a frame, or of all."""
        sizes: dict[str, int] = self._entry(f"{name}.parquet")["column_bytes"]
        missing = [column for column in columns or () if column not in sizes]
        if missing:
            raise ArtefactError(
                f"{name}.parquet of {self.folder.name} has no column {missing[0]!r}; it has {', '.join(sizes)}. "
                "Materialise the asset again with this version of the program"
            )
        return {column: sizes[column] for column in columns or sizes}

    def _entry(self, name: str) -> Mapping[str, Any]:
        entry: Mapping[str, Any] | None = self.index["files"].get(name)
        if entry is None:
            raise ArtefactError(
                f"{self.folder.name} has no {name}; it has {', '.join(sorted(self.index['files'])) or 'no files'}. "
                "Materialise the asset again with this version of the program"
            )
        return entry


def require_one_origin(artefacts: Mapping[str, Artefact]) -> None:
    """Require that no artefact was made of another version of one that is read with it; both are named by asset.

    Raises:
        ArtefactError: names the assets to materialise again.
    """
    stale, changed = set[str](), set[str]()
    for asset, artefact in artefacts.items():
        read = artefact.inputs.items()
        differ = {name for name, version in read if name in artefacts and artefacts[name].version != version}
        stale |= {asset} if differ else set()
        changed |= differ
    if stale:
        made, inputs = (
            ", ".join(stage.asset for stage in PIPELINE if stage.asset in names) for names in (stale, changed)
        )
        raise ArtefactError(
            f"{made}: made of another version of {inputs} than there is now. Materialise {made} again, then what "
            "follows"
        )


def open_artefact(folder: Path, budget_bytes: int | None = None) -> Artefact:
    """Open the sealed artefact in ``folder``; ``ArtefactError`` if it was never sealed or has another format."""
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{folder.name}: no readable {INDEX_NAME} ({type(error).__name__}). Materialise the asset again"
        ) from None
    if index.get("format") != _FORMAT:
        raise ArtefactError(f"{folder.name}: artefact format {index.get('format')!r}, this program reads {_FORMAT}")
    return Artefact(folder, index, budget_bytes)


class ArtefactWriter:
    """Writer of one version folder. Readers see nothing of it before ``seal`` and publication."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._column_bytes: dict[str, dict[str, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, name: str, values: NDArray[Any]) -> None:
        """Store an array as ``<name>.npy``; object arrays are refused."""
        save_array(self.folder / f"{name}.npy", values)

    def new_array(self, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Make ``<name>.npy`` and map it, to be filled piece by piece."""
        path = self.folder / f"{name}.npy"
        if 0 in shape:  # nothing to map
            save_array(path, np.empty(shape, dtype))
            return np.empty(shape, dtype)
        return map_new_array(path, dtype, shape)

    def frame(self, name: str, values: pl.DataFrame) -> None:
        """Store a frame as ``<name>.parquet``."""
        try:
            values.write_parquet(self.folder / f"{name}.parquet", compression="zstd")
        except pl.exceptions.ComputeError as error:  # what polars makes of a full disk
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else error from None
        sizes = {column.name: int(column.estimated_size()) for column in values.get_columns()}
        self._column_bytes[f"{name}.parquet"] = sizes

    def seal(self, record: Record, inputs: Mapping[str, str] | None = None) -> Artefact:
        """Flush every file to disk and write the index with the stage's record and the versions of its inputs."""
        files = {
            path.name: _describe(path, self._column_bytes.get(path.name))
            for path in sorted(self.folder.iterdir())
            if path.suffix in {".npy", ".parquet"}
        }
        identity = json.dumps({name: entry["blake2b"] for name, entry in files.items()}, sort_keys=True)
        index = {
            "format": _FORMAT,
            "version": hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
            "inputs": dict(inputs or {}),
            "files": files,
            "facts": record.as_json(),
        }
        with (self.folder / INDEX_NAME).open("w", encoding="utf-8") as stream:
            json.dump(index, stream, indent=1, allow_nan=False)
            stream.flush()
            os.fsync(stream.fileno())
        return Artefact(self.folder, index)

    def discard(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _describe(path: Path, column_bytes: dict[str, int] | None) -> dict[str, Any]:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "blake2b": file_hash(path)}
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return entry | {"shape": list(array.shape), "dtype": array.dtype.str}
    lazy = pl.scan_parquet(path)
    return entry | {
        "rows": int(lazy.select(pl.len()).collect().item()),
        "columns": {name: str(dtype) for name, dtype in lazy.collect_schema().items()},
        "column_bytes": column_bytes,
    }
