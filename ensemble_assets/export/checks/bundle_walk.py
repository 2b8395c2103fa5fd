"""Walks once over everything that a bundle says of each chunk, so that all gates share the reading and the parsing.

A gate is handed one row after another and keeps nothing of it but its findings. What a row must hold is the gates'
business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from itertools import zip_longest
from typing import Any, Protocol

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.checks.expected_rows import (
    ExpectedRow,
    Fit,
    expected_rows,
    is_indented,
    parse_vector,
    sparse_line_of,
)
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.vector_text import VectorTexts
from ensemble_assets.export.read.bundle_reader import Bundle, Point, list_items, parse_object, parse_point, parse_value
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.sparse_section import NO_VECTOR


class RowGate(Protocol):
    """A gate that looks at rows."""

    def see(self, row: Row) -> None:
        """Look at the next row."""

    def result(self) -> GateResult:
        """The verdict, after the last row."""


class Row:
    """What a bundle has for one chunk; parsed when a gate first asks, unless its text is the expected one.

    Attributes:
        number: row of the chunk, from 0.
        line: of the points file; None where that has ended. The other texts likewise.
        item: of the metadata file.
        text_item: of the texts file.
        sparse_line: of the sparse file.
        vectors: how the vectors of the point are to be written.
        expected: what v4.0 has for the chunk, where the chunks are known.
    """

    def __init__(self, number: int, texts: tuple[bytes | None, ...], vectors: bytes | None) -> None:
        self.number = number
        self.line, self.item, self.text_item, self.sparse_line = texts
        self.vectors = vectors
        self.expected: ExpectedRow | None = None
        self._vector: dict[str, Any] | None = None

    @cached_property
    def point_fit(self) -> Fit | None:
        """The point is the expected one, its sparse vector aside."""
        if self.expected is None or self.line is None or self.vectors is None:
            return None
        opening, closing = b'{"id": %d, "payload": ' % self.number, b', "vectors": %b}\n' % self.vectors
        if not (self.line.startswith(opening) and self.line.endswith(closing)):
            return None
        fit = self.expected.payload_gap.fit(self.line[len(opening) : len(self.line) - len(closing)])
        if fit is not None and fit.vector:
            parsed = parse_vector(fit.vector)
            if not isinstance(parsed, dict):
                return None
            self._vector = parsed
        return fit

    @cached_property
    def item_fit(self) -> Fit | None:
        """The item of the metadata file is the expected one, and its sparse vector is the point's."""
        if self.expected is None or self.item is None or self.point_fit is None:
            return None
        fit = self.expected.metadata_gap.fit(self.item)
        if fit is None or bool(fit.vector) != bool(self.point_fit.vector):
            return None
        return fit if self._vector is None or is_indented(self._vector, fit.vector) else None

    @cached_property
    def point(self) -> Point | None:
        """The point; None for a line that is none."""
        if self.line is None:
            return None
        if self.point_fit is None or self.expected is None or self.vectors is None:
            return parse_point(self.line)
        payload = self.expected.payload
        if self.point_fit.vector:
            payload = {**payload, "sparse_vector": self._vector}
        return Point(("id", "payload", "vectors"), self.number, payload, self.vectors)

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        """The item of the metadata file; None for what is no object."""
        if self.item is None:
            return None
        if self.item_fit is None or self.expected is None:
            return parse_object(self.item)
        if self.item_fit.vector:
            return {**self.expected.metadata, "sparse_vector": self._vector}
        return self.expected.metadata

    @cached_property
    def text(self) -> Any:
        """The item of the texts file; None for what is no JSON."""
        if self.text_item is None:
            return None
        return self.expected.chunk.text if self.text_is_expected and self.expected else parse_value(self.text_item)

    @cached_property
    def text_is_expected(self) -> bool:
        """Whether the item of the texts file is the expected one."""
        return self.expected is not None and self.text_item == self.expected.text

    @cached_property
    def sparse_is_the_points(self) -> bool:
        """Whether the line of the sparse file has what the point, which is the expected one, has."""
        if self.point_fit is None or self.sparse_line is None:
            return False
        vector = self.point_fit.vector
        return self.sparse_line == (sparse_line_of(self.number, vector) if vector else _no_vector(self.number))

    @cached_property
    def sparse(self) -> dict[str, Any] | None:
        """The line of the sparse file; None for what is no object."""
        if self.sparse_line is None:
            return None
        if not self.sparse_is_the_points:
            return parse_object(self.sparse_line)
        vector = self._vector or NO_VECTOR.plain
        inner = {name: vector.get(name) for name in ("indices", "values")}
        return {
            "id": self.number,
            "sparse_vector": inner,
            "tokens": vector.get("tokens"),
            "stats": vector.get("stats"),
        }

    @property
    def vectors_are_expected(self) -> bool:
        """Whether the vectors are written as they should be."""
        return self.vectors is not None and (
            self.point_fit is not None or (self.point is not None and self.point.vectors == self.vectors)
        )


def _no_vector(row: int) -> bytes:
    return f"{NO_VECTOR.record(row)}\n".encode()


class Walk:
    """One pass over the record files of a bundle.

    Attributes:
        rows: how many there were.
        problems: sentences on files that could not be read to their end.
        vectors: where the vectors' texts come from.
    """

    def __init__(self, bundle: Bundle, inputs: BundleInputs | None = None) -> None:
        self.bundle = bundle
        self.inputs = inputs
        self.rows = 0
        self.problems: list[str] = []
        self.vectors = VectorTexts(bundle, inputs)

    def show(self, gates: Iterable[RowGate]) -> None:
        """Hand every row to every gate."""
        seeing = [gate.see for gate in gates]
        for row in self:
            for see in seeing:
                see(row)

    def __iter__(self) -> Iterator[Row]:
        with ExitStack() as stack:
            streams = [
                self._lines("qdrant.jsonl", stack),
                self._safe(list_items(self.bundle, "metadata.json")),
                self._safe(list_items(self.bundle, "texts.json")),
                self._lines("sparse.jsonl", stack),
                self._safe(expected_rows(self.inputs)) if self.inputs else iter(()),
            ]
            for number, (*texts, expected) in enumerate(zip_longest(*streams)):
                row = Row(number, tuple(texts), next(self.vectors, None))
                row.expected = expected
                self.rows = number + 1
                yield row

    def _lines(self, content: str, stack: ExitStack) -> Iterator[bytes]:
        path = self.bundle.path(content)
        return stack.enter_context(path.open("rb")) if path.is_file() else iter(())

    def _safe(self, stream: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from stream
        except (ArtefactError, ContractError) as error:
            self.problems.append(str(error))
