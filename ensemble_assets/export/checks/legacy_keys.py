"""Gate ``bundle_format``: every key of v4.0, its type and place, in every record of every file, and its spelling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ensemble_assets.collection.legacy_metadata import LOADER_KEYS
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks import key_tables as tables
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.result import Findings, GateResult, key_shown
from ensemble_assets.export.checks.spelling import spelling_problems
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, read_object
from ensemble_assets.export.write.names import MANIFEST_NAME

_POINT_KEYS = ("id", "payload", "vectors")
_CONDITIONAL = {"sparse_vector", "modal_hint", "embedding_modal_hint", "document_id"}
_REQUIRED = tuple(name for name in LOADER_KEYS if name not in _CONDITIONAL)
_TAIL_NAMES = tuple(key.name for key in tables.PAYLOAD_TAIL)
_ADDED_STATS = ("source", "model", "index_space")


def judge_manifest_keys(manifest: Mapping[str, Any], findings: Findings) -> None:
    """Judge the keys and types of the manifest; their order is free."""
    for end in tables.mismatches(manifest, tables.MANIFEST, ordered=False):
        findings.add(f"manifest{end}. {EXPORT_AGAIN}")


class LegacyKeys:
    """Judge every v4.0 key with its type and its place in every record, and how the record is written.

    A bundle whose manifest says v4.1 must also have all keys that the loader sets; older bundles may lack them.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._names = walk.bundle.names
        self._findings = Findings("bundle_format")
        self._complete = walk.bundle.version == "v4.1"
        self._sparse_on = walk.bundle.is_on("sparse")
        self._without_manifest = not walk.bundle.manifest

    def see(self, row: Row) -> None:
        """Judge point, metadata, text and sparse record of a row."""
        if row.stated is not None:
            return
        file, item = self._names.file, f"item {row.number}"
        self._add(f"{file('qdrant.jsonl')}, line {row.number + 1}", self._point_problems(row))
        self._add(f"{file('metadata.json')}, {item}", self._loader_problems(row.metadata))
        if row.text_item is not None and not isinstance(row.text, str):
            self._add(f"{file('texts.json')}, {item}", [f": expected a string, found {type(row.text).__name__}"])
        if row.sparse_line is not None:
            self._add(f"{file('sparse.jsonl')}, line {row.number + 1}", _sparse_problems(row.sparse))
        for content in spelling_problems(row):
            self._add(f"{file(content)}, record {row.number}", [": is not as v4.0 writes it"])

    def result(self) -> GateResult:
        """Judge the statistics and the manifest, and give the result."""
        for sentence in self._walk.problems:
            self._findings.add(sentence)
        bundle = self._walk.bundle
        try:
            statistics = read_object(bundle.path("stats.json"))
            self._add(self._names.file("stats.json"), tables.mismatches(statistics, tables.STATS))
        except ArtefactError as error:
            self._findings.add(str(error))
        again, manifest = bundle.path(MANIFEST_NAME), bundle.folder / MANIFEST_NAME
        if again.is_file() and manifest.is_file() and again.read_bytes() != manifest.read_bytes():
            self._findings.add(f"{again.name}: has other bytes than {MANIFEST_NAME}. {EXPORT_AGAIN}", "WARN")
        if bundle.manifest:
            judge_manifest_keys(bundle.manifest, self._findings)
        return self._findings.result(records=self._walk.rows)

    def _add(self, where: str, ends: Iterable[str]) -> None:
        for end in ends:
            self._findings.add(f"{where}{end}. {EXPORT_AGAIN}")

    def _point_problems(self, row: Row) -> Iterator[str]:
        point = row.point
        if point is None:
            yield ": is no point"
            return
        if point.keys[:3] != _POINT_KEYS:
            yield f": expected the keys {list(_POINT_KEYS)}, found others"
        if not isinstance(point.row, int) or isinstance(point.row, bool):
            yield f", key 'id': expected an integer, found {type(point.row).__name__}"
        if point.payload is None:
            yield ", key 'payload': expected an object"
            return
        for end in self._payload_problems(point.payload, row.vector_names, row.metadata):
            yield f", payload{end}"

    def _payload_problems(
        self, payload: dict[str, Any], vectors: list[str], metadata: dict[str, Any] | None
    ) -> Iterator[str]:
        yield from tables.mismatches(payload, tables.PAYLOAD_TAIL, ordered=False)
        if metadata is not None:
            yield from _order_problems(payload, metadata)
        yield from _model_problems(payload, vectors)
        vector = payload.get("sparse_vector")
        stats = vector.get("stats") if isinstance(vector, dict) else None
        if isinstance(stats, dict):
            added, expected = tuple(stats)[len(tables.SPARSE_STATS) :], _ADDED_STATS if self._sparse_on else ()
            if added[: len(expected)] != expected or (added and not self._sparse_on):
                yield (
                    f", key 'sparse_vector', stats: has keys of v4.1, but there is no {MANIFEST_NAME}"
                    if self._without_manifest
                    else f", key 'sparse_vector', stats: expected {list(expected)} after the v4.0 keys"
                )

    def _loader_problems(self, metadata: dict[str, Any] | None) -> Iterator[str]:
        if metadata is None:
            yield ": is no object"
            return
        for name in _REQUIRED if self._complete else ():
            if name not in metadata:
                yield f": key {name!r} is missing"
        for name, kind in tables.LOADER_KINDS.items():
            if name in metadata and not kind.holds(metadata[name]):
                yield f", key {name!r}: expected {kind.words}, found {type(metadata[name]).__name__}"


