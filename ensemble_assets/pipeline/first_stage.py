"""Stored vectors as what the searches take, and the exact searches. Arrays stay memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.pipeline.searched_texts import searched_slices
from ensemble_assets.retrieval.bm25_topk import lexical_topk
from ensemble_assets.retrieval.dense_topk import DenseModel, dense_topk
from ensemble_assets.retrieval.ranked_lists import run_from_topk
from ensemble_assets.retrieval.sparse_topk import SparseRows, sparse_topk

_SLICE = 20_000
"""Chunks whose words are in memory at once."""

SPARSE_PARTS = ("indptr", "indices", "values")


def dense_models(embeddings: Artefact) -> list[DenseModel]:
    """The models of ``dense_embeddings``, the primary first."""
    return [
        DenseModel(
            model["slug"],
            embeddings.array(f"chunks.{model['slug']}"),
            embeddings.array(f"queries.{model['slug']}"),
            model["weight"],
        )
        for model in embeddings.facts["layout"]
    ]


def sparse_rows(vectors: Artefact, side: str) -> SparseRows:
    """The rows of ``sparse_vectors`` for ``side``: ``chunks`` or ``queries``."""
    indptr, indices, values = (vectors.array(f"{side}.{part}") for part in SPARSE_PARTS)
    return SparseRows(indptr, indices, values, int(vectors.facts["dimension"]))


def first_stage_runs(
    embeddings: Artefact, vectors: Artefact, public_ids: Sequence[str], depth: int
) -> dict[str, pl.DataFrame]:
    """RUN frames of the exact searches: ``dense`` always, ``sparse`` where there are sparse vectors."""
    runs = {"dense": run_from_topk(dense_topk(dense_models(embeddings), depth), public_ids)}
    if vectors.has("chunks.indptr"):
        found = sparse_topk(sparse_rows(vectors, "chunks"), sparse_rows(vectors, "queries"), depth)
        runs["sparse"] = run_from_topk(found, public_ids)
    return runs


def lexical_run(chunks: Artefact, queries: Artefact, public_ids: Sequence[str], depth: int) -> pl.DataFrame:
    """RUN frame of the exact BM25 search over the chunks' words."""
    texts = queries.frame("queries", columns=["text"])["text"]
    return run_from_topk(lexical_topk(searched_slices(chunks, _SLICE), texts, depth), public_ids)
