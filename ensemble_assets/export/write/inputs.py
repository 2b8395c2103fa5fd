"""Describe the inputs of a bundle: chunks as a stream of rows, vectors as mapped arrays, facts about the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.fast_json import parse_object
from ensemble_assets.collection.legacy_metadata import ChunkRow, CollectionFacts
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.names import DEFAULT_PREFIX, BundleNames
from ensemble_assets.export.write.token_vectors import TOKEN_FILES, TokenVectors, token_problems

NO_SOURCE, LIVE, METADATA = 0, 1, 2
"""Where a chunk's sparse vector comes from, as ``LiveSparse.source`` codes it."""

_MOST_ROWS = 4096
"""Rows of a slice at most: more save no time, and rows may be long."""


@dataclass(frozen=True)
class DenseModel:
    """One dense model: its vectors and the facts that bundles name.

    ``vectors`` are ``[n_chunks, dim] float32``, C order, unit rows, row i = chunk i. ``norms`` are the lengths
    ``[n_chunks] float32`` before that; only models that rank by dot products have them.
    """

    slug: str
    hf_model_id: str
    max_tokens: int
    vectors: NDArray[np.float32]
    norms: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class DeviceFacts:
    """``gpu_config`` of the statistics."""

    device_count: int = 1
    backend: str = "pytorch"
    precision: str = "fp32"
    total_vram_gb: float = 0.0


@dataclass(frozen=True)
class LiveSparse:
    """The sparse stage's output: one CSR row per chunk in ``index_space``, whose token strings are ``vocabulary``.

    Attributes:
        indptr: ``[n_chunks + 1] int64``.
        indices: ``[nnz] int32``; ``values`` are ``[nnz] float32``, finite.
        source: ``[n_chunks] uint8``: 0 no vector, 1 live inference, 2 mapped from metadata terms.
        unit: whether the bundle has the vectors with L2 norm 1, like the echo, and not on the model's scale.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    source: NDArray[np.uint8]
    vocabulary: tuple[str, ...]
    model: str
    index_space: str
    unit: bool = False


@dataclass(frozen=True)
class BundleInputs:
    """The inputs of the v4.0 files.

    Attributes:
        rows: gives the chunks in row order, afresh at every call; never all at once (``chunk_rows``).
        dense: the primary model first, then its companions.
        clock: the one time stamp of the bundle, ISO 8601, local time, no zone.
        alias: the collection's folder name where it differs.
        point_name: ``qdrant_collection`` of the chunks where it differs.
        priority: ``collection_priority``, 0 to 1.
        devices: ``gpu_config`` of the statistics, beside ``performance``, their ``processing_performance``.
        sparse: the live vectors; None when the sparse stage is off.
        index: kind of the faiss index.
        tokens: vectors of the primary model's tokens, if they are to be exported.
    """

    collection: str
    rows: Callable[[], Iterator[ChunkRow]]
    count: int
    dense: tuple[DenseModel, ...]
    clock: str
    prefix: str = DEFAULT_PREFIX
    alias: str | None = None
    point_name: str | None = None
    priority: float = 0.5
    devices: DeviceFacts = field(default_factory=DeviceFacts)
    performance: Mapping[str, Any] = field(default_factory=dict)
    sparse: LiveSparse | None = None
    index: str = "flat"
    tokens: TokenVectors | None = None

    @property
    def names(self) -> BundleNames:
        """File names of the bundle."""
        return BundleNames(self.prefix)

    @property
    def primary(self) -> DenseModel:
        """The model whose vectors are the bundle's main array."""
        return self.dense[0]

    @property
    def norms(self) -> dict[str, NDArray[np.float32]]:
        """The norms by file name, of the models that have some."""
        names = {model.slug: None if model is self.primary else model.slug for model in self.dense}
        return {self.names.norms(names[m.slug]): m.norms for m in self.dense if m.norms is not None}

    @property
    def token_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the tokens' vectors by file name; none where they are not exported."""
        if self.tokens is None:
            return {}
        vectors, offsets = (self.names.file(content) for content in TOKEN_FILES)
        return {vectors: self.tokens.vectors, offsets: self.tokens.offsets}

    @property
    def facts(self) -> CollectionFacts:
        """The facts about the collection that the chunks' metadata holds."""
        return CollectionFacts(
            name=self.point_name or self.collection,
            alias=self.alias or self.collection,
            model=self.primary.slug,
            dimension=int(self.primary.vectors.shape[1]),
            clock=self.clock,
            priority=self.priority,
        )

    def require_aligned(self) -> None:
        """Check that every array has one row per chunk and its type; ``ContractError`` names the others."""
        problems = [*self._dense_problems(), *(_sparse_problems(self.sparse, self.count) if self.sparse else ())]
        if problems:
            raise ContractError(f"{self.collection}: {'; '.join(problems)}. Materialise these assets again, together")

    def _dense_problems(self) -> Iterator[str]:
        if not self.dense:
            yield "no dense vectors"
        if len({model.slug for model in self.dense}) < len(self.dense):
            yield "two dense models have the same name"
        if len({self.names.vectors(model.slug) for model in self.dense}) < len(self.dense):
            yield "two dense models would be written to the same file"
        for model in self.dense:
            shape, dtype = model.vectors.shape, model.vectors.dtype
            if len(shape) != 2 or shape[0] != self.count or dtype != np.float32:
                yield f"vectors of {model.slug}: expected {self.count} rows of float32, found {list(shape)} {dtype}"
        for file, norms in self.norms.items():
            if norms.shape != (self.count,) or norms.dtype != np.float32:
                yield f"{file}: expected {self.count} numbers of float32, found {list(norms.shape)} {norms.dtype}"
        if self.tokens is not None:
            yield from token_problems(self.tokens, self.count)


def _sparse_problems(sparse: LiveSparse, count: int) -> list[str]:
    sizes = {
        "indptr": (len(sparse.indptr), count + 1),
        "source": (len(sparse.source), count),
        "indices": (len(sparse.indices), int(sparse.indptr[-1]) if len(sparse.indptr) else 0),
        "values": (len(sparse.values), len(sparse.indices)),
    }
    wrong = [
        f"sparse {name}: expected {expected} entries, found {size}"
        for name, (size, expected) in sizes.items()
        if size != expected
    ]
    if not wrong and (sparse.indptr[0] != 0 or bool((np.diff(sparse.indptr) < 0).any())):
        wrong.append("sparse indptr: expected 0 first and no decrease")
    return wrong


def chunk_rows(chunks: pl.LazyFrame, slice_bytes: int = 16 << 20) -> Callable[[], Iterator[ChunkRow]]:
    """Stream a ``CHUNKS`` frame, about ``slice_bytes`` of it at a time.

    The rows come as they are stored; the writer checks that ``row`` counts up from 0.
    """

    def stream() -> Iterator[ChunkRow]:
        columns = chunks.select(ChunkRow._fields)
        start, height = 0, 64
        while True:
            part = columns.slice(start, height).collect()
            yield from map(ChunkRow._make, part.iter_rows())
            if part.height < height:
                return
            start += height
            per_row = max(1, int(part.estimated_size()) // height)
            height = min(_MOST_ROWS, max(1, slice_bytes // per_row))

    return stream


def own_metadata(chunk: ChunkRow) -> dict[str, Any]:
    """Read the chunk's own metadata; ``ValueError`` if it is no JSON object."""
    own = parse_object(chunk.metadata.encode("utf-8", "surrogatepass"))
    if own is None:
        raise ValueError("metadata is no JSON object")
    return own
