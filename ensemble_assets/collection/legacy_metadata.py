"""The metadata keys that the old loader added to every chunk, in the export contract's order, as one table of rules.

Pure: a chunk's own metadata and a few facts go in, the enriched metadata comes out. Writing it is ``export``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ensemble_assets.collection.legacy_sparse_vector import SparseEcho, sparse_echo

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
    """What the enriched metadata says about the collection and the run.

    Attributes:
        name: the collection.
        alias: its folder name.
        priority: 0 to 1.
        model: slug of the primary dense model.
        dimension: of its vectors.
        clock: ISO 8601, local time, no zone.
    """

    name: str
    alias: str
    model: str
    dimension: int
    clock: str
    priority: float = 0.5


@dataclass(frozen=True)
class Enriched:
    """A chunk's metadata as v4.0 exports carry it, and the echo that is in it, if any."""

    metadata: Metadata
    echo: SparseEcho | None


def enrich(own: Mapping[str, Any], chunk: ChunkRow, collection: CollectionFacts) -> Enriched:
    """The chunk's own metadata with the old loader's keys.

    Own keys come first and keep their place: where a rule sets a key that the chunk already has, the key stays where it
    is and gets the rule's value, as ``dict.update`` does. An own ``sparse_vector`` never survives: without usable term
    weights the key is removed, because readers take it for the echo.
    """
    metadata: Metadata = dict(own)
    known = _Known(chunk, collection, sparse_echo(own.get("sparse_features")))
    for key, apply, rule in _RULES:
        apply(metadata, key, rule, known)
    return Enriched(metadata, known.echo)


class _Known(NamedTuple):
    chunk: ChunkRow
    collection: CollectionFacts
    echo: SparseEcho | None


_Rule = Callable[[Metadata, _Known], Any]
_Apply = Callable[[Metadata, str, _Rule, _Known], None]


def _always(metadata: Metadata, key: str, rule: _Rule, known: _Known) -> None:
    metadata[key] = rule(metadata, known)


def _if_absent(metadata: Metadata, key: str, rule: _Rule, known: _Known) -> None:
    if key not in metadata:
        metadata[key] = rule(metadata, known)


def _if_known(metadata: Metadata, key: str, rule: _Rule, known: _Known) -> None:
    if value := rule(metadata, known):
        metadata[key] = value


def _if_known_and_absent(metadata: Metadata, key: str, rule: _Rule, known: _Known) -> None:
    if key not in metadata:
        _if_known(metadata, key, rule, known)


def _if_empty(metadata: Metadata, key: str, rule: _Rule, known: _Known) -> None:
    if not metadata.get(key):
        _if_known(metadata, key, rule, known)


def _or_removed(metadata: Metadata, key: str, rule: _Rule, known: _Known) -> None:
    if (value := rule(metadata, known)) is None:
        metadata.pop(key, None)
    else:
        metadata[key] = value


def _quality(metadata: Metadata, _: _Known) -> float:
    count = metadata.get("token_count")
    if not isinstance(count, (int, float)) or not count:
        return 0.0
    return 1.0 if count >= 1000 else min(1.0, float(count) / 1000.0)


def _hints(metadata: Metadata, known: _Known) -> list[str]:
    own = metadata.get("collection_hints") or metadata.get("qdrant_collection_hint")
    if isinstance(own, str):
        return [own]
    if isinstance(own, list):
        return list(dict.fromkeys(hint for hint in own if isinstance(hint, str)))
    return [known.collection.name]


def _hierarchy(metadata: Metadata, _: _Known) -> Any:
    own = metadata.get("hierarchy_path")
    return own or " > ".join(part.strip() for part in _strings(metadata.get("section_path")) if part.strip())


def _source_path(metadata: Metadata, known: _Known) -> Any:
    return metadata.get("source_file") or metadata.get("filename") or known.chunk.source


def _keywords(metadata: Metadata, _: _Known) -> list[str]:
    found = set(_strings(metadata.get("search_keywords")))
    hierarchy = metadata["hierarchy_path"]
    if isinstance(hierarchy, str):
        found.update(part.strip() for part in hierarchy.split(" > "))
    heading = metadata.get("heading_text")
    if isinstance(heading, str) and heading.strip():
        found.add(heading)
    return sorted(found - {""})


