"""Take from a bundle's records the text that does not come from the chunk. Only this text is searched for queries.

The chunks' own texts and metadata may stand where v4.0 has them. A value is left out only if it is exactly this chunk's
value under this key, so the same words under any other key are searched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ensemble_assets.collection.legacy_metadata import enrich
from ensemble_assets.export.checks.bundle_walk import Row
from ensemble_assets.export.query_leaks.page_text import SEAM
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.names import PREVIEW_CHARACTERS

_LARGEST_COUNT = 10**8
"""Integers from here on may be somebody's telephone or card number, so they are searched."""

_LONGEST_TOKEN = 32
"""A longer token is no word of a vocabulary; the longest one of BERT's has 18 characters."""


class UnexpectedText:
    """Takes rows apart. Without the chunks, the metadata and texts files are taken for the chunks' own."""

    def __init__(self, inputs: BundleInputs | None) -> None:
        self._facts = inputs.facts if inputs else None
        self._vocabulary = frozenset(inputs.sparse.vocabulary) if inputs and inputs.sparse else frozenset[str]()

    def pieces(self, row: Row) -> Iterator[tuple[str, bytes]]:
        """Give the pieces of a row to search, each with the content of its file, such as ``qdrant.jsonl``."""
        metadata, text = self._allowed(row)
        preview = text[:PREVIEW_CHARACTERS] if isinstance(text, str) else None
        point, whole = row.point, None
        vectors = dict.fromkeys(row.stored_vectors) or (point and point.vectors)
        if point is not None and point.payload is not None and vectors is not None:
            payload = self._without_terms(point.payload, metadata)
            whole = {"id": point.row, "payload": payload, "vectors": vectors, **point.others}
        echo = metadata.get("sparse_vector")
        for content, record, value, allowed in (
            ("qdrant.jsonl", row.line, whole, {"payload": {**metadata, "text_preview": preview}}),
            ("sparse.jsonl", row.sparse_line, self._vector_without_terms(row.sparse, echo), echo),
            ("metadata.json", row.item, self._without_terms(row.metadata, metadata), metadata),
            ("texts.json", row.text_item, row.text, text),
        ):
            if record is not None and value is None:
                yield content, record
            elif record is not None:
                words: list[str] = []
                _add_words(value, allowed, words)
                yield content, "\n".join(words).encode("utf-8", "surrogatepass")

    def _allowed(self, row: Row) -> tuple[dict[str, Any], Any]:
        """Give the metadata and the text that may stand in the row."""
        if self._facts is None:
            return row.metadata or {}, row.text
        if row.chunk is not None and row.own is not None:
            with suppress(ValueError, RecursionError):  # metadata that no exporter can write allows nothing
                return enrich(row.own, row.chunk, self._facts).metadata, row.chunk.text
        return {}, None

    def _without_terms(self, record: dict[str, Any] | None, allowed: dict[str, Any]) -> dict[str, Any] | None:
        vector = record.get("sparse_vector") if record else None
        if record is None or not isinstance(vector, dict):
            return record
        return {**record, "sparse_vector": self._vector_without_terms(vector, allowed.get("sparse_vector"))}

    def _vector_without_terms(self, vector: dict[str, Any] | None, echo: Any) -> dict[str, Any] | None:
        """Leave out the tokens that are words of the sparse model, or single words as vocabularies have them."""
        tokens = vector.get("tokens") if vector else None
        if vector is None or not isinstance(tokens, list) or (isinstance(echo, dict) and tokens == echo.get("tokens")):
            return vector
        return {**vector, "tokens": [token for token in tokens if not self._is_term(token)]}

    def _is_term(self, token: Any) -> bool:
        if not isinstance(token, str):
            return False
        return token in self._vocabulary or (len(token) <= _LONGEST_TOKEN and token.isascii() and token.isalnum())


def _add_words(value: Any, allowed: Any, words: list[str]) -> None:
    """Add the keys, strings and large integers in a JSON value that ``allowed`` does not have in the same place."""
    if isinstance(value, dict):
        own = allowed if isinstance(allowed, dict) else {}
        for key, item in value.items():
            if key not in own:  # an identifier is no word of a query, so that none is made of two of them
                words.append(f"{SEAM}{key}{SEAM}" if "_" in key else key)
            if (other := own.get(key)) != item:  # most values are equal, and nothing is to be said of them
                _add_words(item, other, words)
    elif isinstance(value, list):
        if value != allowed and not {int, float}.issuperset(map(type, value)):
            for item in value:
                _add_words(item, None, words)
    elif isinstance(value, str) and value != allowed:
        words.append(value)
    elif isinstance(value, int) and abs(value) >= _LARGEST_COUNT and value != allowed:
        words.append(str(value))
