"""Artefacts of different versions of one input are never put together."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline, write_collection


def only(pipeline: Pipeline, instance: dg.DagsterInstance, asset: str) -> str:
    """Materialise one asset; what made it fail."""
    job = build_definitions(computing=pipeline.computing).resolve_job_def(RETRIEVAL_BUNDLE)
    result = job.execute_in_process(
        partition_key="notes", instance=instance, run_config=pipeline.config(), raise_on_error=False,
        asset_selection=[dg.AssetKey(asset)],
    )  # fmt: skip
    steps = (event.step_failure_data for event in result.all_events if event.is_step_failure)
    return " ".join(step.user_failure_data.description or "" for step in steps if step.user_failure_data)


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Pipeline, dg.DagsterInstance, Outcome]:
    write_collection(tmp_path / "corpora" / "notes")
    pipeline, instance = Pipeline(tmp_path), dg.DagsterInstance.ephemeral()
    outcome = pipeline.run(instance=instance)
    assert outcome.succeeded, outcome.error
    return pipeline, instance, outcome


def change_texts(root: Path, count: int) -> None:
    path = root / "corpora" / "notes" / "notes_chunks.json"
    chunks = json.loads(path.read_text())[:count]
    path.write_text(json.dumps([{**chunk, "text": f"Other words {row}."} for row, chunk in enumerate(chunks)]))


@pytest.mark.parametrize("count", [20, 10])
def test_new_texts_are_not_exported_with_old_vectors(
    finished: tuple[Pipeline, dg.DagsterInstance, Outcome], count: int
) -> None:
    pipeline, instance, outcome = finished
    before = {path.name: path.read_bytes() for path in outcome.bundle.iterdir()}
    change_texts(pipeline.root, count)
    assert only(pipeline, instance, "chunks") == ""
    for asset in ("export_bundle", "reranked_candidates", "fused_candidates", "evaluation"):
        said = only(pipeline, instance, asset)
        assert "made of another version of chunks than there is now. Materialise" in said, asset
    assert "queries, dense_embeddings, sparse_vectors, fused_candidates, reranked_candidates: made of" in only(
        pipeline, instance, "export_bundle"
    )
    assert {path.name: path.read_bytes() for path in outcome.bundle.iterdir()} == before
    for asset in ("queries", "dense_embeddings", "sparse_vectors", "fused_candidates", "reranked_candidates"):
        assert only(pipeline, instance, asset) == ""
    assert only(pipeline, instance, "export_bundle") == ""


def test_the_same_texts_read_again_are_the_same_version(
    finished: tuple[Pipeline, dg.DagsterInstance, Outcome],
) -> None:
    pipeline, instance, _ = finished
    for asset in ("chunks", "export_bundle", "reranked_candidates", "export_bundle"):
        assert only(pipeline, instance, asset) == "", asset


def test_artefacts_of_earlier_programs_say_nothing_of_their_inputs_and_are_taken(
    finished: tuple[Pipeline, dg.DagsterInstance, Outcome],
) -> None:
    pipeline, instance, _ = finished
    for path in (pipeline.root / "output" / ".artifacts" / "notes").rglob("artefact.json"):
        index = json.loads(path.read_text())
        del index["inputs"]
        path.write_text(json.dumps(index))
    assert only(pipeline, instance, "export_bundle") == ""
