"""Gate ``row_alignment``: chunks, vectors, sparse rows and points have the same ids in the same order in every file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.collection.legacy_metadata import ChunkRow
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.key_tables import PAYLOAD_TAIL
from ensemble_assets.export.checks.result import Findings, GateResult, key_shown, shown
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Point, open_vectors, records
from ensemble_assets.export.write.inputs import LiveSparse
from ensemble_assets.export.write.json_bytes import release
from ensemble_assets.export.write.v40_files import PREVIEW_CHARACTERS

_ABSENT = object()
_OF_THE_POINT = {key.name for key in PAYLOAD_TAIL}
_BLOCK_ROWS = 1024


class RowAlignment:
    """Row i of every file is about chunk i; where the chunks are known, each row is compared with them too."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._found = Findings("row_alignment")
        self._arrays = _Arrays(walk, self._found)
        self._sparse_file = walk.bundle.path("sparse.jsonl")
        self._wanted = (True, True, True, self._sparse_file.is_file(), walk.inputs is not None)
        self._sparse = walk.inputs.sparse if walk.inputs else None
        self._vectors = self._rows = 0
        self._cut_off = False
        if walk.inputs is None:
            self._found.note("compared the files with one another only: the chunks of the bundle were not given")

    def see(self, row: Row) -> None:
        """Compare the row's records with one another; nothing more once a record was missing."""
        if self._cut_off:
            return
        self._rows = row.number + 1
        texts = (row.line, row.item, row.text_item, row.sparse_line, row.expected)
        present = tuple(text is not None for text in texts)
        if present != self._wanted:
            self._cut_off = True
            names = ("qdrant.jsonl", "metadata.json", "texts.json", "sparse.jsonl", "the chunks")
            lacking = [name for name, has, wanted in zip(names, present, self._wanted, strict=True) if wanted > has]
            self._found.add(
                f"chunk row {row.number} is missing in {', '.join(lacking)}: a record was dropped. {EXPORT_AGAIN}"
            )
            return
        for sentence in self._problems(row):
            self._found.add(f"chunk row {row.number}: {sentence}. {EXPORT_AGAIN}")
        self._vectors += row.point is not None and "sparse_vector" in (row.point.payload or {})

    def result(self) -> GateResult:
        """The verdict; looks at the arrays' heights and the reranked lists first."""
        for sentence in self._walk.problems:
            self._found.add(sentence)
        if not (self._cut_off or self._walk.problems):
            self._arrays.check_heights(self._rows)
            if bool(self._vectors) != self._sparse_file.is_file() and not self._walk.bundle.sparse_on:
                state = "are" if self._vectors else "are no"
                self._found.add(
                    f"there {state} sparse vectors in the points, which does not fit {self._sparse_file.name}. "
                    f"{EXPORT_AGAIN}"
                )
        self._check_lists()
        return self._found.result(rows=self._rows)

    def _problems(self, row: Row) -> Iterator[str]:
        point, metadata = row.point, row.metadata
        if point is None or point.payload is None or metadata is None:
            yield "a record of it is not readable"
            return
        if point.row != row.number:
            yield f"the point has id {shown(point.row)}, expected {row.number}"
        if row.item_fit is None or not row.text_is_expected:
            yield from _payload_problems(row.number, point.payload, metadata, row.text)
            if row.expected is not None:
                yield from _chunk_problems(row.expected.chunk, metadata, row.text)
        yield from self._arrays.problems(row, point)
        if row.sparse_line is not None and not (row.sparse_is_the_points and row.item_fit):
            yield from _sparse_problems(row.number, point.payload, row.sparse)
        if point.payload.get("sparse_vector"):
            yield from _length_problems(point.payload["sparse_vector"])
        if self._sparse is not None:
            yield from _stage_problems(row.number, point.payload, self._sparse)

    def _check_lists(self) -> None:
        """Reranked lists name points that exist, best first."""
        path = self._walk.bundle.path("rerank.jsonl")
        for number, record in enumerate(records(path) if path.is_file() else (), start=1):
            where = f"{path.name}, line {number}"
            ids, ranks = (record or {}).get("point_ids"), (record or {}).get("ranks")
            if not isinstance(ids, list) or not isinstance(ranks, list):
                self._found.add(f"{where}: expected the lists point_ids and ranks. {EXPORT_AGAIN}")
            elif not _are_rows(ids, self._walk.rows) or ranks != list(range(1, len(ids) + 1)):
                self._found.add(f"{where}: expected ranks from 1 up and point_ids of existing chunks. {EXPORT_AGAIN}")


def _are_rows(ids: list[Any], rows: int) -> bool:
    return all(type(i) is int and 0 <= i < rows for i in ids)


