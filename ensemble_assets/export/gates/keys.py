"""Gate ``legacy_keys``: every key of v4.0, its type and its place, in every record of every file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from ensemble_assets.core.errors import ArtefactError
from ensemble_assets.core.legacy_metadata import LOADER_KEYS
from ensemble_assets.export.gates.reading import (
    EXPORT_AGAIN,
    Bundle,
    Point,
    metadata_items,
    points,
    read_object,
    records,
    texts,
)
from ensemble_assets.export.gates.result import Findings, GateResult
from ensemble_assets.export.gates.shapes import (
    LOADER_KINDS,
    MANIFEST,
    PAYLOAD_TAIL,
    SPARSE_RECORD,
    SPARSE_STATS,
    STATS,
    mismatches,
)

_POINT_KEYS = ("id", "payload", "vectors")
_PRIVATE_USE = object()
_CONDITIONAL = {"sparse_vector", "modal_hint", "embedding_modal_hint", "document_id"}


def legacy_keys(bundle: Bundle) -> GateResult:
    """Every v4.0 key with its type and in its order, in every record, not a sample.

    A bundle whose manifest says v4.1 must also have all keys that the loader sets; older bundles may lack them.
    """
    found = Findings("legacy_keys")
    rows = 0
    try:
        for rows, (point, metadata) in enumerate(zip_longest(points(bundle), metadata_items(bundle)), start=1):
            _add(found, _point_mismatches(bundle, rows - 1, point, metadata))
    except ArtefactError as error:
        found.add(str(error))
    _check_sparse_file(bundle, found)
    _check_texts(bundle, found)
    _check_object(bundle.names.of("stats.json"), bundle, found)
    _add(found, mismatches(bundle.manifest, MANIFEST, "manifest", ordered=False) if bundle.manifest else iter(()))
    return found.result(records=rows)


def _add(found: Findings, sentences: Iterator[str]) -> None:
    for sentence in sentences:
        found.add(f"{sentence}. {EXPORT_AGAIN}")


def _point_mismatches(bundle: Bundle, row: int, point: Point | None, metadata: dict[str, Any] | None) -> Iterator[str]:
    where = f"{bundle.names.of('qdrant.jsonl')}, line {row + 1}"
    if point is None or metadata is None:  # a file that is shorter or a line that is broken: row_alignment counts them
        if point is None:
            yield f"{where}: is no point"
        if metadata is None:
            yield f"{bundle.names.of('metadata.json')}, item {row}: is no object"
        return
    if point.keys[:3] != _POINT_KEYS:
        yield f"{where}: expected the keys {list(_POINT_KEYS)}, found others"
    if not isinstance(point.row, int) or isinstance(point.row, bool):
        yield f"{where}, key 'id': expected an integer, found {type(point.row).__name__}"
    if point.payload is None:
        yield f"{where}, key 'payload': expected an object"
        return
    yield from mismatches(point.payload, PAYLOAD_TAIL, f"{where}, payload", ordered=False)
    yield from _order_mismatches(point.payload, metadata, f"{where}, payload")
    yield from _model_mismatches(point, f"{where}, payload")
    yield from _loader_mismatches(metadata, f"{bundle.names.of('metadata.json')}, item {row}", bundle.version == "v4.1")
    yield from _live_mismatches(point.payload, f"{where}, payload", bundle.sparse_on)


def _order_mismatches(payload: dict[str, Any], metadata: dict[str, Any], where: str) -> Iterator[str]:
    """The chunk's own keys come first, in the order of the metadata file, then the point's."""
    own = list(metadata)
    if own and own[-1] == "sparse_vector":  # a live vector without an echo is added last to both objects
        own.pop()
    tail = [key.name for key in PAYLOAD_TAIL if key.name in payload]
    expected = list(dict.fromkeys([*own, *tail]))
    found = list(payload)
    if found[: len(expected)] == expected:
        return
    lost = [name for name in expected if name not in payload]
    if lost:
        new = [name for name in found if name not in expected]
        hint = f"; keys that v4.0 does not have: {len(new)}" if new else ""
        yield f"{where}: key {lost[0]!r} of the chunk's metadata is missing{hint}"
    else:
        position = next(i for i, name in enumerate(expected) if found[i] != name)
        yield f"{where}: expected key {expected[position]!r} at position {position}, found another: keys were reordered"


def _model_mismatches(point: Point, where: str) -> Iterator[str]:
    payload = point.payload or {}
    names, info = payload.get("dense_vector_names"), payload.get("model_info")
    vectors = point.vector_names
    if isinstance(names, list) and vectors != names:
        yield f"{where}: expected the {len(names)} names of dense_vector_names in vectors, in the same order"
    if isinstance(names, list) and names[:1] != [payload.get("primary_vector_name")]:
        yield f"{where}: expected primary_vector_name to be the first of dense_vector_names"
    if not isinstance(info, dict) or not isinstance(names, list):
        return
    if info.get("name") != payload.get("primary_vector_name"):
        yield f"{where}: model_info.name and primary_vector_name differ"
    if info.get("version") != "v4":
        yield f"{where}: expected model_info.version 'v4'"
    widths = payload.get("companion_vector_dimensions", {})
    companions = info.get("companions", {})
    if list(widths) != names[1:] or list(companions) != names[1:]:
        yield f"{where}: expected the companions of dense_vector_names in model_info and companion_vector_dimensions"


def _loader_mismatches(metadata: dict[str, Any], where: str, complete: bool) -> Iterator[str]:
    for name in LOADER_KEYS:
        value = metadata.get(name, _PRIVATE_USE)
        if value is _PRIVATE_USE:
            if complete and name not in _CONDITIONAL:
                yield f"{where}: key {name!r} is missing"
        elif name in LOADER_KINDS and not LOADER_KINDS[name].holds(value):
            yield f"{where}, key {name!r}: expected {LOADER_KINDS[name].words}, found {type(value).__name__}"


def _live_mismatches(payload: dict[str, Any], where: str, sparse_on: bool) -> Iterator[str]:
    vector = payload.get("sparse_vector")
    stats = vector.get("stats") if isinstance(vector, dict) else None
    if isinstance(stats, dict):
        expected = ("source", "model", "index_space") if sparse_on else ()
        added = tuple(stats)[len(SPARSE_STATS) :]
        if added[: len(expected)] != expected or (not sparse_on and added):
            yield f"{where}, key 'sparse_vector', stats: expected {list(expected)} after the v4.0 keys"


def _check_sparse_file(bundle: Bundle, found: Findings) -> None:
    path = bundle.path("sparse.jsonl")
    for number, record in enumerate(records(path) if path.is_file() else (), start=1):
        where = f"{path.name}, line {number}"
        if record is None:
            found.add(f"{where}: is no JSON object. {EXPORT_AGAIN}")
            continue
        _add(found, mismatches(record, SPARSE_RECORD, where))
        stats = record.get("stats")
        if isinstance(stats, dict) and stats:
            _add(found, mismatches(stats, SPARSE_STATS, f"{where}, key 'stats'"))


def _check_texts(bundle: Bundle, found: Findings) -> None:
    try:
        for row, text in enumerate(texts(bundle)):
            if not isinstance(text, str):
                kind = type(text).__name__
                found.add(
                    f"{bundle.names.of('texts.json')}, item {row}: expected a string, found {kind}. {EXPORT_AGAIN}"
                )
    except ArtefactError as error:
        found.add(str(error))


def _check_object(name: str, bundle: Bundle, found: Findings) -> None:
    try:
        _add(found, mismatches(read_object(bundle.folder / name), STATS, name))
    except ArtefactError as error:
        found.add(str(error))
