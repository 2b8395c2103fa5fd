"""Evaluation as an asset: what is measured, what the UI can plot, what its gates say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from ensemble_assets.artefacts.quality_baseline import QualityBaseline, read_quality_baseline, write_quality_baseline
from ensemble_assets.artefacts.records import EvaluationRecord
from ensemble_assets.common.stages import list_title
from ensemble_assets.orchestration.checks.quality import QUALITY_DESCRIPTIONS
from ensemble_assets.orchestration.dagster_metadata import described
from ensemble_assets.retrieval.evaluation import MEASURES, evaluate
from ensemble_assets.retrieval.quality_verdicts import GATED_MEASURE
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline

RUNS = ("dense", "sparse", "lexical", "fused", "reranked")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Outcome]:
    """One run with judgements, to read from; ``again`` makes others."""
    from ensemble_assets_tests.orchestration.pipeline import write_collection

    root = tmp_path_factory.mktemp("evaluated")
    write_collection(root / "corpora" / "notes")
    pipeline = Pipeline(root)
    outcome = pipeline.run({"checks.baselines_dir": str(root / "baselines")})
    assert outcome.succeeded, outcome.error
    return pipeline, outcome


def quality_checks(outcome: Outcome) -> dict[str, dg.AssetCheckEvaluation]:
    found = {check.check_name: check for check in outcome.result.get_asset_check_evaluations()}
    return {name: found[name] for name in QUALITY_DESCRIPTIONS}


def accept(folder: Path, outcome: Outcome, shift: float = 0.0, **changed: Any) -> None:
    """A baseline of what was measured, every final value ``shift`` higher."""
    frame = outcome.artefact("evaluation").frame("per_query").filter(pl.col("measure") == "nDCG@10")
    values = {
        str(run): {q: v + (shift if run == "reranked" else 0.0) for q, v in part.select("public_id", "value").rows()}
        for (run,), part in frame.group_by("run", maintain_order=True)
    }
    fields = {"collection": "notes", "judged": True, "accepted_at": "2026-01-01T00:00:00", "measure": "nDCG@10"}
    write_quality_baseline(
        folder, QualityBaseline(**{**fields, "means": {}, "per_query": values, "provenance": {}, **changed})
    )


def test_all_lists_are_measured_per_query_and_stored(finished: tuple[Pipeline, Outcome]) -> None:
    artefact = finished[1].artefact("evaluation")
    per_query = artefact.frame("per_query")
    assert sorted(per_query["run"].unique()) == sorted(RUNS)
    assert sorted(per_query["measure"].unique()) == sorted(MEASURES)
    assert per_query.height == len(RUNS) * len(MEASURES) * 3
    assert (artefact.record.status, artefact.record.judged) == ("completed", True)


def test_what_is_stored_is_what_a_direct_measurement_of_the_lists_gives(finished: tuple[Pipeline, Outcome]) -> None:
    outcome = finished[1]
    reranked, qrels = (
        outcome.artefact("reranked_candidates").frame("reranked"),
        outcome.artefact("queries").frame("qrels"),
    )
    expected = evaluate({"reranked": reranked}, qrels).means("MAP")["reranked"]
    assert outcome.artefact("evaluation").record.means["reranked"]["MAP"] == pytest.approx(expected)


def test_the_ui_plots_the_gated_measure_of_every_list_and_has_one_table_of_all(
    finished: tuple[Pipeline, Outcome],
) -> None:
    metadata = dict(finished[1].result.asset_materializations_for_node("evaluation")[0].metadata)
    plotted = {name for name, value in metadata.items() if isinstance(value, dg.FloatMetadataValue)}
    assert plotted == {"wall_seconds", *(f"{list_title(run)} {GATED_MEASURE}" for run in RUNS)}
    rows = [record.data for record in metadata["quality"].records]
    assert [row["list"] for row in rows] == ["Dense", "Sparse", "BM25", "Fused", "Reranked"]
    assert all(set(MEASURES) < set(row) for row in rows)


def test_figures_of_derived_probes_are_plotted_under_a_name_of_their_own() -> None:
    means = {"fused": {GATED_MEASURE: 1.0}}
    by_probes, judged = (
        described(EvaluationRecord("evaluation", "completed", means=means, judged=judged), 1, {})
        for judged in (False, True)
    )
    assert by_probes[f"probes Fused {GATED_MEASURE}"] == judged[f"Fused {GATED_MEASURE}"] == 1.0
    assert f"Fused {GATED_MEASURE}" not in by_probes


def test_without_a_baseline_the_gate_passes_and_says_how_to_accept_one(finished: tuple[Pipeline, Outcome]) -> None:
    check = quality_checks(finished[1])["quality_regression"]
    assert check.passed
    assert "baseline accept" in str(check.description)


@pytest.mark.parametrize(("severity", "succeeds"), [("warn", True), ("error", False)])
def test_a_loss_against_the_baseline_warns_or_fails_the_run_as_configured(
    finished: tuple[Pipeline, Outcome], tmp_path: Path, severity: str, succeeds: bool
) -> None:
    pipeline, outcome = finished
    accept(tmp_path, outcome, shift=0.1)
    again = pipeline.run({"checks.baselines_dir": str(tmp_path), "checks.quality_severity": severity})
    check = quality_checks(again)["quality_regression"]
    assert (check.passed, check.severity.value.lower()) == (False, severity)
    assert "worse than the accepted baseline" in str(check.description)
    assert again.succeeded is succeeds


def test_the_same_quality_is_equal_within_tolerance(finished: tuple[Pipeline, Outcome], tmp_path: Path) -> None:
    pipeline, outcome = finished
    accept(tmp_path, outcome, shift=0.004)
    check = quality_checks(pipeline.run({"checks.baselines_dir": str(tmp_path)}))["quality_regression"]
    assert check.passed
    assert "equal to the accepted baseline" in str(check.description)


def test_a_baseline_of_other_queries_or_judgements_is_said_to_be_of_no_use(
    finished: tuple[Pipeline, Outcome], tmp_path: Path
) -> None:
    pipeline, outcome = finished
    for number, changed in enumerate(({"per_query": {"reranked": {"other": 1.0}}}, {"judged": False})):
        folder = tmp_path / str(number)
        accept(folder, outcome, **changed)
        check = quality_checks(pipeline.run({"checks.baselines_dir": str(folder)}))["quality_regression"]
        assert not check.passed
        assert "new" in str(check.description)


def test_a_damaged_baseline_names_the_file_and_the_remedy(finished: tuple[Pipeline, Outcome], tmp_path: Path) -> None:
    (tmp_path / "notes.quality.json").write_text(json.dumps({"version": 1}))
    check = quality_checks(finished[0].run({"checks.baselines_dir": str(tmp_path)}))["quality_regression"]
    assert not check.passed
    assert "notes.quality.json" in str(check.description)


def test_probes_are_marked_and_only_ever_warn(pipeline: Pipeline, tmp_path: Path) -> None:
    for name in ("queries.jsonl", "qrels.tsv"):
        (pipeline.root / "corpora" / "notes" / name).unlink()
    options = {"checks.quality_severity": "error", "checks.baselines_dir": str(tmp_path / "baselines")}
    outcome = pipeline.run(options)
    assert outcome.artefact("evaluation").record.judged is False
    assert outcome.artefact("evaluation").record.items > 0
    assert outcome.artefact("evaluation").record.unit == "derived probes"
    accept(tmp_path / "baselines", outcome, shift=0.1, judged=False)
    again = pipeline.run(options)
    check = quality_checks(again)["quality_regression"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.metadata["judgements"].value == "derived probes"
    assert again.succeeded


def test_queries_without_judgements_are_no_failure(pipeline: Pipeline) -> None:
    (pipeline.root / "corpora" / "notes" / "qrels.tsv").unlink()
    outcome = pipeline.run()
    assert outcome.succeeded, outcome.error
    assert outcome.artefact("evaluation").record.status == "no_judgements"
    assert all(check.passed for check in quality_checks(outcome).values())


def test_stages_that_are_off_are_measured_as_what_is_left(pipeline: Pipeline) -> None:
    outcome = pipeline.run({"enable_sparse": False, "enable_rerank": False})
    record = outcome.artefact("evaluation").record
    assert "sparse" not in record.means
    assert record.means["reranked"]["nDCG@10"] == record.means["fused"]["nDCG@10"] == record.means["dense"]["nDCG@10"]
    assert all(check.passed for check in quality_checks(outcome).values())


def test_a_baseline_file_reads_back_as_it_was_written(finished: tuple[Pipeline, Outcome], tmp_path: Path) -> None:
    accept(tmp_path, finished[1], provenance={"run": "x"}, means={"reranked": {"MAP": 0.5}})
    text = (tmp_path / "notes.quality.json").read_text()
    assert sum(line.startswith('  "q') for line in text.splitlines()) == 3
    read = read_quality_baseline(tmp_path, "notes")
    assert read is not None
    assert sorted(read.values("reranked")["public_id"]) == ["q0", "q1", "q2"]
    assert read.provenance == {"run": "x"}
    shutil.copy(tmp_path / "notes.quality.json", tmp_path / "copy.json")
    write_quality_baseline(tmp_path, read)
    assert (tmp_path / "notes.quality.json").read_bytes() == (tmp_path / "copy.json").read_bytes()
