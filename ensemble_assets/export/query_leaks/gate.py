"""Gate ``no_raw_queries``: no query, no form of it and no long part of it is in anything that a run wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ensemble_assets.export.checks.bundle_walk import RECORD_FILES, Row, Walk
from ensemble_assets.export.checks.result import Findings, GateResult
from ensemble_assets.export.query_leaks.query_forms import Query, QuerySearch
from ensemble_assets.export.query_leaks.searched_places import SEAM, Place, bundle_places
from ensemble_assets.export.query_leaks.unexpected_text import UnexpectedText

_REMEDY = (
    "Remove the file, find what wrote the text (only ids and keyed hashes may leave the queries artefact) and run again"
)
_BATCH_BYTES = 1 << 20
"""Text gathered before it is searched: the search costs as much per call as for some kilobytes."""

PublicNames = Callable[[], Iterable[str]]
"""Gives names that may stand anywhere, such as chunk ids; a query inside such a name is no leak there."""


def no_raw_queries(queries: Sequence[Query], places: Iterable[Place], public: PublicNames = tuple) -> GateResult:
    """Search every place for every query.

    Args:
        queries: with the labels that messages use.
        places: everything that was written.
        public: gives names that may stand anywhere.
    """
    search = _Search(queries, public)
    for place in places:
        search.search_place(place)
    return search.result()


class NoRawQueries:
    """The gate over a bundle."""

    def __init__(
        self, walk: Walk, queries: Sequence[Query], places: Callable[[], Iterable[Place]], public: PublicNames
    ) -> None:
        self._bundle = walk.bundle
        self._places = places
        self._unexpected = UnexpectedText(walk.inputs)
        self._search = _Search(queries, public)
        self._waiting: dict[str, list[bytes]] = {content: [] for content in RECORD_FILES}
        self._sizes = dict.fromkeys(RECORD_FILES, 0)
        self._last: dict[str, bytes] = {}

    def see(self, row: Row) -> None:
        """Gather the row's text to search."""
        if not self._search.queries:
            return
        for content, piece in self._unexpected.pieces(row):
            if piece == self._last.get(content):  # most rows leave the same few words
                continue
            self._last[content] = piece
            self._waiting[content].append(piece)
            self._sizes[content] += len(piece)
            if self._sizes[content] >= _BATCH_BYTES:
                self._flush(content)

    def _flush(self, content: str) -> None:
        block = SEAM.join(self._waiting[content])
        self._waiting[content], self._sizes[content] = [], 0
        self._search.search_block(self._bundle.names.file(content), block)

    def result(self) -> GateResult:
        """Search all other places, and give the result."""
        if self._search.queries:
            for content in RECORD_FILES:
                self._flush(content)
            for place in (*bundle_places(self._bundle), *self._places()):
                self._search.search_place(place)
        return self._search.result()


class _Search:
    """Searches block after block and remembers in which place which query stands."""

    def __init__(self, queries: Sequence[Query], public: PublicNames) -> None:
        self.queries = queries
        self._search = QuerySearch(queries, public) if queries else None
        self._strong: dict[str, set[str]] = {}
        self._weak: dict[str, set[str]] = {}
        self._size = 0

    def search_place(self, place: Place) -> None:
        """Search a place from one end to the other."""
        if self._search is not None:
            for block in place.blocks(self._search.overlap):
                self.search_block(place.name, block, structured=place.structured)

    def search_block(self, name: str, block: bytes, *, structured: bool = False) -> None:
        """Search a block of a place."""
        strong, weak = self._strong.setdefault(name, set()), self._weak.setdefault(name, set())
        self._size += len(block)
        if self._search is not None:
            strong |= self._search.in_bytes(block)
            if structured and self._search.weak:
                weak |= set(_weak_labels(block, self._search))

    def result(self) -> GateResult:
        """List the leaks, place by place."""
        findings = Findings("no_raw_queries")
        if self._search is None:
            findings.note("there are no queries to look for (name their file with --queries)")
            return findings.result(queries=0)
        for name, labels in self._strong.items():
            for label in sorted(labels):
                findings.add(f"{name}: holds the text of query {label}, or a long part of it. {_REMEDY}")
            for label in sorted(self._weak[name] - labels):
                findings.add(f"{name}: a value is the text of query {label}, which is short: perhaps chance", "WARN")
        weak = self._search.weak
        if weak:
            findings.note(
                f"{weak} queries are under three words and 16 bytes: only whole JSON strings were compared with them"
            )
        return findings.result(
            queries=len(self.queries), places=len(self._strong), bytes_searched=self._size, weak_queries=weak
        )


def _weak_labels(block: bytes, search: QuerySearch) -> Iterator[str]:
    """Find the weak queries that are a whole string of a JSON object or of JSON lines."""
    try:
        values: list[Any] = [json.loads(block)]
    except ValueError:
        values = [value for value in map(_loaded, block.splitlines()) if value is not None]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and (label := search.weak_in(value)):
            yield label


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
