"""Names and priorities as version 4.0 wrote them into points, and tables of an operator."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.collection.canonical_names import point_name, priority_of
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings import Settings, resolve
from ensemble_assets_tests.export import reference


def options(**values: Any) -> Settings:
    return resolve({f"collections.{key}": value for key, value in values.items()}, environment={}).settings


@pytest.mark.parametrize(
    ("folder", "name", "priority"),
    [
        ("Qdrant", "qdrant_ecosystem", 1.0),
        ("my-qdrant docs", "qdrant_ecosystem", 1.0),
        ("qdrant_v4_outputs", "qdrant_ecosystem", 1.0),
        ("sentence-transformers", "sentence_transformers", 0.9),
        ("Sentence Transformers_v4_outputs", "sentence_transformers", 0.9),
        ("Docling_v4_outputs", "docling", 0.8),
        ("FAST-DOCS", "fast_docs", 0.7),
        ("pydantic_docs", "pydantic", 0.6),
        ("My Own-Docs", "my_own_docs", 0.5),
        ("v1.2", "v1.2", 0.5),
    ],
)
def test_legacy_names_and_priorities_are_those_of_version_4(folder: str, name: str, priority: float) -> None:
    settings = options(naming="legacy")
    assert point_name(settings, "ours", folder) == name == reference.canonical(folder)
    assert priority_of(settings, name) == priority == reference.PRIORITIES.get(name, 0.5)
    assert point_name(Settings(), "ours", folder) == "ours", "by default it is the collection's own name"
    assert priority_of(Settings(), name) == 0.5


@given(st.text(st.sampled_from("qdrantDOCLING -_\u00a0fast_docs"), max_size=12).filter(str.strip))
def test_any_folder_has_the_reference_s_name(folder: str) -> None:
    assert point_name(options(naming="legacy"), "ours", folder) == reference.canonical(folder)


def test_an_operator_can_replace_both_tables() -> None:
    settings = options(naming="legacy", names="*manual*=manuals, *=rest", priorities="man*=0.25")
    assert [point_name(settings, "ours", folder) for folder in ("My Manual", "qdrant")] == ["manuals", "rest"]
    assert [priority_of(settings, name) for name in ("manuals", "qdrant_ecosystem")] == [0.25, 0.5]
    assert priority_of(options(priorities=["docling=1"]), "docling") == 1.0, "also with the folders' own names"


@pytest.mark.parametrize(
    ("key", "value"), [("names", "docling"), ("names", "=x"), ("priorities", "a=2"), ("priorities", "a=b")]
)
def test_a_bad_table_is_an_error_of_the_settings(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"collections\.{key}"):
        options(**{key: value})
