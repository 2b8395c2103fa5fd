"""Gate ``row_alignment``: chunks, vectors, sparse rows and points have the same ids in the same order in every file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.collection.legacy_metadata import LOADER_KEYS, ChunkRow
from ensemble_assets.export.checks.bundle_walk import RECORD_FILES, Row, Walk
from ensemble_assets.export.checks.key_tables import PAYLOAD_TAIL
from ensemble_assets.export.checks.list_files import ListFiles
from ensemble_assets.export.checks.result import Findings, GateResult, key_shown, shown
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Point
from ensemble_assets.export.write.inputs import LiveSparse
from ensemble_assets.export.write.names import PREVIEW_CHARACTERS

_ABSENT = object()
_OF_THE_POINT = {key.name for key in PAYLOAD_TAIL}
_OF_THE_LOADER = frozenset(LOADER_KEYS)

_BLOCK_ROWS = 1024
"""Rows between two releases of mapped pages: a few megabytes of vectors."""


class RowAlignment:
    """Compare the records of every row with one another, and with the chunk and the vectors that they were made of."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._findings = Findings("row_alignment")
        self._arrays = walk.arrays
        self._lists = ListFiles(walk.bundle)
        self._encoded: dict[str, NDArray[Any]] = {}
        if walk.inputs is not None:
            self._encoded = {model.slug: model.vectors for model in walk.inputs.dense}
        self._sparse_file = walk.bundle.path("sparse.jsonl")
        self._wanted = (True, True, True, self._sparse_file.is_file(), walk.inputs is not None)
        self._sparse = walk.inputs.sparse if walk.inputs else None
        self._vectors = self._rows = 0
        self._cut_off = False
        if walk.inputs is None:
            self._findings.note("compared the files with one another only: the chunks of the bundle were not given")

    def see(self, row: Row) -> None:
        """Compare the row's records with one another. Stops at the first row that lacks a record."""
        self._lists.see(row)
        if self._cut_off:
            return
        self._rows = row.number + 1
        if row.stated is not None:
            self._vectors += "sparse_vector" in row.stated
            return
        present = tuple(
            record is not None for record in (row.line, row.item, row.text_item, row.sparse_line, row.chunk)
        )
        if present != self._wanted:
            self._cut_off = True
            names = (*RECORD_FILES, "the chunks")
            lacking = [name for name, has, wanted in zip(names, present, self._wanted, strict=True) if wanted > has]
            self._findings.add(
                f"chunk row {row.number} is missing in {', '.join(lacking)}: a record was dropped. {EXPORT_AGAIN}",
                first=True,
            )
            return
        for sentence in self._problems(row):
            self._findings.add(f"chunk row {row.number}: {sentence}. {EXPORT_AGAIN}")
        self._vectors += "sparse_vector" in row.payload

    def result(self) -> GateResult:
        """Compare the arrays and the reranked lists, and give the result."""
        for sentence in (*self._walk.problems, *self._arrays.problems):
            self._findings.add(sentence)
        if not (self._cut_off or self._walk.problems):
            self._check_arrays()
            if bool(self._vectors) != self._sparse_file.is_file() and not self._walk.bundle.is_on("sparse"):
                state = "are" if self._vectors else "are no"
                self._findings.add(
                    f"there {state} sparse vectors in the points, which does not fit {self._sparse_file.name}. "
                    f"{EXPORT_AGAIN}"
                )
        for sentence in self._lists.problems():
            self._findings.add(sentence)
        return self._findings.result(rows=self._rows)

    def _problems(self, row: Row) -> Iterator[str]:
        point, metadata = row.point, row.metadata
        if point is None or point.payload is None or metadata is None:
            yield "a record of it is not readable"
            return
        if point.row != row.number:
            yield f"the point has id {shown(point.row)}, expected {row.number}"
        yield from _payload_problems(row.number, point.payload, metadata, row.text)
        if row.chunk is not None:
            yield from _chunk_problems(row, row.chunk, metadata)
        yield from self._vector_problems(row, point)
        if row.sparse_line is not None:
            yield from _sparse_problems(row.number, point.payload, row.sparse)
        vector = point.payload.get("sparse_vector")
        lists = [vector.get(name) for name in ("indices", "values", "tokens")] if isinstance(vector, dict) else []
        if len({len(entries) if isinstance(entries, list) else -1 for entries in lists}) > 1:
            yield "indices, values and tokens of its sparse_vector are not equally many"
        if self._sparse is not None:
            yield from _stage_problems(row.number, point.payload, self._sparse)

    def _vector_problems(self, row: Row, point: Point) -> Iterator[str]:
        """Compare a point's vectors with the row of the bundle's arrays."""
        if row.stored_vectors:
            yield from (
                f"the point has no vector of {name}" for name in self._encoded if name not in row.stored_vectors
            )
            return
        if point.vectors is None:
            yield "key 'vectors' is no JSON object"
            return
        yield from (f"the point has no vector of {name}" for name in self._encoded if name not in point.vectors)
        primary = (point.payload or {}).get("primary_vector_name")
        for name, values in point.vectors.items():
            array = self._arrays.vectors(name, primary=name == primary)
            if array is None:
                continue
            if row.number >= len(array):
                yield f"{name}: the array has only {len(array)} rows"
            elif not _same(values, array[row.number]):
                place = f"row {row.number} of its array"
                yield f"the vector of {name} in the point is not {place}: rows were shifted or changed"
            if row.number % _BLOCK_ROWS == 0:
                drop_resident_pages(array)

    def _check_arrays(self) -> None:
        """Expect one row a chunk in every array, and the vectors of the dense stage in it."""
        for name, array in self._arrays.by_model.items():
            if array is None:
                continue
            encoded = self._encoded.get(name, array)
            if len(array) != self._rows or array.shape != encoded.shape:
                sentence = f"expected the shape {[self._rows, encoded.shape[1]]}, found {list(array.shape)}"
                self._findings.add(f"vectors of {name}: {sentence}. {EXPORT_AGAIN}")
                continue
            for start in range(0, len(array), _BLOCK_ROWS) if encoded is not array else ():
                block = slice(start, start + _BLOCK_ROWS)
                for row in np.flatnonzero(~(array[block] == encoded[block]).all(axis=1)).tolist():
                    self._findings.add(
                        f"chunk row {start + row}: the vector of {name} is not the one that was encoded for this "
                        f"chunk. {EXPORT_AGAIN}"
                    )
                drop_resident_pages(array)
                drop_resident_pages(encoded)


