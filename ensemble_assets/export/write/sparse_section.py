"""Make a chunk's ``sparse_vector``: the v4.0 echo when the sparse stage is off, the stage's vector when it is on.

With the stage on, ``stats`` keeps the four v4.0 keys and gains ``source``, ``model`` and ``index_space`` after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ensemble_assets.collection.legacy_metadata import Enriched
from ensemble_assets.collection.legacy_sparse_vector import l2_norm
from ensemble_assets.common.errors import ContractError
from ensemble_assets.common.mapped_pages import drop_resident_pages
from ensemble_assets.export.write.inputs import LIVE, METADATA, NO_SOURCE, LiveSparse
from ensemble_assets.export.write.json_bytes import compact, float_list, integer_list, joined

LIVE_WEIGHTING = "splade"
_ROWS_BETWEEN_RELEASES = 1024
_SOURCES = {LIVE: "live", METADATA: "metadata"}


@dataclass(frozen=True)
class SparseVector:
    """A sparse vector, as an object and as JSON fragments.

    Three files hold the vector, so its lists are encoded once: from arrays, with the fast encoder for arrays, and not
    from the lists of the object.

    Attributes:
        plain: ``{"indices", "values", "tokens", "stats"}``.
        indices: JSON list; so are ``values`` and ``tokens``.
        stats: JSON object.
    """

    plain: dict[str, Any]
    indices: str
    values: str
    tokens: str
    stats: str

    @property
    def present(self) -> bool:
        """Whether there is anything in it."""
        return self.indices != "[]"

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
    if live is None:
        return lambda _, enriched: vector_of(enriched.echo.as_json()) if enriched.echo else None
    return _LiveVectors(live)


class _LiveVectors:
    """The vectors of the sparse stage, asked for in row order."""

    def __init__(self, live: LiveSparse) -> None:
        self._live = live
        self._quoted = [compact(token) for token in live.vocabulary]

    def __call__(self, row: int, enriched: Enriched) -> SparseVector | None:
        if row % _ROWS_BETWEEN_RELEASES == 0:
            for array in (self._live.indptr, self._live.indices, self._live.values):
                drop_resident_pages(array)
        features = enriched.metadata.get("sparse_features")
        own = features if isinstance(features, dict) else {}
        vector = live_vector(self._live, self._quoted, row, own)
        return empty_vector(self._live, row, own) if vector is None and enriched.echo else vector


def vector_of(plain: dict[str, Any]) -> SparseVector:
    """Encode a vector from its object, such as the v4.0 echo."""
    return SparseVector(plain, *(compact(plain[key]) for key in ("indices", "values", "tokens", "stats")))


def live_vector(live: LiveSparse, quoted: list[str], row: int, own: Mapping[str, Any]) -> SparseVector | None:
    """Make the vector of a chunk from its row of the sparse stage's output; None for a chunk without a vector.

    Args:
        live: the stage's output.
        quoted: its vocabulary, each token as JSON.
        row: chunk row.
        own: the chunk's own ``sparse_features``, with the weighting of a vector from metadata.

    Raises:
        ContractError: if the row has entries but no source, a value that is not finite, or an index that is outside the
            vocabulary or there twice.
    """
    span = slice(int(live.indptr[row]), int(live.indptr[row + 1]))
    indices, values = np.asarray(live.indices[span]), np.asarray(live.values[span])
    source = int(live.source[row])
    _require_sound(live, row, source, indices, values)
    if not len(indices):
        return None
    stats = _stats(live, own, _SOURCES[source], weight_norm=l2_norm(values), unique_terms=len(indices))
    if source == LIVE:
        stats["weighting"] = LIVE_WEIGHTING
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
        tokens=joined([quoted[index] for index in indices]),
        stats=compact(stats),
    )


def empty_vector(live: LiveSparse, row: int, own: Mapping[str, Any]) -> SparseVector:
    """Make the vector of a chunk that has an echo in v4.0 but no vector of the sparse stage.

    A v4.0 key never goes away when stages are on, so the key stays, with the shape that readers know and nothing in it.
    ``source`` names the step that gave nothing: inference, or the mapping of metadata terms after inference had failed.
    """
    source = _SOURCES.get(int(live.source[row]), "metadata")
    stats = _stats(live, own, source, weight_norm=0.0, unique_terms=0)
    plain = {"indices": [], "values": [], "tokens": [], "stats": stats}
    return SparseVector(plain, "[]", "[]", "[]", compact(stats))


def _stats(
    live: LiveSparse, own: Mapping[str, Any], source: str, *, weight_norm: float, unique_terms: int
) -> dict[str, Any]:
    return {
        "weight_norm": weight_norm,
        "unique_terms": unique_terms,
        "total_terms": own.get("total_terms", 0),
        "weighting": own.get("weighting", "tf-normalized"),
        "source": source,
        "model": live.model,
        "index_space": live.index_space,
    }


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