class _Arrays:
    """The dense arrays of a bundle, by model, and those they were made of."""

    def __init__(self, walk: Walk, found: Findings) -> None:
        self._found = found
        self._bundle = walk.bundle
        self._open: dict[str, NDArray[Any] | None] = {}
        self._upstream = {model.slug: model.vectors for model in walk.inputs.dense} if walk.inputs else {}
        self._names = walk.vectors.names
        self._from, self._sound = -_BLOCK_ROWS, np.zeros(0, dtype=np.bool_)

    def problems(self, row: Row, point: Point) -> Iterator[str]:
        """How a point's vectors differ from row ``row`` of the arrays."""
        if row.vectors_are_expected and self._row_is_upstreams(row.number):
            return
        try:
            vectors = point.parsed_vectors()
        except ValueError:
            yield "key 'vectors' is no JSON object"
            return
        yield from (f"the point has no vector of {name}" for name in self._upstream if name not in vectors)
        primary = (point.payload or {}).get("primary_vector_name")
        for name, values in vectors.items():
            array = self._array(name, name == primary)
            if array is not None:
                yield from self._vector_problems(row.number, name, values, array)

    def _row_is_upstreams(self, row: int) -> bool:
        """Whether the bundle's arrays have in this row what they were made of; a block of rows at a time."""
        start = row - row % _BLOCK_ROWS
        if start != self._from:
            arrays = {name: self._array(name, position == 0) for position, name in enumerate(self._names)}
            for opened in (*arrays.values(), *self._upstream.values()):
                if opened is not None:
                    release(opened)
            self._from, self._sound = start, self._sound_rows(start, arrays)
        return bool(row - start < len(self._sound) and self._sound[row - start])

    def _sound_rows(self, start: int, arrays: dict[str, NDArray[Any] | None]) -> NDArray[np.bool_]:
        sound = np.ones(_BLOCK_ROWS, dtype=np.bool_)
        for name, array in arrays.items():
            upstream = self._upstream.get(name, array)
            if array is None or upstream is None or array.shape[1:] != upstream.shape[1:]:
                return sound[:0]
            one, other = array[start : start + _BLOCK_ROWS], upstream[start : start + _BLOCK_ROWS]
            height = min(len(sound), len(one), len(other))
            sound = sound[:height] & (one[:height] == other[:height]).all(axis=1)
        return sound

    def _vector_problems(self, row: int, name: str, values: Any, array: NDArray[Any]) -> Iterator[str]:
        if row >= len(array):
            yield f"{name}: the array has only {len(array)} rows"
        elif not _same(values, array[row]):
            yield f"the vector of {name} in the point is not row {row} of its array: rows were shifted or changed"
        elif name in self._upstream and not np.array_equal(array[row], self._upstream[name][row], equal_nan=True):
            yield f"the vector of {name} is not the one that was encoded for this chunk"

    def check_heights(self, rows: int) -> None:
        """Every array has one row a chunk."""
        for name, array in self._open.items():
            if array is not None and len(array) != rows:
                self._found.add(f"vectors of {name}: expected {rows} rows, found {len(array)}. {EXPORT_AGAIN}")

    def _array(self, name: str, primary: bool) -> NDArray[Any] | None:
        if name not in self._open:
            self._open[name] = None
            file = self._bundle.names.vectors() if primary else self._bundle.names.vectors(name)
            try:
                array = open_vectors(self._bundle.folder / file)
                self._open[name] = array if array.ndim == 2 else None
                if array.ndim != 2:
                    self._found.add(f"{file}: expected two dimensions, found {array.ndim}. {EXPORT_AGAIN}")
            except ArtefactError as error:
                self._found.add(str(error))
        return self._open[name]


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
        if name not in _OF_THE_POINT and payload.get(name, _ABSENT) != value:
            yield f"payload key {key_shown(name)} is not what the metadata file has"
    if ("sparse_vector" in metadata or "sparse_vector" in payload) and (
        payload.get("sparse_vector") != metadata.get("sparse_vector")
    ):
        yield "payload key 'sparse_vector' is not what the metadata file has"


def _sparse_problems(row: int, payload: dict[str, Any], record: Any) -> Iterator[str]:
    if not isinstance(record, dict):
        yield "its line in the sparse file is no JSON object"
        return
    if record.get("id") != row:
        yield f"its line in the sparse file has id {shown(record.get('id'))}"
    vector = payload.get("sparse_vector")
    expected = vector if isinstance(vector, dict) else {"indices": [], "values": [], "tokens": [], "stats": {}}
    inner = record.get("sparse_vector")
    inner = inner if isinstance(inner, dict) else {}
    found = {**inner, "tokens": record.get("tokens"), "stats": record.get("stats")}
    for name in ("indices", "values", "tokens", "stats"):
        empty = not expected.get("indices") and not found.get("indices")
        if found.get(name) != expected.get(name) and not (empty and name == "stats"):
            yield f"{name} of its line in the sparse file are not those of the point's sparse_vector"


def _length_problems(vector: Any) -> Iterator[str]:
    lists = [vector.get(name) for name in ("indices", "values", "tokens")] if isinstance(vector, dict) else []
    if len({len(entries) if isinstance(entries, list) else -1 for entries in lists}) > 1:
        yield "indices, values and tokens of its sparse_vector are not equally many"


def _chunk_problems(chunk: ChunkRow, metadata: dict[str, Any], text: Any) -> Iterator[str]:
    if text != chunk.text:
        yield "the exported text is not the chunk's: rows were shifted or changed"
    own = json.loads(chunk.metadata)
    identity = own.get("chunk_id") if isinstance(own, dict) else None
    if identity is not None and metadata.get("chunk_id") != identity:
        yield "the exported chunk_id is not the chunk's"


def _stage_problems(row: int, payload: dict[str, Any], sparse: LiveSparse) -> Iterator[str]:
    if row % _BLOCK_ROWS == 0:
        for array in (sparse.indptr, sparse.indices, sparse.values):
            release(array)
    span = slice(int(sparse.indptr[row]), int(sparse.indptr[row + 1]))
    vector = payload.get("sparse_vector")
    vector = vector if isinstance(vector, dict) else {}
    if vector.get("indices", []) != sparse.indices[span].tolist():
        yield "indices of its sparse_vector are not those of the sparse stage's row"
    elif vector.get("values", []) != sparse.values[span].tolist():
        yield "values of its sparse_vector are not those of the sparse stage's row"
