"""Plans and runs: costs that a finished run leaves for later plans, and the comparison of a run with its plan."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_assets.collection.folders import discover
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.planning.history import compare_with_plan, recall, store_plan
from ensemble_assets.planning.planner import CollectionPlan, plan_collection
from ensemble_assets.settings import Settings, resolve
from ensemble_assets_tests.orchestration.pipeline import Pipeline

STAGES = ("dense", "sparse", "fusion", "rerank", "export")
PREDICTED = StageSeconds(dense=1.0, sparse=2.0, fusion=0.5, rerank=3.0, export=0.25)


def settings_of(pipeline: Pipeline, **options: Any) -> Settings:
    places = {"paths.chunked_dir": pipeline.root / "corpora", "paths.cache_dir": pipeline.root / "cache"}
    places |= {"paths.output_dir": pipeline.root / "output", "paths.key_file": pipeline.root / "key"}
    places |= {"paths.lock_dir": pipeline.root / "locks"}
    return resolve({**{name: str(path) for name, path in places.items()}, **options}, environment={}).settings


def planned(content: str) -> dict[str, Any]:
    work = dict.fromkeys(STAGES, 1.0)
    basis = dict.fromkeys(STAGES, "calibration")
    return CollectionPlan("notes", content, 20, 3, work, PREDICTED, 20, 20, basis, None).as_json()


def test_a_run_is_held_against_its_plan_and_the_error_is_recorded(pipeline: Pipeline) -> None:
    first = pipeline.run()
    assert "prediction" not in first.manifest()["performance_baseline"], "there was no plan"
    store_plan(settings_of(pipeline), planned(first.artefact("chunks").record.content))
    said = pipeline.run().manifest()["performance_baseline"]["prediction"]
    assert said["predicted_seconds"] == {stage: getattr(PREDICTED, stage) for stage in STAGES}
    assert said["predicted_total"] == PREDICTED.total
    actual = sum(said["actual_seconds"].values())
    assert said["actual_total"] == pytest.approx(actual, abs=1e-3)
    assert said["error"] == pytest.approx((PREDICTED.total - actual) / actual, rel=0.01)
    assert said["stage_errors"]["rerank"] == pytest.approx(3.0 / said["actual_seconds"]["rerank"] - 1, rel=0.05)
    other = pipeline.run({"rerank.depth": 7}).manifest()["performance_baseline"]
    assert "prediction" not in other, "other settings, another plan"


@pytest.mark.parametrize(("factor", "within"), [(1.0, True), (1.3, True), (1.4, False), (0.81, True), (0.79, False)])
def test_a_plan_is_right_within_a_quarter_of_what_the_run_took(pipeline: Pipeline, factor: float, within: bool) -> None:
    settings = settings_of(pipeline)
    store_plan(settings, planned("content"))
    actual = StageSeconds(**{stage: factor * getattr(PREDICTED, stage) for stage in STAGES})
    said = compare_with_plan(settings, "content", actual)
    assert said is not None
    assert said["within_tolerance"] is within
    assert compare_with_plan(settings, "other content", actual) is None


def test_a_run_remembers_what_its_stages_cost_and_not_what_it_reused(pipeline: Pipeline) -> None:
    outcome = pipeline.run({"encoding.reuse": False})
    settings = settings_of(pipeline, **{"encoding.reuse": False})
    for stage, asset in {
        "dense": "dense_embeddings",
        "sparse": "sparse_vectors",
        "rerank": "reranked_candidates",
    }.items():
        (observation,) = recall(settings, stage)
        record = outcome.artefact(asset).record
        assert (observation.origin, observation.seconds) == ("run", record.wall_seconds)
        assert observation.work == record.tokens
    assert recall(settings, "export")[0].work == 20
    assert recall(settings, "fusion")[0].work == 60
    sparse = recall(settings, "sparse")
    second = pipeline.run({"enable_sparse": False, "encoding.reuse": False})
    assert recall(settings, "sparse") == sparse, "a stage that is off costs nothing that is remembered"
    assert recall(settings, "dense")[-1].seconds == second.artefact("dense_embeddings").record.wall_seconds
    pipeline.run()
    dense = recall(settings, "dense")
    pipeline.run()
    assert recall(settings, "dense") == dense, "reused results cost nothing that is remembered"


@pytest.mark.models
def test_the_work_that_a_plan_counts_is_the_work_that_the_run_then_does(pipeline: Pipeline) -> None:
    """Tokens are counted exactly; pairs are estimated from mean lengths, which a tenth may be off."""
    outcome = pipeline.run({"encoding.reuse": False})
    settings = settings_of(pipeline, **{"encoding.reuse": False})
    (collection,) = discover(pipeline.root / "corpora").collections
    plan = plan_collection(settings, collection, pipeline.computing)
    for stage in ("dense", "sparse", "fusion", "export"):
        assert plan.work[stage] == pytest.approx(recall(settings, stage)[-1].work, rel=0.02), stage
    depth = outcome.artefact("reranked_candidates").record.reached_depth
    assert depth == plan.depth == plan.requested_depth == 20
    assert plan.work["rerank"] == pytest.approx(recall(settings, "rerank")[-1].work, rel=0.1)
    assert set(plan.basis.values()) == {"earlier runs"}
    assert plan.seconds.total == pytest.approx(sum(recall(settings, stage)[-1].seconds for stage in STAGES), rel=0.1)


def test_a_plan_without_rerank_or_sparse_gives_them_nothing(pipeline: Pipeline) -> None:
    pipeline.run({"encoding.reuse": False})
    settings = settings_of(pipeline, **{"encoding.reuse": False})
    (collection,) = discover(pipeline.root / "corpora").collections
    off = settings.model_copy(update={"enable_sparse": False, "enable_rerank": False})
    plan = plan_collection(off, collection, pipeline.computing)
    assert (plan.seconds.sparse, plan.seconds.rerank, plan.depth) == (0.0, 0.0, 0)
    assert plan.seconds.dense > 0