def _strings(value: Any) -> Iterator[str]:
    """The strings in a list, or in anything else that the old program could loop over: a text gives its characters."""
    return (item for item in value if isinstance(item, str)) if isinstance(value, (list, str, dict)) else iter(())


_FLAG_HINTS = (("has_table", "table"), ("has_code_block", "code"), ("has_list", "list"), ("has_json", "json"))


def _modal_hint(metadata: Metadata, known: _Known) -> str:
    own = metadata.get("modal_hint")
    if isinstance(own, str) and own.strip():
        return own.strip()
    flags = metadata.get("content_flags")
    flagged = (hint for flag, hint in _FLAG_HINTS if isinstance(flags, dict) and flags.get(flag))
    return next(flagged, known.chunk.modal_hint)


def _document_id(metadata: Metadata, _: _Known) -> str | None:
    source = metadata.get("source_path") or metadata.get("source_file") or metadata.get("filename")
    if not source:
        return None
    posix = _path(source).as_posix().lower()
    return hashlib.md5(posix.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:12]


def _path(value: Any) -> PurePosixPath:
    """POSIX rules on every host, so that two machines write the same bytes: a backslash is part of a name."""
    return _posix_path(str(value))


@lru_cache(maxsize=1 << 12)
def _posix_path(text: str) -> PurePosixPath:
    return PurePosixPath(text)


# Order is the contract's; a rule may read what the rules before it have set.
_RULES: tuple[tuple[str, _Apply, _Rule], ...] = (
    ("global_chunk_id", _always, lambda m, k: k.chunk.row),
    ("collection_priority", _always, lambda m, k: k.collection.priority),
    ("quality_score", _always, _quality),
    ("text_preprocessing_applied", _always, lambda m, k: True),
    ("original_length", _always, lambda m, k: k.chunk.original_length),
    ("processed_length", _always, lambda m, k: len(k.chunk.text)),
    ("full_text_length", _always, lambda m, k: k.chunk.original_length),
    ("kaggle_processing_timestamp", _always, lambda m, k: k.collection.clock),
    ("model_target", _always, lambda m, k: k.collection.model),
    ("embedding_dimension", _always, lambda m, k: k.collection.dimension),
    ("qdrant_collection", _always, lambda m, k: k.collection.name),
    ("collection_alias", _always, lambda m, k: k.collection.alias),
    ("collection_hints", _always, _hints),
    ("hierarchy_path", _always, _hierarchy),
    ("qdrant_collection_hint", _always, lambda m, k: m["collection_hints"]),
    ("payload_version", _if_absent, lambda m, k: "1.2"),
    ("source_path", _if_absent, _source_path),
    ("source_file", _if_absent, lambda m, k: m["source_path"]),
    ("source_filename", _if_absent, lambda m, k: _path(m["source_file"]).name),
    ("document_name", _if_absent, lambda m, k: _path(m["source_file"]).stem),
    ("chunk_hash", _if_absent, lambda m, k: k.chunk.text_sha1[:16]),
    ("content_digest", _if_absent, lambda m, k: m["chunk_hash"]),
    ("content_type", _if_absent, lambda m, k: "hierarchical_section"),
    ("search_keywords", _always, _keywords),
    ("sparse_vector", _or_removed, lambda m, k: k.echo.as_json() if k.echo else None),
    ("sparse_vector_tokens", _always, lambda m, k: k.echo.tokens if k.echo else []),
    ("sparse_vector_weight_norm", _always, lambda m, k: k.echo.stats["weight_norm"] if k.echo else 0.0),
    ("modal_hint", _if_known, _modal_hint),
    ("embedding_modal_hint", _if_known_and_absent, _modal_hint),
    ("document_id", _if_empty, _document_id),
)

LOADER_KEYS: tuple[str, ...] = tuple(key for key, _, _ in _RULES)
"""The keys that enrichment may add, in the contract's order."""
