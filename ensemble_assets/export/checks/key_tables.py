"""State the v4.0 objects as tables: every key, its type and its place.

The JSON Schemas in docs/schema are made of these tables. A key that v4.1 adds comes after all v4.0 keys of its object;
the value of such a key is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ensemble_assets.export.write.names import PREVIEW_CHARACTERS


@dataclass(frozen=True)
class Kind:
    """A type of JSON values: its words for sentences, its test, and its JSON Schema."""

    words: str
    holds: Callable[[Any], bool]
    schema: Mapping[str, Any] = field(default_factory=dict)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(words: str, item: Kind, *types: type) -> Kind:
    """Lists are long, so their types are gathered first and compared once."""
    allowed = frozenset(types)
    return Kind(
        f"a list of {words}",
        lambda value: isinstance(value, list) and allowed.issuperset(map(type, value)),
        {"type": "array", "items": item.schema},
    )


ANY = Kind("any value", lambda value: True)
TEXT = Kind("a string", lambda value: isinstance(value, str), {"type": "string"})
PREVIEW = Kind(
    f"a string of at most {PREVIEW_CHARACTERS} characters",
    lambda value: isinstance(value, str) and len(value) <= PREVIEW_CHARACTERS,
    {"type": "string", "maxLength": PREVIEW_CHARACTERS},
)
BUNDLE_VERSION = Kind("'v4'", lambda value: value == "v4", {"const": "v4"})
FLAG = Kind("true or false", lambda value: isinstance(value, bool), {"type": "boolean"})
INTEGER = Kind("an integer", _is_integer, {"type": "integer"})
COUNT = Kind("an integer from 0 up", lambda value: _is_integer(value) and value >= 0, {"type": "integer", "minimum": 0})
WIDTH = Kind("an integer from 1 up", lambda value: _is_integer(value) and value >= 1, {"type": "integer", "minimum": 1})
NUMBER = Kind("a number", lambda value: isinstance(value, float) or _is_integer(value), {"type": "number"})
OBJECT = Kind("an object", lambda value: isinstance(value, dict), {"type": "object"})
TEXTS = _list_of("strings", TEXT, str)
NAMES = Kind(
    "a list of one string or more",
    lambda value: TEXTS.holds(value) and len(value) > 0,
    {**TEXTS.schema, "minItems": 1},
)
INDICES = _list_of("integers", COUNT, int)
NUMBERS = _list_of("numbers", NUMBER, int, float)


@dataclass(frozen=True)
class Key:
    """One key of an object, and the kind of its value.

    ``inside`` is the key table of a value with fixed keys; with free keys, every value within must match ``each``.
    """

    name: str
    kind: Kind
    required: bool = True
    inside: tuple[Key, ...] = ()
    each: tuple[Key, ...] = ()


def _keys(**kinds: Kind) -> tuple[Key, ...]:
    """Make the table of an object that has all of these keys, in this order."""
    return tuple(Key(name, kind) for name, kind in kinds.items())


SPARSE_STATS = _keys(weight_norm=NUMBER, unique_terms=ANY, total_terms=ANY, weighting=ANY)
SPARSE_VECTOR = (
    *_keys(indices=INDICES, values=NUMBERS, tokens=TEXTS),
    Key("stats", OBJECT, inside=SPARSE_STATS),
)
SPARSE_RECORD = (
    Key("id", COUNT),
    Key("sparse_vector", OBJECT, inside=_keys(indices=INDICES, values=NUMBERS)),
    *_keys(tokens=TEXTS, stats=OBJECT),
)
MODEL_INFO = (
    *_keys(name=TEXT, hf_model_id=TEXT, dimension=WIDTH, version=BUNDLE_VERSION),
    Key("companions", OBJECT, required=False, each=_keys(dimension=INTEGER, hf_model_id=TEXT)),
)
PAYLOAD_TAIL = (
    *_keys(text_preview=PREVIEW, full_text_length=COUNT, kaggle_export_timestamp=TEXT),
    Key("model_info", OBJECT, inside=MODEL_INFO),
    *_keys(primary_vector_name=TEXT, dense_vector_names=NAMES),
    Key("companion_vector_dimensions", ANY, required=False),  # without companions the chunk's own value stays
    Key("sparse_vector", OBJECT, required=False, inside=SPARSE_VECTOR),
)
"""The keys of a payload after those of the chunk's metadata."""

