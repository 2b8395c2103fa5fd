"""What the shared pass knows of a row without parsing it is what parsing it gives; what differs is always parsed."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.v40_records import Original
from ensemble_assets.export.read.bundle_reader import open_bundle, parse_object, parse_point
from ensemble_assets.export.suite import Evidence, judge
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, dense, live_sparse, unit_rows
from ensemble_assets_tests.export.checks.bundles import Made, bundle_inputs, everything
from ensemble_assets_tests.export.strategies import metadata, texts

SPARSE_ROWS = ({"alpha": 1.5, "beta": 1e-7}, {}, {'q"uo\\te é': 0.25})


def same(one: Any, other: Any) -> bool:
    """Equal with types, key order and NaN."""
    return json.dumps(one) == json.dumps(other)


@settings(deadline=None)
@given(
    st.lists(st.tuples(texts.filter(lambda text: bool(text.strip())), metadata()), min_size=3, max_size=3),
    st.booleans(),
)
def test_rows_that_fit_are_known_without_parsing(pairs: list[tuple[str, dict[str, Any]]], live: bool) -> None:
    chunks = [Chunk(text, own) for text, own in pairs]
    inputs = bundle_of(chunks, dense("mini", unit_rows(3, 3)), dense("other-1.5", unit_rows(3, 2, 1)))
    if live:
        inputs = replace(inputs, sparse=live_sparse(list(SPARSE_ROWS), [1, 0, 2]))
    with tempfile.TemporaryDirectory() as folder:
        write_v40(Path(folder), inputs)
        rows = list(Walk(open_bundle(Path(folder)), inputs))
        for row in rows:
            assert row.point_fit is not None
            assert row.item_fit is not None
            assert row.text_is_expected
            assert row.line is not None
            assert row.item is not None
            parsed = parse_point(row.line)
            assert parsed is not None
            assert row.point is not None
            assert (row.point.keys, row.point.row, row.point.vectors) == (parsed.keys, parsed.row, parsed.vectors)
            assert same(row.point.payload, parsed.payload)
            assert same(row.metadata, parse_object(row.item))
            if row.sparse_line is not None:
                assert row.sparse_is_the_points
                assert same(row.sparse, parse_object(row.sparse_line))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["line", "item", "text_item", "sparse_line"]), st.data())
def test_a_record_with_any_byte_changed_never_fits(content: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = everything(Path(folder))
        row = list(Walk(open_bundle(made.folder), made.inputs))[data.draw(st.integers(0, 2))]
        text: bytes = getattr(row, content)
        place = data.draw(st.integers(0, len(text) - 1))
        changed = text[:place] + data.draw(st.binary(min_size=1, max_size=2)) + text[place + 1 :]
        broken = _row_with(row, content, changed)
        fits = {
            "line": broken.point_fit is not None and broken.item_fit is not None,
            "item": broken.item_fit is not None,
            "text_item": broken.text_is_expected,
            "sparse_line": broken.sparse_is_the_points,
        }
        assert fits[content] is (changed == text)


def _row_with(row: Row, content: str, changed: bytes) -> Row:
    given_texts = {name: getattr(row, name) for name in ("line", "item", "text_item", "sparse_line")}
    other = Row(row.number, tuple({**given_texts, content: changed}.values()), row.vectors)
    other.expected = row.expected
    return other


def test_integers_beyond_64_bits_in_a_sparse_vector_are_compared_exactly(tmp_path: Path) -> None:
    huge = {"term_weights": [{"term": "a", "weight": 1}], "total_terms": 10**25}
    inputs = replace(bundle_of([Chunk("a", {"sparse_features": huge})]), sparse=live_sparse([{"a": 1.0}], [1]))
    write_v40(tmp_path, inputs)
    (row,) = Walk(open_bundle(tmp_path), inputs)
    assert row.point is not None
    assert row.point.payload is not None
    assert row.point.payload["sparse_vector"]["stats"]["total_terms"] == 10**25
    item = tmp_path / "ultimate_embeddings_v4_metadata.json"
    item.write_text(item.read_text().replace(str(10**25), str(10**25 + 1)))
    (row,) = Walk(open_bundle(tmp_path), inputs)
    assert row.item_fit is None


def test_a_second_value_in_the_gap_is_no_fit(tmp_path: Path) -> None:
    made = everything(tmp_path)
    path = made.path("qdrant.jsonl")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('vocabulary"}}', 'vocabulary"}}, "new": {}', 1))
    row = next(iter(Walk(open_bundle(made.folder), made.inputs)))
    assert row.point_fit is None
    results = made.judge(tmp_path / "scratch")
    assert results["legacy_projection"].failed
    assert results["legacy_keys"].failed or results["row_alignment"].failed


@pytest.mark.parametrize("wanted", [("legacy_keys",), ("no_raw_queries", "gpu_ceiling"), ()])
def test_only_the_gates_that_are_wanted_judge(wanted: tuple[str, ...], tmp_path: Path) -> None:
    made: Made = everything(tmp_path)
    evidence = Evidence(Original(open_bundle(made.folder), tmp_path, bundle_inputs()))
    assert tuple(result.name for result in judge(evidence, wanted)) == wanted


def test_figures_of_the_pass_are_finite(tmp_path: Path) -> None:
    results = everything(tmp_path).judge(tmp_path / "scratch")
    numbers = [value for result in results.values() for value in result.numbers.values()]
    assert all(math.isfinite(value) for value in numbers if isinstance(value, float))
