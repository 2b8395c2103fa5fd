"""The keys that the old loader added."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given

from ensemble_assets.collection.legacy_metadata import LOADER_KEYS, CollectionFacts, enrich
from ensemble_assets_tests.export import reference
from ensemble_assets_tests.export.bundles import CLOCK, Chunk, rows_of
from ensemble_assets_tests.export.strategies import metadata, texts

FACTS = CollectionFacts(name="guide", alias="guide", model="mini", dimension=4, clock=CLOCK)


def enriched(own: dict[str, Any], text: str = "Plain words.", source: str = "sub/a_chunks.json") -> dict[str, Any]:
    return enrich(own, rows_of([Chunk(text, own, source)], 256)[0], FACTS).metadata


@given(metadata(), texts.filter(lambda text: bool(text.strip())))
def test_metadata_is_what_the_reference_makes_of_it(own: dict[str, Any], text: str) -> None:
    facts = {"collection": "guide", "priority": 0.5, "clock": CLOCK, "model": "mini", "dimension": 4}
    expected = reference.enrich(own, text, reference.prepare(text, 256), 0, "sub/a_chunks.json", facts)
    assert json.dumps(enriched(own, text)) == json.dumps(expected)


def test_a_bare_chunk_gets_every_key_in_the_contracts_order() -> None:
    features = {"term_weights": [{"term": "a", "weight": 1}]}
    found = enriched({"sparse_features": features})
    assert tuple(found) == ("sparse_features", *LOADER_KEYS)
    assert found["source_path"] == found["source_file"] == "sub/a_chunks.json"
    assert (found["source_filename"], found["document_name"]) == ("a_chunks.json", "a_chunks")
    assert found["collection_hints"] == found["qdrant_collection_hint"] == ["guide"]
    assert (found["quality_score"], found["hierarchy_path"], found["search_keywords"]) == (0.0, "", [])


def test_own_keys_keep_their_place_and_get_the_loaders_value() -> None:
    found = enriched({"embedding_dimension": 1024, "own": 1, "global_chunk_id": "x"})
    assert list(found)[:3] == ["embedding_dimension", "own", "global_chunk_id"]
    assert (found["embedding_dimension"], found["global_chunk_id"]) == (4, 0)


def test_keys_set_only_if_absent_keep_an_own_value() -> None:
    own = {
        "payload_version": None,
        "content_digest": "",
        "content_type": 7,
        "document_id": "d",
        "embedding_modal_hint": 1,
    }
    found = enriched(own)
    assert {key: found[key] for key in own} == own


def test_an_own_sparse_vector_never_survives_without_term_weights() -> None:
    assert "sparse_vector" not in enriched({"sparse_vector": {"indices": [1], "values": [1.0]}})


@pytest.mark.parametrize(
    ("own", "hints"),
    [
        ({"collection_hints": ["b", "a", 3, "b"]}, ["b", "a"]),
        ({"collection_hints": "b"}, ["b"]),
        ({"collection_hints": [], "qdrant_collection_hint": "q"}, ["q"]),
        ({"collection_hints": [3]}, []),
        ({"collection_hints": 3}, ["guide"]),
    ],
)
def test_hints_are_the_chunks_own_else_the_collection(own: dict[str, Any], hints: list[str]) -> None:
    assert enriched(own)["collection_hints"] == hints


@pytest.mark.parametrize(
    ("count", "score"), [(130, 0.13), (5000, 1.0), (0, 0.0), ("120", 0.12), (None, 0.0), (10**400, 1.0), (2.5, 0.0025)]
)
def test_quality_is_a_thousandth_of_the_own_token_count(count: Any, score: float) -> None:
    assert enriched({"token_count": count})["quality_score"] == score


def test_a_count_that_is_no_number_gives_no_quality() -> None:
    assert [enriched({"token_count": c})["quality_score"] for c in ("many", "", [1], {})] == [0.0] * 4


@pytest.mark.parametrize("empty", ["", None, 0])
def test_an_empty_chunk_hash_is_replaced_in_its_place_and_the_digest_follows(empty: Any) -> None:
    metadata = enriched({"chunk_hash": empty, "own": 1}, text="some text")
    expected = hashlib.sha1(b"some text").hexdigest()[:16]
    assert list(metadata)[:2] == ["chunk_hash", "own"]
    assert (metadata["chunk_hash"], metadata["content_digest"]) == (expected, expected)
    assert enriched({"chunk_hash": "own"})["content_digest"] == "own"


@pytest.mark.parametrize(
    ("own", "text", "hint"),
    [
        ({"modal_hint": " list "}, "x", "list"),
        ({"modal_hint": " ", "content_flags": {"has_code_block": True, "has_table": True}}, "x", "table"),
        ({"content_flags": {"has_list": 1, "has_json": True}}, "x", "list"),
        ({"content_flags": "has_table"}, "class A", "code"),
        ({}, "a\n| b |", "table"),
    ],
)
def test_modal_hint_is_own_else_by_flags_else_by_text(own: dict[str, Any], text: str, hint: str) -> None:
    found = enriched(own, text)
    assert found["modal_hint"] == found["embedding_modal_hint"] == hint


def test_document_id_is_the_md5_of_the_lower_cased_posix_path() -> None:
    assert enriched({"source_path": "Docs//A/./B.md"})["document_id"] == "5be1c829ce07"  # md5sum of docs/a/b.md
    assert "document_id" not in enriched({"source_path": "", "source_file": ""})


def test_backslashes_are_part_of_a_name_on_every_host() -> None:
    assert enriched({"source_path": "Docs\\A\\b.md"})["source_filename"] == "Docs\\A\\b.md"
