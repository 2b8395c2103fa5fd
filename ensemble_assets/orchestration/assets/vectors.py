"""Assets ``dense_embeddings`` and ``sparse_vectors``: vectors of chunks and queries, from all devices."""

import numpy as np

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import DEVICE_POOL, Materialised, collection_asset
from ensemble_assets.orchestration.dagster_metadata import bars, histogram
from ensemble_assets.orchestration.stage_step import Pictures, finish
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.pipeline.stages import encode_dense_vectors, encode_sparse_vectors


@collection_asset("dense", group="first_stage", kinds={"torch", "numpy"}, code_version="1", pool=DEVICE_POOL)
def dense_embeddings(run: StageRun, computing: Computing, chunks: Artefact, queries: Artefact) -> Materialised:
    """A dense vector of every chunk and query from every dense model: unit length, 32-bit floats, one array a model."""
    return finish(run, encode_dense_vectors(run, computing, chunks, queries), chunks.record.items, _draw_dense)


def _draw_dense(dense: Artefact) -> Pictures:
    layout = dense.record.layout
    seconds = [model.seconds for model in layout]
    return {"model_seconds": bars([model.slug for model in layout], seconds, "Seconds per model", "s")}


@collection_asset("sparse", group="first_stage", kinds={"torch", "numpy"}, code_version="2", pool=DEVICE_POOL)
def sparse_vectors(run: StageRun, computing: Computing, chunks: Artefact, queries: Artefact) -> Materialised:
    """A learned sparse vector of every chunk and query: weights of the terms that a SPLADE model reads in a text.

    A chunk on which the model failed gets terms of its metadata, and is counted. With the stage off there are no
    vectors, and the artefact is marked feature_disabled.
    """
    return finish(run, encode_sparse_vectors(run, computing, chunks, queries), chunks.record.items, _draw_sparse)


def _draw_sparse(sparse: Artefact) -> Pictures:
    bounds = sparse.array("chunks.indptr") if sparse.has("chunks.indptr") else np.zeros(1, np.int64)
    return {"terms_per_chunk": histogram(np.diff(bounds), "Terms per chunk", "terms")}
