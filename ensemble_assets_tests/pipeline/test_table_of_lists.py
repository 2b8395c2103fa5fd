"""The two tables of ``common/stages.py``: a new first-stage list is seen everywhere, inputs are Dagster's own."""

from __future__ import annotations

from dataclasses import fields

import polars as pl
import pytest

from ensemble_assets.build import build_definitions
from ensemble_assets.common import stages
from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.common.stages import PIPELINE, STAGE, TIMED_STAGES, RankedListKind, list_names
from ensemble_assets.orchestration.assets import ALL_ASSETS
from ensemble_assets.orchestration.checks.quality import quality_results
from ensemble_assets.pipeline import first_stage
from ensemble_assets.settings import resolve
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline

TITLES = RankedListKind("titles", "Titles", "fusion", first_stage=True)


@pytest.fixture
def with_titles(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """A run with one more first-stage list: its row in the table and its search, and no other change."""

    def search(searched: first_stage.Searched) -> pl.DataFrame | None:
        found = first_stage.SEARCHES["lexical"](searched)
        assert found is not None
        return found.filter(pl.col("rank") <= 2)

    monkeypatch.setattr(stages, "LISTS", (*stages.LISTS[:3], TITLES, *stages.LISTS[3:]))
    monkeypatch.setitem(first_stage.SEARCHES, "titles", search)
    outcome = pipeline.run()
    assert outcome.succeeded, outcome.error
    return outcome


def test_a_list_added_to_the_table_is_fused_measured_judged_and_in_the_manifest(with_titles: Outcome) -> None:
    candidates = with_titles.artefact("fused_candidates").frame("candidates")
    assert {"titles_rank", "titles_score"} <= set(candidates.columns)
    assert candidates["titles_rank"].max() == 2

    measured = with_titles.artefact("evaluation")
    assert list(dict.fromkeys(measured.frame("summary")["run"])) == list(list_names())

    gate = quality_results(measured, "notes", resolve().settings)["fusion_not_worse"]()
    assert "Titles 0." in gate.message or "Titles 1." in gate.message

    assert with_titles.manifest()["fusion_run"]["lists"] == ["dense", "sparse", "lexical", "titles"]


def test_a_list_added_to_the_table_is_shown_in_dagster_and_on_the_page(with_titles: Outcome) -> None:
    (shown,) = [
        event.step_materialization_data.materialization.metadata
        for event in with_titles.result.all_events
        if event.is_step_materialization and event.step_key == "evaluation"
    ]
    assert 0 < shown["Titles nDCG@10"].value <= 1

    page = with_titles.bundle.with_name("notes.report.html").read_text(encoding="utf-8")
    assert "Titles" in page
    assert "BM25" in page


def test_bm25_is_a_column_of_the_candidates_and_judged_by_the_fusion_gate(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    candidates = outcome.artefact("fused_candidates").frame("candidates")
    assert candidates.columns == list(CANDIDATES)
    assert CANDIDATES["lexical_rank"] == pl.UInt32
    assert candidates["lexical_rank"].min() == 1
    gates = quality_results(outcome.artefact("evaluation"), "notes", resolve().settings)
    assert "BM25 1." in gates["fusion_not_worse"]().message


def test_the_tables_inputs_are_those_of_the_dagster_assets() -> None:
    assert [asset.key.path[-1] for asset in ALL_ASSETS] == [stage.asset for stage in PIPELINE]
    for asset, stage in zip(ALL_ASSETS, PIPELINE, strict=True):
        read = {key.path[-1] for keys in asset.asset_deps.values() for key in keys}
        assert read == {STAGE[name].asset for name in stage.inputs}, stage.name


def test_stages_that_use_a_model_hold_the_gpu_pool_and_switches_are_settings() -> None:
    pooled = {asset.key.path[-1] for asset in ALL_ASSETS if asset.op.pool}
    assert pooled == {stage.asset for stage in PIPELINE if stage.uses_model}
    settings = resolve().settings
    assert all(isinstance(getattr(settings, stage.toggle), bool) for stage in PIPELINE if stage.toggle)


def test_main_frames_are_in_the_artefacts_and_searches_fit_the_lists(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    for stage in PIPELINE:
        assert not stage.main_frame or outcome.artefact(stage.asset).has(stage.main_frame), stage.name
    assert set(first_stage.SEARCHES) == set(stages.first_stage_lists())


def test_seconds_are_counted_for_the_timed_stages() -> None:
    assert tuple(field.name for field in fields(StageSeconds)) == TIMED_STAGES
    assert build_definitions() is not None
