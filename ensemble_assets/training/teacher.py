"""What the teacher thinks: scores of the embedded dense and sparse encoders, combined per query.

Encodings are kept in a work folder under the fingerprint of model and texts, so a second run does not encode again.
Which passages a query meets in training is ``pairs``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForMaskedLM, BertModel

from ensemble_assets.compute.tokens.token_tables import single_table
from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets.training.tokens import Padded, pad, read_vocabulary, tokenise

Vectors = NDArray[np.float32]
Encode = Callable[[Padded], Tensor]

_TOKENS_PER_BATCH = 8192
_VOCABULARY_TILE = 4096
_SPARSE_TERMS = 256
_MULTIPLY_ROWS = 512


@dataclass(frozen=True)
class SparseRows:
    """The largest weights of each text.

    Attributes:
        terms: ``[n, 256] int32`` vocabulary ids.
        weights: ``[n, 256] float32``, 0 where a text has fewer terms.
        vocabulary: number of terms there are.
    """

    terms: NDArray[np.int32]
    weights: Vectors
    vocabulary: int


class Teacher:
    """The embedded dense and sparse encoders behind one cache of encodings."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._dense = MODELS["all-minilm-l6-v2"]
        self._sparse = MODELS["splade-tiny"]

    def identity(self) -> dict[str, str]:
        """Model ids of both encoders with their revisions and fingerprints."""
        files = {spec.hf_model_id: locate(spec) for spec in (self._dense, self._sparse)}
        return {name: f"{found.revision} {found.fingerprint}" for name, found in files.items()}

    def dense(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors ``[n, 384] float32``: mean over tokens, bfloat16 matrices, float32 pooling."""
        return self._cached(self._dense, texts, lambda files: encode_dense(files.folder, texts, self._dense))["vectors"]

    def sparse(self, texts: Sequence[str]) -> SparseRows:
        """SPLADE weights, max over tokens of log(1 + relu(logit)) (Formal et al. 2021), the largest 256."""
        found = self._cached(self._sparse, texts, lambda files: encode_sparse(files.folder, texts, self._sparse))
        return SparseRows(found["terms"].astype(np.int32), found["weights"].astype(np.float32), self._sparse.dimension)

    def _cached(
        self,
        spec: ModelSpec,
        texts: Sequence[str],
        compute: Callable[[ModelFiles], dict[str, NDArray[np.generic]]],
    ) -> dict[str, NDArray[np.float32]]:
        files = locate(spec)
        digest = hashlib.sha256(files.fingerprint.encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        path = self._work / f"{spec.slug}-{digest.hexdigest()[:24]}.npz"
        if not path.is_file():
            self._work.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".part.npz")
            np.savez(temporary, allow_pickle=False, **compute(files))
            os.replace(temporary, path)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


def encode_dense(folder: Path, texts: Sequence[str], spec: ModelSpec) -> dict[str, NDArray[np.generic]]:
    """``vectors [n, dimension] float32``, unit rows."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def encode(batch: Padded) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            states: Tensor = model(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state.float()
        mask = batch.attention.unsqueeze(-1).float()
        means: Tensor = (states * mask).sum(1) / mask.sum(1)
        unit: Tensor = means / means.norm(dim=1, keepdim=True)
        return unit

    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for rows, encoded in _encoded(folder, texts, spec.max_tokens, encode):
        vectors[rows] = encoded.numpy()
    return {"vectors": vectors}


def encode_sparse(folder: Path, texts: Sequence[str], spec: ModelSpec) -> dict[str, NDArray[np.generic]]:
    """``terms [n, 256] int32`` and ``weights [n, 256] float32``, largest first."""
    model = BertForMaskedLM.from_pretrained(folder).eval()
    matrix = model.get_output_embeddings().weight.detach().to(torch.bfloat16)
    bias: Tensor = model.get_output_embeddings().bias.detach().float()

    def encode(batch: Padded) -> Tensor:
        states = model.bert(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state
        states = model.cls.predictions.transform(states)
        # A padded position repeats the first token, which leaves the maximum over tokens as it is.
        states = torch.where(batch.attention.unsqueeze(-1).bool(), states, states[:, :1])
        return _largest_logits(states.to(torch.bfloat16), matrix) + bias

    count = min(_SPARSE_TERMS, len(bias))
    terms = np.zeros((len(texts), count), dtype=np.int32)
    weights = np.zeros((len(texts), count), dtype=np.float32)
    for rows, logits in _encoded(folder, texts, spec.max_tokens, encode):
        largest = torch.topk(torch.log1p(torch.relu(logits)), count, dim=1)
        terms[rows], weights[rows] = largest.indices.numpy(), largest.values.numpy()
    return {"terms": terms, "weights": weights}


def _largest_logits(states: Tensor, matrix: Tensor) -> Tensor:
    """Max over tokens of ``states @ matrix.T``: ``[batch, vocabulary]``, a tile of the vocabulary at a time."""
    flat = states.flatten(0, 1)
    tiles = (flat @ tile.T for tile in torch.split(matrix, _VOCABULARY_TILE))
    return torch.cat([tile.view(*states.shape[:2], -1).amax(1).float() for tile in tiles], dim=1)


@torch.inference_mode()
def _encoded(
    folder: Path, texts: Sequence[str], max_tokens: int, encode: Encode
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    vocabulary = read_vocabulary(folder)
    table = single_table(tokenise(vocabulary, texts, max_tokens), vocabulary.template, max_tokens)
    order = np.argsort(-table.lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, _TOKENS_PER_BATCH // int(table.lengths[order[start]]))
        rows = order[start : start + size]
        yield rows, encode(pad(table, rows, vocabulary))
        start += size


def dense_scores(queries: Vectors, passages: Vectors) -> Vectors:
    """Cosines ``[queries, passages] float32`` of unit vectors."""
    return queries @ passages.T


def sparse_scores(queries: SparseRows, passages: SparseRows) -> Vectors:
    """Dot products ``[queries, passages] float32``, computed in dense blocks of queries."""
    matrix = torch.from_numpy(_dense_matrix(passages, slice(None))).T.contiguous()
    scores = np.empty((len(queries.terms), len(passages.terms)), dtype=np.float32)
    for start in range(0, len(scores), _MULTIPLY_ROWS):
        block = slice(start, start + _MULTIPLY_ROWS)
        scores[block] = (torch.from_numpy(_dense_matrix(queries, block)) @ matrix).numpy()
    return scores


def _dense_matrix(rows: SparseRows, block: slice) -> Vectors:
    terms, weights = rows.terms[block].astype(np.int64), rows.weights[block]
    matrix = np.zeros((len(terms), rows.vocabulary), dtype=np.float32)
    np.put_along_axis(matrix, terms, weights, axis=1)
    return matrix


def combine(dense: Vectors, sparse: Vectors, dense_weight: float) -> Vectors:
    """Convex combination of both models' scores, each scaled to [0, 1] per query over all passages of the set."""
    return dense_weight * min_max(dense) + (1.0 - dense_weight) * min_max(sparse)


def min_max(scores: Vectors) -> Vectors:
    """Each row scaled to [0, 1]; a row whose scores are all equal becomes 0."""
    low = scores.min(axis=1, keepdims=True)
    span = scores.max(axis=1, keepdims=True) - low
    scaled = np.zeros_like(scores)
    np.divide(scores - low, span, out=scaled, where=span > 0)
    return scaled
