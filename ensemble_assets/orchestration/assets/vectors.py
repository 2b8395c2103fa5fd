"""Assets ``dense_embeddings`` and ``sparse_vectors``: vectors of chunks and queries, from all devices."""

import numpy as np

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import GPU_POOL, Materialised, collection_asset
from ensemble_assets.orchestration.dagster_metadata import bars, histogram
from ensemble_assets.orchestration.stage_step import Pictures, finish
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.pipeline.stages import encode_dense_vectors, encode_sparse_vectors


@collection_asset("dense", group="first_stage", kinds={"torch", "numpy"}, code_version="1", pool=GPU_POOL)
def dense_embeddings(run: StageRun, computing: Computing, chunks: Artefact, queries: Artefact) -> Materialised:
    """``chunks.<model>`` ``[n_chunks, dim]`` and ``queries.<model>`` ``[n_queries, dim]``, float32 unit rows."""
    return finish(run, encode_dense_vectors(run, computing, chunks, queries), chunks.record.items, _draw_dense)


def _draw_dense(dense: Artefact) -> Pictures:
    layout = dense.record.layout
    seconds = [model.seconds for model in layout]
    return {"model_seconds": bars([model.slug for model in layout], seconds, "Seconds per model", "s")}


@collection_asset("sparse", group="first_stage", kinds={"torch", "numpy"}, code_version="2", pool=GPU_POOL)
def sparse_vectors(run: StageRun, computing: Computing, chunks: Artefact, queries: Artefact) -> Materialised:
    """CSR rows of chunks and queries in one index space, and where each chunk's vector comes from.

    A chunk whose inference failed gets metadata terms. With the stage off, an artefact without vectors, marked
    ``feature_disabled``.
    """
    return finish(run, encode_sparse_vectors(run, computing, chunks, queries), chunks.record.items, _draw_sparse)


def _draw_sparse(sparse: Artefact) -> Pictures:
    bounds = sparse.array("chunks.indptr") if sparse.has("chunks.indptr") else np.zeros(1, np.int64)
    return {"terms_per_chunk": histogram(np.diff(bounds), "Terms per chunk", "terms")}
