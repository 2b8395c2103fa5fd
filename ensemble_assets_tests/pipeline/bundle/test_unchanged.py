"""A run of unchanged contents leaves the files of its bundle alone, and writes them again for any change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ensemble_assets.artefacts.records import ExportRecord
from ensemble_assets.common.atomic_files import file_hash
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle
from ensemble_assets.pipeline.bundle import unchanged
from ensemble_assets.pipeline.run_costs import _last_export
from ensemble_assets.planning.history import recall
from ensemble_assets.settings import resolve
from ensemble_assets_tests.orchestration.pipeline import PREFIX, Outcome, Pipeline

MANIFESTS = {"processing_summary.json", f"{PREFIX}_processing_summary.json"}


def exported(outcome: Outcome) -> ExportRecord:
    assert outcome.succeeded, outcome.error
    record = outcome.artefact("export_bundle").record
    assert isinstance(record, ExportRecord)
    return record


def files(outcome: Outcome) -> dict[str, str]:
    return {path.name: file_hash(path) for path in outcome.bundle.iterdir()}


def inodes(outcome: Outcome) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in outcome.bundle.iterdir()}


def test_a_run_of_the_same_contents_writes_the_manifest_only(pipeline: Pipeline) -> None:
    first = pipeline.run()
    before, places, written = files(first), inodes(first), exported(first)
    second = pipeline.run()
    record, after = exported(second), files(second)
    assert not written.unchanged
    assert record.unchanged
    assert {name for name in before if after[name] != before[name]} == MANIFESTS
    assert {name for name in before if inodes(second)[name] != places[name]} == MANIFESTS
    assert after.keys() == before.keys()
    manifest = second.manifest()
    assert manifest["records_written_at"] == written.written.at
    assert manifest["generated_at"] > written.written.at
    assert {point["payload"]["kaggle_export_timestamp"] for point in second.points()} == {written.written.at}
    assert record.files == written.files
    assert record.sizes.keys() == written.sizes.keys()
    assert record.sizes["processing_summary.json"] == (second.bundle / "processing_summary.json").stat().st_size
    assert record.bytes == sum(record.sizes.values())


def test_the_kept_bundle_passes_every_gate_and_its_results_hold(pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.run()
    third = pipeline.run()
    assert exported(third).unchanged
    queries = (Query("q1", "where is the engine number 1"),)
    for result in judge_bundle(open_bundle(third.bundle), Limits(), queries=queries):
        assert result.passed, result.problems
    checks = [
        event.asset_check_evaluation_data
        for event in third.result.all_events
        if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    of_bundle = {check.check_name: check.passed for check in checks if check.asset_key == dg.AssetKey("export_bundle")}
    assert of_bundle["bundle_format"]
    assert of_bundle["row_alignment"]
    assert of_bundle["no_raw_queries"]
    assert all(passed for name, passed in of_bundle.items() if name != "latency_budget"), of_bundle


def chunk_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    path = root / "corpora" / "notes" / "notes_chunks.json"
    path.write_text(path.read_text().replace("It was seen 3 times", "It was seen 33 times"))
    return {}


def query_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    path = root / "corpora" / "notes" / "queries.jsonl"
    path.write_text(path.read_text().replace("engine number 1", "engine with the number 1"))
    return {}


def option_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    return {"export.sparse_norm": "unit"}


def sparse_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    return {"enable_sparse": False}


def nothing_reused(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    return {"encoding.reuse": False}


def point_damaged(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    path = root / "output" / "notes" / f"{PREFIX}_qdrant.jsonl"
    path.write_text(path.read_text().replace("canyon", "ravine", 1))
    return {}


def file_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    (root / "output" / "notes" / f"{PREFIX}_fused.trec").unlink()
    return {}


def another_program(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    monkeypatch.setattr(unchanged, "_sources", lambda: "another")
    return {}


def another_library(root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    monkeypatch.setattr(unchanged, "library_versions", lambda: {"numpy": "0"})
    return {}


def test_the_sources_are_those_of_the_whole_program() -> None:
    assert {"export", "collection", "artefacts", "pipeline"} <= {path.name for path in unchanged.PACKAGE.iterdir()}


CHANGES = (chunk_changed, query_changed, option_set, sparse_off, nothing_reused, point_damaged, file_gone)


@pytest.mark.parametrize("change", [*CHANGES, another_program, another_library], ids=lambda change: change.__name__)
def test_any_change_writes_the_whole_bundle_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Mapping[str, Any]]
) -> None:
    first = exported(pipeline.run())
    options = change(pipeline.root, monkeypatch)
    second = pipeline.run(options)
    record = exported(second)
    assert not record.unchanged
    assert record.written.at > first.written.at
    assert "records_written_at" not in second.manifest()
    assert {point["payload"]["kaggle_export_timestamp"] for point in second.points()} == {record.written.at}
    third = pipeline.run(options)
    assert exported(third).unchanged == (change is not nothing_reused)


def test_files_of_other_people_stay_in_a_kept_bundle(pipeline: Pipeline) -> None:
    first = pipeline.run()
    (first.bundle / "notes.txt").write_text("mine")
    second = pipeline.run()
    assert exported(second).unchanged
    assert (second.bundle / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in exported(second).sizes


def test_a_query_in_the_new_manifest_still_costs_the_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_assets.pipeline.bundle import export

    first = pipeline.run()
    before = files(first)
    real = export.manifest_inputs

    def leaking(*arguments: Any) -> Any:
        made = real(*arguments)
        return made.__class__(**{**made.__dict__, "warnings": ("where is the engine number 1",)})

    monkeypatch.setattr(export, "manifest_inputs", leaking)
    second = pipeline.run()
    assert not second.succeeded
    assert "no_raw_queries" in second.error
    assert files(first) == before, "the old bundle stays"


def test_the_next_predictions_are_of_an_export_that_writes(pipeline: Pipeline) -> None:
    first = exported(pipeline.run())
    settings = resolve(
        {"paths.output_dir": str(pipeline.root / "output"), "paths.cache_dir": str(pipeline.root / "cache")}
    ).settings
    seen = recall(settings, "export")
    second = exported(pipeline.run())
    assert second.unchanged
    assert recall(settings, "export") == seen != []
    assert _last_export(settings, "notes") == pytest.approx(first.written.seconds / first.items)
    assert first.written.seconds <= first.wall_seconds
