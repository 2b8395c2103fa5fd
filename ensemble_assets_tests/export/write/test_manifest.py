"""The run manifest."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.read.bundle_reader import read_manifest
from ensemble_assets.export.write.manifest import (
    FeatureToggles,
    build_manifest,
    manifest_text,
)
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets_tests.export.runs import RERANK, SPARSE, everything_off, everything_on

ALWAYS = (
    "schema_version",
    "generated_at",
    "collection",
    "chunk_count",
    "feature_toggles",
    "activation_provenance",
    "activation_provenance_lines",
    "dense_run",
    "compatibility",
    "telemetry",
    "performance_baseline",
    "ensemble_state",
)


def test_stages_off_give_the_sections_that_are_always_there() -> None:
    manifest = build_manifest(everything_off())
    assert tuple(manifest) == ALWAYS
    assert (manifest["schema_version"], manifest["compatibility"]) == ("v4.1", {"current": "v4.1", "legacy": ["v4.0"]})


def test_stages_on_add_their_runs_after_all_that_is_always_there() -> None:
    manifest = build_manifest(everything_on(warnings=("coverage 0.67 is under 0.95",)))
    assert set(manifest) - set(ALWAYS) == {"rerank_run", "sparse_run", "warnings"}
    assert tuple(manifest) == (*ALWAYS, "warnings", "rerank_run", "sparse_run")


def test_rerank_run_has_the_contracts_keys() -> None:
    run = build_manifest(everything_on())["rerank_run"]
    assert run["device_state"] == {
        "requested": "cuda:0",
        "resolved": "cpu",
        "fallback_applied": True,
        "fallback_reason": "no_gpu",
    }
    assert [
        run[key] for key in ("enabled", "executed", "status", "model_name", "loaded", "device", "fallback_count")
    ] == [
        True,
        True,
        "executed",
        "tiny",
        True,
        "cpu",
        0,
    ]
    assert "fallback_reason" not in run
    assert run["payload"] == {
        "run_id": "r1",
        "latency_ms": 12.5,
        "gpu_peak_gb": 0.0,
        "batch_size": 8,
        "top_k_candidates": 20,
        "rerank_top_k": 20,
        "result_count": 2,
        "initial_candidate_count": 3,
        "candidate_ids": ["b", "a"],
        "scores": [0.75, 0.5],
        "query_count": 2,
        "status": "executed",
        "device_state": run["device_state"],
        "dense_scores": [0.5, None],
        "candidate_metadata": [
            {"point_id": 1, "rank": 1, "fused_rank": 2, "reranked": True},
            {"point_id": 0, "rank": 2, "fused_rank": 1, "reranked": False},
        ],
    }
    assert list(run)[-3:] == ["latency_ms", "batch_size", "outcome"]
    assert (run["latency_ms"], run["batch_size"], run["outcome"]) == (12.5, 8, "completed")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": "partial"}, "executed"),
        ({"executed": False, "status": "fallback"}, "staged"),
        ({"executed": False, "status": "fallback", "initial_candidate_count": 0}, "pending"),
    ],
)
def test_the_status_of_rerank_is_one_of_the_old_programs_words(changes: dict[str, Any], status: str) -> None:
    run = build_manifest(everything_on(rerank_run=replace(RERANK, **changes)))["rerank_run"]
    assert (run["status"], run["payload"]["status"], run["outcome"]) == (status, status, changes["status"])


def test_a_device_is_never_empty() -> None:
    assert build_manifest(everything_on(sparse_run=replace(SPARSE, devices={})))["sparse_run"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("value", "layer", "source", "line"),
    [
        (False, "environment", "environment variable EMBEDDER_ENABLE_RERANK",
         "enable_rerank: off (override via EMBEDDER_ENABLE_RERANK; default on)"),
        (False, "run", "--disable-rerank", "enable_rerank: off (override via --disable-rerank; default on)"),
        (True, "default", "default", "enable_rerank: on (default)"),
    ],
)  # fmt: skip
def test_an_opt_outs_line_names_the_override_and_the_default(value: bool, layer: str, source: str, line: str) -> None:
    row = {"key": "enable_rerank", "value": value, "source": source, "layer": layer}
    toggles = FeatureToggles(False, False, provenance=[row])
    manifest = build_manifest(replace(everything_off(), toggles=toggles))
    assert manifest["activation_provenance_lines"] == [line]


def test_sparse_run_has_the_contracts_keys() -> None:
    run = build_manifest(everything_on())["sparse_run"]
    payload = run.pop("payload")
    assert payload == run
    assert run == {
        "enabled": True,
        "executed": True,
        "models": ["splade-tiny"],
        "model_names": ["splade-tiny"],
        "vectors": {"total": 3, "available": 2, "coverage_ratio": 2 / 3},
        "devices": {"splade-tiny": "cpu"},
        "fallback_used": True,
        "fallback_count": 1,
        "fallback_reason": "inference_failed",
        "latency_ms": 3.5,
        "run_id": "r1",
        "success": True,
        "device": "cpu",
    }


def test_fallbacks_are_named_only_where_they_happened() -> None:
    failed = replace(
        RERANK, status="fallback", fallback_count=2, fallback_reason="model_missing", fallback_source="model"
    )
    run = build_manifest(everything_on(rerank_run=failed))["rerank_run"]
    assert (run["fallback_reason"], run["fallback_source"], run["fallback_count"]) == ("model_missing", "model", 2)
    plain = replace(RERANK, requested_device="auto")
    assert "fallback_reason" not in build_manifest(everything_on(rerank_run=plain))["rerank_run"]["device_state"]


def test_coverage_of_an_empty_collection_is_zero() -> None:
    empty = replace(SPARSE, vectors_total=0, vectors_available=0)
    assert build_manifest(everything_on(sparse_run=empty))["sparse_run"]["vectors"]["coverage_ratio"] == 0.0


def test_toggles_say_where_they_come_from() -> None:
    toggles = build_manifest(everything_on())["feature_toggles"]
    assert list(toggles) == [
        "enable_rerank",
        "enable_sparse",
        "sparse_models",
        "sources",
        "provenance",
        "provenance_lines",
    ]
    assert toggles["provenance_lines"] == [
        "enable_rerank: on (default)",
        'sparse_models: ["splade-tiny"] (--sparse-models)',
    ]
    manifest = build_manifest(everything_on())
    assert manifest["activation_provenance"] == toggles["provenance"]
    assert manifest["activation_provenance_lines"] == toggles["provenance_lines"]


def test_every_span_and_metric_is_there_and_a_stage_that_is_off_says_so() -> None:
    telemetry = build_manifest(everything_off())["telemetry"]
    assert list(telemetry["spans"]) == ["rag.dense", "rag.sparse", "rag.fusion", "rag.rerank", "rag.export"]
    assert telemetry["spans"]["rag.dense"]["status"] == "active"
    for stage in ("sparse", "rerank"):
        assert telemetry["spans"][f"rag.{stage}"]["reason"] == "feature_disabled"
        assert telemetry["metrics"][stage] == {"status": "skipped", "reason": "feature_disabled", "metrics": []}
    assert telemetry["spans"]["rag.export"]["reason"] == "not_recorded"
    assert [telemetry[k] for k in list(telemetry)[2:]] == [4, 0, 0, 0]


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({"spans": {"rag.query": {}}}, "unknown span rag.query"),
        ({"spans": {"rag.dense": {"query": "secret"}}}, "unknown key of span rag.dense query"),
        ({"metrics": {"dense": {"text": "secret"}}}, "unknown key of metrics of dense text"),
        ({"queries_seen": 1}, "unknown telemetry count queries_seen"),
    ],
)
def test_telemetry_that_the_contract_does_not_know_is_refused(section: dict[str, Any], found: str) -> None:
    with pytest.raises(ContractError, match=found) as caught:
        build_manifest(everything_off(telemetry=section))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"rerank_run": None}, "rerank stage is on, but there is no run"),
        ({"sparse_run": None}, "sparse stage is on, but there is no run"),
        ({"toggles": FeatureToggles(False, True)}, "rerank stage is off, but there is a run"),
    ],
)
def test_runs_and_toggles_must_fit(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ContractError, match=found):
        build_manifest(everything_on(**changes))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/anna/models/mini", "mini"),
        ("config file /home/anna/ensemble.yaml", "config file ensemble.yaml"),
        ("at C:\\Users\\anna\\x.bin, twice", "at x.bin, twice"),
        ("'/srv/a b'", "'a b'"),
        ("owner/name at 3 pairs/s", "owner/name at 3 pairs/s"),
        ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
        ("models/mini", "models/mini"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(text: str, kept: str) -> None:
    manifest = build_manifest(everything_off(dense_run={"facts": [{"where": text}]}, warnings=(text,)))
    assert manifest["dense_run"]["facts"][0]["where"] == kept
    assert manifest["warnings"] == [kept]


def test_additive_sections_come_after_the_contracts_and_replace_none() -> None:
    manifest = build_manifest(everything_off(more={"evaluation": {"ndcg": 0.7}, "collection": "x"}))
    assert list(manifest)[-1] == "evaluation"
    assert manifest["collection"] == "guide"


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ContractError, match="cannot be written as JSON"):
        manifest_text(build_manifest(everything_off(dense_run={"latency_ms": math.nan})))


def test_a_written_manifest_reads_back_as_it_was(tmp_path: Path) -> None:
    manifest = build_manifest(everything_on(warnings=("café",)))
    (tmp_path / MANIFEST_NAME).write_text(manifest_text(manifest), encoding="utf-8")
    assert read_manifest(tmp_path) == manifest
    assert "café" in (tmp_path / MANIFEST_NAME).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [{}, {"telemetry": None, "warnings": "x"}, {"collection": "c", "feature_toggles": []}]
)
def test_sections_that_a_v40_manifest_lacks_are_empty(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    manifest = read_manifest(tmp_path)
    empty = {"telemetry": {}, "feature_toggles": {}, "warnings": [], "compatibility": {}}
    assert {key: manifest[key] for key in empty} == empty
    assert manifest["schema_version"] == "v4.0"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_a_manifest_that_is_none_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"{MANIFEST_NAME}: expected a JSON object\. Export the bundle again"):
        read_manifest(tmp_path)
    with pytest.raises(ArtefactError, match="other: there is no such bundle"):
        read_manifest(tmp_path / "other")
    (tmp_path / "other").mkdir()
    with pytest.raises(ArtefactError, match=f"there is no {MANIFEST_NAME} in it"):
        read_manifest(tmp_path / "other")
