"""Store outputs of rows by key, in sealed shards on local disk, or in memory for one run.

There is one folder per collection, model and way of computing. A killed run loses the shard that it was computing.
Outputs per token have a folder of their own, since a run may keep a row's vector and not the states of its tokens.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ensemble_assets.artefacts.array_files import map_new_array, save_array
from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.common.atomic_files import atomic_folder, atomic_write, file_hash
from ensemble_assets.compute.backends.forward import ForwardFactory, OutputSpec
from ensemble_assets.compute.backends.model_traits import MAXSIM
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.equal_rows import Keys, row_keys
from ensemble_assets.compute.running.stored_rows.shards import (
    FACTS,
    NO_KEYS,
    NO_OFFSETS,
    KeyIndex,
    Places,
    Shard,
    TokenRows,
)
from ensemble_assets.compute.tokens.token_tables import TokenTable, numbers_of_pieces

FORWARD_VERSION = 2
"""Goes up when the forwards compute something else from the same weights and tokens."""

_IN_MEMORY_BYTES = 64 << 20
"""Larger outputs are read into a mapped file, whose pages the kernel can take back."""

_COPIED_BYTES = 256 << 20
"""As many as a shard of a CPU has with the states of its tokens, or fewer: those of a GPU are larger than memory."""

_SECRET, _SECRET_BYTES = "secret", 32
_TOKENS_STORE, _HEADS_STORE = "tokens-", "heads-"
_OFFSETS = "offsets.npy"

_UNUSED_SECONDS = 30 * 86_400.0
"""Shards that no run has read for this time are removed: their models or texts are gone."""


@contextmanager
def open_store(folder: Path | None, outputs: Mapping[str, OutputSpec]) -> Iterator[RowStore]:
    """Open the store in ``folder``, made on first use, for this process alone until the block ends.

    Its parent's ``secret_of`` keys the rows. None stores in memory. Shards whose outputs differ from ``outputs`` go.
    """
    if folder is None:
        yield RowStore(None, outputs)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield RowStore(folder, outputs)
    _forget_unused(folder.parent)


def _forget_unused(parent: Path) -> None:
    """Remove shards, and stores without any, that no run has read for ``_UNUSED_SECONDS``."""
    expired = time.time() - _UNUSED_SECONDS
    for store in sorted(path.parent for path in parent.glob("*/.lock")):
        with suppress(OSError, Timeout), FileLock(store / ".lock", timeout=0):
            for facts in store.glob(f"*/{FACTS}"):
                if facts.stat().st_mtime < expired:
                    shutil.rmtree(facts.parent, ignore_errors=True)
            if (store / ".lock").stat().st_mtime < expired and not list(store.glob("shard-*")):
                shutil.rmtree(store, ignore_errors=True)


def secret_of(folder: Path) -> bytes:
    """Return the secret of the stores below ``folder``, made on first use."""
    path = folder / _SECRET
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".secret.lock"):
        if not path.is_file() or path.stat().st_size != _SECRET_BYTES:
            with atomic_write(path) as stream:
                stream.write(secrets.token_bytes(_SECRET_BYTES))
            path.chmod(0o600)
    return path.read_bytes()


def stored_secret(folder: Path) -> bytes:
    """Return the secret of the stores below ``folder``; empty where no run has stored rows. Nothing is made."""
    path = folder / _SECRET
    return path.read_bytes() if path.is_file() else b""


def store_name(factory: ForwardFactory, lease: Lease, *, per_token: bool = False) -> str:
    """Name the folder of the outputs that this factory computes on these devices, per token or not: 32 hex digits."""
    kinds = lease.kinds or ["ray"]  # the lease of a cluster names no devices
    chosen = {name: spec for name, spec in factory.outputs.items() if spec.per_token == per_token}
    outputs = {name: (spec.shape, np.dtype(spec.dtype).str) for name, spec in chosen.items()}
    identity = repr((FORWARD_VERSION, factory.identity, kinds, outputs))
    kind = _HEADS_STORE if factory.traits.similarity in MAXSIM else _TOKENS_STORE
    return per_token * kind + hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


def find_tokens(rows: Path, factory: ForwardFactory, lease: Lease) -> Callable[[TokenTable], TokenRows] | None:
    """Make a search in the outputs per token that runs have stored below ``rows``; None where there are none.

    Nothing is locked, written or removed: the folder may be read-only.
    """
    outputs = {name: spec for name, spec in factory.outputs.items() if spec.per_token}
    folder, key = rows / store_name(factory, lease, per_token=True), stored_secret(rows)
    if not (outputs and folder.is_dir() and key):
        return None
    store = RowStore(folder, outputs, own=False)
    return lambda table: TokenRows(tuple(store._shards), store.find(row_keys(table, key)))


def drop_others(folder: Path) -> None:
    """Remove the stores of outputs per token beside ``folder``: another model or way of computing made them.

    Those of encoders and those of ColBERT models are apart, since a run may compare both.
    """
    for store in folder.parent.glob(f"{folder.name.partition('-')[0]}-*/.lock"):
        if store.parent != folder:
            with suppress(OSError, Timeout), FileLock(store, timeout=0):
                shutil.rmtree(store.parent, ignore_errors=True)


class RowStore:
    """Outputs by key, those of ``outputs``; made by ``open_store``. One that is not ``own`` is only read."""

    def __init__(self, folder: Path | None, outputs: Mapping[str, OutputSpec], *, own: bool = True) -> None:
        self._folder, self._own = folder, own
        self.outputs = outputs
        self._shards: list[Shard] = []
        self._index: KeyIndex | None = None
        for path in sorted(folder.glob("shard-*")) if folder is not None else []:
            self._open_shard(path)

    @property
    def shards(self) -> int:
        """Shards so far; the next one that is added has this number."""
        return len(self._shards)

    def find(self, keys: Keys) -> Places:
        """Look up the places of the rows with these keys."""
        if self._index is None:
            self._index = KeyIndex.of(self._shards)
        return self._index.find(keys)

    def add(
        self, keys: Keys, outputs: Mapping[str, NDArray[Any]], precision: str, lengths: NDArray[np.int64] | None = None
    ) -> None:
        """Store rows as a new shard: keys ``[n, 2]``, outputs ``[n, *shape]`` each, computed in ``precision``.

        ``lengths`` are the tokens of the rows, ``[n]``, where outputs are per token.
        """
        if not len(keys):
            return
        offsets = NO_OFFSETS if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
        if self._folder is None:
            self._add_shard(keys, outputs, precision, None, offsets)
            return
        path = self._folder / f"shard-{len(self._shards):06d}-{secrets.token_hex(4)}"
        with atomic_folder(path) as made:
            save_array(made / "keys.npy", keys)
            for name in self.outputs:
                save_array(made / f"{name}.npy", outputs[name])
            if lengths is not None:
                save_array(made / _OFFSETS, offsets)
            hashes = {file.name: file_hash(file) for file in sorted(made.iterdir())}
            facts = {"precision": precision, "blake2b": hashes}
            (made / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        self._open_shard(path, verify=False)

    def take(self, keys: Keys, other: RowStore, theirs: Keys) -> None:
        """Copy the rows that this store lacks from another one, at most ``_COPIED_BYTES`` in memory at once.

        Their keys are ``[n, 2]`` each: ``keys`` in this store and ``theirs`` in the other.
        """
        missing = np.flatnonzero(~self.find(keys).stored)
        places = other.find(theirs[missing])
        by_token = any(spec.per_token for spec in self.outputs.values())
        for number in np.unique(places.shard[places.stored]).tolist():
            shard = other._shards[number]
            shard.touch()
            parts = 1 + sum(array.nbytes for array in shard.outputs.values()) // _COPIED_BYTES
            for here in np.array_split(np.flatnonzero(places.shard == number), parts):
                rows, lengths = places.row[here], None
                if by_token:
                    lengths = np.diff(shard.offsets)[rows]
                    rows = numbers_of_pieces(shard.offsets[:-1][rows], lengths)
                outputs = {name: values[rows] for name, values in shard.outputs.items()}
                self.add(keys[missing[here]], outputs, shard.precision, lengths)
            for values in shard.outputs.values():
                drop_resident_pages(values)

    def read(self, places: Places) -> dict[str, NDArray[Any]]:
        """Return the rows' outputs, ``[n, *shape]`` each, with zeros for rows that are not stored.

        Large arrays are mapped from a file that has no name any more, and is gone with them.
        """
        rows = len(places.shard)
        arrays = {name: self._zeros((rows, *spec.shape), spec) for name, spec in self.outputs.items()}
        for number in np.unique(places.shard[places.stored]).tolist():
            rows_here, shard = np.flatnonzero(places.shard == number), self._shards[number]
            shard.touch()
            for name, values in arrays.items():
                values[rows_here] = shard.outputs[name][places.row[rows_here]]
                drop_resident_pages(shard.outputs[name])
                drop_resident_pages(values)
        return arrays

    def tokens(self, places: Places) -> TokenRows:
        """Return the rows' outputs per token, which are read where they lie."""
        for number in np.unique(places.shard[places.stored]).tolist():
            self._shards[number].touch()
        return TokenRows(tuple(self._shards), places)

    def make_room(self, size: int, limit: int, used: Places) -> None:
        """Remove shards without a row of ``used``, those that were read longest ago first, until ``size`` bytes fit."""
        stored = {n: shard.path for n, shard in enumerate(self._shards) if shard.path is not None}
        sizes = {n: sum(array.nbytes for array in self._shards[n].outputs.values()) for n in stored}
        free = limit - size - sum(sizes.values())
        unused = stored.keys() - set(used.shard.tolist())
        for number in sorted(unused, key=lambda n: (stored[n] / FACTS).stat().st_mtime):
            if free >= 0:
                return
            free += sizes[number]
            shard = self._shards[number]
            shutil.rmtree(stored[number], ignore_errors=True)
            self._shards[number] = replace(shard, keys=NO_KEYS, outputs={}, path=None)
            self._index = None

    def precision(self, places: Places) -> str:
        """Name the number formats that the rows were computed in, joined by commas."""
        used = np.unique(places.shard[places.stored]).tolist()
        return ",".join(sorted({self._shards[number].precision for number in used})) or "none"

    def _open_shard(self, path: Path, *, verify: bool = True) -> None:
        """Add a sealed shard. One that does not hold the store's outputs is removed, or left out if it is not ours.

        So is one with a file that is not as it was written, so that its rows are computed again; older shards have no
        hashes.
        """
        try:
            keys = np.load(path / "keys.npy", allow_pickle=False)
            arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in self.outputs}
            facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
            precision, hashes = str(facts["precision"]), dict(facts.get("blake2b", {}))
            by_token = any(spec.per_token for spec in self.outputs.values())
            offsets = np.load(path / _OFFSETS, allow_pickle=False) if by_token else NO_OFFSETS
            sound = not by_token or len(offsets) == len(keys) + 1
            sound &= not verify or all(file_hash(path / name) == digest for name, digest in hashes.items())
            for name, spec in self.outputs.items():
                rows = int(offsets[-1]) if spec.per_token else len(keys)
                sound &= arrays[name].shape == (rows, *spec.shape) and arrays[name].dtype == spec.dtype
        except (OSError, ValueError, EOFError, KeyError, TypeError):  # an empty file of an array is an EOFError
            sound = False
        if not sound:
            if self._own:
                shutil.rmtree(path, ignore_errors=True)
            return
        self._add_shard(keys, arrays, precision, path, offsets)

    def _add_shard(
        self,
        keys: Keys,
        outputs: Mapping[str, NDArray[Any]],
        precision: str,
        path: Path | None,
        offsets: NDArray[np.int64],
    ) -> None:
        self._shards.append(Shard(keys, outputs, precision, path, offsets))
        self._index = None

    def _zeros(self, shape: tuple[int, ...], spec: OutputSpec) -> NDArray[Any]:
        dtype = np.dtype(spec.dtype)
        if self._folder is None or int(np.prod(shape)) * dtype.itemsize <= _IN_MEMORY_BYTES:
            return np.zeros(shape, dtype)
        path = self._folder / f".reading-{secrets.token_hex(4)}.npy"
        try:
            return map_new_array(path, dtype, shape)
        finally:
            path.unlink(missing_ok=True)
