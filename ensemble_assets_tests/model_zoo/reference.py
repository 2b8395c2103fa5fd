"""What sentence-transformers' own public calls give for the texts that the product read: fp32, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

from ensemble_assets.models.refused_layouts import has_many_vectors
from ensemble_assets.models.spec import ModelSpec

_FP32 = {"dtype": torch.float32}
"""Weights that are stored in half precision are computed with in fp32: the truth has no rounding of its own."""


@dataclass(frozen=True)
class Truth:
    """The library's answer.

    Attributes:
        chunk_vectors: ``[n_chunks, dimension] float32``, as the library gives them; None for rerankers.
        query_vectors: the same of the queries.
        ranked: chunk rows by the model's own similarity, best first, one list per query; empty for rerankers.
        logits: ``[n_queries, n_chunks]`` as ``predict`` gives them without the activation; None for encoders.
        scores: gives the same with the activation. That takes as long again, so it is asked for only where the logits
            are not the product's scores.
        noise: gives twice the largest difference of the library's logits from those in fp64 and batches of 3: so far
            may two results in fp32 lie apart. Rotary positions move with the padding on the left. It takes as long as
            all else together, so it is asked for only where scores lie further apart than they usually do.
        compared: products of token vectors in a score, times the largest one there can be; 0 for other models.
    """

    chunk_vectors: NDArray[np.float32] | None = None
    query_vectors: NDArray[np.float32] | None = None
    ranked: list[list[int]] = field(default_factory=list)
    logits: NDArray[np.float32] | None = None
    scores: Callable[[], NDArray[np.float32]] | None = None
    noise: Callable[[], float] = float
    compared: float = 0.0


def truth_of(folder: Path, spec: ModelSpec, chunks: Sequence[str], queries: Sequence[str]) -> Truth:
    """Ask the library for vectors of chunks and queries, or for the scores of all pairs.

    Args:
        folder: the model's files.
        spec: kind, and the limit and prompts of a registered model.
        chunks: as the product's stage read them.
        queries: as the product's stage read them.
    """
    if spec.kind == "rerank" and has_many_vectors(folder):
        return _late_scores(MultiVectorEncoder(str(folder), device="cpu", model_kwargs=_FP32).float(), chunks, queries)
    kind = {"dense": SentenceTransformer, "sparse": SparseEncoder, "rerank": CrossEncoder}[spec.kind]
    model: Any = kind(str(folder), device="cpu", model_kwargs=_FP32).float()
    if spec.max_tokens and spec.max_tokens < (model.max_seq_length or np.inf):
        model.max_seq_length = spec.max_tokens
    return _scores(model, chunks, queries) if spec.kind == "rerank" else _vectors(model, spec, chunks, queries)


def _vectors(model: Any, spec: ModelSpec, chunks: Sequence[str], queries: Sequence[str]) -> Truth:
    options: dict[str, Any] = {"convert_to_sparse_tensor": False} if spec.kind == "sparse" else {}
    prompts = {"document": spec.document_prefix, "query": spec.query_prefix}
    asked = {task: {} if prompt is None else {"prompt": prompt} for task, prompt in prompts.items()}
    of_chunks = model.encode_document(list(chunks), convert_to_tensor=True, **options, **asked["document"])
    of_queries = model.encode_query(list(queries), convert_to_tensor=True, **options, **asked["query"])
    ranked = np.argsort(-np.asarray(model.similarity(of_queries, of_chunks)), axis=1, kind="stable").tolist()
    return Truth(of_chunks.numpy(), of_queries.numpy(), ranked if spec.kind == "dense" else [])


def _late_scores(model: MultiVectorEncoder, chunks: Sequence[str], queries: Sequence[str]) -> Truth:
    of_chunks, of_queries = model.encode_document(list(chunks)), model.encode_query(list(queries))
    scores = model.similarity(of_queries, of_chunks).numpy()
    compared = 1 if model.similarity_fn_name == "meanmaxsim" else max(map(len, of_queries))
    longest = max(float(vectors.norm(dim=1).max()) for vectors in of_chunks + of_queries)
    return Truth(logits=scores, scores=lambda: scores, compared=compared * longest**2)


def _scores(model: Any, chunks: Sequence[str], queries: Sequence[str]) -> Truth:
    pairs = [(query, chunk) for query in queries for chunk in chunks]
    shape = (len(queries), len(chunks), -1)
    logits = model.predict(pairs, activation_fn=torch.nn.Identity())

    def noise() -> float:
        precise = model.double().predict(pairs, activation_fn=torch.nn.Identity(), batch_size=3)
        return 2 * float(np.abs(precise - logits).max())

    def scores() -> NDArray[np.float32]:
        activated: NDArray[np.float32] = model.float().predict(pairs).reshape(shape)[..., 0]
        return activated

    return Truth(logits=logits.reshape(shape)[..., 0], scores=scores, noise=noise)
