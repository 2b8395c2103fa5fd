"""Gate ``no_raw_queries``: no query, no form of it and no long part of it is in anything that a run wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ensemble_assets.export.gates.needles import Query, QuerySearch
from ensemble_assets.export.gates.places import Place
from ensemble_assets.export.gates.result import Findings, GateResult

_REMEDY = (
    "Remove the file, find what wrote the text (only ids and keyed hashes may leave the queries artefact) and run again"
)


def no_raw_queries(queries: Sequence[Query], places: Iterable[Place], public: Iterable[str] = ()) -> GateResult:
    """Search every place for every query.

    Args:
        queries: with the labels that messages use.
        places: what was written.
        public: names that may stand anywhere, such as chunk ids; a query that is one of them is no leak there.
    """
    found = Findings("no_raw_queries")
    search = QuerySearch(queries, public)
    searched = size = 0
    for place in places:
        searched += 1
        strong: set[str] = set()
        weak: set[str] = set()
        for block in place.blocks(search.overlap):
            size += len(block)
            strong |= search.in_bytes(block)
            if place.structured and search.weak:
                weak |= set(_weak(block, search))
        for label in sorted(strong):
            found.add(f"{place.name}: holds the text of query {label}, or a long part of it. {_REMEDY}")
        for label in sorted(weak - strong):
            found.add(f"{place.name}: a value is the text of query {label}, which is short: perhaps chance", "WARN")
    if search.weak:
        found.note(
            f"{search.weak} queries are under three words and 16 bytes: only whole JSON strings were compared with them"
        )
    return found.result(queries=len(queries), places=searched, bytes_searched=size, weak_queries=search.weak)


def _weak(block: bytes, search: QuerySearch) -> Iterator[str]:
    """Labels of weak queries that are a whole string of a JSON object or of JSON lines."""
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
