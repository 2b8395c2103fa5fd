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
from ensemble_assets.export.write.inputs import BundleInputs, own_metadata
from ensemble_assets.export.write.names import PREVIEW_CHARACTERS

_LARGEST_COUNT = 10**8
"""Integers from here on may be somebody's telephone or card number, so they are searched."""

_LONGEST_TOKEN = 32


class UnexpectedText:
    """Takes rows apart. Without the chunks, the metadata and texts files are taken for the chunks' own."""

    def __init__(self, inputs: BundleInputs | None) -> None:
        self._inputs = inputs
        self._facts = inputs.facts if inputs else None
        live = inputs.sparse if inputs else None
        self._vocabulary = frozenset(live.vocabulary) if live else frozenset()
        self._last: dict[str, tuple[Any, bytes]] = {}

    def pieces(self, row: Row) -> Iterator[tuple[str, bytes]]:
        """Give the pieces of a row to search, each with the content of its file, such as ``qdrant.jsonl``."""
        metadata, text = self._allowed(row)
        if row.line is not None:
            yield "qdrant.jsonl", self._of_point(row, row.line, metadata, text)
        if row.sparse_line is not None:
            left = None if row.sparse is None else self._of_vector(row.sparse, metadata)
            yield "sparse.jsonl", row.sparse_line if left is None else self._joined("sparse.jsonl", left)
        if self._inputs is None:
            return
        if row.item is not None:
            left = None if row.metadata is None else self._left_over(row.metadata, metadata)
            yield "metadata.json", row.item if left is None else self._joined("metadata.json", left)
        if row.text_item is not None and row.text != text:
            yield "texts.json", row.text_item

    def _allowed(self, row: Row) -> tuple[dict[str, Any], Any]:
        """Give the metadata and the text that may stand in the row."""
        if self._facts is None:
            return row.metadata or {}, row.text
        if row.chunk is not None:
            with suppress(ValueError, RecursionError):  # metadata that no exporter can write allows nothing
                return enrich(own_metadata(row.chunk), row.chunk, self._facts).metadata, row.chunk.text
        return {}, None

    def _of_point(self, row: Row, line: bytes, metadata: dict[str, Any], text: Any) -> bytes:
        point = row.point
        if point is None or point.payload is None:
            return line
        allowed = {**metadata, "text_preview": text[:PREVIEW_CHARACTERS]} if isinstance(text, str) else metadata
        left = self._left_over(point.payload, allowed)
        vectors = _without_figures(point.vectors or {})
        row_id = _without_figures({"id": point.row})
        return self._joined("qdrant.jsonl", [list(point.keys), row_id, left, point.others, vectors])

    def _left_over(self, value: dict[str, Any], allowed: dict[str, Any]) -> dict[str, Any]:
        left = _unequal(value, allowed)
        if isinstance(left.get("sparse_vector"), dict):
            left["sparse_vector"] = self._of_vector(left["sparse_vector"], allowed)
        return left

    def _of_vector(self, vector: dict[str, Any], allowed: dict[str, Any]) -> dict[str, Any]:
        """Drop the chunk's own tokens and statistics, and all words of one vocabulary, from a vector or its record."""
        echo = allowed.get("sparse_vector")
        echo = echo if isinstance(echo, dict) else {}
        left = _without_figures(vector)
        tokens, stats, own = left.get("tokens"), left.get("stats"), echo.get("stats")
        if isinstance(tokens, list):
            left["tokens"] = [] if tokens == echo.get("tokens") else self._unknown_tokens(tokens)
        if isinstance(stats, dict):
            left["stats"] = _without_figures(_unequal(stats, own if isinstance(own, dict) else {}))
        return left

    def _joined(self, content: str, value: Any) -> bytes:
        """Join the words of a value; the value of the last row is remembered, because most rows leave the same."""
        last = self._last.get(content)
        if last is None or last[0] != value:
            last = (value, "\n".join(_words(value)).encode("utf-8", "surrogatepass"))
            self._last[content] = last
        return last[1]

    def _unknown_tokens(self, tokens: list[Any]) -> list[Any]:
        with suppress(TypeError):  # a value that no set can hold is no token
            if self._vocabulary.issuperset(tokens):
                return []
        return [t for t in tokens if not (isinstance(t, str) and (t in self._vocabulary or _is_one_word(t)))]


def _unequal(value: dict[str, Any], allowed: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in allowed or not _equal(item, allowed[key])}


def _without_figures(value: dict[str, Any]) -> dict[str, Any]:
    """Put None in place of measures, counts and lists of numbers, so that most rows leave equal values."""
    return {key: None if _is_figure(item) else item for key, item in value.items()}


def _is_figure(value: Any) -> bool:
    if isinstance(value, list):
        return {int, float}.issuperset(map(type, value))
    return type(value) is float or (type(value) is int and abs(value) < _LARGEST_COUNT)


def _words(value: Any) -> Iterator[str]:
    """Give the keys, the strings and the large integers in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _words(item)
    elif isinstance(value, list) and not _is_figure(value):
        for item in value:
            yield from _words(item)
    elif isinstance(value, int) and abs(value) >= _LARGEST_COUNT:
        yield str(value)


def _is_one_word(token: str) -> bool:
    """Whether it is a word or sign as vocabularies have them; a text has more."""
    return len(token) <= _LONGEST_TOKEN and token.isascii() and token.isalnum()


def _equal(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)
