"""Gate ``dense_parity``: dense content is byte-identical to v4.0.

Every v4.0 file with both stages off, else the arrays, the index, the texts and the text of every vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.file_difference import equal_bytes, first_difference, first_unequal_byte
from ensemble_assets.export.checks.result import Findings, GateResult
from ensemble_assets.export.checks.v40_records import Original, plain
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, open_bundle
from ensemble_assets.export.write.faiss_file import flat_index_parts
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.stats import SparseCounts
from ensemble_assets.export.write.upload_script import upload_script
from ensemble_assets.export.write.v40_files import array_parts, statistics_text

_NO_ORIGINAL = "neither the chunks that the bundle was made of nor another bundle were given"


class DenseParity:
    """Bytes of v4.0, row by row and file by file."""

    def __init__(self, walk: Walk, original: Original) -> None:
        self._walk = walk
        self._original = original
        self._bundle = walk.bundle
        self._found = Findings("dense_parity")
        self._everything = original.inputs is not None and not walk.bundle.sparse_on
        self._lengths = dict.fromkeys(("qdrant.jsonl", "metadata.json", "texts.json", "sparse.jsonl"), 0)
        self._unequal: dict[str, int] = {}
        self._echoed = 0

    def see(self, row: Row) -> None:
        """Compare the texts of the row with those that v4.0 writes."""
        expected = row.expected
        if row.line is not None and row.vectors is not None and not row.vectors_are_expected:
            self._found.add(
                f"{self._bundle.names.of('qdrant.jsonl')}, line {row.number + 1}: vectors are not written as v4.0 "
                f"writes them. {EXPORT_AGAIN}"
            )
        if expected is None:
            return
        self._echoed += expected.echo is not None
        self._compare("texts.json", row.number, row.text_item, expected.text)
        if self._everything and row.vectors is not None:
            point = b'{"id": %d, "payload": %b, "vectors": %b}\n' % (
                row.number,
                expected.payload_gap.whole,
                row.vectors,
            )
            self._compare("qdrant.jsonl", row.number, row.line, point)
            self._compare("metadata.json", row.number, row.item, expected.metadata_gap.whole)
            if row.sparse_line is not None:
                self._compare("sparse.jsonl", row.number, row.sparse_line, expected.sparse_line)

    def _compare(self, content: str, row: int, found: bytes | None, expected: bytes) -> None:
        self._lengths[content] += len(expected)
        if found != expected:
            self._unequal.setdefault(content, row)

    def result(self) -> GateResult:
        """The verdict; looks at the other files first."""
        if self._walk.vectors.problem:
            self._found.add(f"{self._walk.vectors.problem}. {EXPORT_AGAIN}")
        try:
            if self._original.inputs is not None:
                compared = self._compare_files(self._original.inputs)
            elif self._original.against is not None:
                compared = self._compare_with(self._original.against)
            else:
                self._found.note(f"{_NO_ORIGINAL}: compared the vectors of the points with the arrays only")
                compared = 0
        except (ArtefactError, ContractError) as error:
            self._found.add(str(error))
            compared = 0
        return self._found.result(files_compared=compared)

    def _compare_files(self, inputs: BundleInputs) -> int:
        for content in self._record_files():
            self._compare_lengths(content)
        parts = self._parts(inputs)
        for name, pieces in parts.items():
            path = self._bundle.folder / name
            if not path.is_file():
                self._found.add(f"{name}: is missing, v4.0 writes it. {EXPORT_AGAIN}")
            elif (offset := first_unequal_byte(path, pieces)) is not None:
                self._found.add(f"{name}: differs from byte {offset} on. {EXPORT_AGAIN}")
        return len(parts) + len(self._record_files())

    def _record_files(self) -> list[str]:
        if not self._everything:
            return ["texts.json"]
        return [content for content in self._lengths if content != "sparse.jsonl" or self._echoed]

    def _compare_lengths(self, content: str) -> None:
        """Rows were compared one by one; what stands between and around them shows in the length of the file."""
        path, count = self._bundle.path(content), self._walk.rows
        around = 0
        if content.endswith(".json"):
            around = len(b"[\n  ") + len(b",\n  ") * (count - 1) + len(b"\n]") if count else len(b"[]")
        if not path.is_file():
            self._found.add(f"{path.name}: is missing, v4.0 writes it. {EXPORT_AGAIN}")
        elif content in self._unequal:
            self._found.add(f"{path.name}, record {self._unequal[content]}: differs from v4.0's. {EXPORT_AGAIN}")
        elif path.stat().st_size != self._lengths[content] + around:
            self._found.add(f"{path.name}: has bytes between or after its records. {EXPORT_AGAIN}")

    def _parts(self, inputs: BundleInputs) -> dict[str, Iterator[bytes | memoryview]]:
        """What v4.0 writes beside the records, by file name."""
        names, primary = self._bundle.names, inputs.primary
        parts: dict[str, Iterator[bytes | memoryview]] = {
            names.vectors() if model is primary else names.vectors(model.slug): array_parts(model.vectors)
            for model in inputs.dense
        }
        if self._bundle.path("index.faiss").is_file():
            parts[names.of("index.faiss")] = flat_index_parts(primary.vectors)
        if self._everything:
            counts = SparseCounts(self._walk.rows, self._echoed)
            parts[names.of("stats.json")] = iter((statistics_text(plain(inputs), counts),))
            parts[names.of("upload_script.py")] = iter((upload_script(inputs).encode(),))
        return parts

    def _compare_with(self, against: Path) -> int:
        other, mine = open_bundle(against).names.prefix, self._bundle.names.prefix
        names = sorted(file.name.removeprefix(other) for file in against.glob(f"{other}_*"))
        dense = [name for name in names if name.endswith("_embeddings.npy") or name in {"_index.faiss", "_texts.json"}]
        for name in dense:
            file, expected = self._bundle.folder / f"{mine}{name}", against / f"{other}{name}"
            if not file.is_file():
                self._found.add(f"{file.name}: is missing, v4.0 writes it. {EXPORT_AGAIN}")
            elif not equal_bytes(file, expected):
                self._found.add(f"{first_difference(file, expected)}. {EXPORT_AGAIN}")
        return len(dense)
