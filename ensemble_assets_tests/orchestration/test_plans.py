"""Plans and runs: what a finished run leaves for later plans, and what is kept beside what happened."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ensemble_assets.collection.folders import discover
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.planning.cost_fit import Plan, PlannedWork
from ensemble_assets.planning.model_cost import PUBLISHED
from ensemble_assets.planning.observed_costs import cost_records, model_work, stage_key
from ensemble_assets.planning.plan_records import compared, store_plan
from ensemble_assets.planning.planner import CollectionPlan, Planner
from ensemble_assets.settings import Settings, resolve
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline

STAGES = ("dense", "sparse", "fusion", "rerank", "export")
PREDICTED = StageSeconds(dense=1.0, sparse=2.0, fusion=0.5, rerank=3.0, export=0.25)


def settings_of(pipeline: Pipeline, **options: Any) -> Settings:
    places = {"paths.chunked_dir": pipeline.root / "corpora", "paths.cache_dir": pipeline.root / "cache"}
    places |= {"paths.output_dir": pipeline.root / "output", "paths.key_file": pipeline.root / "key"}
    places |= {"paths.lock_dir": pipeline.root / "locks"}
    return resolve({**{name: str(path) for name, path in places.items()}, **options}, environment={}).settings


def planned(outcome: Outcome) -> CollectionPlan:
    content = outcome.artefact("chunks").facts["content"]
    made = Plan(PREDICTED, 20, PREDICTED, 20, {"vs_own_dense": 0})
    work = PlannedWork(1.0, 1.0, 1.0, np.arange(21.0), 1.0)
    return CollectionPlan("notes", content, 20, 3, work, made, dict.fromkeys(STAGES, "calibration"), None)


def test_a_run_is_held_against_its_plan_and_the_error_is_recorded(pipeline: Pipeline) -> None:
    first = pipeline.run()
    assert "prediction" not in first.manifest()["performance_baseline"], "there was no plan"
    store_plan(settings_of(pipeline), planned(first))
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
    settings, made = settings_of(pipeline), planned_without_run()
    store_plan(settings, made)
    actual = StageSeconds(**{stage: factor * getattr(PREDICTED, stage) for stage in STAGES})
    said = compared(settings, "content", actual)
    assert said is not None
    assert said["within_tolerance"] is within
    assert compared(settings, "other content", actual) is None


def planned_without_run() -> CollectionPlan:
    made = Plan(PREDICTED, 20, PREDICTED, 20, {})
    work = PlannedWork(1.0, 1.0, 1.0, np.arange(21.0), 1.0)
    return CollectionPlan("notes", "content", 20, 3, work, made, dict.fromkeys(STAGES, "calibration"), None)


def test_a_run_remembers_what_its_stages_cost_and_not_what_it_reused(pipeline: Pipeline) -> None:
    outcome = pipeline.run({"encoding.reuse": False})
    settings = settings_of(pipeline, **{"encoding.reuse": False})
    records = cost_records(settings)
    for stage, asset in {
        "dense": "dense_embeddings",
        "sparse": "sparse_vectors",
        "rerank": "reranked_candidates",
    }.items():
        (seen,) = records.recall(stage_key(settings, stage))
        facts = outcome.artefact(asset).facts
        assert (seen.origin, seen.seconds) == ("run", facts["wall_seconds"])
    facts = outcome.artefact("dense_embeddings").facts
    (seen,) = records.recall(stage_key(settings, "dense"))
    assert seen.work == model_work([PUBLISHED["all-minilm-l6-v2"]], facts["tokens"], facts["items"])
    assert records.recall(stage_key(settings, "export"))[0].work == 20
    assert records.recall(stage_key(settings, "fusion"))[0].work == 60
    pipeline.run({"enable_sparse": False, "encoding.reuse": False})
    assert len(records.recall(stage_key(settings, "sparse"))) == 1, "a stage that is off costs nothing that is kept"
    assert len(records.recall(stage_key(settings, "dense"))) == 2


@pytest.mark.models
def test_the_work_that_a_plan_counts_is_the_work_that_the_run_then_does(pipeline: Pipeline) -> None:
    """Tokens are counted exactly; pairs are estimated from mean lengths, which a tenth may be off."""
    outcome = pipeline.run({"encoding.reuse": False})
    settings = settings_of(pipeline, **{"encoding.reuse": False})
    (collection,) = discover(pipeline.root / "corpora").collections
    planner = Planner(settings, computing=pipeline.computing)
    made = planner.plan(collection)
    records = cost_records(settings)
    for stage in ("dense", "sparse", "fusion", "export"):
        (seen, *_) = records.recall(stage_key(settings, stage))
        assert getattr(made.work, stage) == pytest.approx(seen.work, rel=0.02), stage
    (seen, *_) = records.recall(stage_key(settings, "rerank"))
    depth = outcome.artefact("reranked_candidates").facts["reached_depth"]
    assert made.work.rerank[depth] == pytest.approx(seen.work, rel=0.1)
    assert set(made.basis.values()) == {"earlier runs"}
    assert made.plan.requested == 20
    assert made.plan.seconds.total == pytest.approx(
        sum(one.seconds for stage in STAGES for one in records.recall(stage_key(settings, stage))), rel=0.1
    )


def test_a_plan_without_rerank_or_sparse_gives_them_nothing(pipeline: Pipeline) -> None:
    pipeline.run({"encoding.reuse": False})
    settings = settings_of(pipeline, **{"encoding.reuse": False})
    (collection,) = discover(pipeline.root / "corpora").collections
    off = replace(settings, enable_sparse=False, enable_rerank=False)
    made = Planner(off, computing=pipeline.computing).plan(collection)
    assert (made.plan.seconds.sparse, made.plan.seconds.rerank, made.plan.depth) == (0.0, 0.0, 0)
    assert made.plan.seconds.dense > 0
