"""The published JSON Schemas hold for real bundles, and for nothing that is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets_tests.export.checks.bundles import everything, plain
from ensemble_assets_tests.export.checks.schemas import problems, validator
from ensemble_assets_tests.export.golden_cases import CASES, write_case


@pytest.mark.parametrize("case", CASES)
def test_golden_bundles_fit_the_schemas_of_v41(case: str, tmp_path: Path) -> None:
    assert problems(write_case(case, tmp_path), "v4.1") == []


def test_a_bundle_with_both_stages_off_fits_the_schemas_of_v40(tmp_path: Path) -> None:
    assert problems(plain(tmp_path).folder, "v4.0") == []


def test_live_vectors_do_not_fit_the_strict_v40_schemas(tmp_path: Path) -> None:
    assert {line.split(":")[0] for line in problems(everything(tmp_path).folder, "v4.0")} == {
        "point", "sparse_record", "stats",
    }  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize("case", ["golden_v4.0/bundle", "bundle_v4.0"])
def test_bundles_of_the_old_program_fit_the_schemas_of_v40(case: str, shared: Path) -> None:
    assert problems(shared / "legacy" / case, "v4.0") == []


def test_manifests_without_sections_fit_the_v40_schema_only() -> None:
    for manifest in ({}, {"collection": "guide", "warnings": []}):
        assert validator("manifest", "v4.0").is_valid(manifest)
        assert not validator("manifest", "v4.1").is_valid(manifest)


def test_a_manifest_with_a_query_in_the_rerank_payload_does_not_fit(tmp_path: Path) -> None:
    manifest = json.loads((everything(tmp_path).folder / "processing_summary.json").read_text(encoding="utf-8"))
    assert validator("manifest", "v4.1").is_valid(manifest)
    manifest["rerank_run"]["payload"]["query"] = "x"
    assert not validator("manifest", "v4.1").is_valid(manifest)
    del manifest["rerank_run"]
    assert not validator("manifest", "v4.1").is_valid(manifest), "the stage is on"
