"""What v4.0 has for a chunk, as text: before and after the one value that v4.1 may change, the sparse vector.

A record whose text is what stands here is known without being parsed. Judging one that differs is the gates' business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from ensemble_assets.collection.legacy_metadata import ChunkRow, enrich
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.json_bytes import compact, indented
from ensemble_assets.export.write.sparse_section import NO_VECTOR, SparseVector, vector_of
from ensemble_assets.export.write.v40_files import (
    around_vector,
    own_metadata,
    payload_of,
    payload_tail,
    split_at_vector,
)

_BEYOND_64_BITS = re.compile(rb"[0-9]{19}")
_TOKENS_KEY = b', "tokens": ['


class Fit(NamedTuple):
    """A text that is v4.0's, the sparse vector aside.

    Attributes:
        vector: the text of the sparse vector that stands in it; empty where none does.
    """

    vector: bytes


@dataclass(frozen=True)
class Gap:
    """A text of v4.0 with a gap for the sparse vector.

    Attributes:
        before: up to the value, or to where the key would be added.
        echo: what v4.0 has for a value; None where it has no such key.
        after: the rest.
        key: what stands before a value that v4.0 does not have.
    """

    before: bytes
    echo: bytes | None
    after: bytes
    key: bytes

    @property
    def whole(self) -> bytes:
        """The text as v4.0 writes it."""
        return self.before + (self.echo or b"") + self.after

    def fit(self, found: bytes) -> Fit | None:
        """Whether ``found`` is this text with some value, or none, in the gap; its value has still to be looked at."""
        if not (found.startswith(self.before) and found.endswith(self.after)):
            return None
        vector = found[len(self.before) : len(found) - len(self.after)]
        if self.echo is not None:
            return Fit(vector) if vector else None
        if not vector:
            return Fit(vector)
        return Fit(vector[len(self.key) :]) if vector.startswith(self.key) else None


@dataclass(frozen=True)
class ExpectedRow:
    """What v4.0 has for one chunk.

    Attributes:
        chunk: as ingested.
        metadata: after enrichment.
        payload: of its point, in v4.0.
        payload_gap: the text of the payload.
        metadata_gap: the text of its item in the metadata file.
        echo: its sparse vector in v4.0.
    """

    chunk: ChunkRow
    metadata: dict[str, Any]
    payload: dict[str, Any]
    payload_gap: Gap
    metadata_gap: Gap
    echo: SparseVector | None

    @property
    def text(self) -> bytes:
        """Its item in the texts file."""
        return compact(self.chunk.text).encode()

    @property
    def sparse_line(self) -> bytes:
        """Its line in the sparse file of v4.0."""
        return f"{(self.echo or NO_VECTOR).record(self.chunk.row)}\n".encode()


def expected_rows(inputs: BundleInputs) -> Iterator[ExpectedRow]:
    """What v4.0 has for every chunk, in order.

    Raises:
        ContractError: if a chunk cannot be expressed in UTF-8 JSON.
    """
    tail, facts = payload_tail(inputs), inputs.facts
    for chunk in inputs.rows():
        try:
            enriched = enrich(own_metadata(chunk), chunk, facts)
            echo = vector_of(enriched.echo.as_json()) if enriched.echo else None
            payload = payload_of(enriched.metadata, chunk.text, tail)
            if echo is not None:
                payload["sparse_vector"] = echo.plain
            before, after = around_vector(payload) if echo else (compact(payload)[:-1], "}")
            key = b"" if echo else b', "sparse_vector": '
            gap = Gap(before.encode(), echo.text.encode() if echo else None, after.encode(), key)
            item = _metadata_gap(enriched.metadata, echo, before + after)
            yield ExpectedRow(chunk, enriched.metadata, payload, gap, item, echo)
        except (ValueError, RecursionError):
            raise ContractError(f"chunk row {chunk.row}: its metadata cannot be written as UTF-8 JSON") from None


def _metadata_gap(metadata: dict[str, Any], echo: SparseVector | None, hint: str) -> Gap:
    key = b',\n    "sparse_vector": '
    if echo is None:
        return Gap(_item(metadata, hint)[: -len(b"\n  }")], None, b"\n  }", key)
    before, after = split_at_vector(metadata)
    opening = _item(before, hint)[: -len(b"\n  }")] + key if before else b"{" + key[1:]
    closing = b"," + _item(after, hint)[1:] if after else b"\n  }"
    return Gap(opening, indented(echo.plain, echo.text).replace(b"\n", b"\n    "), closing, b"")


def _item(metadata: dict[str, Any], hint: str) -> bytes:
    return indented(metadata, hint).replace(b"\n", b"\n  ")


def sparse_line_of(row: int, vector: bytes) -> bytes:
    """The line in the sparse file that has the same vector as a payload; empty for what is no such vector."""
    cut = vector.find(_TOKENS_KEY)  # before it there are only numbers
    if cut < 0:
        return b""
    return b'{"id": %d, "sparse_vector": %b}%b\n' % (row, vector[:cut], vector[cut:])


def parse_vector(text: bytes) -> Any:
    """The value of a sparse vector; None for what is no JSON."""
    if not _BEYOND_64_BITS.search(text, text.rfind(b'"stats": ')):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_indented(vector: dict[str, Any], text: bytes) -> bool:
    """Whether ``text`` is ``vector`` as it stands in an item of the metadata file."""
    with suppress(orjson.JSONEncodeError):
        if orjson.dumps(vector, option=orjson.OPT_INDENT_2).replace(b"\n", b"\n    ") == text:
            return True
    return json.dumps(vector, indent=2, ensure_ascii=False).replace("\n", "\n    ").encode() == text
