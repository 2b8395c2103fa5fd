"""What is left of a bundle's records when all that v4.0 takes from the chunk is taken away: the part to search.

The chunks' own texts and metadata may stand where v4.0 has them. They are left out value by value, and only where they
are what this chunk has under this key, so that the same words under any other key are looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ensemble_assets.export.checks.bundle_walk import Row
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.v40_files import PREVIEW_CHARACTERS

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_VECTORS_KEY = b', "vectors": '
_NUMBERS = ("indices", "values")
_LARGEST_COUNT = 10**8


class Remainder:
    """Takes rows apart.

    Without the chunks, metadata and texts files are taken for what the chunks have.
    """

    def __init__(self, inputs: BundleInputs | None) -> None:
        self._inputs = inputs
        live = inputs.sparse if inputs else None
        self._vocabulary = frozenset(live.vocabulary) if live else frozenset()

    def of(self, row: Row) -> Iterator[tuple[str, bytes]]:
        """Pieces to search, each with the content of the file that it is from."""
        metadata, text = self._owned(row)
        echo = metadata.get("sparse_vector")
        echo = echo if isinstance(echo, dict) else {}
        if row.line is not None:
            for piece in self._point(row, metadata, text, echo):
                yield "qdrant.jsonl", piece
        if self._inputs is not None and row.item is not None and not (row.item_fit and row.number):
            left = self._left_over(row.metadata, metadata, echo) if row.metadata is not None else None
            yield "metadata.json", row.item if left is None else _dumped(left)
        if self._inputs is not None and row.text_item is not None and not row.text_is_expected:
            yield "texts.json", row.text_item
        if row.sparse_line is not None and not row.sparse_is_the_points:
            left = None if row.sparse is None else self._vector(row.sparse, echo)
            yield "sparse.jsonl", row.sparse_line if left is None else _dumped(left)

    def _owned(self, row: Row) -> tuple[dict[str, Any], Any]:
        """Metadata and text that may stand in the row."""
        if self._inputs is None:
            return row.metadata or {}, row.text
        return (row.expected.metadata, row.expected.chunk.text) if row.expected is not None else ({}, None)

    def _point(self, row: Row, metadata: dict[str, Any], text: Any, echo: dict[str, Any]) -> Iterator[bytes]:
        point, line = row.point, row.line or b""
        if row.point_fit is not None and point is not None and row.number:
            # all but the vector is v4.0's; the first row is searched as well, for names that stand in every row
            vector = (point.payload or {}).get("sparse_vector")
            left = self._vector(vector, echo) if row.point_fit.vector and isinstance(vector, dict) else {}
            if left:
                yield _dumped(left)
            return
        if point is None or point.payload is None:
            yield line
            return
        allowed = dict(metadata)
        if isinstance(text, str):
            allowed |= {"text_preview": text[:PREVIEW_CHARACTERS], "full_text_length": len(text)}
        left = self._left_over(point.payload, allowed, echo)
        identity = 0 if isinstance(point.row, int) else point.row
        yield _dumped([list(point.keys), identity, left]) + b" " + b" ".join(_STRING.findall(point.vectors))
        if len(point.keys) > 3:
            yield line[line.rfind(_VECTORS_KEY) :] if _VECTORS_KEY in line else line

    def _left_over(self, found: dict[str, Any], allowed: dict[str, Any], echo: dict[str, Any]) -> dict[str, Any]:
        left = {key: value for key, value in found.items() if key not in allowed or not _equal(value, allowed[key])}
        vector = left.get("sparse_vector")
        if isinstance(vector, dict):
            left["sparse_vector"] = self._vector(vector, echo)
        return left

    def _vector(self, vector: dict[str, Any], echo: dict[str, Any]) -> dict[str, Any]:
        """What a sparse vector, or a sparse record, says beside numbers, the echo's tokens and the vocabulary's."""
        left = {key: value for key, value in vector.items() if not (key in _NUMBERS and _are_numbers(value))}
        left.pop("id" if isinstance(left.get("id"), int) else "", None)
        tokens = left.get("tokens")
        if isinstance(tokens, list):
            left["tokens"] = [] if tokens == echo.get("tokens") else self._unknown(tokens)
        stats, echoed = left.get("stats"), echo.get("stats")
        if isinstance(stats, dict):
            echoed = echoed if isinstance(echoed, dict) else {}
            said = {key: value for key, value in stats.items() if not _is_figure(value)}
            left["stats"] = {key: value for key, value in said.items() if key not in echoed or echoed[key] != value}
        inner = left.get("sparse_vector")
        if isinstance(inner, dict):
            left["sparse_vector"] = {k: v for k, v in inner.items() if not (k in _NUMBERS and _are_numbers(v))}
        return left

    def _unknown(self, tokens: list[Any]) -> list[Any]:
        try:
            if self._vocabulary.issuperset(tokens):
                return []
        except TypeError:  # something that is no token at all
            pass
        known = self._vocabulary
        return [token for token in tokens if not (isinstance(token, str) and (token in known or _is_token(token)))]


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and {int, float}.issuperset(map(type, value))


def _is_figure(value: Any) -> bool:
    """A measure or a count: no number that could be somebody's telephone or card."""
    return type(value) is float or (type(value) is int and abs(value) < _LARGEST_COUNT)


def _is_token(token: str) -> bool:
    """One word or sign, as vocabularies have them; a text is more."""
    return len(token) <= 32 and not any(map(str.isspace, token)) and token.isascii() and token.isalnum()


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
