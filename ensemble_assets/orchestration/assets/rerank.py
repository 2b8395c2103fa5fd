"""Asset ``reranked_candidates``: a reranker over the fused candidates, mixed with the first stage's score."""

import dagster as dg
import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import GPU_POOL, collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import Pictures, finish, stage_step
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stages import rerank_fused


@collection_asset(group="ranking", kinds={"torch", "polars"}, code_version="3", pool=GPU_POOL)
def reranked_candidates(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    computing: dg.ResourceParam[Computing],
    chunks: Artefact,
    queries: Artefact,
    fused_candidates: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """Every fused candidate in its final order; the fused order, flagged, where the reranker did not run."""
    with stage_step(context, settings, progress, "rerank") as run:
        record = rerank_fused(run, computing, chunks, queries, fused_candidates)
        return finish(run, record, fused_candidates.record.candidates, _pictures)


def _pictures(reranked: Artefact) -> Pictures:
    scored = reranked.frame("reranked").filter("reranked")
    moved = scored["fused_rank"].cast(pl.Int64) - scored["rank"].cast(pl.Int64)
    return {"places_moved": histogram(moved.to_numpy(), "Places moved up by reranking", "places")}
