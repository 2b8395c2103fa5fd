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

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.collection.legacy_metadata import Enriched
from ensemble_assets.collection.legacy_sparse_vector import l2_norm
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.inputs import LIVE, METADATA, NO_SOURCE, LiveSparse
from ensemble_assets.export.write.json_bytes import compact, float_list, integer_list

LIVE_WEIGHTING = "splade"
_ROWS_BETWEEN_RELEASES = 1024


@dataclass(frozen=True)
class SparseVector:
    """A sparse vector, as the object ``{"indices", "values", "tokens", "stats"}`` and as JSON fragments.

    Three files hold the vector, so its lists are encoded once: from arrays, with the fast encoder for arrays, and not
    from the lists of the object.
    """

    plain: dict[str, Any]
    indices: str
    values: str
    tokens: str
    stats: str

    @cached_property
    def text(self) -> str:
        """The value of the key ``sparse_vector``."""
        parts = (self.indices, self.values, self.tokens, self.stats)
        return '{{"indices": {}, "values": {}, "tokens": {}, "stats": {}}}'.format(*parts)

    def record(self, row: int) -> str:
        """Encode the chunk's line in ``_sparse.jsonl``, without the line end."""
        return (
            f'{{"id": {row}, "sparse_vector": {{"indices": {self.indices}, "values": {self.values}}}, '
            f'"tokens": {self.tokens}, "stats": {self.stats}}}'
        )


NO_VECTOR = SparseVector({"indices": [], "values": [], "tokens": [], "stats": {}}, "[]", "[]", "[]", "{}")
"""Stands in ``_sparse.jsonl`` for a chunk without a vector."""

SparseOf = Callable[[int, Enriched], SparseVector | None]
"""The vector of a chunk by row, None where it has none."""


def sparse_vectors(live: LiveSparse | None) -> SparseOf:
    """Give a function for the chunks' vectors: from the stage's output, or from the echo if ``live`` is None."""
    return _echo_vector if live is None else _LiveVectors(live)


def _echo_vector(row: int, enriched: Enriched) -> SparseVector | None:
    if enriched.echo is None:
        return None
    plain = enriched.echo.as_json()
    return SparseVector(plain, *(compact(plain[key]) for key in ("indices", "values", "tokens", "stats")))


class _LiveVectors:
    """The vectors of the sparse stage, asked for in row order."""

    def __init__(self, live: LiveSparse) -> None:
        self._live = live
        self._quoted = [compact(token) for token in live.vocabulary]

    def __call__(self, row: int, enriched: Enriched) -> SparseVector | None:
        """Make the vector of a chunk from its row of the stage's output; None for a chunk without a vector.

        A v4.0 key never goes away when stages are on. A chunk with an echo but no vector keeps the key with an empty
        vector; its ``source`` names the step that gave nothing: inference, or the mapping of metadata terms. A row that
        contradicts itself or the vocabulary is a ``ContractError``.
        """
        live = self._live
        if row % _ROWS_BETWEEN_RELEASES == 0:
            for array in (live.indptr, live.indices, live.values):
                drop_resident_pages(array)
        span = slice(int(live.indptr[row]), int(live.indptr[row + 1]))
        indices, values, source = np.asarray(live.indices[span]), np.asarray(live.values[span]), int(live.source[row])
        _require_sound(live, row, source, indices, values)
        if not len(indices) and enriched.echo is None:
            return None
        features = enriched.metadata.get("sparse_features")
        own = features if isinstance(features, dict) else {}
        by_model = source == LIVE and len(indices) > 0
        norm = l2_norm(values)
        if live.unit and norm > 0:
            values = values / np.float32(norm)
        stats = {
            "weight_norm": norm,
            "unique_terms": len(indices),
            "total_terms": own.get("total_terms", 0),
            "weighting": LIVE_WEIGHTING if by_model else own.get("weighting", "tf-normalized"),
            "source": "live" if source == LIVE else "metadata",
            "model": live.model,
            "index_space": live.index_space,
            "norm": "unit" if live.unit else "as_inferred",
        }
        plain = {
            "indices": indices.tolist(),
            "values": values.tolist(),
            "tokens": [live.vocabulary[index] for index in indices],
            "stats": stats,
        }
        return SparseVector(
            plain,
            indices=integer_list(indices),
            values=float_list(values.astype(np.float64)),
            tokens=f"[{', '.join([self._quoted[index] for index in indices])}]",
            stats=compact(stats),
        )


def _require_sound(
    live: LiveSparse, row: int, source: int, indices: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
) -> None:
    problem = ""
    if source not in (NO_SOURCE, LIVE, METADATA):
        problem = f"unknown source code {source}"
    elif not len(indices):
        return
    elif source == NO_SOURCE:
        problem = "a vector, but no source for it"
    elif not np.isfinite(values).all():
        problem = "a value that is not finite"
    elif int(indices.min()) < 0 or int(indices.max()) >= len(live.vocabulary):
        problem = f"an index outside the vocabulary of {len(live.vocabulary)} tokens"
    elif len(np.unique(indices)) < len(indices):
        problem = "an index twice"
    if problem:
        raise ContractError(f"sparse vector of chunk row {row}: {problem}. Materialise the sparse vectors again")
