"""Outputs of rows that were computed before, by key, in sealed shards on local disk.

One folder per collection, model and way of computing. A shard appears whole or not at all, so a killed run loses at
most the one it was computing. Which rows are computed and when is ``reuse``'s part.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ensemble_assets.common.atomic_files import atomic_folder, atomic_write
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.running.row_keys import Keys

_IN_MEMORY_BYTES = 64 << 20
_SECRET_BYTES = 32
_FACTS = "shard.json"
_FORGOTTEN_SECONDS = 30 * 86_400.0


@dataclass(frozen=True)
class Places:
    """Where rows are: ``[n] int64`` number of the shard (-1: nowhere) and of the row in it."""

    shard: NDArray[np.int64]
    row: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """``[n] bool``."""
        return self.shard >= 0


@contextmanager
def open_store(folder: Path, outputs: Mapping[str, OutputSpec]) -> Iterator[RowStore]:
    """The store in ``folder``, made if it is not there; ours alone until the block ends.

    Args:
        folder: the parent's ``secret`` keys the rows.
        outputs: what a row has. Shards that do not fit are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield RowStore(folder, outputs)
    _forget_unused(folder.parent)


def _forget_unused(parent: Path) -> None:
    """Removes shards and whole stores that nobody has read for a month: of models and texts that are gone."""
    expired = time.time() - _FORGOTTEN_SECONDS
    for store in sorted(path.parent for path in parent.glob("*/.lock")):
        with suppress(OSError, Timeout), FileLock(store / ".lock", timeout=0):
            for facts in store.glob(f"*/{_FACTS}"):
                if facts.stat().st_mtime < expired:
                    shutil.rmtree(facts.parent, ignore_errors=True)
            if (store / ".lock").stat().st_mtime < expired and not list(store.glob("shard-*")):
                shutil.rmtree(store, ignore_errors=True)


def secret_of(folder: Path) -> bytes:
    """The secret of the stores below ``folder``, made on first use."""
    path = folder / "secret"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".secret.lock"):
        if not path.is_file() or path.stat().st_size != _SECRET_BYTES:
            with atomic_write(path) as stream:
                stream.write(secrets.token_bytes(_SECRET_BYTES))
            path.chmod(0o600)
    return path.read_bytes()


@dataclass(frozen=True)
class _Shard:
    """A sealed folder and the keys in it, as a frame ``a``, ``b``, ``shard``, ``row``."""

    path: Path
    index: pl.DataFrame


class RowStore:
    """See the module. Made by ``open_store``."""

    def __init__(self, folder: Path, outputs: Mapping[str, OutputSpec]) -> None:
        self._folder = folder
        self._outputs = outputs
        self._shards: list[_Shard] = []
        for path in sorted(folder.glob("shard-*")):
            self._take_in(path)

    def find(self, keys: Keys) -> Places:
        """Where the rows of these keys are."""
        if not self._shards:
            nowhere = np.full(len(keys), -1, np.int64)
            return Places(nowhere, nowhere)
        indexes = pl.concat([shard.index for shard in self._shards])
        known = indexes.unique(subset=["a", "b"], keep="first", maintain_order=True)
        found = _frame(keys).join(known, on=["a", "b"], how="left", maintain_order="left")
        shard, row = (found[name].fill_null(-1).to_numpy() for name in ("shard", "row"))
        return Places(shard, row)

    def add(self, keys: Keys, outputs: Mapping[str, NDArray[Any]], precision: str) -> None:
        """Seals rows as a new shard.

        Args:
            keys: ``[n, 2]``.
            outputs: ``[n, *shape]`` each.
            precision: what they were computed in.
        """
        if not len(keys):
            return
        path = self._folder / f"shard-{len(self._shards):06d}-{secrets.token_hex(4)}"
        with atomic_folder(path) as made:
            np.save(made / "keys.npy", keys)
            for name in self._outputs:
                np.save(made / f"{name}.npy", outputs[name])
            (made / _FACTS).write_text(json.dumps({"precision": precision}), encoding="utf-8")
        self._take_in(path)

    def read(self, places: Places) -> dict[str, NDArray[Any]]:
        """The rows' outputs, ``[n, *shape]`` each; zeros where a row is nowhere.

        Large arrays are mapped from a file that is gone with them.
        """
        rows = len(places.shard)
        arrays = {name: self._zeros((rows, *spec.shape), spec) for name, spec in self._outputs.items()}
        for number in np.unique(places.shard[places.known]).tolist():
            here = np.flatnonzero(places.shard == number)
            (self._shards[number].path / _FACTS).touch()
            for name, values in arrays.items():
                values[here] = _mapped(self._shards[number].path, name)[places.row[here]]
        return arrays

    def precision(self, places: Places) -> str:
        """What the rows were computed in, joined by commas if it differs."""
        used = np.unique(places.shard[places.known]).tolist()
        facts = [json.loads((self._shards[number].path / _FACTS).read_text(encoding="utf-8")) for number in used]
        return ",".join(sorted({str(fact["precision"]) for fact in facts})) or "none"

    def _take_in(self, path: Path) -> None:
        """Adds a sealed shard; one that does not hold these outputs is removed."""
        try:
            keys = np.load(path / "keys.npy", allow_pickle=False)
            sound = all(
                _mapped(path, name).shape == (len(keys), *spec.shape) and _mapped(path, name).dtype == spec.dtype
                for name, spec in self._outputs.items()
            )
        except (OSError, ValueError):
            sound = False
        if not sound:
            shutil.rmtree(path, ignore_errors=True)
            return
        number = pl.lit(len(self._shards), pl.Int64).alias("shard")
        index = _frame(keys).with_columns(number, pl.int_range(len(keys), dtype=pl.Int64).alias("row"))
        self._shards.append(_Shard(path, index))

    def _zeros(self, shape: tuple[int, ...], spec: OutputSpec) -> NDArray[Any]:
        dtype = np.dtype(spec.dtype)
        if int(np.prod(shape)) * dtype.itemsize <= _IN_MEMORY_BYTES:
            return np.zeros(shape, dtype)
        path = self._folder / f".reading-{secrets.token_hex(4)}.npy"
        try:
            return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        finally:
            path.unlink(missing_ok=True)


def _frame(keys: Keys) -> pl.DataFrame:
    return pl.DataFrame({"a": np.ascontiguousarray(keys[:, 0]), "b": np.ascontiguousarray(keys[:, 1])})


def _mapped(path: Path, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array
