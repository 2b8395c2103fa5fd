"""Look rows up in shards by their keys, and read outputs per token where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.compute.running.equal_rows import Keys
from ensemble_assets.compute.tokens.token_tables import numbers_of_pieces

FACTS = "shard.json"
"""The last file of a sealed shard; its time is that of the last reading."""

NO_OFFSETS = np.zeros(1, np.int64)
NO_KEYS: Keys = np.zeros((0, 2), np.uint64)


@dataclass(frozen=True)
class Places:
    """The places of ``n`` rows: ``[n] int64`` number of the shard (-1: not stored) and of the row in it."""

    shard: NDArray[np.int64]
    row: NDArray[np.int64]

    @property
    def stored(self) -> NDArray[np.bool_]:
        """Whether each row is stored, ``[n] bool``."""
        return self.shard >= 0


@dataclass(frozen=True)
class Shard:
    """Rows that were stored together, in memory or mapped from the sealed folder ``path``.

    Outputs are ``[rows, *shape]`` each, and those of row ``i`` per token from ``offsets[i]`` to ``offsets[i + 1]``.
    """

    keys: Keys
    outputs: Mapping[str, NDArray[Any]]
    precision: str
    path: Path | None
    offsets: NDArray[np.int64]

    def touch(self) -> None:
        """Note that the shard was read just now."""
        if self.path is not None:
            with suppress(OSError):
                (self.path / FACTS).touch()


@dataclass(frozen=True)
class KeyIndex:
    """The keys of all shards, ``[n, 2]``, sorted by their first halves, with the places of their rows."""

    halves: NDArray[np.uint64]
    keys: Keys
    places: Places

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> KeyIndex:
        """Sort the keys; of equal ones that of the first shard comes first."""
        sizes = [len(shard.keys) for shard in shards]
        keys = np.concatenate([NO_KEYS, *(shard.keys for shard in shards)])
        rows = np.concatenate([NO_OFFSETS[:0], *map(np.arange, sizes)])
        order = np.argsort(keys[:, 0], kind="stable")
        places = Places(np.repeat(np.arange(len(sizes)), sizes)[order], rows[order])
        return cls(np.ascontiguousarray(keys[order, 0]), keys[order], places)

    def find(self, keys: Keys) -> Places:
        """Look up keys by their first halves, of 64 bits, and compare both.

        Of two keys with the same first half only one is found. Among 10 million rows the chance of such a pair is three
        in a million (n * n / 2 / 2**64).
        """
        if not len(self.keys):
            nowhere = np.full(len(keys), -1, np.int64)
            return Places(nowhere, nowhere)
        at = np.minimum(np.searchsorted(self.halves, keys[:, 0]), len(self.keys) - 1)
        same = (self.keys[at] == keys).all(axis=1)
        return Places(np.where(same, self.places.shard[at], -1), np.where(same, self.places.row[at], -1))


@dataclass(frozen=True)
class TokenRows:
    """The outputs per token of ``n`` rows, where they are stored. They stay readable when the store is closed."""

    shards: Sequence[Shard]
    places: Places

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, ``[n] int64``; 0 where it is not stored."""
        lengths = np.zeros(len(self.places.shard), np.int64)
        for here, shard in self._by_shard(self.places):
            lengths[here] = np.diff(shard.offsets)[self.places.row[here]]
        return lengths

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read one output of some stored rows, ``[tokens of the rows, *shape]``, row after row."""
        chosen = Places(self.places.shard[rows], self.places.row[rows])
        lengths = self.lengths[rows]
        starts = np.cumsum(lengths) - lengths
        like = self.shards[int(chosen.shard[0])].outputs[name]
        values = np.empty((int(lengths.sum()), *like.shape[1:]), like.dtype)
        for here, shard in self._by_shard(chosen):
            of_shard = numbers_of_pieces(shard.offsets[:-1][chosen.row[here]], lengths[here])
            values[numbers_of_pieces(starts[here], lengths[here])] = shard.outputs[name][of_shard]
            drop_resident_pages(shard.outputs[name])
        return values

    def _by_shard(self, places: Places) -> Iterator[tuple[NDArray[np.int64], Shard]]:
        for number in np.unique(places.shard[places.stored]).tolist():
            yield np.flatnonzero(places.shard == number), self.shards[number]
