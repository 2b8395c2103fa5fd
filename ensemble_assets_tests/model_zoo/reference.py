"""What sentence-transformers' own public calls give for the texts that the product read: fp32, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

from ensemble_assets_tests.model_zoo.families.layout import Kind

_FP32 = {"dtype": torch.float32}
"""Weights that are stored in half precision are computed with in fp32: the truth has no rounding of its own."""


@dataclass(frozen=True)
class Truth:
    """The library's answer.

    Attributes:
        chunk_vectors: ``[n_chunks, dimension] float32``, as the library gives them; None for rerankers.
        query_vectors: the same of the queries.
        ranked: chunk rows by the model's own similarity, best first, one list per query; empty for rerankers.
        scores: ``[n_queries, n_chunks]`` as ``predict`` gives them; None for encoders.
        logits: the same without the activation.
    """

    chunk_vectors: NDArray[np.float32] | None = None
    query_vectors: NDArray[np.float32] | None = None
    ranked: list[list[int]] = field(default_factory=list)
    scores: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None


def truth_of(folder: Path, kind: Kind, chunks: Sequence[str], queries: Sequence[str]) -> Truth:
    """Ask the library for vectors of chunks and queries, or for the scores of all pairs.

    Args:
        folder: the model's files.
        kind: which of the library's classes loads them.
        chunks: as the product's stage read them.
        queries: as the product's stage read them.
    """
    return _ASK[kind](str(folder), list(chunks), list(queries))


def _dense(folder: str, chunks: list[str], queries: list[str]) -> Truth:
    model = SentenceTransformer(folder, device="cpu", model_kwargs=_FP32).float()
    of_chunks, of_queries = model.encode_document(chunks), model.encode_query(queries)
    similarity = np.asarray(model.similarity(of_queries, of_chunks))
    return Truth(of_chunks, of_queries, np.argsort(-similarity, axis=1, kind="stable").tolist())


def _sparse(folder: str, chunks: list[str], queries: list[str]) -> Truth:
    model = SparseEncoder(folder, device="cpu", model_kwargs=_FP32).float()
    unfolded: dict[str, Any] = {"convert_to_tensor": True, "convert_to_sparse_tensor": False}
    of_chunks = model.encode_document(chunks, **unfolded).numpy()
    return Truth(of_chunks, model.encode_query(queries, **unfolded).numpy())


def _rerank(folder: str, chunks: list[str], queries: list[str]) -> Truth:
    model = CrossEncoder(folder, device="cpu", model_kwargs=_FP32).float()
    pairs = [(query, chunk) for query in queries for chunk in chunks]
    shape = (len(queries), len(chunks), -1)
    scores = model.predict(pairs).reshape(shape)
    logits = model.predict(pairs, activation_fn=torch.nn.Identity()).reshape(shape)
    return Truth(scores=scores[..., 0], logits=logits[..., 0])


_ASK = {"dense": _dense, "sparse": _sparse, "rerank": _rerank}
