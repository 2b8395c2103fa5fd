"""Random chunk metadata: Unicode, nesting, huge integers, odd numbers, and keys that collide with the exporter's."""

from __future__ import annotations

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
