"""The v4.0 objects as tables: key, type and order. Whoever walks over files asks here whether an object fits.

A key that v4.1 adds comes after all v4.0 keys of its object; that is checked, what it holds is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ABSENT = object()


@dataclass(frozen=True)
class Kind:
    """A JSON type in words, and whether a value is of it."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(words: str, *types: type) -> Kind:
    """Lists are long: their types are gathered first, then compared."""
    allowed = frozenset(types)
    return Kind(f"a list of {words}", lambda value: isinstance(value, list) and allowed.issuperset(map(type, value)))


ANY = Kind("any value", lambda value: True)
TEXT = Kind("a string", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
INTEGER = Kind("an integer", _is_integer)
NUMBER = Kind("a number", _is_number)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TEXTS = _list_of("strings", str)
INTEGERS = _list_of("integers", int)
NUMBERS = _list_of("numbers", int, float)


@dataclass(frozen=True)
class Key:
    """One key of an object.

    Attributes:
        name: of the key.
        kind: of its value.
        required: whether every object has it.
        inside: the keys of its value, where that is an object with fixed keys.
        each: the keys of every value of its value, where that is an object with free keys.
    """

    name: str
    kind: Kind
    required: bool = True
    inside: tuple[Key, ...] = ()
    each: tuple[Key, ...] = ()


SPARSE_STATS = (
    Key("weight_norm", NUMBER),
    Key("unique_terms", ANY),
    Key("total_terms", ANY),
    Key("weighting", ANY),
)
SPARSE_VECTOR = (
    Key("indices", INTEGERS),
    Key("values", NUMBERS),
    Key("tokens", TEXTS),
    Key("stats", OBJECT, inside=SPARSE_STATS),
)
SPARSE_RECORD = (
    Key("id", INTEGER),
    Key("sparse_vector", OBJECT, inside=(Key("indices", INTEGERS), Key("values", NUMBERS))),
    Key("tokens", TEXTS),
    Key("stats", OBJECT),
)
MODEL_INFO = (
    Key("name", TEXT),
    Key("hf_model_id", TEXT),
    Key("dimension", INTEGER),
    Key("version", TEXT),
    Key("companions", OBJECT, required=False, each=(Key("dimension", INTEGER), Key("hf_model_id", TEXT))),
)
PAYLOAD_TAIL = (
    Key("text_preview", TEXT),
    Key("full_text_length", INTEGER),
    Key("kaggle_export_timestamp", TEXT),
    Key("model_info", OBJECT, inside=MODEL_INFO),
    Key("primary_vector_name", TEXT),
    Key("dense_vector_names", TEXTS),
    Key("companion_vector_dimensions", OBJECT, required=False),
    Key("sparse_vector", OBJECT, required=False, inside=SPARSE_VECTOR),
)
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
"""Keys that the loader sets on every chunk with a type of its own; the others may carry what the chunk had."""

STATS = (
    Key("kaggle_environment", FLAG),
    Key(
        "model_config",
        OBJECT,
        inside=(
            Key("name", TEXT),
            Key("hf_model_id", TEXT),
            Key("vector_dimension", INTEGER),
            Key("max_tokens", INTEGER),
        ),
    ),
    Key(
        "gpu_config",
        OBJECT,
        inside=(
            Key("device_count", INTEGER),
            Key("backend", TEXT),
            Key("precision", TEXT),
            Key("total_vram_gb", NUMBER),
        ),
    ),
    Key(
        "embedding_stats",
        OBJECT,
        inside=(
            Key("total_embeddings", INTEGER),
            Key("embedding_dimension", INTEGER),
            Key("memory_usage_mb", NUMBER),
        ),
    ),
    Key("processing_performance", OBJECT),
    Key("export_timestamp", TEXT),
    Key(
        "sparse_vector_stats",
        OBJECT,
        required=False,
        inside=(
            Key("total_chunks", INTEGER),
            Key("sparse_vectors_available", INTEGER),
            Key("coverage_ratio", NUMBER),
        ),
    ),
    Key(
        "dense_vector_layout",
        OBJECT,
        each=(Key("dimension", INTEGER), Key("memory_mb", NUMBER), Key("is_primary", FLAG)),
    ),
    Key("preprocessing_cache", OBJECT, required=False),
)
MANIFEST = (
    Key("schema_version", TEXT),
    Key("generated_at", TEXT, required=False),
    Key("collection", TEXT, required=False),
    Key("chunk_count", INTEGER, required=False),
    Key("feature_toggles", OBJECT),
    Key("dense_run", OBJECT, required=False),
    Key("rerank_run", OBJECT, required=False),
    Key("sparse_run", OBJECT, required=False),
    Key("compatibility", OBJECT),
    Key("telemetry", OBJECT),
    Key("performance_baseline", OBJECT, required=False),
    Key("warnings", _list_of("strings", str)),
)
"""Types only: a reader fills what a manifest lacks, and sections may stand in any order."""


def fits(value: Mapping[str, Any], keys: tuple[Key, ...], *, ordered: bool = True) -> bool:
    """Whether ``mismatches`` has nothing to say, found out without making a sentence."""
    for key in keys:
        found = value.get(key.name, _ABSENT)
        if found is _ABSENT:
            if key.required:
                return False
        elif (
            not key.kind.holds(found)
            or (key.inside and not fits(found, key.inside))
            or (key.each and not all(isinstance(item, dict) and fits(item, key.each) for item in found.values()))
        ):
            return False
    if not ordered:
        return True
    expected = [key.name for key in keys if key.name in value]
    return list(value)[: len(expected)] == expected


def mismatches(value: Mapping[str, Any], keys: tuple[Key, ...], where: str, *, ordered: bool = True) -> Iterator[str]:
    """Sentences on how an object differs from its table: missing, of another type, out of order.

    Args:
        value: the object.
        keys: its table.
        where: how the object is called in the sentences.
        ordered: whether the known keys must come first and in the table's order.
    """
    for key in keys:
        if key.name not in value:
            if key.required:
                yield f"{where}: key {key.name!r} is missing"
            continue
        yield from _value_mismatches(value[key.name], key, f"{where}, key {key.name!r}")
    if ordered:
        expected = [key.name for key in keys if key.name in value]
        found = list(value)[: len(expected)]
        if found != expected and set(found) == set(expected):
            yield f"{where}: expected the keys in the order {expected}, found {found}"
        elif found != expected:
            first = next(name for name in expected if name not in found)
            yield f"{where}: key {first!r} comes after a key that v4.0 does not have; new keys come last"


def _value_mismatches(value: Any, key: Key, where: str) -> Iterator[str]:
    if not key.kind.holds(value):
        yield f"{where}: expected {key.kind.words}, found {type(value).__name__}"
    elif key.inside:
        yield from mismatches(value, key.inside, where)
    elif key.each:
        for name, item in value.items():
            if isinstance(item, dict):
                yield from mismatches(item, key.each, f"{where}, {name!r}")
            else:
                yield f"{where}, {name!r}: expected an object, found {type(item).__name__}"