def _order_problems(payload: dict[str, Any], metadata: dict[str, Any]) -> Iterator[str]:
    """Expect the chunk's own keys first, in the order of the metadata file, then the point's."""
    own = list(metadata)
    if own and own[-1] == "sparse_vector":  # a live vector without an echo is added last to both objects
        own.pop()
    expected = list(dict.fromkeys([*own, *(name for name in _TAIL_NAMES if name in payload)]))
    names = list(payload)
    lost = [name for name in expected if name not in payload]
    if lost:
        yield f": key {key_shown(lost[0])} of the chunk's metadata is missing"
    elif names[: len(expected)] != expected:
        position = next(i for i, name in enumerate(expected) if names[i] != name)
        wanted = f"key {key_shown(expected[position])} at position {position}"
        yield f": expected {wanted}, found another: keys were reordered"


def _model_problems(payload: dict[str, Any], vectors: list[str]) -> Iterator[str]:
    """Compare the payload's words on models with one another and with the names of the vectors."""
    names, info = payload.get("dense_vector_names"), payload.get("model_info")
    if not isinstance(names, list):
        return
    if vectors != names:
        yield f": expected the {len(names)} names of dense_vector_names in vectors, in the same order"
    if names[:1] != [payload.get("primary_vector_name")]:
        yield ": expected primary_vector_name to be the first of dense_vector_names"
    if not isinstance(info, dict):
        return
    if info.get("name") != payload.get("primary_vector_name"):
        yield ": model_info.name and primary_vector_name differ"
    widths = payload.get("companion_vector_dimensions", {}) if names[1:] else {}
    companions = (info.get("companions", {}), widths)
    if any(not isinstance(value, dict) or list(value) != names[1:] for value in companions) or not {int}.issuperset(
        map(type, widths.values())
    ):
        yield ": expected the companions of dense_vector_names in model_info and companion_vector_dimensions"


def _sparse_problems(record: dict[str, Any] | None) -> Iterator[str]:
    if record is None:
        yield ": is no JSON object"
        return
    yield from tables.mismatches(record, tables.SPARSE_RECORD)
    stats = record.get("stats")
    if isinstance(stats, dict) and stats:
        for end in tables.mismatches(stats, tables.SPARSE_STATS):
            yield f", key 'stats'{end}"
