"""Add the metadata keys of version 4.0 to a chunk's own metadata, in the export contract's order.

One table of rules makes all keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from ensemble_assets.collection.legacy_sparse_vector import SparseEcho, sparse_echo
from ensemble_assets.collection.readers.json_values import given_number

Metadata = dict[str, Any]


class ChunkRow(NamedTuple):
    """The columns of a ``CHUNKS`` frame that exporting needs, in this order."""

    row: int
    text: str
    metadata: str
    source: str
    original_length: int
    text_sha1: str
    modal_hint: str


@dataclass(frozen=True)
class CollectionFacts:
    """Facts about the collection and the run that go into every chunk's metadata.

    ``model`` and ``dimension`` are those of the primary dense model; ``priority`` is 0 to 1. ``clock`` is the time of
    the export: ISO 8601, local time, no zone.
    """

    name: str
    alias: str
    model: str
    dimension: int
    clock: str
    priority: float = 0.5


@dataclass(frozen=True)
class Enriched:
    """A chunk's metadata as version 4.0 exports it, and its sparse vector, if it has one."""

    metadata: Metadata
    echo: SparseEcho | None


def enrich(own: Mapping[str, Any], chunk: ChunkRow, collection: CollectionFacts) -> Enriched:
    """Return the chunk's own metadata with the keys of version 4.0 added.

    Own keys come first and keep their place. A rule for a key that the chunk has already replaces the value in place,
    as ``dict.update`` does. An own ``sparse_vector`` is always replaced or removed, because readers of the bundle
    expect the vector of version 4.0 there.
    """
    metadata: Metadata = dict(own)
    facts = _Facts(chunk, collection, sparse_echo(own.get("sparse_features")))
    if facts.echo is None:
        metadata.pop("sparse_vector", None)
    for key, when, rule in _RULES:
        if (when == "if absent" and key in metadata) or (when == "if empty" and metadata.get(key)):
            continue
        value = rule(metadata, facts)
        if value or key not in _NEVER_EMPTY:
            metadata[key] = value
    return Enriched(metadata, facts.echo)


class _Facts(NamedTuple):
    """Everything that a rule may read beside the metadata."""

    chunk: ChunkRow
    collection: CollectionFacts
    echo: SparseEcho | None


_Rule = Callable[[Metadata, _Facts], Any]

_When = Literal["always", "if absent", "if empty"]
"""When a rule applies: always, where the chunk lacks the key, or also where its value is empty."""


_LOWEST_COUNT = -(10**300)
"""A whole number below it may be too large for a float."""


def _quality(metadata: Metadata, _: _Facts) -> float:
    count = given_number(metadata.get("token_count"))
    return 0.0 if count is None else min(1.0, float(max(_LOWEST_COUNT, min(count, 1000))) / 1000.0)


def _hints(metadata: Metadata, facts: _Facts) -> list[str]:
    own = metadata.get("collection_hints") or metadata.get("qdrant_collection_hint")
    if isinstance(own, str):
        return [own]
    if isinstance(own, list):
        return list(dict.fromkeys(hint for hint in own if isinstance(hint, str)))
    return [facts.collection.name]


def _hierarchy(metadata: Metadata, _: _Facts) -> Any:
    own = metadata.get("hierarchy_path")
    return own or " > ".join(part.strip() for part in _strings(metadata.get("section_path")) if part.strip())


def _source_path(metadata: Metadata, facts: _Facts) -> Any:
    return metadata.get("source_file") or metadata.get("filename") or facts.chunk.source


