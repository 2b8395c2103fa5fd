"""Bundle inputs for tests: from the shared golden case, and small ones made on the spot."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.collection.chunk_text import prepare_text
from ensemble_assets.collection.legacy_metadata import ChunkRow
from ensemble_assets.export.write.inputs import BundleInputs, DenseModel, LiveSparse

CLOCK = "2026-01-02T03:04:05.678901"
PREFIX = "ultimate_embeddings_v4"


@dataclass(frozen=True)
class Chunk:
    """A chunk as it stands in a chunk file."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = "guide_chunks.json"


def read_chunks(folder: Path) -> list[Chunk]:
    """The chunks of a folder of plain chunk files: lists of objects with text and metadata."""
    return [
        Chunk(record["text"], record["metadata"], file.relative_to(folder).as_posix())
        for file in sorted(folder.rglob("*_chunks.json"))
        for record in json.loads(file.read_text(encoding="utf-8"))
    ]


def rows_of(chunks: list[Chunk], max_tokens: int) -> list[ChunkRow]:
    rows = []
    for number, chunk in enumerate(chunks):
        text = prepare_text(chunk.text, max_tokens)
        metadata = json.dumps(chunk.metadata)
        rows.append(
            ChunkRow(number, text.text, metadata, chunk.source, text.original_length, text.sha1, text.modal_hint)
        )
    return rows


def unit_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense(slug: str, vectors: np.ndarray, max_tokens: int = 256, hf_model_id: str | None = None) -> DenseModel:
    return DenseModel(slug, hf_model_id or f"owner/{slug}", max_tokens, vectors)


def bundle_of(chunks: list[Chunk], *models: DenseModel, **changes: Any) -> BundleInputs:
    """Inputs for ``chunks``; one 4-dimensional model unless given."""
    models = models or (dense("mini", unit_rows(len(chunks), 4)),)
    rows = rows_of(chunks, models[0].max_tokens)
    given = {"collection": "guide", "clock": CLOCK, **changes}
    return BundleInputs(rows=lambda: iter(rows), count=len(rows), dense=models, **given)


def live_sparse(rows: list[dict[str, float]], sources: list[int], model: str = "splade-tiny") -> LiveSparse:
    """A sparse stage's output from token -> weight per chunk."""
    vocabulary = tuple(sorted({token for row in rows for token in row} | {"[pad]"}))
    number = {token: index for index, token in enumerate(vocabulary)}
    return LiveSparse(
        indptr=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        indices=np.array([number[token] for row in rows for token in row], dtype=np.int32),
        values=np.array([weight for row in rows for weight in row.values()], dtype=np.float32),
        source=np.array(sources, dtype=np.uint8),
        vocabulary=vocabulary,
        model=model,
        index_space=f"{model}/vocabulary",
    )


def golden_case(shared: Path) -> BundleInputs:
    """The exact case of the shared folder, with the vectors of its bundle."""
    case = shared / "legacy" / "golden_v4.0"
    primary = np.load(case / "bundle" / f"{PREFIX}_embeddings.npy", mmap_mode="r")
    companion = np.load(case / "bundle" / f"{PREFIX}_qwen3_embedding_0.6b_embeddings.npy", mmap_mode="r")
    return bundle_of(
        read_chunks(case / "input" / "docling"),
        dense("jina-code-embeddings-1.5b", primary, 32768, "jinaai/jina-code-embeddings-1.5b"),
        dense("qwen3-embedding-0.6b", companion, 32768, "Qwen/Qwen3-Embedding-0.6B"),
        collection="docling",
        priority=0.8,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the faiss index, by name; not every installation writes one."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".faiss"}
