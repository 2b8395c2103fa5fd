"""Sound bundles of any chunks pass every gate; a byte changed anywhere in a record fails one."""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ensemble_assets.export.checks.bundle_walk import RECORD_FILES, Walk
from ensemble_assets.export.checks.v40_parity import v40_parity
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import GATES
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, dense, live_sparse, unit_rows
from ensemble_assets_tests.export.checks.bundles import Made, everything, failed
from ensemble_assets_tests.export.strategies import metadata, texts

SPARSE_ROWS = ({"alpha": 1.5, "beta": 1e-7}, {}, {'q"uo\\te é': 0.25})
CLOCK = re.compile(rb'"[a-z_]*timestamp": "[^"]*"')


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(texts.filter(lambda text: bool(text.strip())), metadata()), min_size=3, max_size=3),
    st.booleans(),
)
def test_bundles_of_any_chunks_pass_and_are_v40_bundles_underneath(
    pairs: list[tuple[str, dict[str, Any]]], live: bool
) -> None:
    chunks = [Chunk(text, own) for text, own in pairs]
    off = bundle_of(chunks, dense("mini", unit_rows(3, 3)), dense("other-1.5", unit_rows(3, 2, 1)))
    on = replace(off, sparse=live_sparse(list(SPARSE_ROWS), [1, 0, 2])) if live else off
    toggles = json.dumps({"feature_toggles": {"enable_sparse": live}, "schema_version": "v4.1"})
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("on", "off")]
        for folder, inputs in zip(folders, (on, off), strict=True):
            folder.mkdir()
            write_v40(folder, inputs)
        (folders[0] / "processing_summary.json").write_text(toggles)
        results = Made(folders[0], on).judge(against=folders[1], queries=())
        problems = {name: result.problems for name, result in results.items() if result.failed}
        assert problems.keys() <= {"sparse_coverage"}, problems


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(RECORD_FILES), st.data())
def test_a_record_with_any_byte_changed_fails_a_gate(content: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = everything(Path(folder) / "on")
        other = made.copy(Path(folder) / "other")
        text = made.path(content).read_bytes()
        place = data.draw(st.integers(0, len(text) - 1))
        changed = text[:place] + data.draw(st.binary(min_size=1, max_size=2)) + text[place + 1 :]
        assume(changed != text)
        assume(not any(match.start() <= place < match.end() for match in CLOCK.finditer(text)))
        made.path(content).write_bytes(changed)
        assert failed(made.judge(against=other))


def test_integers_beyond_64_bits_are_read_exactly(tmp_path: Path) -> None:
    huge = {"term_weights": [{"term": "a", "weight": 1}], "total_terms": 10**25}
    inputs = replace(bundle_of([Chunk("a", {"sparse_features": huge})]), sparse=live_sparse([{"a": 1.0}], [1]))
    write_v40(tmp_path, inputs)
    (row,) = Walk(open_bundle(tmp_path), inputs)
    assert row.payload["sparse_vector"]["stats"]["total_terms"] == 10**25
    item = tmp_path / "ultimate_embeddings_v4_metadata.json"
    item.write_text(item.read_text().replace(str(10**25), str(10**25 + 1)))
    assert Made(tmp_path, inputs).judge()["row_alignment"].failed


def test_a_second_value_beside_the_sparse_vector_is_found(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    other = made.copy(tmp_path / "other")
    path = made.path("qdrant.jsonl")
    text = path.read_text(encoding="utf-8")
    assert 'inferred"}}' in text
    path.write_text(text.replace('inferred"}}', 'inferred"}}, "new": {}', 1), encoding="utf-8")
    assert v40_parity(open_bundle(made.folder), open_bundle(other)).failed


def test_every_gate_gives_a_result_with_finite_figures(tmp_path: Path) -> None:
    results = everything(tmp_path).judge()
    assert tuple(results) == GATES
    numbers = [value for result in results.values() for value in result.numbers.values()]
    assert all(math.isfinite(value) for value in numbers if isinstance(value, float))
