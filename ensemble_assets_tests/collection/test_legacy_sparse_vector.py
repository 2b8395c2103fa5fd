"""The v4.0 metadata echo."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.collection.legacy_sparse_vector import l2_norm, sparse_echo, term_index, usable_terms
from ensemble_assets_tests.export.reference import metadata_echo
from ensemble_assets_tests.export.strategies import sparse_features


@given(sparse_features())
def test_echo_is_what_the_reference_makes_of_it(features: Any) -> None:
    echo = sparse_echo(features)
    assert (echo.as_json() if echo else None) == metadata_echo(features)


def test_index_is_the_first_four_bytes_of_sha1() -> None:
    assert term_index("docling") == 2729926935  # as the old program wrote it
    assert term_index("naïve 😀") == 0x73782D9A  # printf 'naïve 😀' | sha1sum


def test_values_are_divided_by_their_norm() -> None:
    echo = sparse_echo({"term_weights": [{"term": "a", "weight": 3}, {"term": "b", "weight": 4.0}]})
    assert echo is not None
    assert echo.values == [float(np.float32(0.6)), float(np.float32(0.8))]
    assert echo.stats == {"weight_norm": 5.0, "unique_terms": 2, "total_terms": 0, "weighting": "tf-normalized"}
    assert list(echo.as_json()) == ["indices", "values", "tokens", "stats"]


def test_zero_weights_stay_as_they_are() -> None:
    echo = sparse_echo({"term_weights": [{"term": "a", "weight": 0}]})
    assert echo is not None
    assert (echo.values, echo.stats["weight_norm"]) == ([0.0], 0.0)


@pytest.mark.parametrize(
    "features",
    [
        None,
        [],
        "text",
        {},
        {"term_weights": None},
        {"term_weights": {}},
        {"term_weights": ["word", None, 3, {"term": 1, "weight": 1}, {"term": "a"}, {"term": "a", "weight": "1"}]},
        {"term_weights": [{"term": "a", "weight": w} for w in (math.nan, math.inf, -math.inf, 10**400)]},
        {"term_weights": [{"term": "\ud800", "weight": 1.0}]},
    ],
)
def test_no_usable_entry_gives_no_vector(features: Any) -> None:
    assert sparse_echo(features) is None
    assert list(usable_terms(features)) == []


def test_unusable_entries_are_left_out_and_equal_terms_stay() -> None:
    entries = [{"term": "a", "weight": 1}, {"term": None, "weight": 1}, {"term": "a", "weight": 1}]
    echo = sparse_echo({"term_weights": entries})
    assert echo is not None
    assert echo.tokens == ["a", "a"]
    assert echo.indices == [term_index("a")] * 2


@given(st.lists(st.floats(0, 1, width=32), max_size=31))
def test_norm_of_up_to_31_weights_is_what_numpy_gives(weights: list[float]) -> None:
    array = np.array(weights, dtype=np.float32)
    assert l2_norm(array) == float(np.linalg.norm(array))


@pytest.mark.shared
def test_norms_of_the_real_collection_are_what_numpy_gives(shared: Path) -> None:
    compared = 0
    for file in sorted((shared / "data" / "collections" / "docling").glob("*_chunks.json")):
        for chunk in json.loads(file.read_text(encoding="utf-8")):
            terms = list(usable_terms(chunk["metadata"].get("sparse_features")))
            weights = np.array([weight for _, weight in terms], dtype=np.float32)
            assert l2_norm(weights) == float(np.linalg.norm(weights))
            compared += len(terms) > 0
    assert compared > 700
