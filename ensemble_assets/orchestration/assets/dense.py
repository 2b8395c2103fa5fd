"""Asset ``dense_embeddings``: unit vectors of chunks and queries, one model after another on all devices."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import GPU_POOL, collection_asset
from ensemble_assets.orchestration.dagster_metadata import bars
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import Pictures, finish, stage_step
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stages import encode_dense_vectors


@collection_asset(group="first_stage", kinds={"torch", "numpy"}, code_version="1", pool=GPU_POOL)
def dense_embeddings(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    computing: dg.ResourceParam[Computing],
    chunks: Artefact,
    queries: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """``chunks.<model>`` ``[n_chunks, dim]`` and ``queries.<model>`` ``[n_queries, dim]``, float32 unit rows."""
    with stage_step(context, settings, progress, "dense") as run:
        return finish(run, encode_dense_vectors(run, computing, chunks, queries), chunks.record.items, _pictures)


def _pictures(dense: Artefact) -> Pictures:
    layout = dense.record.layout
    seconds = [model.seconds for model in layout]
    return {"model_seconds": bars([model.slug for model in layout], seconds, "Seconds per model", "s")}
