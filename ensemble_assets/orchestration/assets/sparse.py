"""Asset ``sparse_vectors``: a SPLADE vector per chunk and query, metadata terms where inference failed."""

import dagster as dg
import numpy as np

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import GPU_POOL, collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import Pictures, finish, stage_step
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stages import encode_sparse_vectors


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
    with stage_step(context, settings, progress, "sparse") as run:
        return finish(run, encode_sparse_vectors(run, computing, chunks, queries), chunks.record.items, _pictures)


def _pictures(sparse: Artefact) -> Pictures:
    bounds = sparse.array("chunks.indptr") if sparse.has("chunks.indptr") else np.zeros(1, np.int64)
    return {"terms_per_chunk": histogram(np.diff(bounds), "Terms per chunk", "terms")}
