"""Judge that a bundle, without the additions of v4.1, is the v4.0 bundle of the same chunks and vectors.

Two bundles are compared record by record. The judged one is also compared with the records that ``v40_reference`` makes
of its metadata, texts and arrays. Time stamps may differ.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks import v40_reference as reference
from ensemble_assets.export.checks.bundle_walk import RECORD_FILES, Row, Walk
from ensemble_assets.export.checks.result import Findings, GateResult, key_shown
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Bundle, DenseArrays, Point, read_object

NAME = "v40_parity"

_REPAIR = f"{EXPORT_AGAIN}, or repair the writer if a fresh export differs too"
_CLOCKS = frozenset({"kaggle_export_timestamp", "kaggle_processing_timestamp", "export_timestamp"})


def v40_parity(bundle: Bundle, other: Bundle) -> GateResult:
    """Judge ``bundle`` by another bundle of the same chunks and vectors."""
    findings = Findings(NAME)
    side, other_side = _Side(bundle), _Side(other)
    for row, other_row in zip_longest(Walk(bundle), Walk(other)):
        if row is None or other_row is None:
            state = "has fewer records than the other bundle" if row is None else "has more records"
            findings.add(f"{bundle.folder.name}: {state}. {_REPAIR}")
            break
        records, expected = side.records(row), other_side.records(other_row)
        for content in RECORD_FILES:
            ends = list(side.problems(content, row))
            if content in records and content in expected:
                ends.append(_difference(records[content], expected[content], _CLOCKS))
            for end in filter(None, ends):
                findings.add(f"{bundle.names.file(content)}, record {row.number}{end}. {_REPAIR}")
    for sentence in (*_statistics_problems(bundle, other), *_file_problems(bundle, other)):
        findings.add(f"{sentence}. {_REPAIR}")
    if side.has_sparse_file != other_side.has_sparse_file:
        state = "v4.0 does not write it" if side.has_sparse_file else "is missing"
        findings.add(f"{bundle.names.file('sparse.jsonl')}: {state}. {_REPAIR}")
    return findings.result(rows=side.rows)


class _Side:
    """One of the two bundles, as v4.0 has it."""

    def __init__(self, bundle: Bundle) -> None:
        self.rows = 0
        self._bundle = bundle
        self._sparse_on = bundle.is_on("sparse")
        self._echoes = 0
        self._arrays = DenseArrays(bundle)

    @property
    def has_sparse_file(self) -> bool:
        """Whether v4.0 has a sparse file, after the last row."""
        return self._echoes > 0 if self._sparse_on else self._bundle.path("sparse.jsonl").is_file()

    def records(self, row: Row) -> dict[str, Any]:
        """Give v4.0's records of a row by content; a record that cannot be read is None."""
        self.rows += 1
        echo = reference.without_additions(row.payload).get("sparse_vector")
        self._echoes += isinstance(echo, dict)
        records = {
            "qdrant.jsonl": _v40_point(row.point),
            "metadata.json": reference.without_additions(row.metadata) if row.metadata is not None else None,
            "texts.json": row.text,
        }
        if self._sparse_on:
            records["sparse.jsonl"] = reference.sparse_record(row.number, echo if isinstance(echo, dict) else None)
        elif row.sparse_line is not None:
            records["sparse.jsonl"] = row.sparse
        return records

    def problems(self, content: str, row: Row) -> Iterator[str]:
        """Compare a record with the reference: its values and its text. Empty where they agree."""
        if content == "qdrant.jsonl":
            yield from self._point_problems(row)
        elif content == "metadata.json":
            yield _unless(row.item == reference.json_item(row.metadata))
        elif content == "texts.json":
            yield _unless(row.text_item == reference.json_item(row.text))
        elif row.sparse_line is not None:
            record: Any = row.sparse
            if not self._sparse_on:
                record = reference.sparse_record(row.number, row.payload.get("sparse_vector"))
            yield _unless(row.sparse_line == reference.json_line(record))

    def _point_problems(self, row: Row) -> Iterator[str]:
        point, metadata, models = row.point, row.metadata, _models(row.payload)
        if point is None or metadata is None or not isinstance(row.text, str) or not models:
            yield ": is no point"
            return
        whole = {"id": point.row, "payload": point.payload, "vectors": point.vectors, **point.others}
        yield _unless(row.line == reference.json_line(whole))
        vectors: dict[str, list[float]] = {}
        for position, model in enumerate(models):
            array = self._arrays.vectors(model.slug, primary=position == 0)
            if array is None or row.number >= len(array):
                yield f": there is no row of an array for vector {position}"
                return
            vectors[model.slug] = array[row.number].tolist()
        clock = row.payload.get("kaggle_export_timestamp", "")
        plain = reference.without_additions(metadata)
        yield _difference(_v40_point(point), reference.point(row.number, plain, row.text, models, clock, vectors))


