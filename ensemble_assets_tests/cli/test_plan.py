"""``ensemble-assets plan``: predictions before anything runs, and what the run then says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets_tests.cli.test_run import run
from ensemble_assets_tests.orchestration.pipeline import write_collection

PLACES = {"EMBEDDER_PATHS_CACHE_DIR": "cache", "EMBEDDER_PATHS_LOCK_DIR": "locks"}
STAGES = {"dense", "sparse", "fusion", "rerank", "export"}


@pytest.mark.models
def test_a_plan_is_made_from_a_calibration_and_the_run_records_how_far_it_was_off(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes", count=8)
    planned = run("plan", "--json", cwd=tmp_path, **PLACES)
    assert planned.returncode == 0, planned.stderr
    (said,) = json.loads(planned.stdout)
    assert set(said["seconds"]) == STAGES
    assert all(said["seconds"][stage] > 0 for stage in STAGES)
    calibrated = dict.fromkeys(("dense", "sparse", "rerank"), "calibration")
    assert said["basis"] == calibrated | {"fusion": "assumed", "export": "assumed"}
    assert (said["depth"], said["requested_depth"]) == (20, 20)
    assert said["vs_sla"] is None
    assert said["vs_own_dense"] > 1
    assert not (tmp_path / "output").exists(), "nothing ran"

    finished = run("run", "--json", cwd=tmp_path, **PLACES)
    assert finished.returncode == 0, finished.stderr
    manifest = json.loads((tmp_path / "output" / "notes" / "processing_summary.json").read_text())
    compared = manifest["performance_baseline"]["prediction"]
    assert compared["predicted_seconds"] == said["seconds"]
    actual, predicted = compared["actual_total"], compared["predicted_total"]
    assert compared["error"] == pytest.approx((predicted - actual) / actual, abs=1e-3)
    assert compared["within_tolerance"] is (abs(compared["error"]) <= 0.25)
    assert set(compared["stage_errors"]) == STAGES

    (again,) = json.loads(run("plan", "--json", cwd=tmp_path, **PLACES).stdout)
    assert again["basis"] == dict.fromkeys(STAGES, "earlier runs")


@pytest.mark.models
def test_a_plan_is_shown_as_a_table_with_the_depth_and_both_ratios(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes", count=8)
    shown = run("plan", "--set", "enable_sparse=false", cwd=tmp_path, **PLACES)
    assert shown.returncode == 0, shown.stderr
    assert "calibrating dense" in shown.stderr
    assert all(stage in shown.stdout for stage in STAGES)
    assert "rerank: depth 20 of 20." in shown.stdout
    assert "vs_sla: unknown; measure the plain script first: ensemble-assets baseline sla" in shown.stdout
    assert "vs_own_dense: " in shown.stdout


def test_where_there_is_nothing_to_plan_it_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "corpora").mkdir()
    given = run("plan", "corpora", cwd=tmp_path)
    assert (given.returncode, "corpora: has no folder with chunk files" in given.stderr) == (2, True)
    both = run("plan", "corpora", "--chunked-dir", "other", cwd=tmp_path)
    assert (both.returncode, "FOLDER and --chunked-dir are the same" in both.stderr) == (2, True)
    empty = run("plan", cwd=tmp_path)
    assert (empty.returncode, "--sample" in empty.stderr) == (2, True)


LOST = """
models:
  - {slug: lost-splade, kind: sparse, source: {path: nowhere/splade}, hf_model_id: owner/lost-splade, dimension: 0,
     max_tokens: 64, pooling: splade_max, licence: MIT}
  - {slug: lost-reranker, kind: rerank, source: {path: nowhere/reranker}, hf_model_id: owner/lost-reranker,
     dimension: 1, max_tokens: 64, pooling: cross_encoder, licence: MIT}
  - {slug: lost-companion, kind: dense, source: {path: nowhere/encoder}, hf_model_id: owner/lost-companion,
     dimension: 0, max_tokens: 64, pooling: mean, licence: MIT}
profile: {dense: [all-minilm-l6-v2, lost-companion], sparse: [lost-splade], rerank: lost-reranker}
"""


@pytest.mark.models
def test_a_plan_does_without_the_models_that_a_run_does_without_and_says_so(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes", count=8)
    (tmp_path / "models.yaml").write_text(LOST)
    options = ("--set", "models.profile=custom", "--set", "models.file=models.yaml")
    planned = run("plan", "--json", *options, cwd=tmp_path, **PLACES)
    assert planned.returncode == 0, planned.stderr
    (said,) = json.loads(planned.stdout)
    assert set(said["without"]) == {"lost-splade", "lost-reranker", "lost-companion"}
    late = "A run reranks by late interaction alone"
    gone = f"lost-reranker: the folder nowhere/reranker does not exist. Correct the path. {late}"
    assert said["without"]["lost-reranker"] == gone
    assert (said["work"]["sparse"], said["work"]["rerank"], said["depth"]) == (0.0, 0.0, 0)
    assert (said["basis"]["sparse"], said["basis"]["dense"]) == ("does not run", "calibration")
    finished = run("run", "--json", *options, cwd=tmp_path, **PLACES)
    assert finished.returncode == 0, finished.stderr
    manifest = json.loads((tmp_path / "output" / "notes" / "processing_summary.json").read_text())
    assert manifest["sparse_run"]["fallback_count"] == manifest["chunk_count"] == 8
    reranked = manifest["rerank_run"]
    assert (reranked["outcome"], reranked["fallback_count"], reranked["loaded"]) == ("partial", 0, False)
    assert reranked["payload"]["late_interaction"]["queries"] == 3
    lost = "rerank: lost-reranker gave no scores for 3 queries (3 model_unavailable), which late interaction ordered"
    assert f"{lost} by itself" in manifest["warnings"]
    assert lost in finished.stderr or lost in finished.stdout
    assert manifest["ensemble_state"]["dropped_models"] == ["lost-companion"]
