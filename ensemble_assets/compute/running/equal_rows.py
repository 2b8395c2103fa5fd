"""Which rows of a token table need to be run at all: every distinct row with tokens, once.

Running them is other modules' part; ``spread`` then gives equal rows what the first of them got.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.batching.table_result import NO_TOKENS
from ensemble_assets.compute.running.run_batch import Outputs
from ensemble_assets.compute.tokens.token_tables import TokenTable

_COPIED_AT_ONCE = 8192


@dataclass(frozen=True)
class DistinctRows:
    """The distinct rows of a table of ``n``.

    Attributes:
        same_as: ``[n] int64``: for every row the first that is equal to it, itself where there is none.
        first: those first rows, ascending.
        rows: those of them that have tokens, which are to be run.
        empty: the others -> ``no_tokens``.
    """

    same_as: NDArray[np.int64]
    first: NDArray[np.int64]
    rows: NDArray[np.int64]
    empty: dict[int, str]

    @classmethod
    def of(cls, table: TokenTable) -> DistinctRows:
        """Find them."""
        same_as = first_equal_rows(table)
        first = np.flatnonzero(same_as == np.arange(len(table)))
        has_tokens = table.lengths[first] > 0
        return cls(same_as, first, first[has_tokens], dict.fromkeys(first[~has_tokens].tolist(), NO_TOKENS))

    def spread(self, outputs: Outputs) -> None:
        """Copy what the first of equal rows has to the others."""
        repeats = np.flatnonzero(self.same_as != np.arange(len(self.same_as)))
        for start in range(0, len(repeats), _COPIED_AT_ONCE):
            some = repeats[start : start + _COPIED_AT_ONCE]
            for values in outputs.values():
                values[some] = values[self.same_as[some]]

    def spread_failures(self, failed: Mapping[int, str]) -> dict[int, str]:
        """Row -> why it failed, of every row that is equal to one that failed."""
        return {row: failed[source] for row, source in enumerate(self.same_as.tolist()) if source in failed}


def first_equal_rows(table: TokenTable) -> NDArray[np.int64]:
    """For every row the first row with the same tokens and segments (itself where there is none), ``[n] int64``."""
    first: dict[bytes, int] = {}
    same_as = np.empty(len(table), np.int64)
    bounds = table.offsets.tolist()
    seconds = None if table.second_from is None else table.second_from.tolist()
    for row in range(len(table)):
        digest = hashlib.blake2b(table.ids[bounds[row] : bounds[row + 1]].tobytes(), digest_size=16)
        if seconds is not None:
            digest.update(seconds[row].to_bytes(8, "little"))
        same_as[row] = first.setdefault(digest.digest(), row)
    return same_as
