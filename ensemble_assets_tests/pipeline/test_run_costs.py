"""The latency budget through the whole pipeline: what rerank is given, what manifest, facts and check say of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
import polars as pl
import pytest

from ensemble_assets.artefacts.latency_baseline import ModelSeconds, SlaBaseline, store_baseline
from ensemble_assets.artefacts.records import ExportRecord, RerankRecord
from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets.compute.splade_head.measured_ways import MeasuredWays, keep_ways
from ensemble_assets.pipeline.bundle.inputs import Upstream
from ensemble_assets.pipeline.run_costs import LatencyBudget
from ensemble_assets.planning.history import compare_with_plan
from ensemble_assets.settings import resolve
from ensemble_assets_tests.export.checks.schemas import problems
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline, write_collection
from ensemble_assets_tests.orchestration.test_checks import figures_of

if TYPE_CHECKING:
    from ensemble_assets.pipeline.stage_run import StageRun


def write_baseline(pipeline: Pipeline, seconds: float, first: Outcome) -> SlaBaseline:
    """A stored baseline for what the first run encoded, as ``baseline sla`` would have measured it."""
    models = first.artefact("dense_embeddings").record.models
    made = SlaBaseline(
        collection="notes",
        content=first.artefact("chunks").record.content,
        texts=20,
        host=this_host(),
        models=tuple(ModelSeconds(model.slug, model.fingerprint, 0.0, (seconds,)) for model in models),
        libraries={**library_versions(), "torch": "0.1"},
        measured_at="2026-01-01T00:00:00+00:00",
    )
    store_baseline(pipeline.root / "cache" / "baselines", made)
    return made


WAYS = MeasuredWays("screen", "avx2", {"products": 12000, "screen": 90000})


def check(outcome: Outcome) -> dg.AssetCheckEvaluation:
    evaluations = outcome.result.get_asset_check_evaluations()
    return next(one for one in evaluations if one.check_name == "latency_budget")


@dataclass(frozen=True)
class Said:
    """What one run said, taken down before the next one replaced its bundle."""

    manifest: dict[str, Any]
    check: dg.AssetCheckEvaluation
    rerank: RerankRecord
    export: ExportRecord
    reranked: pl.DataFrame
    queries: pl.DataFrame
    misfits: list[str]

    @property
    def baseline(self) -> dict[str, Any]:
        return self.manifest["performance_baseline"]


def taken_down(outcome: Outcome) -> Said:
    assert outcome.succeeded, outcome.error
    artefact = outcome.artefact("reranked_candidates")
    return Said(
        manifest=outcome.manifest(),
        check=check(outcome),
        rerank=artefact.record,
        export=outcome.artefact("export_bundle").record,
        reranked=artefact.frame("reranked"),
        queries=artefact.frame("queries"),
        misfits=problems(outcome.bundle, "v4.1"),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """Runs of one collection: no baseline, one that nobody can keep, the same with the budget off, an easy one."""
    root: Path = tmp_path_factory.mktemp("latency")
    write_collection(root / "corpora" / "notes")
    pipeline = Pipeline(root)
    first = pipeline.run()
    made = {"none": taken_down(first)}
    write_baseline(pipeline, 0.001, first)
    made["tight"] = taken_down(pipeline.run({"rerank.floor": 3}))
    made["off"] = taken_down(pipeline.run({"rerank.budget": "off"}))
    write_baseline(pipeline, 1e4, first)
    keep_ways(pipeline.root / "cache", WAYS)
    made["easy"] = taken_down(pipeline.run())
    return made


def test_the_way_that_sparse_terms_were_computed_is_in_the_manifest_with_its_rates(runs: dict[str, Said]) -> None:
    assert "sparse_head" not in runs["none"].baseline, "so few tokens are not worth measuring"
    rates = {"products": 12000, "screen": 90000}
    expected = {"path": "screen", "reason": "avx2", "tokens_per_second": rates}
    assert runs["easy"].baseline["sparse_head"] == expected


def test_without_a_baseline_rerank_is_as_deep_as_asked_and_the_check_says_so(runs: dict[str, Said]) -> None:
    said = runs["none"].baseline
    assert said["not_measured"] == "never_measured"
    assert "vs_sla" not in said
    assert said["vs_own_dense"] > 1
    assert said["budget"]["reached_depth"] == said["budget"]["requested_depth"] == 20
    assert said["budget"]["budget_reason"] == "no_baseline"
    assert runs["none"].check.passed
    assert "ensemble-assets baseline sla" in str(runs["none"].check.metadata["notes"].value)


def test_when_time_is_over_rerank_stops_at_its_floor_and_manifest_facts_and_check_say_so(
    runs: dict[str, Said],
) -> None:
    run, said = runs["tight"], runs["tight"].baseline
    assert (said["dense_only_seconds"], said["limit_ratio"]) == (0.001, 1.1)
    assert said["vs_sla"] > 1.1
    assert said["budget"]["against"] == "sla"
    assert (said["budget"]["requested_depth"], said["budget"]["reached_depth"]) == (20, 3)
    assert said["budget"]["budget_seconds"] < 0
    assert said["measured"]["libraries_changed_since"] == ["torch"]
    assert run.manifest["rerank_run"]["payload"]["reached_depth"] == 3
    assert run.manifest["rerank_run"]["payload"]["queries_cut_short"] == 3
    assert run.manifest["rerank_run"]["fallback_count"] == 0
    assert set(said["stage_seconds"]) == {"dense", "sparse", "fusion", "rerank", "export"}
    assert run.misfits == []
    assert (run.check.passed, run.check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "floor of 3" in str(run.check.description)


def test_the_depth_of_every_query_is_recorded_and_is_a_prefix_of_its_candidates(runs: dict[str, Said]) -> None:
    run = runs["tight"]
    assert run.queries["requested_depth"].to_list() == [20, 20, 20]
    assert run.queries["reached_depth"].to_list() == [3, 3, 3]
    for query in run.queries["public_id"]:
        scored = run.reranked.filter((pl.col("public_id") == query) & pl.col("reranked"))
        assert sorted(scored["fused_rank"].to_list()) == [1, 2, 3]


def test_the_check_counts_all_of_the_export_and_the_manifest_what_there_was_of_it(runs: dict[str, Said]) -> None:
    run = runs["easy"]
    figures = figures_of(run.check)
    assert float(figures["vs_sla"]) >= run.baseline["vs_sla"] * 0.999
    assert float(figures["vs_own_dense"]) == pytest.approx(run.baseline["vs_own_dense"], rel=1e-3)
    assert run.export.performance.vs_own_dense == pytest.approx(run.baseline["vs_own_dense"], rel=1e-3)
    assert run.export.performance.vs_sla >= run.baseline["vs_sla"]
    told = {event["against"]: event["ratio"] for event in run.export.events if event["name"] == "budget.measured"}
    assert told == {"sla": run.export.performance.vs_sla, "own_dense": run.export.performance.vs_own_dense}
    limits = {event["against"]: event["limit"] for event in run.export.events if event["name"] == "budget.measured"}
    assert limits == {"sla": 1.1, "own_dense": None}, "only the deciding ratio can raise an alert"
    assert run.baseline["one_run"] is True
    assert not {"dropped_metadata"} & (set(run.check.metadata) | set(figures))


def test_with_the_budget_off_both_ratios_are_still_reported(runs: dict[str, Said]) -> None:
    run = runs["off"]
    assert run.baseline["budget"]["reached_depth"] == 20
    assert run.baseline["vs_sla"] > 1.1
    assert run.baseline["vs_own_dense"] > 1
    assert (run.check.passed, run.check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "rerank.budget is off" in str(run.check.description)


def test_with_time_enough_the_result_is_that_of_a_run_without_a_limit(runs: dict[str, Said]) -> None:
    easy = runs["easy"]
    assert easy.check.passed
    assert (easy.rerank.budget, easy.rerank.budget_seconds > 1e3) == ("sla", True)
    assert [event["name"] for event in easy.rerank.events if event["name"].startswith("budget")] == [
        "budget.granted",
        "budget.spent",
    ]
    assert easy.queries["reached_depth"].to_list() == [20, 20, 20]
    for name in ("none", "off"):
        assert easy.reranked.equals(runs[name].reranked)
        assert easy.queries.equals(runs[name].queries)


def test_chunks_of_an_earlier_version_which_did_not_name_their_content_have_ratios_too(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    artefacts = [outcome.artefact(asset) for asset in ("chunks", "queries", "dense_embeddings", "sparse_vectors",
                                                       "fused_candidates", "reranked_candidates")]  # fmt: skip
    facts = {name: value for name, value in artefacts[0].index["facts"].items() if name != "content"}
    earlier = replace(artefacts[0], index={**artefacts[0].index, "facts": facts})
    settings = resolve({"paths.cache_dir": str(pipeline.root / "cache")}).settings
    run = cast("StageRun", SimpleNamespace(settings=settings, elapsed=lambda: 0.1, collection="notes"))
    ratios = LatencyBudget.of_export(Upstream(earlier, *artefacts[1:]), run, compare_with_plan).ratios()
    assert ratios.vs_own_dense > 1
    assert ratios.prediction is None
