"""What a chunk's ``sparse_vector`` is: the v4.0 echo when the sparse stage is off, the stage's vector when it is on.

With the stage on, ``stats`` keeps the four v4.0 keys and gains ``source``, ``model`` and ``index_space`` after them.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """A sparse vector, as an object and as JSON fragments, so that three files share one encoding.

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
        """The chunk's line in ``_sparse.jsonl``, without the line end."""
        return (
            f'{{"id": {row}, "sparse_vector": {{"indices": {self.indices}, "values": {self.values}}}, '
            f'"tokens": {self.tokens}, "stats": {self.stats}}}'
        )


NO_VECTOR = SparseVector({"indices": [], "values": [], "tokens": [], "stats": {}}, "[]", "[]", "[]", "{}")
"""Stands in ``_sparse.jsonl`` for a chunk without a vector."""

SparseOf = Callable[[int, Enriched], SparseVector | None]
"""The vector of a chunk by row, None where it has none."""


def sparse_vectors(live: LiveSparse | None) -> SparseOf:
    """How to get a chunk's sparse vector: from the stage's output, or from the echo when the stage is off (None)."""
    if live is None:
        return lambda _, enriched: vector_of(enriched.echo.as_json()) if enriched.echo else None
    stage, quoted = live, [compact(token) for token in live.vocabulary]

    def of(row: int, enriched: Enriched) -> SparseVector | None:
        if row % _ROWS_BETWEEN_RELEASES == 0:
            for array in (stage.indptr, stage.indices, stage.values):
                drop_resident_pages(array)
        features = enriched.metadata.get("sparse_features")
        vector = live_vector(stage, quoted, row, features)
        return empty_vector(stage, row, features) if vector is None and enriched.echo else vector

    return of


def vector_of(plain: dict[str, Any]) -> SparseVector:
    """A vector from its object, such as the v4.0 echo."""
    return SparseVector(plain, *(compact(plain[key]) for key in ("indices", "values", "tokens", "stats")))


def live_vector(live: LiveSparse, quoted: list[str], row: int, features: Any) -> SparseVector | None:
    """A chunk's row of the sparse stage's output; None for a chunk without a vector.

    Args:
        live: the stage's output.
        quoted: its vocabulary, each token as JSON.
        row: chunk row.
        features: the chunk's own ``sparse_features``; says what a vector from metadata was weighted by.

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
    own = features if isinstance(features, dict) else {}
    stats = {
        "weight_norm": l2_norm(values),
        "unique_terms": len(indices),
        "total_terms": own.get("total_terms", 0),
        "weighting": LIVE_WEIGHTING if source == LIVE else own.get("weighting", "tf-normalized"),
        "source": _SOURCES[source],
        "model": live.model,
        "index_space": live.index_space,
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
        tokens=joined([quoted[index] for index in indices]),
        stats=compact(stats),
    )


def empty_vector(live: LiveSparse, row: int, features: Any) -> SparseVector:
    """What stands in a payload where v4.0 has an echo but the sparse stage has no vector.

    A v4.0 key never goes away when stages are on, so the key stays, with the shape that readers know and nothing in it.
    ``source`` says what came out empty: inference, or the mapping of metadata terms after inference had failed.
    """
    own = features if isinstance(features, dict) else {}
    stats = {
        "weight_norm": 0.0,
        "unique_terms": 0,
        "total_terms": own.get("total_terms", 0),
        "weighting": own.get("weighting", "tf-normalized"),
        "source": _SOURCES.get(int(live.source[row]), "metadata"),
        "model": live.model,
        "index_space": live.index_space,
    }
    plain = {"indices": [], "values": [], "tokens": [], "stats": stats}
    return SparseVector(plain, "[]", "[]", "[]", compact(stats))


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
