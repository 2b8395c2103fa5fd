"""Gate ``legacy_keys``: every key of v4.0, its type and its place, in every record of every file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensemble_assets.collection.legacy_metadata import LOADER_KEYS
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.key_tables import (
    LOADER_KINDS,
    MANIFEST,
    PAYLOAD_TAIL,
    SPARSE_RECORD,
    SPARSE_STATS,
    STATS,
    fits,
    mismatches,
)
from ensemble_assets.export.checks.result import Findings, GateResult, key_shown
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Bundle, Point, read_object

_POINT_KEYS = ("id", "payload", "vectors")
_ABSENT = object()
_CONDITIONAL = {"sparse_vector", "modal_hint", "embedding_modal_hint", "document_id"}
_REQUIRED = frozenset(LOADER_KEYS) - _CONDITIONAL
_TAIL_NAMES = tuple(key.name for key in PAYLOAD_TAIL)


class LegacyKeys:
    """Every v4.0 key with its type and in its order, in every record, not a sample.

    A bundle whose manifest says v4.1 must also have all keys that the loader sets; older bundles may lack them.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._bundle = walk.bundle
        self._found = Findings("legacy_keys")
        self._has_sparse_file = walk.bundle.path("sparse.jsonl").is_file()
        self._complete = walk.bundle.version == "v4.1"
        self._sparse_on = walk.bundle.sparse_on

    def see(self, row: Row) -> None:
        """Look at a row: point, metadata, text and sparse record."""
        if not self._is_sound(row):
            _add(self._found, _point_mismatches(self._bundle, row.number, row.point, row.metadata))
        if row.text_item is not None and not isinstance(row.text, str):
            kind = type(row.text).__name__
            name = self._bundle.names.of("texts.json")
            self._found.add(f"{name}, item {row.number}: expected a string, found {kind}. {EXPORT_AGAIN}")
        if row.sparse_line is not None:
            _add(self._found, self._sparse_mismatches(row))

    def _is_sound(self, row: Row) -> bool:
        """Whether there is nothing to say, found out without making a sentence."""
        point, metadata = row.point, row.metadata
        if point is None or metadata is None or point.payload is None or point.keys[:3] != _POINT_KEYS:
            return False
        return (
            type(point.row) is int
            and fits(point.payload, PAYLOAD_TAIL, ordered=False)
            and _in_order(point.payload, metadata)
            and not any(_model_mismatches(point, row.vectors_are_expected, self._walk.vectors.names, ""))
            and (not self._complete or metadata.keys() >= _REQUIRED)
            and all(kind.holds(metadata[name]) for name, kind in LOADER_KINDS.items() if name in metadata)
            and not any(_live_mismatches(point.payload, "", self._sparse_on))
        )

    def _sparse_mismatches(self, row: Row) -> Iterator[str]:
        where = f"{self._bundle.names.of('sparse.jsonl')}, line {row.number + 1}"
        record = row.sparse
        if record is None:
            yield f"{where}: is no JSON object"
            return
        stats = record.get("stats")
        if not fits(record, SPARSE_RECORD):
            yield from mismatches(record, SPARSE_RECORD, where)
        if isinstance(stats, dict) and stats and not fits(stats, SPARSE_STATS):
            yield from mismatches(stats, SPARSE_STATS, f"{where}, key 'stats'")

    def result(self) -> GateResult:
        """The verdict; looks at the statistics and the manifest first."""
        for sentence in self._walk.problems:
            self._found.add(sentence)
        _check_object(self._bundle.names.of("stats.json"), self._bundle, self._found)
        manifest = self._bundle.manifest
        _add(self._found, mismatches(manifest, MANIFEST, "manifest", ordered=False) if manifest else iter(()))
        return self._found.result(records=self._walk.rows)


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
    yield from _model_mismatches(point, False, [], f"{where}, payload")
    yield from _loader_mismatches(metadata, f"{bundle.names.of('metadata.json')}, item {row}", bundle.version == "v4.1")
    yield from _live_mismatches(point.payload, f"{where}, payload", bundle.sparse_on)


def _expected_order(payload: dict[str, Any], metadata: dict[str, Any]) -> list[str]:
    """The chunk's own keys come first, in the order of the metadata file, then the point's."""
    own = list(metadata)
    if own and own[-1] == "sparse_vector":  # a live vector without an echo is added last to both objects
        own.pop()
    return list(dict.fromkeys([*own, *(name for name in _TAIL_NAMES if name in payload)]))


def _in_order(payload: dict[str, Any], metadata: dict[str, Any]) -> bool:
    expected = _expected_order(payload, metadata)
    return list(payload)[: len(expected)] == expected


def _order_mismatches(payload: dict[str, Any], metadata: dict[str, Any], where: str) -> Iterator[str]:
    if _in_order(payload, metadata):
        return
    expected, found = _expected_order(payload, metadata), list(payload)
    lost = [name for name in expected if name not in payload]
    if lost:
        new = [name for name in found if name not in expected]
        hint = f"; keys that v4.0 does not have: {len(new)}" if new else ""
        yield f"{where}: key {key_shown(lost[0])} of the chunk's metadata is missing{hint}"
    else:
        position = next(i for i, name in enumerate(expected) if found[i] != name)
        wanted = f"key {key_shown(expected[position])} at position {position}"
        yield f"{where}: expected {wanted}, found another: keys were reordered"


def _model_mismatches(point: Point, expected: bool, written: list[str], where: str) -> Iterator[str]:
    """What ``payload`` says of models against itself and the vectors, whose names are ``written`` if ``expected``."""
    payload = point.payload or {}
    names, info = payload.get("dense_vector_names"), payload.get("model_info")
    vectors = written if expected else point.vector_names
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
        value = metadata.get(name, _ABSENT)
        if value is _ABSENT:
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


def _check_object(name: str, bundle: Bundle, found: Findings) -> None:
    try:
        _add(found, mismatches(read_object(bundle.folder / name), STATS, name))
    except ArtefactError as error:
        found.add(str(error))
