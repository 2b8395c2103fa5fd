"""Asset ``dense_embeddings``: unit vectors of chunks and queries, one model after another on all devices."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import GPU_POOL, collection_asset
from ensemble_assets.orchestration.dagster_metadata import bars
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.model_choice import choose_models


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
    from ensemble_assets.compute.stages.dense import encode_dense

    with stage_run(context, settings, progress, "dense") as run:
        texts = chunks.frame("chunks", columns=["chunk_id", "text"])
        result = encode_dense(
            texts["text"],
            queries.frame("queries", columns=["text"])["text"],
            choose_models(run.settings.models).dense,
            computing.context(run),
            chunk_ids=texts["chunk_id"],
            **computing.factory("dense"),
        )
        for model in result.models:
            run.writer.array(f"chunks.{model.spec.slug}", model.chunks)
            run.writer.array(f"queries.{model.spec.slug}", model.queries)
        facts = {
            "unit": "chunks and queries",
            "layout": [
                {
                    "slug": m.spec.slug,
                    "weight": m.spec.weight,
                    "hf_model_id": m.spec.hf_model_id,
                    "max_tokens": m.spec.max_tokens,
                    "dimension": int(m.chunks.shape[1]),
                }
                for m in result.models
            ],
            "dropped": result.dropped,
        }
        seconds = [model.record.seconds for model in result.models]
        picture = bars([model.spec.slug for model in result.models], seconds, "Seconds per model", "s")
        return finish(run, facts, {"model_seconds": picture}, rows=texts.height, record=result.record)
