"""Asset ``sparse_vectors``: a SPLADE vector per chunk and query, metadata terms where inference failed."""

import dagster as dg
import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import GPU_POOL, collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.first_stage import SPARSE_PARTS, searched_texts
from ensemble_assets.pipeline.model_choice import choose_models


@collection_asset(group="first_stage", kinds={"torch", "numpy"}, code_version="2", pool=GPU_POOL)
def sparse_vectors(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    computing: dg.ResourceParam[Computing],
    chunks: Artefact,
    queries: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """CSR rows of chunks and queries in one index space, and where each chunk's vector comes from.

    With the stage off, an artefact without vectors, marked ``feature_disabled``.
    """
    from ensemble_assets.compute.stages.sparse import encode_sparse

    with stage_run(context, settings, progress, "sparse") as run:
        enabled = run.settings.enable_sparse
        result = encode_sparse(
            searched_texts(chunks),
            chunks.frame("chunks", columns=["metadata"])["metadata"],
            queries.frame("queries", columns=["text"])["text"],
            choose_models(run.settings.models).sparse,
            computing.context(run),
            enabled=enabled,
            top_k=run.settings.sparse.top_k,
            **computing.factory("sparse"),
        )
        if enabled:
            for side, matrix in (("chunks", result.chunks), ("queries", result.queries)):
                for part in SPARSE_PARTS:
                    run.writer.array(f"{side}.{part}", getattr(matrix, part))
            run.writer.frame("vocabulary", pl.DataFrame({"token": result.words}))
        run.writer.array("source", result.source)
        facts = {"unit": "chunks and queries"}
        picture = histogram(result.chunks.counts, "Terms per chunk", "terms")
        return finish(run, facts, {"terms_per_chunk": picture}, rows=len(result.chunks), record=result.record)
