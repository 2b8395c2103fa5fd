"""Random chunk metadata: Unicode, nesting, huge integers, odd numbers, and keys that collide with the exporter's."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from ensemble_assets.collection.legacy_metadata import LOADER_KEYS

PAYLOAD_KEYS = (
    "text_preview",
    "full_text_length",
    "kaggle_export_timestamp",
    "model_info",
    "primary_vector_name",
    "dense_vector_names",
    "companion_vector_dimensions",
    "vectors",
    "payload",
    "id",
)
READ_KEYS = ("token_count", "section_path", "heading_text", "filename", "content_flags", "sparse_features")

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
numbers = (
    st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from([1e-5, 9.99e-5, 1e-4, 1e15, 1e16, 1.5e22, -0.0, 2**63, 2**64, -(2**63) - 1])
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


def sparse_features() -> st.SearchStrategy[Any]:
    """Term weights as a chunker writes them, and as it should not."""
    weights = st.floats(-2, 2) | st.integers(-5, 5) | st.booleans() | st.just("0.5") | st.none()
    entry = st.fixed_dictionaries({"term": texts | st.none(), "weight": weights}, optional={"tf": st.integers(0, 9)})
    return values | st.fixed_dictionaries(
        {"term_weights": st.lists(entry | scalars, max_size=40)},
        optional={"unique_terms": values, "total_terms": st.integers(0, 99), "weighting": texts},
    )


def metadata() -> st.SearchStrategy[dict[str, Any]]:
    """A chunk's own metadata."""
    keys = st.sampled_from(LOADER_KEYS + PAYLOAD_KEYS + READ_KEYS) | texts
    return st.builds(
        lambda pairs, features: {**dict(pairs), **({} if features is None else {"sparse_features": features})},
        st.lists(st.tuples(keys, values), max_size=8),
        st.none() | sparse_features(),
    )


names = st.sampled_from(["a", "b", "a-b", "a.b", ".dot", "qrels", "_x", "Ä", "中文", "z 9", "._m", "A"])


def file_names() -> st.SearchStrategy[str]:
    """Paths of files below a collection: nested, beginning with dots, of both kinds and neither."""
    ending = st.sampled_from(["_chunks.json", "_chunks.json", "_chunks.json", ".json", ".jsonx", ".txt"])
    summary = st.sampled_from(["chunk_summary.json", "processing_summary.json"])
    last = st.builds(lambda name, end: name + end, names | st.just(""), ending) | summary
    return st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(names, max_size=2), last)


def records() -> st.SearchStrategy[Any]:
    """Chunk records in every accepted shape, and a few that are none."""
    text = st.text(max_size=30) | st.sampled_from(
        ["", " ", "```x", "| a |\n| b |", '{"a": 1}', "def f(): pass", "x" * 90, "word " * 60]
    )
    record = st.fixed_dictionaries(
        {"text": text | st.none() | text | text},
        optional={"metadata": metadata() | st.none(), "advanced_scores": values},
    )
    return record | record | record | text | (st.fixed_dictionaries({"no": values}) | st.integers())


def sound_records() -> st.SearchStrategy[Any]:
    """Chunk records that the loader takes."""
    return records().filter(lambda record: isinstance(record, str) or (isinstance(record, dict) and "text" in record))


def file_contents() -> st.SearchStrategy[bytes]:
    """Whole files: records, lists, lists in objects; now and then broken, with a byte order mark, or odd numbers."""
    sound = sound_records()
    many = st.lists(sound, max_size=4) | st.lists(sound, max_size=4) | st.lists(records(), max_size=4)
    box = st.builds(
        lambda key, inner: {"count": 1, key: inner}, st.sampled_from(["chunks", "data", "records", "items"]), many
    )
    value = many | many | many | box | sound | st.just({"settings": 1})
    dump = st.builds(
        lambda value, ascii: json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass"),
        value,
        st.just(True),
    )
    odd = st.sampled_from(
        [
            b"[",
            b"",
            b"\xff",
            b'["x"] []',
            b'{"text": "x", "text": "y"}',
            b'\xef\xbb\xbf["bom"]',
            b"3",
            b"null",
            b'"text"',
            b'[{"text": "x", "metadata": {"a": NaN, "b": [-Infinity, 1e999, 1E5, -0.0, 1e-5]}}]',
            b'[{"text": "half \\ud800", "metadata": {"\\udfff": "\\ud800"}}]',
            b'[{"text": "x", "metadata": {"n": 1' + b"0" * 400 + b"}}]",
        ]
    )
    return st.integers(0, 19).flatmap(lambda number: odd if number == 0 else dump)


def sound_contents() -> st.SearchStrategy[bytes]:
    """Files whose records are all taken, at least one with words: a list, or a list in an object."""
    worded = st.fixed_dictionaries(
        {"text": st.sampled_from(["A chunk.", "中文 и текст", "x" * 90, "word " * 60])},
        optional={"metadata": metadata()},
    )
    many = st.builds(lambda first, others: [*others, first], worded, st.lists(sound_records(), max_size=3))
    return (many | many | many.map(lambda inner: {"chunks": inner})).map(lambda value: json.dumps(value).encode())


def folders() -> st.SearchStrategy[dict[str, bytes]]:
    """The files of a collection by path; no path is a folder of another one. Three in four have nothing to refuse."""
    odd = st.dictionaries(file_names(), file_contents(), min_size=1, max_size=4)
    sound = st.builds(
        lambda files, first: {**files, "base_chunks.json": first},
        st.dictionaries(file_names(), sound_contents(), max_size=3),
        sound_contents(),
    )
    return (sound | sound | sound | odd).filter(
        lambda made: not any(other.startswith(f"{path}/") for path in made for other in made)
    )
