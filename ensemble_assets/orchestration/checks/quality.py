"""Show the gates of ``evaluation`` as asset checks: the accepted baseline, and each list against its parts.

``retrieval/quality_verdicts.py`` makes the verdicts. Derived queries judge themselves, so theirs only warn.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import dagster as dg
import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.quality_baseline import read_quality_baseline
from ensemble_assets.common.errors import ArtefactError, EnsembleError
from ensemble_assets.common.stages import first_stage_lists
from ensemble_assets.orchestration.asset_frame import collection_checks
from ensemble_assets.orchestration.dagster_metadata import admitted_metadata, figures
from ensemble_assets.orchestration.resources import SettingsForm
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.quality_facts import FINAL_RUN
from ensemble_assets.retrieval.quality_verdicts import (
    GATED_MEASURE,
    QualityVerdict,
    compare_common,
    fusion_not_worse,
    quality_regression,
    rerank_not_worse,
)
from ensemble_assets.settings import Settings

QUALITY_DESCRIPTIONS: Mapping[str, str] = {
    "quality_regression": "the final list is not worse than the accepted baseline of the collection",
    "rerank_not_worse": "reranking does not lose more than 0.005 of the fused nDCG@10",
    "fusion_not_worse": "the fused list is as good as the best single one (BM25 too); an error below the weakest",
}


@collection_checks("quality_gates", asset="evaluation", descriptions=QUALITY_DESCRIPTIONS)
def quality_gates(context: dg.AssetCheckExecutionContext, settings: SettingsForm) -> Iterator[dg.AssetCheckResult]:
    """Give the result of every selected gate on the collection's quality."""
    resolved = settings.resolved().settings
    wanted = {key.name for key in context.selected_asset_check_keys}
    try:
        measured = open_store(resolved).load(context.partition_key, "evaluation")
        gates = quality_results(measured, context.partition_key, resolved)
        for name in (name for name in gates if name in wanted):
            yield _check_result(name, gates[name], measured, resolved)
    except EnsembleError as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def quality_results(measured: Artefact, collection: str, settings: Settings) -> dict[str, Callable[[], QualityVerdict]]:
    """List the gates of an evaluation by name; calling one judges."""
    per_query = measured.frame("per_query").filter(pl.col("measure") == GATED_MEASURE)
    lists = {
        str(run): frame.select("public_id", "value") for (run,), frame in per_query.group_by("run", maintain_order=True)
    }
    singles = {name: lists[name] for name in first_stage_lists() if name in lists}
    return {
        "quality_regression": lambda: _regression(measured, lists, collection, settings),
        "rerank_not_worse": lambda: rerank_not_worse(lists["fused"], lists[FINAL_RUN]),
        "fusion_not_worse": lambda: fusion_not_worse(lists["fused"], singles),
    }


def _regression(
    measured: Artefact, lists: Mapping[str, pl.DataFrame], collection: str, settings: Settings
) -> QualityVerdict:
    accepted = read_quality_baseline(Path(settings.checks.baselines_dir), collection)
    if accepted is None:
        message = "no baseline is accepted; record one: ensemble-assets baseline accept BUNDLE"
        return QualityVerdict("quality_regression", True, {}, message)
    if accepted.judged != measured.record.judged:
        kinds = {True: "judgements from a file", False: "derived probes"}
        raise ArtefactError(
            f"the accepted baseline is of {kinds[accepted.judged]}, this evaluation of "
            f"{kinds[measured.record.judged]}. Accept a new one: ensemble-assets baseline accept BUNDLE"
        )
    checks = settings.checks
    verdict = compare_common(
        accepted.values(FINAL_RUN), lists[FINAL_RUN], minimum_effect=checks.minimum_effect, alpha=checks.alpha
    )
    return quality_regression(verdict)


def _check_result(
    name: str, gate: Callable[[], QualityVerdict], measured: Artefact, settings: Settings
) -> dg.AssetCheckResult:
    """Show a gate's verdict in Dagster; without judgements it passes with a note."""
    if measured.record.status == "no_judgements":
        result = QualityVerdict(name, True, {}, "there are no judgements for these queries; nothing was compared")
    else:
        try:
            result = gate()
        except ArtefactError as error:
            result = QualityVerdict(name, False, {}, str(error))
    judged = measured.record.judged
    return dg.AssetCheckResult(
        check_name=name,
        passed=result.passed,
        severity=severity(judged and not result.only_warns, settings),
        description=result.message,
        metadata=admitted_metadata({"judgements": "file" if judged else "derived probes"}, figures(result.numbers)),
    )


def severity(judged: bool, settings: Settings) -> dg.AssetCheckSeverity:
    """Choose the severity: as set with judgements from a file, WARN with derived probes."""
    wanted = settings.checks.quality_severity if judged else "warn"
    return dg.AssetCheckSeverity(wanted.upper())
