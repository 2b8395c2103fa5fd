"""Bundles of the old program and of earlier versions of this one pass the gates for everything that these wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.stage_limits import costs_of
from ensemble_assets.export.checks.v40_parity import v40_parity
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle, judge_costs
from ensemble_assets_tests.export.bundles import PREFIX
from ensemble_assets_tests.export.checks.bundles import Made, everything, plain


def results(folder: Path) -> list[GateResult]:
    bundle = open_bundle(folder)
    return [*judge_bundle(bundle, Limits()), *judge_costs(costs_of(bundle.manifest), Limits(), bundle.manifest)]


def failures(folder: Path) -> list[str]:
    return [problem for result in results(folder) if result.failed for problem in result.problems]


def stamp_every_point_anew(made: Made) -> None:
    def change(records: list[Any]) -> None:
        for number, record in enumerate(records):
            record["payload"]["kaggle_export_timestamp"] = f"2026-01-02T03:04:05.{number:06}"

    made.lines("qdrant.jsonl", change)


def as_the_version_before(made: Made) -> None:
    """Take away what this version adds: keys of sections and of ``stats``, the second name, the contract's words."""

    def points(records: list[Any]) -> None:
        for record in records:
            record["payload"]["sparse_vector"]["stats"].pop("norm")

    def sparse(records: list[Any]) -> None:
        for record in records:
            record["stats"].pop("norm")

    def metadata(items: list[Any]) -> None:
        for item in items:
            item["sparse_vector"]["stats"].pop("norm")

    def manifest(content: dict[str, Any]) -> None:
        run = content["rerank_run"]
        run["status"] = run.pop("outcome")
        for key in ("latency_ms", "batch_size"):
            del run[key]
        for key in ("status", "device_state", "dense_scores", "candidate_metadata"):
            del run["payload"][key]
        del content["ensemble_state"], content["telemetry"]["rotation_events_recorded"]

    made.lines("qdrant.jsonl", points)
    made.lines("sparse.jsonl", sparse)
    made.document(f"{PREFIX}_metadata.json", metadata)
    made.document("processing_summary.json", manifest)
    made.path("processing_summary.json").unlink()


@pytest.mark.shared
@pytest.mark.parametrize("case", ["bundle_v4.0", "golden_v4.0/bundle"])
def test_bundles_of_the_old_program_pass(case: str, shared: Path) -> None:
    assert failures(shared / "legacy" / case) == []


@pytest.mark.shared
def test_the_golden_bundle_with_a_clock_reading_per_point_is_the_same_bundle(shared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shared / "legacy/golden_v4.0/bundle", tmp_path / "bundle")
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    stamp_every_point_anew(Made(folder, None))
    assert failures(folder) == []
    parity = v40_parity(open_bundle(folder), open_bundle(shared / "legacy/golden_v4.0/bundle"))
    assert parity.passed, parity.problems


def test_a_clock_reading_per_point_is_no_fault(tmp_path: Path) -> None:
    made = plain(tmp_path / "a")
    before = made.copy(tmp_path / "b")
    stamp_every_point_anew(made)
    assert failures(made.folder) == []
    assert v40_parity(open_bundle(made.folder), open_bundle(before)).passed


def test_a_bundle_of_the_version_before_passes(tmp_path: Path) -> None:
    made = everything(tmp_path)
    as_the_version_before(made)
    assert failures(made.folder) == []


def test_a_bundle_with_the_manifest_under_its_second_name_only_is_read(tmp_path: Path) -> None:
    made = everything(tmp_path)
    (made.folder / "processing_summary.json").unlink()
    assert open_bundle(made.folder).version == "v4.1"
    assert failures(made.folder) == []
    made.path("processing_summary.json").write_text("{}", encoding="utf-8")
    (made.folder / "processing_summary.json").write_text("{ }", encoding="utf-8")
    words = [problem for result in results(made.folder) if not result.passed for problem in result.problems]
    assert any("_processing_summary.json: has other bytes than processing_summary.json" in word for word in words)
