"""Recognise rows whose records are, byte by byte, the ones that the contract states for their chunk.

``v40_reference`` states them, without a function of the writer, from the chunk, the dense arrays and the sparse stage's
arrays. The gates' findings about such a row are known, so they do not take it apart. The first row of every kind is
judged whole all the same (``docs/decisions/0026``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemble_assets.collection.legacy_metadata import ChunkRow, Enriched, enrich
from ensemble_assets.collection.legacy_sparse_vector import l2_norm
from ensemble_assets.export.checks import v40_reference as reference
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.spelling import item_text
from ensemble_assets.export.write.inputs import LIVE, LiveSparse
from ensemble_assets.export.write.sparse_entries import StageEntries

_LIST = "\0"
"""Stands in a record where a list of the sparse vector belongs."""

_ENCODED_LIST = reference.json_line(_LIST).strip()


class StatedRecords:
    """States the records of a bundle's rows, asked for in row order."""

    def __init__(self, walk: Walk) -> None:
        self._inputs = inputs = walk.inputs
        self._kinds: set[int] = set()
        self._has_sparse_file = walk.bundle.path("sparse.jsonl").is_file()
        if inputs is not None:
            self._facts, self._sparse = inputs.facts, inputs.sparse
            self._entries = StageEntries(inputs.sparse) if inputs.sparse else None
            self._slugs = tuple(model.slug for model in inputs.dense)
            self._models = [
                reference.Model(model.slug, model.hf_model_id, int(model.vectors.shape[1])) for model in inputs.dense
            ]

    def metadata_of(self, row: Row) -> dict[str, Any] | None:
        """Give the metadata that all records of a row state; None where a record is another, or the kind is new.

        The kind is the keys of the metadata, the types of their values, and the source of the sparse vector. The lists
        of the sparse stage's vector are left out.
        """
        chunk, inputs = row.chunk, self._inputs
        if inputs is None or chunk is None or row.own is None or not chunk.row == row.number < inputs.count:
            return None
        if None in (row.line, row.item, row.text_item) or (row.sparse_line is None) == self._has_sparse_file:
            return None
        try:
            enriched = enrich(row.own, chunk, self._facts)
        except (ValueError, RecursionError):  # metadata that no exporter can write
            return None
        metadata, source = enriched.metadata, None
        in_lines: list[bytes] = []
        in_items: list[bytes] = []
        if self._sparse is not None and self._entries is not None:
            if self._entries.problem(row.number):
                return None
            source = int(self._sparse.source[row.number])
            entries = self._entries.entries(row.number)
            if entries.indices or enriched.echo is not None:
                metadata["sparse_vector"] = _live_vector(self._sparse, row.number, len(entries.indices), enriched)
                in_lines, in_items = [b"[%b]" % text for text in entries.in_lines()], list(entries.in_items())
        kind = hash((source, *metadata, *map(type, metadata.values())))
        if kind not in self._kinds:
            self._kinds.add(kind)
            return None
        return metadata if self._are_stated(row, chunk, enriched, in_lines, in_items) else None

    def _are_stated(
        self, row: Row, chunk: ChunkRow, enriched: Enriched, in_lines: Sequence[bytes], in_items: Sequence[bytes]
    ) -> bool:
        """Compare the row's records with the stated ones."""
        metadata = enriched.metadata
        try:
            if row.item != _filled(item_text(metadata), in_items):
                return False
            point = reference.point(row.number, metadata, chunk.text, self._models, self._facts.clock, {})
            payload = point["payload"]
            if in_lines and enriched.echo is None:  # v4.0 has no vector here, so the key comes last
                payload["sparse_vector"] = payload.pop("sparse_vector")
            vectors = row.arrays.text_of(row.number, self._slugs)
            record = reference.sparse_record(row.number, metadata.get("sparse_vector"))
            start = reference.json_line({"id": point["id"], "payload": payload})[:-2]
            return (
                row.line == _filled(start, in_lines) + b', "vectors": %b}\n' % vectors
                and row.text_item == reference.json_line(chunk.text)[:-1]
                and (row.sparse_line is None or row.sparse_line == _filled(reference.json_line(record), in_lines))
            )
        except (ValueError, RecursionError):
            return False


def _live_vector(sparse: LiveSparse, row: int, entries: int, enriched: Enriched) -> dict[str, Any]:
    """State the sparse stage's vector of a row without its lists."""
    own = enriched.metadata.get("sparse_features")
    features: dict[str, Any] = own if isinstance(own, dict) else {}
    live = sparse.source[row] == LIVE
    weights = np.asarray(sparse.values[int(sparse.indptr[row]) : int(sparse.indptr[row + 1])])
    stats = {
        "weight_norm": l2_norm(weights),
        "unique_terms": entries,
        "total_terms": features.get("total_terms", 0),
        "weighting": "splade" if live and entries else features.get("weighting", "tf-normalized"),
        "source": "live" if live else "metadata",
        "model": sparse.model,
        "index_space": sparse.index_space,
        "norm": "unit" if sparse.unit else "as_inferred",
    }
    return {"indices": _LIST, "values": _LIST, "tokens": _LIST, "stats": stats}


def _filled(text: bytes, lists: Sequence[bytes]) -> bytes:
    """Put the lists in their places; empty where a text of the chunk looks like such a place."""
    parts = text.split(_ENCODED_LIST)
    if len(parts) != len(lists) + 1:
        return b""
    return b"".join(piece for pair in zip(parts, (*lists, b""), strict=True) for piece in pair)
