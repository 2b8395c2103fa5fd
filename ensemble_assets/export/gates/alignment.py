"""Gate ``row_alignment``: chunks, vectors, sparse rows and points have the same ids in the same order in every file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.core.errors import ArtefactError
from ensemble_assets.core.legacy_metadata import ChunkRow
from ensemble_assets.export.encode import release
from ensemble_assets.export.gates.reading import (
    EXPORT_AGAIN,
    Bundle,
    Point,
    metadata_items,
    open_vectors,
    points,
    records,
    texts,
)
from ensemble_assets.export.gates.result import Findings, GateResult, shown
from ensemble_assets.export.gates.shapes import PAYLOAD_TAIL
from ensemble_assets.export.inputs import BundleInputs, LiveSparse
from ensemble_assets.export.v40 import PREVIEW_CHARACTERS

_MISSING = object()
_OF_THE_POINT = {key.name for key in PAYLOAD_TAIL}
_ROWS_BETWEEN_RELEASES = 1024


def row_alignment(bundle: Bundle, inputs: BundleInputs | None = None) -> GateResult:
    """Row i of every file is about chunk i.

    Args:
        bundle: the folder.
        inputs: the chunks and arrays that it was made of; each row is then compared with them too.
    """
    found = Findings("row_alignment")
    if inputs is None:
        found.note("compared the files with one another only: the chunks that the bundle was made of were not given")
    arrays = _Arrays(bundle, inputs, found)
    sparse = bundle.path("sparse.jsonl")
    streams = (
        points(bundle),
        metadata_items(bundle),
        texts(bundle),
        records(sparse) if sparse.is_file() else (),
        inputs.rows() if inputs else (),
    )
    row, vectors = -1, 0
    try:
        for row, parts in enumerate(zip_longest(*streams, fillvalue=_MISSING)):
            present = [part is not _MISSING for part in parts]
            expected = [True, True, True, sparse.is_file(), inputs is not None]
            if present != expected:
                names = ("qdrant.jsonl", "metadata.json", "texts.json", "sparse.jsonl", "the chunks")
                lacking = [name for name, has, wanted in zip(names, present, expected, strict=True) if wanted > has]
                found.add(f"chunk row {row} is missing in {', '.join(lacking)}: a record was dropped. {EXPORT_AGAIN}")
                break
            for sentence in _row_problems(row, parts, arrays, inputs):
                found.add(f"chunk row {row}: {sentence}. {EXPORT_AGAIN}")
            vectors += isinstance(parts[0], Point) and "sparse_vector" in (parts[0].payload or {})
    except ArtefactError as error:
        found.add(str(error))
    else:
        arrays.check_heights(row + 1)
        if bool(vectors) != sparse.is_file() and not bundle.sparse_on:
            state = "are" if vectors else "are no"
            found.add(f"there {state} sparse vectors in the points, which does not fit {sparse.name}. {EXPORT_AGAIN}")
    _check_lists(bundle, row + 1, found)
    return found.result(rows=row + 1)


class _Arrays:
    """The dense arrays of a bundle, by model, and those they were made of."""

    def __init__(self, bundle: Bundle, inputs: BundleInputs | None, found: Findings) -> None:
        self._found = found
        self._bundle = bundle
        self._inputs = inputs
        self._open: dict[str, NDArray[Any] | None] = {}
        self._upstream = {model.slug: model.vectors for model in inputs.dense} if inputs else {}

    def problems(self, row: int, point: Point) -> Iterator[str]:
        """How a point's vectors differ from row ``row`` of the arrays."""
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
                yield from self._vector_problems(row, name, values, array)
        if row % _ROWS_BETWEEN_RELEASES == 0:
            for opened in (*self._open.values(), *self._upstream.values()):
                if opened is not None:
                    release(opened)

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


def _row_problems(row: int, parts: tuple[Any, ...], arrays: _Arrays, inputs: BundleInputs | None) -> Iterator[str]:
    point, metadata, text, record, chunk = parts
    if point is None or point.payload is None or metadata is None:
        yield "a record of it is not readable"
        return
    if point.row != row:
        yield f"the point has id {shown(point.row)}, expected {row}"
    yield from _payload_problems(row, point.payload, metadata, text)
    yield from arrays.problems(row, point)
    if record is not _MISSING:
        yield from _sparse_problems(row, point.payload, record)
    if inputs is not None and isinstance(chunk, ChunkRow):
        yield from _chunk_problems(row, chunk, metadata, text, point.payload, inputs.sparse)


def _payload_problems(row: int, payload: dict[str, Any], metadata: dict[str, Any], text: Any) -> Iterator[str]:
    if "global_chunk_id" in metadata and metadata["global_chunk_id"] != row:
        yield f"metadata has global_chunk_id {shown(metadata['global_chunk_id'])}, expected {row}"
    if isinstance(text, str):
        if payload.get("text_preview") != text[:PREVIEW_CHARACTERS]:
            yield f"text_preview is not the first {PREVIEW_CHARACTERS} characters of its text"
        if payload.get("full_text_length") != len(text):
            yield f"full_text_length is {shown(payload.get('full_text_length'))}, its text has {len(text)} characters"
    for name, value in metadata.items():
        if name not in _OF_THE_POINT and payload.get(name, _MISSING) != value:
            yield f"payload key {name!r} is not what the metadata file has"
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
    if len({len(expected.get(name) or ()) for name in ("indices", "values", "tokens")}) > 1:
        yield "indices, values and tokens of its sparse_vector are not equally many"


def _chunk_problems(
    row: int, chunk: ChunkRow, metadata: dict[str, Any], text: Any, payload: dict[str, Any], sparse: LiveSparse | None
) -> Iterator[str]:
    if text != chunk.text:
        yield "the exported text is not the chunk's: rows were shifted or changed"
    own = json.loads(chunk.metadata)
    identity = own.get("chunk_id") if isinstance(own, dict) else None
    if identity is not None and metadata.get("chunk_id") != identity:
        yield "the exported chunk_id is not the chunk's"
    if sparse is not None:
        span = slice(int(sparse.indptr[row]), int(sparse.indptr[row + 1]))
        vector = payload.get("sparse_vector")
        vector = vector if isinstance(vector, dict) else {}
        if vector.get("indices", []) != sparse.indices[span].tolist():
            yield "indices of its sparse_vector are not those of the sparse stage's row"
        elif vector.get("values", []) != sparse.values[span].tolist():
            yield "values of its sparse_vector are not those of the sparse stage's row"


def _check_lists(bundle: Bundle, rows: int, found: Findings) -> None:
    """Reranked lists name points that exist, best first."""
    path = bundle.path("rerank.jsonl")
    for number, record in enumerate(records(path) if path.is_file() else (), start=1):
        where = f"{path.name}, line {number}"
        ids, ranks = (record or {}).get("point_ids"), (record or {}).get("ranks")
        if not isinstance(ids, list) or not isinstance(ranks, list):
            found.add(f"{where}: expected the lists point_ids and ranks. {EXPORT_AGAIN}")
        elif not all(isinstance(i, int) and 0 <= i < rows for i in ids) or ranks != list(range(1, len(ids) + 1)):
            found.add(f"{where}: expected ranks from 1 up and point_ids of existing chunks. {EXPORT_AGAIN}")