LOADER_KINDS: Mapping[str, Kind] = {
    "global_chunk_id": INTEGER,
    "collection_priority": NUMBER,
    "quality_score": NUMBER,
    "text_preprocessing_applied": FLAG,
    "original_length": INTEGER,
    "processed_length": INTEGER,
    "full_text_length": INTEGER,
    "kaggle_processing_timestamp": TEXT,
    "model_target": TEXT,
    "embedding_dimension": INTEGER,
    "qdrant_collection": TEXT,
    "collection_alias": TEXT,
    "collection_hints": TEXTS,
    "qdrant_collection_hint": TEXTS,
    "search_keywords": TEXTS,
    "sparse_vector_tokens": TEXTS,
    "sparse_vector_weight_norm": NUMBER,
}
"""Keys that the loader sets on every chunk with a type of its own; the others may carry the chunk's own value."""

STATS = (
    Key("kaggle_environment", FLAG),
    Key(
        "model_config", OBJECT, inside=_keys(name=TEXT, hf_model_id=TEXT, vector_dimension=INTEGER, max_tokens=INTEGER)
    ),
    Key(
        "gpu_config",
        OBJECT,
        inside=_keys(device_count=INTEGER, backend=TEXT, precision=TEXT, total_vram_gb=NUMBER),
    ),
    Key(
        "embedding_stats",
        OBJECT,
        inside=_keys(total_embeddings=INTEGER, embedding_dimension=INTEGER, memory_usage_mb=NUMBER),
    ),
    *_keys(processing_performance=OBJECT, export_timestamp=TEXT),
    Key(
        "sparse_vector_stats",
        OBJECT,
        required=False,
        inside=_keys(total_chunks=INTEGER, sparse_vectors_available=INTEGER, coverage_ratio=NUMBER),
    ),
    Key("dense_vector_layout", OBJECT, each=_keys(dimension=INTEGER, memory_mb=NUMBER, is_primary=FLAG)),
    Key("preprocessing_cache", OBJECT, required=False),
)
MANIFEST = (
    Key("schema_version", TEXT),
    Key("generated_at", TEXT, required=False),
    Key("collection", TEXT, required=False),
    Key("chunk_count", COUNT, required=False),
    Key("feature_toggles", OBJECT),
    Key("dense_run", OBJECT, required=False),
    Key("rerank_run", OBJECT, required=False),
    Key("sparse_run", OBJECT, required=False),
    Key("compatibility", OBJECT),
    Key("telemetry", OBJECT),
    Key("performance_baseline", OBJECT, required=False),
    Key("warnings", TEXTS),
)
"""Types only: a reader fills the sections that a manifest lacks, and sections may stand in any order."""


def mismatches(value: Mapping[str, Any], keys: tuple[Key, ...], *, ordered: bool = True) -> Iterator[str]:
    """Compare an object with its table: missing keys, other types and, if ``ordered``, another order.

    It yields ends of sentences, to be put after the name of the object.
    """
    for key in keys:
        if key.name in value:
            item = value[key.name]
            if not key.inside and not key.each and key.kind.holds(item):
                continue
            for end in _value_mismatches(item, key):
                yield f", key {key.name!r}{end}"
        elif key.required:
            yield f": key {key.name!r} is missing"
    if ordered:
        yield from _order_mismatches(value, keys)


def _value_mismatches(value: Any, key: Key) -> Iterator[str]:
    if not key.kind.holds(value):
        yield f": expected {key.kind.words}, found {type(value).__name__}"
        return
    if key.inside:
        yield from mismatches(value, key.inside)
    for name, item in value.items() if key.each else ():
        for end in _value_mismatches(item, Key(name, OBJECT, inside=key.each)):
            yield f", {name!r}{end}"


def _order_mismatches(value: Mapping[str, Any], keys: tuple[Key, ...]) -> Iterator[str]:
    expected = [key.name for key in keys if key.name in value]
    names = list(value)[: len(expected)]
    if names == expected:
        return
    if set(names) == set(expected):
        yield f": expected the keys in the order {expected}, found {names}"
    else:
        first = next(name for name in expected if name not in names)
        yield f": key {first!r} comes after a key that v4.0 does not have; new keys come last"
