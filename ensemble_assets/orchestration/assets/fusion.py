"""Asset ``fused_candidates``: exact searches of every first-stage list, fused into one list per query."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import Pictures, finish, stage_step
from ensemble_assets.pipeline.first_stage import fuse_candidates


@collection_asset(group="ranking", kinds={"polars", "numpy"}, code_version="4")
def fused_candidates(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
    queries: Artefact,
    dense_embeddings: Artefact,
    sparse_vectors: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """Candidates per query with the rank and score that each first-stage list gave them."""
    with stage_step(context, settings, progress, "fusion") as run:
        record = fuse_candidates(run, chunks, queries, dense_embeddings, sparse_vectors)
        return finish(run, record, record.candidates, _pictures)


def _pictures(fused: Artefact) -> Pictures:
    scores = fused.frame("candidates", columns=["score"])["score"].to_numpy()
    return {"fused_scores": histogram(scores, "Fused scores", "")}
