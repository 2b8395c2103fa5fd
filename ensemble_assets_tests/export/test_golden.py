"""Bundles against stored ones, byte for byte: what the old program wrote, and small ones of this project."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_assets.export.write.v40_files import write_v40
from ensemble_assets_tests.export import reference
from ensemble_assets_tests.export.bundles import CLOCK, PREFIX, contents, golden_case
from ensemble_assets_tests.export.golden_cases import CASES, GOLDEN, write_case


@pytest.mark.shared
def test_golden_input_gives_every_file_of_the_golden_bundle(shared: Path, tmp_path: Path) -> None:
    expected = {file.name: file.read_bytes() for file in (shared / "legacy/golden_v4.0/bundle").iterdir()}
    written = write_v40(tmp_path, golden_case(shared))
    found = contents(tmp_path)
    assert set(found) == set(expected) | {f"{PREFIX}_upload_script.py"}
    assert set(found) == set(written.files) - {f"{PREFIX}_index.faiss"}
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_is_the_stored_one(name: str, tmp_path: Path) -> None:
    found, expected = contents(write_case(name, tmp_path)), contents(GOLDEN / name)
    assert found.pop(f"{PREFIX}_processing_summary.json") == found["processing_summary.json"], "both names, same bytes"
    assert set(found) == set(expected) | {f"{PREFIX}_upload_script.py"}
    assert [file for file in expected if found[file] != expected[file]] == []


@pytest.mark.parametrize("name", CASES)
def test_the_v40_part_of_every_stored_bundle_is_what_the_reference_writes(name: str) -> None:
    case = CASES[name]()
    models = [(m.slug, m.hf_model_id, m.max_tokens, m.vectors) for m in case.bundle.dense]
    facts = {"collection": "guide", "priority": 0.5, "clock": CLOCK}
    expected = reference.files([(c.text, c.metadata, c.source) for c in case.chunks], models, facts)
    assert reference.v40_part(GOLDEN / name) == expected
    arrays = {path.name for path in (GOLDEN / name).glob("*.npy")}
    names = case.bundle.names
    assert arrays == {names.vectors(m.slug if m is not case.bundle.primary else None) for m in case.bundle.dense}