def _unless(as_written: bool) -> str:
    return "" if as_written else ": is not as v4.0 writes it"


def _v40_point(point: Point | None) -> dict[str, Any] | None:
    if point is None:
        return None
    return {"id": point.row, "payload": reference.without_additions(point.payload or {}), "vectors": point.vectors}


def _models(payload: dict[str, Any]) -> list[reference.Model]:
    """Read the models that a payload names; empty if it does not name them as v4.0 does."""
    try:
        info = payload["model_info"]
        described = {info["name"]: info, **info.get("companions", {})}
        return [reference.Model(slug, each["hf_model_id"], each["dimension"]) for slug, each in described.items()]
    except (KeyError, TypeError, AttributeError):
        return []


def _statistics_problems(bundle: Bundle, other: Bundle) -> Iterator[str]:
    name = bundle.names.file("stats.json")
    try:
        path = bundle.path("stats.json")
        statistics, expected = read_object(path), read_object(other.path("stats.json"))
    except ArtefactError as error:
        yield str(error)
        return
    spelling = _unless(path.read_bytes() == reference.json_document(statistics))
    for content in (statistics, expected):
        section = content.get("sparse_vector_stats")
        if isinstance(section, dict):
            section.pop("live", None)
    for end in filter(None, (spelling, _difference(statistics, expected, _CLOCKS))):
        yield f"{name}{end}"


def _file_problems(bundle: Bundle, other: Bundle) -> Iterator[str]:
    """Compare the arrays, and the indexes where both bundles have one, byte by byte."""
    mine, theirs = bundle.names.prefix, other.names.prefix
    endings = {path.name.removeprefix(mine) for path in bundle.folder.glob(f"{mine}_*embeddings.npy")}
    endings |= {path.name.removeprefix(theirs) for path in other.folder.glob(f"{theirs}_*embeddings.npy")}
    if bundle.path("index.faiss").is_file() and other.path("index.faiss").is_file():
        endings.add("_index.faiss")
    for ending in sorted(endings):
        path, other_path = bundle.folder / f"{mine}{ending}", other.folder / f"{theirs}{ending}"
        if not (path.is_file() and other_path.is_file()):
            yield f"{path.name}: is {'missing' if other_path.is_file() else 'not in the other bundle'}"
        elif not filecmp.cmp(path, other_path, shallow=False):
            yield f"{path.name}: has other bytes than in the other bundle"


def _difference(value: Any, expected: Any, ignored: frozenset[str] = frozenset()) -> str:
    """Say where two values differ first, as the end of a sentence (``, key 'a', key 'b': ...``); empty if nowhere."""
    if isinstance(value, dict) and isinstance(expected, dict):
        return _object_difference(value, expected, ignored)
    if isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        if value == expected and {float}.issuperset(map(type, value + expected)):
            return ""  # vectors are long, so they are compared at once
        for position, pair in enumerate(zip(value, expected, strict=True)):
            if end := _difference(*pair, ignored):
                return f", position {position}{end}"
        return ""
    if type(value) is not type(expected):
        return f": expected {type(expected).__name__}, found {type(value).__name__}"
    return "" if value == expected or repr(value) == repr(expected) else ": has another value than v4.0 has"


def _object_difference(value: dict[str, Any], expected: dict[str, Any], ignored: frozenset[str]) -> str:
    for key in (key for key in expected if key not in ignored):
        if key not in value:
            return f", key {key_shown(key)}: is missing"
        if end := _difference(value[key], expected[key], ignored):
            return f", key {key_shown(key)}{end}"
    for position, key in enumerate(value):
        if key not in expected:  # its name may be anybody's text
            return f", key at position {position}: v4.0 does not have it"
    return "" if list(value) == list(expected) else ": its keys are in another order than v4.0 has them"
