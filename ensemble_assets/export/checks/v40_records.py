"""Gate ``legacy_projection``: without what v4.1 adds, the records of a bundle are v4.0's, byte for byte.

The v4.0 records are made anew from the chunks and vectors where those are given, or taken from another bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.expected_rows import ExpectedRow, parse_vector
from ensemble_assets.export.checks.file_difference import CLOCK_KEYS, first_difference, record_difference
from ensemble_assets.export.checks.result import Findings, GateResult
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Bundle, open_bundle, read_object
from ensemble_assets.export.read.downgrade import project_to_v40, restore_echo
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.json_bytes import compact, indented
from ensemble_assets.export.write.sparse_section import NO_VECTOR, vector_of
from ensemble_assets.export.write.stats import SparseCounts
from ensemble_assets.export.write.v40_files import statistics_text

_RECORD_FILES = ("qdrant.jsonl", "metadata.json", "texts.json", "stats.json", "sparse.jsonl")
_NO_ORIGINAL = "neither the chunks that the bundle was made of nor another bundle were given"
_REPAIR = f"{EXPORT_AGAIN}, or repair the writer if a fresh export differs too"


@dataclass(frozen=True)
class Original:
    """What a bundle is held against.

    Attributes:
        bundle: the bundle to check.
        scratch: an empty folder; room for two v4.0 bundles where ``against`` is used.
        inputs: what the bundle was made of.
        against: another bundle of the same chunks and vectors; unused with ``inputs``.
    """

    bundle: Bundle
    scratch: Path
    inputs: BundleInputs | None = None
    against: Path | None = None


class LegacyProjection:
    """Dropping what v4.1 adds gives the v4.0 bundle: points, metadata, texts, sparse records and statistics."""

    def __init__(self, walk: Walk, original: Original) -> None:
        self._walk = walk
        self._original = original
        self._bundle = walk.bundle
        self._found = Findings("legacy_projection")
        self._echoed = 0
        self._has_sparse_file = walk.bundle.path("sparse.jsonl").is_file()
        self._sparse_on = walk.bundle.sparse_on

    def see(self, row: Row) -> None:
        """Compare the row's records with v4.0's."""
        if self._original.inputs is not None:
            self._see_expected(row)
        elif self._original.against is None and not self._sparse_on:
            self._see_itself(row)

    def _see_expected(self, row: Row) -> None:
        expected = row.expected
        if expected is None or row.line is None or row.item is None:
            self._say("qdrant.jsonl", row, "there are not as many records as chunks")
            return
        self._echoed += expected.echo is not None
        if row.point_fit is None or not self._is_v40_vector(row.point_fit.vector, expected):
            self._say("qdrant.jsonl", row, self._point_difference(row, expected))
        if row.item_fit is None:
            self._say("metadata.json", row, self._item_difference(row, expected))
        if not row.text_is_expected:
            self._say("texts.json", row, ": has another value than v4.0 has")
        if not self._sparse_on and row.sparse_line is not None and row.sparse_line != expected.sparse_line:
            sentence = record_difference(row.sparse, json.loads(expected.sparse_line))
            self._say("sparse.jsonl", row, sentence)

    def _is_v40_vector(self, vector: bytes, expected: ExpectedRow) -> bool:
        """Whether a point's sparse vector gives v4.0's when what v4.1 adds is dropped."""
        if vector == (expected.payload_gap.echo or b""):
            return True
        parsed = parse_vector(vector)
        stats = parsed.get("stats") if isinstance(parsed, dict) else None
        return self._sparse_on and isinstance(stats, dict) and "index_space" in stats

    def _point_difference(self, row: Row, expected: ExpectedRow) -> str:
        point = row.point
        if point is None or point.payload is None:
            return ": is no point"
        if not row.vectors_are_expected:
            return ", key 'vectors': has another value than v4.0 has"
        found = {"id": point.row, "payload": restore_echo(dict(point.payload))}
        return record_difference(found, {"id": row.number, "payload": expected.payload})

    def _item_difference(self, row: Row, expected: ExpectedRow) -> str:
        if row.metadata is None:
            return ": is no object"
        return record_difference(restore_echo(dict(row.metadata)), expected.metadata)

    def _see_itself(self, row: Row) -> None:
        """With nothing to compare with: v4.0 records must survive the projection as they are."""
        point, metadata = row.point, row.metadata
        if point is None or point.payload is None or metadata is None:
            return  # row_alignment says so
        echo = point.payload.get("sparse_vector")
        self._echoed += echo is not None
        if row.line != _line(point.row, restore_echo(dict(point.payload)), point.vectors):
            self._say("qdrant.jsonl", row, ": is not as v4.0 writes it")
        if row.item != indented(restore_echo(metadata), compact(metadata)).replace(b"\n", b"\n  "):
            self._say("metadata.json", row, ": is not as v4.0 writes it")
        if row.text_item != compact(row.text).encode("utf-8", "surrogatepass"):
            self._say("texts.json", row, ": is not as v4.0 writes it")
        if row.sparse_line is not None and row.sparse_line != _sparse_line(row.number, echo):
            self._say("sparse.jsonl", row, ": is not as v4.0 writes it")

    def _say(self, content: str, row: Row, difference: str) -> None:
        name = self._bundle.names.of(content)
        self._found.add(f"{name}, record {row.number}{difference}. {_REPAIR}")

    def result(self) -> GateResult:
        """The verdict; looks at the statistics, or at the other bundle, first."""
        if self._original.inputs is None and self._original.against is not None:
            return self._found.result(files_compared=self._compare_bundles(self._original.against))
        if self._original.inputs is None:
            self._found.note(f"{_NO_ORIGINAL}: checked that v4.0 files survive the projection as they are")
            return self._found.result(files_compared=0 if self._sparse_on else len(_RECORD_FILES))
        for sentence in self._walk.problems:
            self._found.add(sentence)
        self._compare_statistics(self._original.inputs)
        if not self._sparse_on and bool(self._echoed) != self._has_sparse_file:
            state = "v4.0 does not write it" if self._has_sparse_file else "is missing"
            self._found.add(f"{self._bundle.names.of('sparse.jsonl')}: {state}. {_REPAIR}")
        return self._found.result(files_compared=len(_RECORD_FILES) - (not self._has_sparse_file))

    def _compare_statistics(self, inputs: BundleInputs) -> None:
        path = self._bundle.path("stats.json")
        try:
            found = read_object(path)
            found.get("sparse_vector_stats", {}).pop("live", None)
            wanted = json.loads(statistics_text(plain(inputs), SparseCounts(self._walk.rows, self._echoed)))
        except (ArtefactError, AttributeError) as error:
            self._found.add(
                str(error) if isinstance(error, ArtefactError) else f"{path.name}: is not as v4.0 writes it"
            )
            return
        if compact(found) != compact(wanted):
            self._found.add(f"{path.name}, record 0{record_difference(found, wanted)}. {_REPAIR}")

    def _compare_bundles(self, against: Path) -> int:
        compared, scratch = 0, self._original.scratch
        try:
            project_to_v40(self._bundle.folder, scratch / "projected")
            project_to_v40(against, scratch / "expected")
            other = open_bundle(scratch / "expected").names
            for content in _RECORD_FILES:
                pair = scratch / "projected" / self._bundle.names.of(content), scratch / "expected" / other.of(content)
                compared += pair[0].is_file() or pair[1].is_file()
                for sentence in _differences(*pair):
                    self._found.add(f"{sentence}. {_REPAIR}")
        except (ArtefactError, ContractError) as error:
            self._found.add(str(error))
        return compared


def plain(inputs: BundleInputs) -> BundleInputs:
    """The inputs of the v4.0 bundle."""
    return replace(inputs, sparse=None)


def _differences(found: Path, expected: Path) -> Iterator[str]:
    """Where a file differs from that of another run, whose clock may be another."""
    if found.is_file() != expected.is_file():
        yield f"{found.name}: {'is missing' if expected.is_file() else 'v4.0 does not write it'}"
    elif found.is_file() and (sentence := first_difference(found, expected, CLOCK_KEYS)):
        yield sentence


def _line(row: Any, payload: dict[str, Any], vectors: bytes) -> bytes:
    opening = f'{{"id": {compact(row)}, "payload": {compact(payload)}, "vectors": '
    return opening.encode("utf-8", "surrogatepass") + vectors + b"}\n"


def _sparse_line(row: int, echo: Any) -> bytes | None:
    try:
        return f"{(vector_of(echo) if echo else NO_VECTOR).record(row)}\n".encode("utf-8", "surrogatepass")
    except (KeyError, TypeError):
        return None