def _same(values: Any, row: NDArray[Any]) -> bool:
    with suppress(TypeError, ValueError):
        return np.array_equal(np.asarray(values, dtype=np.float32), row, equal_nan=True)
    return False


def _payload_problems(row: int, payload: dict[str, Any], metadata: dict[str, Any], text: Any) -> Iterator[str]:
    if "global_chunk_id" in metadata and metadata["global_chunk_id"] != row:
        yield f"metadata has global_chunk_id {shown(metadata['global_chunk_id'])}, expected {row}"
    if isinstance(text, str):
        if payload.get("text_preview") != text[:PREVIEW_CHARACTERS]:
            yield f"text_preview is not the first {PREVIEW_CHARACTERS} characters of its text"
        if payload.get("full_text_length") != len(text):
            yield f"full_text_length is {shown(payload.get('full_text_length'))}, its text has {len(text)} characters"
    for name, value in metadata.items():
        if (other := payload.get(name, _ABSENT)) != value and name not in _OF_THE_POINT and not _equal(other, value):
            yield f"payload key {key_shown(name)} is not what the metadata file has"
    if not _equal(payload.get("sparse_vector"), metadata.get("sparse_vector")):
        yield "payload key 'sparse_vector' is not what the metadata file has"


def _chunk_problems(row: Row, chunk: ChunkRow, metadata: dict[str, Any]) -> Iterator[str]:
    if row.text != chunk.text:
        yield "the exported text is not the chunk's: rows were shifted or changed"
    for name, value in (row.own or {}).items():
        if (other := metadata.get(name, _ABSENT)) != value and name not in _OF_THE_LOADER and not _equal(other, value):
            yield f"metadata key {key_shown(name)} is not what the chunk has"


def _equal(value: Any, other: Any) -> bool:
    """Compare two JSON values; a number that is no number equals itself."""
    return bool(value == other) or repr(value) == repr(other)


def _sparse_problems(row: int, payload: dict[str, Any], record: Any) -> Iterator[str]:
    if not isinstance(record, dict):
        yield "its line in the sparse file is no JSON object"
        return
    if record.get("id") != row:
        yield f"its line in the sparse file has id {shown(record.get('id'))}"
    vector = payload.get("sparse_vector")
    expected = vector if isinstance(vector, dict) else {"indices": [], "values": [], "tokens": [], "stats": {}}
    inner = record.get("sparse_vector")
    lists = {**(inner if isinstance(inner, dict) else {}), "tokens": record.get("tokens"), "stats": record.get("stats")}
    empty = not expected.get("indices") and not lists.get("indices")
    for name in ("indices", "values", "tokens") if empty else ("indices", "values", "tokens", "stats"):
        if not _equal(lists.get(name), expected.get(name)):
            yield f"{name} of its line in the sparse file are not those of the point's sparse_vector"


def _has_weights(values: Any, weights: NDArray[np.float32], *, unit: bool) -> bool:
    if not unit:
        return bool(values == weights.tolist())
    exact = weights.astype(np.float64)
    with suppress(TypeError, ValueError):  # rounded to single precision twice
        return np.allclose(np.asarray(values, float), exact / (np.linalg.norm(exact) or 1.0), rtol=1e-6, atol=1e-12)
    return False


def _stage_problems(row: int, payload: dict[str, Any], sparse: LiveSparse) -> Iterator[str]:
    if row % _BLOCK_ROWS == 0:
        for array in (sparse.indptr, sparse.indices, sparse.values):
            drop_resident_pages(array)
    span = slice(int(sparse.indptr[row]), int(sparse.indptr[row + 1]))
    vector = payload.get("sparse_vector")
    vector = vector if isinstance(vector, dict) else {}
    if vector.get("indices", []) != sparse.indices[span].tolist():
        yield "indices of its sparse_vector are not those of the sparse stage's row"
    elif not _has_weights(vector.get("values", []), sparse.values[span], unit=sparse.unit):
        yield "values of its sparse_vector are not those of the sparse stage's row"
