"""Asset ``evaluation``: quality of every ranked list, per query and on average, where there are judgements."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import bars, table
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import Pictures, finish, stage_step
from ensemble_assets.pipeline.quality_facts import GATED_MEASURE, evaluate_lists


# It runs before the export, whose report shows its figures.
@collection_asset(group="quality", kinds={"polars", "parquet"}, code_version="2", first=True)
def evaluation(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
    queries: Artefact,
    fused_candidates: Artefact,
    reranked_candidates: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """nDCG@10, MRR@10, recall@100 and MAP of every first-stage list, the fused and the reranked one.

    Derived probes are judged by the chunk that they were made from, and marked so. Without judgements, an empty
    artefact marked ``no_judgements``.
    """
    with stage_step(context, settings, progress, "evaluation") as run:
        record = evaluate_lists(run, chunks, queries, fused_candidates, reranked_candidates)
        figures = sum(map(len, record.means.values()))
        return finish(run, record, record.items * figures, _pictures)


def _pictures(evaluation: Artefact) -> Pictures:
    means = evaluation.record.means
    rows = [{"run": name, **{m: round(mean, 4) for m, mean in measures.items()}} for name, measures in means.items()]
    gated = [measures[GATED_MEASURE] for measures in means.values()]
    drawn = {GATED_MEASURE: bars(list(means), gated, GATED_MEASURE, "")} if means else {}
    return {"quality": table(rows), **drawn}
