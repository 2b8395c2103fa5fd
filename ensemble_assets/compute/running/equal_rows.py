"""Find equal rows of a token table, and cut rows into shards and slices.

Every row is hashed once. The digest is also the key under which ``stored_rows`` keeps the row's outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.tokens.token_tables import TokenTable

Keys = NDArray[np.uint64]
"""``[n, 2] uint64``: 128 bits a row."""


def row_keys(table: TokenTable, secret: bytes = b"") -> Keys:
    """Hash every input of every row with BLAKE2b-128: token ids, segments, task and further arrays.

    ``secret`` keys the hash, at most 64 bytes. Token ids are the text in another form: a stored hash without a secret
    would let anybody test whether a text was in the collection.
    """
    digests = bytearray()
    ids, bounds = np.ascontiguousarray(table.ids), table.offsets.tolist()
    seconds = [0] * len(table) if table.second_from is None else table.second_from.tolist()
    tasks = [0] * len(table) if table.tasks is None else table.tasks.tolist()
    further = [np.ascontiguousarray(table.arrays[name]) for name in sorted(table.arrays)]
    for start, stop, second, task in zip(bounds[:-1], bounds[1:], seconds, tasks, strict=True):
        digest = hashlib.blake2b(second.to_bytes(4, "little"), digest_size=16, key=secret, person=bytes([task]))
        for values in (ids, *further):
            digest.update(values[start:stop].data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class DistinctRows:
    """The groups of equal rows of a table of ``n`` rows: keys ``[n, 2] uint64``, equal for equal rows.

    ``first`` ``[m] int64`` is the first row of every group, in the order of the keys; ``group`` ``[n] int64`` is the
    number of every row's group.
    """

    keys: Keys
    first: NDArray[np.int64]
    group: NDArray[np.int64]

    @classmethod
    def of(cls, keys: Keys) -> DistinctRows:
        """Group equal rows."""
        _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        return cls(keys, first, group)

    def spread(self, reasons: Mapping[int, str]) -> dict[int, str]:
        """Give every row the reason of the row that equals it; rows without a reason are left out."""
        by_group = {int(self.group[row]): reason for row, reason in reasons.items()}
        groups = self.group.tolist() if by_group else []
        return {row: by_group[group] for row, group in enumerate(groups) if group in by_group}


def shards(weights: NDArray[np.int64], rows: NDArray[np.int64], limit: int | None) -> Iterator[NDArray[np.int64]]:
    """Cut rows, heaviest first, into shards that end as soon as their weights (``[n]``) add up to ``limit``.

    Without the first shards' rows, the other shards are the same. So a run that goes on after a kill cuts what is left
    as the killed run would have. A limit of None makes one shard of all rows, in their order.
    """
    if limit is None:
        if len(rows):
            yield rows
        return
    ordered = rows[np.argsort(-weights[rows], kind="stable")]
    reached = np.cumsum(weights[ordered])
    start = done = 0
    while start < len(ordered):
        stop = int(np.searchsorted(reached, done + limit)) + 1
        yield ordered[start:stop]
        start, done = stop, int(reached[min(stop, len(ordered)) - 1])


def growing_slices(weights: NDArray[np.int64], first: int) -> list[NDArray[np.int64]]:
    """Cut all rows, heaviest first: a slice weighs ``first``, the next one twice as much, and so on."""
    ordered = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[ordered]) - weights[ordered]
    number = np.log2(before // first + 1).astype(np.int64)
    return np.split(ordered, np.flatnonzero(np.diff(number)) + 1)
