"""Make a chunk's ``sparse_vector``: the v4.0 echo when the sparse stage is off, the stage's vector when it is on.

With the stage on, ``stats`` keeps the four v4.0 keys and gains ``source``, ``model``, ``index_space`` and ``norm``
after them. ``weight_norm`` is the norm before a vector was made a unit one, as in the echo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ensemble_assets.artefacts.fast_json import compact, number_texts
from ensemble_assets.collection.legacy_metadata import Enriched
from ensemble_assets.collection.legacy_sparse_vector import l2_norm
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.inputs import LIVE, LiveSparse
from ensemble_assets.export.write.json_bytes import indented
from ensemble_assets.export.write.sparse_entries import Entries, StageEntries

LIVE_WEIGHTING = "splade"

_IN_A_LINE = b'{"indices": [%b], "values": [%b], "tokens": [%b], "stats": %b}'
_IN_THE_SPARSE_FILE = b'{"id": %d, "sparse_vector": {"indices": [%b], "values": [%b]}, "tokens": [%b], "stats": %b}'
_IN_AN_ITEM = b'{\n      "indices": %b,\n      "values": %b,\n      "tokens": %b,\n      "stats": %b\n    }'
"""In the item of a list that is a whole file, whose keys stand two levels in."""


@dataclass(frozen=True)
class SparseVector:
    """A sparse vector ``{"indices", "values", "tokens", "stats"}``, as the three files write it.

    Its entries are encoded once, whole blocks of vectors at a time.
    """

    entries: Entries
    stats: dict[str, Any]

    @cached_property
    def _stats(self) -> str:
        return compact(self.stats)

    @cached_property
    def text(self) -> bytes:
        """The value of the key ``sparse_vector`` in a line."""
        return _IN_A_LINE % (*self.entries.in_lines(), self._stats.encode())

    @cached_property
    def item(self) -> bytes:
        """The same in an item of the metadata file."""
        stats = indented(self.stats, self._stats).replace(b"\n", b"\n      ")
        return _IN_AN_ITEM % (*self.entries.in_items(), stats)

    def record(self, row: int) -> bytes:
        """Encode the chunk's line in ``_sparse.jsonl``, without the line end."""
        return _IN_THE_SPARSE_FILE % (row, *self.entries.in_lines(), self._stats.encode())


NO_VECTOR = SparseVector(Entries([], [], []), {})
"""Stands in ``_sparse.jsonl`` for a chunk without a vector."""

SparseOf = Callable[[int, Enriched], SparseVector | None]
"""The vector of a chunk by row, None where it has none."""


def sparse_vectors(live: LiveSparse | None) -> SparseOf:
    """Give a function for the chunks' vectors: from the stage's output, or from the echo if ``live`` is None."""
    return _echo_vector if live is None else _LiveVectors(live)


def _echo_vector(row: int, enriched: Enriched) -> SparseVector | None:
    echo = enriched.echo
    if echo is None:
        return None
    entries = Entries(
        [b"%d" % index for index in echo.indices],
        number_texts(np.array(echo.values, dtype=np.float64)),
        [compact(token).encode() for token in echo.tokens],
    )
    return SparseVector(entries, echo.stats)


class _LiveVectors:
    """The vectors of the sparse stage, asked for in row order."""

    def __init__(self, live: LiveSparse) -> None:
        self._live = live
        self._stage = StageEntries(live)

    def __call__(self, row: int, enriched: Enriched) -> SparseVector | None:
        """Make the vector of a chunk from its row of the stage's output; None for a chunk without a vector.

        A v4.0 key never goes away when stages are on. A chunk with an echo but no vector keeps the key with an empty
        vector; its ``source`` names the step that gave nothing: inference, or the mapping of metadata terms. A row that
        contradicts itself or the vocabulary is a ``ContractError``.
        """
        live = self._live
        if problem := self._stage.problem(row):
            raise ContractError(f"sparse vector of chunk row {row}: {problem}. Materialise the sparse vectors again")
        entries = self._stage.entries(row)
        if not entries.indices and enriched.echo is None:
            return None
        source = int(live.source[row])
        features = enriched.metadata.get("sparse_features")
        own = features if isinstance(features, dict) else {}
        stats = {
            "weight_norm": l2_norm(np.asarray(live.values[int(live.indptr[row]) : int(live.indptr[row + 1])])),
            "unique_terms": len(entries.indices),
            "total_terms": own.get("total_terms", 0),
            "weighting": LIVE_WEIGHTING
            if source == LIVE and entries.indices
            else own.get("weighting", "tf-normalized"),
            "source": "live" if source == LIVE else "metadata",
            "model": live.model,
            "index_space": live.index_space,
            "norm": "unit" if live.unit else "as_inferred",
        }
        return SparseVector(entries, stats)
