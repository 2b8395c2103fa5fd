"""Lists that are the sparse stage's are shortened before the gates read them, and only those."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.stage_lists import StageLists
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, live_sparse

MANIFEST = json.dumps({"feature_toggles": {"enable_sparse": True}, "schema_version": "v4.1"})
VECTOR = {"alpha": 1.5, "beta": 1e-7, 'q"uo\\te é': 0.25}


def written(folder: Path, own: dict) -> BundleInputs:
    folder.mkdir()
    inputs = bundle_of([Chunk("one", own), Chunk("two")])
    inputs = replace(inputs, sparse=live_sparse([VECTOR, {"alpha": 1.0}], [1, 1]))
    write_v40(folder, inputs)
    (folder / "processing_summary.json").write_text(MANIFEST)
    return inputs


def failing(folder: Path, inputs: BundleInputs) -> set[str]:
    return {result.name for result in judge_bundle(open_bundle(folder), Limits(), inputs=inputs) if result.failed}


def shortened(folder: Path, inputs: BundleInputs) -> list[Row]:
    assert inputs.sparse is not None
    return list(map(StageLists(inputs.sparse).shorten, Walk(open_bundle(folder), inputs)))


@pytest.mark.parametrize("unit", [False, True])
def test_a_sound_row_is_shortened_to_first_entries(tmp_path: Path, unit: bool) -> None:
    inputs = bundle_of([Chunk("one"), Chunk("two")])
    sparse = replace(live_sparse([VECTOR, {"alpha": 1.0}], [1, 1]), unit=unit)
    inputs = replace(inputs, sparse=sparse)
    write_v40(tmp_path, inputs)
    row, single = shortened(tmp_path, inputs)
    whole = next(iter(Walk(open_bundle(tmp_path), inputs)))
    assert (row.has_stage_lists, single.has_stage_lists) == (True, False), "one entry cannot be shortened"
    for short, long in ((row.payload, whole.payload), (row.metadata, whole.metadata), (row.sparse, whole.sparse)):
        vector, expected = ((record or {})["sparse_vector"] for record in (short, long))
        assert len(expected["indices"]) == 3
        assert vector["indices"] == expected["indices"][:1]
        assert vector["values"] == expected["values"][:1]
    assert row.payload["sparse_vector"]["stats"] == whole.payload["sparse_vector"]["stats"]
    assert row.stored_vectors == ("mini",), "and the dense vectors are not parsed again"


@pytest.mark.parametrize("content", ["qdrant.jsonl", "metadata.json", "sparse.jsonl"])
@pytest.mark.parametrize(("old", "new"), [("0.25", "0.5"), ("e-07", "e-7"), ('"beta"', '"other"')])
def test_another_list_in_one_file_is_judged_whole(tmp_path: Path, content: str, old: str, new: str) -> None:
    inputs = written(tmp_path / "made", {})
    path = open_bundle(tmp_path / "made").path(content)
    text = path.read_text(encoding="utf-8")
    assert failing(tmp_path / "made", inputs) == set()
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert not shortened(tmp_path / "made", inputs)[0].has_stage_lists
    assert failing(tmp_path / "made", inputs)


def test_a_vector_inside_the_chunks_own_metadata_is_not_taken_for_the_points(tmp_path: Path) -> None:
    inputs = written(tmp_path / "first", {})
    own = shortened(tmp_path / "first", replace(inputs, sparse=live_sparse([{}, {}], [0, 0])))[0].payload
    again = written(tmp_path / "again", {"earlier": {"sparse_vector": own["sparse_vector"]}})
    assert len(own["sparse_vector"]["indices"]) == 3
    row = shortened(tmp_path / "again", again)[0]
    assert not row.has_stage_lists, "the first object of that name is another one"
    assert failing(tmp_path / "again", again) == set()
