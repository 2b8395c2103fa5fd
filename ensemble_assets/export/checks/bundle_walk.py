"""Walk once over all records of a bundle, so that the gates share the reading and the parsing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, Protocol

from ensemble_assets.artefacts.fast_json import parse_object, parse_value
from ensemble_assets.collection.legacy_metadata import ChunkRow
from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.read.bundle_reader import READ_BYTES, Bundle, DenseArrays, Point, list_items, parse_point
from ensemble_assets.export.write.inputs import BundleInputs

RECORD_FILES = ("qdrant.jsonl", "metadata.json", "texts.json", "sparse.jsonl")
"""The files with one record per chunk, in the order of ``Row``."""


class RowGate(Protocol):
    """A gate that reads row by row and keeps only its findings."""

    def see(self, row: Row) -> None:
        """Judge the next row."""

    def result(self) -> GateResult:
        """Give the result, after the last row."""


@dataclass
class Row:
    """The records of a bundle about one chunk, one from each of its four files; a gate parses the ones it needs.

    A record is None where its file has ended; ``chunk`` is None where no chunks were given or they have ended.
    ``stated`` is the metadata of a row whose records are as the contract states them; see ``stated_records``.
    """

    number: int
    line: bytes | None
    item: bytes | None
    text_item: bytes | None
    sparse_line: bytes | None
    chunk: ChunkRow | None
    arrays: DenseArrays
    stated: dict[str, Any] | None = None

    @cached_property
    def point(self) -> Point | None:
        """The point; None for a line that is no point."""
        return None if self.line is None else parse_point(self.line)

    @cached_property
    def payload(self) -> dict[str, Any]:
        """The point's payload; empty where there is none."""
        return (self.point.payload if self.point else None) or {}

    @cached_property
    def stored_vectors(self) -> tuple[str, ...]:
        """The models of the point's vectors, if these are the rows of the bundle's arrays as JSON writes them."""
        names, primary = (self.payload.get(key) for key in ("dense_vector_names", "primary_vector_name"))
        if self.point is None or not isinstance(names, list) or not {str}.issuperset(map(type, names)):
            return ()
        if names[:1] != [primary]:
            return ()
        same = self.arrays.text_of(self.number, tuple(names)) == self.point.vectors_text
        return tuple(names) if same else ()

    @property
    def vector_names(self) -> list[str]:
        """The models of the point's vectors, in order."""
        return list(self.stored_vectors or (self.point and self.point.vectors) or ())

    @cached_property
    def own(self) -> dict[str, Any] | None:
        """The chunk's own metadata; None without a chunk, or where it is no JSON object."""
        return None if self.chunk is None else parse_object(self.chunk.metadata.encode("utf-8", "surrogatepass"))

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        """The item of the metadata file; None for an item that is no object."""
        return None if self.item is None else parse_object(self.item)

    @cached_property
    def text(self) -> Any:
        """The item of the texts file; None for an item that is no JSON."""
        return None if self.text_item is None else parse_value(self.text_item)

    @cached_property
    def sparse(self) -> dict[str, Any] | None:
        """The line of the sparse file; None for a line that is no object."""
        return None if self.sparse_line is None else parse_object(self.sparse_line)


class Walk:
    """One pass over the record files of a bundle. ``problems`` has a sentence for every file that breaks off."""

    def __init__(self, bundle: Bundle, inputs: BundleInputs | None = None) -> None:
        self.bundle = bundle
        self.inputs = inputs
        self.arrays = DenseArrays(bundle)
        self.rows = 0
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[Row]:
        with ExitStack() as stack:
            streams = [self._records(content, stack) for content in RECORD_FILES]
            chunks = self._until_an_error(self.inputs.rows()) if self.inputs else iter(())
            for number, records in enumerate(zip_longest(*streams, chunks)):
                line, item, text_item, sparse_line, chunk = records
                self.rows = number + 1
                yield Row(number, line, item, text_item, sparse_line, chunk, self.arrays)

    def _records(self, content: str, stack: ExitStack) -> Iterator[bytes]:
        path = self.bundle.path(content)
        if content.endswith(".json"):
            return self._until_an_error(list_items(path))
        return stack.enter_context(path.open("rb", buffering=READ_BYTES)) if path.is_file() else iter(())

    def _until_an_error(self, stream: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from stream
        except (ArtefactError, ContractError) as error:
            self.problems.append(str(error))
