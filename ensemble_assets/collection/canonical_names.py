"""Give a collection the name and the priority that version 4.0 wrote into its points. The tables are settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from ensemble_assets.settings.options import Settings
from ensemble_assets.settings.section import table_rows

LEGACY_PRIORITIES = (
    "qdrant_ecosystem=1.0",
    "sentence_transformers=0.9",
    "docling=0.8",
    "fast_docs=0.7",
    "pydantic=0.6",
)
"""``collection_priority`` by canonical name, as version 4.0 had it; all other collections have 0.5."""


def point_name(settings: Settings, name: str, alias: str) -> str:
    """Return ``qdrant_collection`` of a collection's points: ``name``, or version 4.0's for the folder ``alias``."""
    options = settings.collections
    if options.naming == "folder":
        return name
    plain = re.sub(r"[\s-]", "_", alias.strip().lower())
    return next(_matching(options.names, plain), plain)


def priority_of(settings: Settings, point_name: str) -> float:
    """Return ``collection_priority`` of a collection's points by their ``qdrant_collection``."""
    options = settings.collections
    table = options.priorities or (LEGACY_PRIORITIES if options.naming == "legacy" else ())
    return float(next(_matching(table, point_name), settings.chunks.collection_priority))


def _matching(table: Iterable[str], name: str) -> Iterator[str]:
    return (value for pattern, value in table_rows(table) if fnmatchcase(name, pattern))
