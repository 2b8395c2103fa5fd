"""Asset ``evaluation``: quality of the four lists, per query and on average, where there are judgements."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import bars, table
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.quality_facts import measured_lists, quality_facts
from ensemble_assets.retrieval.evaluation import evaluate


@collection_asset(group="quality", kinds={"polars", "parquet"}, code_version="1")
def evaluation(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
    queries: Artefact,
    fused_candidates: Artefact,
    reranked_candidates: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """nDCG@10, MRR@10, recall@100 and MAP of dense, sparse, fused and reranked, per query and on average.

    Derived probes are judged by the chunk that they were made from, and marked so. Without judgements, an empty
    artefact marked ``no_judgements``.
    """
    with stage_run(context, settings, progress, "evaluation") as run:
        lists = measured_lists(chunks, fused_candidates, reranked_candidates)
        result = evaluate(lists, queries.frame("qrels"))
        run.writer.frame("per_query", result.per_query)
        run.writer.frame("summary", result.summary)
        means = result.means()
        picture = {"nDCG@10": bars(list(means), list(means.values()), "nDCG@10", "")} if means else {}
        pictures = {"quality": table(result.table_rows()), **picture}
        return finish(run, quality_facts(result, queries, fused_candidates), pictures, rows=result.per_query.height)
