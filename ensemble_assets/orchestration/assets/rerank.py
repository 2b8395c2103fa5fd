"""Asset ``reranked_candidates``: a CrossEncoder over the fused candidates, mixed with the first stage's score."""

import dagster as dg
import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import GPU_POOL, collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.first_stage import searched_texts
from ensemble_assets.pipeline.model_choice import choose_models
from ensemble_assets.pipeline.run_costs import allowance_of


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
    from ensemble_assets.compute.stages.rerank import RerankOptions, rerank_candidates

    with stage_run(context, settings, progress, "rerank") as run:
        options = run.settings.rerank
        allowance = allowance_of(run, chunks, fused_candidates)
        weight = options.weight if options.weight >= 0 else None
        result = rerank_candidates(
            fused_candidates.frame("candidates"),
            searched_texts(chunks),
            queries.frame("queries", columns=["public_id", "text"]),
            choose_models(run.settings.models).rerank,
            computing.context(run),
            RerankOptions(run.settings.enable_rerank, options.depth, weight, allowance),
            **computing.factory("rerank"),
        )
        run.writer.frame("reranked", result.reranked)
        run.writer.frame("queries", result.queries)
        facts = {"unit": "pairs"}
        moved = result.reranked["fused_rank"].cast(pl.Int64) - result.reranked["rank"].cast(pl.Int64)
        scored = result.reranked["reranked"].to_numpy()
        picture = histogram(moved.to_numpy()[scored], "Places moved up by reranking", "places")
        return finish(run, facts, {"places_moved": picture}, rows=result.reranked.height, record=result.record)