def _keywords(metadata: Metadata, _: _Facts) -> list[str]:
    keywords = set(_strings(metadata.get("search_keywords")))
    hierarchy = metadata["hierarchy_path"]
    if isinstance(hierarchy, str):
        keywords.update(part.strip() for part in hierarchy.split(" > "))
    heading = metadata.get("heading_text")
    if isinstance(heading, str) and heading.strip():
        keywords.add(heading)
    return sorted(keywords - {""})


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings that version 4.0 looped over: of a list, of an object's keys, or of a text's characters."""
    return (item for item in value if isinstance(item, str)) if isinstance(value, (list, str, dict)) else iter(())


_FLAG_HINTS = (("has_table", "table"), ("has_code_block", "code"), ("has_list", "list"), ("has_json", "json"))


def _modal_hint(metadata: Metadata, facts: _Facts) -> str:
    own = metadata.get("modal_hint")
    if isinstance(own, str) and own.strip():
        return own.strip()
    flags = metadata.get("content_flags")
    flagged = (hint for flag, hint in _FLAG_HINTS if isinstance(flags, dict) and flags.get(flag))
    return next(flagged, facts.chunk.modal_hint)


def _document_id(metadata: Metadata, _: _Facts) -> str | None:
    source = metadata.get("source_path") or metadata.get("source_file") or metadata.get("filename")
    return _id_of(str(source)) if source else None


@lru_cache(maxsize=1 << 12)
def _id_of(source: str) -> str:
    posix = _path(source).as_posix().lower()
    return hashlib.md5(posix.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:12]


@lru_cache(maxsize=1 << 12)
def _path(text: str) -> PurePosixPath:
    """Return a path by POSIX rules, so that all hosts write the same bytes: a backslash is part of a name."""
    return PurePosixPath(text)


# In the contract's order. A rule may read keys that earlier rules have set.
_RULES: tuple[tuple[str, _When, _Rule], ...] = (
    ("global_chunk_id", "always", lambda m, f: f.chunk.row),
    ("collection_priority", "always", lambda m, f: f.collection.priority),
    ("quality_score", "always", _quality),
    ("text_preprocessing_applied", "always", lambda m, f: True),
    ("original_length", "always", lambda m, f: f.chunk.original_length),
    ("processed_length", "always", lambda m, f: len(f.chunk.text)),
    ("full_text_length", "always", lambda m, f: f.chunk.original_length),
    ("kaggle_processing_timestamp", "always", lambda m, f: f.collection.clock),
    ("model_target", "always", lambda m, f: f.collection.model),
    ("embedding_dimension", "always", lambda m, f: f.collection.dimension),
    ("qdrant_collection", "always", lambda m, f: f.collection.name),
    ("collection_alias", "always", lambda m, f: f.collection.alias),
    ("collection_hints", "always", _hints),
    ("hierarchy_path", "always", _hierarchy),
    ("qdrant_collection_hint", "always", lambda m, f: m["collection_hints"]),
    ("payload_version", "if absent", lambda m, f: "1.2"),
    ("source_path", "if absent", _source_path),
    ("source_file", "if absent", lambda m, f: m["source_path"]),
    ("source_filename", "if absent", lambda m, f: _path(str(m["source_file"])).name),
    ("document_name", "if absent", lambda m, f: _path(str(m["source_file"])).stem),
    ("chunk_hash", "if empty", lambda m, f: f.chunk.text_sha1[:16]),
    ("content_digest", "if absent", lambda m, f: m["chunk_hash"]),
    ("content_type", "if absent", lambda m, f: "hierarchical_section"),
    ("search_keywords", "always", _keywords),
    ("sparse_vector", "always", lambda m, f: f.echo.as_json() if f.echo else None),
    ("sparse_vector_tokens", "always", lambda m, f: f.echo.tokens if f.echo else []),
    ("sparse_vector_weight_norm", "always", lambda m, f: f.echo.stats["weight_norm"] if f.echo else 0.0),
    ("modal_hint", "always", _modal_hint),
    ("embedding_modal_hint", "if absent", _modal_hint),
    ("document_id", "if empty", _document_id),
)

_NEVER_EMPTY = {"sparse_vector", "modal_hint", "embedding_modal_hint", "document_id"}
"""Keys that are not set where their rule has no value."""

LOADER_KEYS: tuple[str, ...] = tuple(key for key, _, _ in _RULES)
"""The keys that ``enrich`` may add, in the contract's order."""
