"""Fit a bundle's points to a Qdrant collection: named vectors, or the one unnamed vector of version 4.0's scripts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qdrant_client import QdrantClient, models

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.read.bundle_reader import Bundle, Point, points

SPARSE_NAME = "sparse"
DIGEST = "upload_digest"
"""Payload key of the hash by which an upload knows the points that are there already."""

_CLOCKS = frozenset({"kaggle_export_timestamp", "kaggle_processing_timestamp"})
"""Payload keys that say when a point was made. They may differ from point to point and are no part of its content."""


@dataclass(frozen=True)
class Layout:
    """Vectors that a collection has, and whether they are unnamed."""

    sizes: Mapping[str, int]
    unnamed: bool

    def vectors(self, point: Point) -> dict[str, Any]:
        """Give a point's vectors by their names in the collection; ``""`` is the unnamed one."""
        dense = point.vectors or {}
        if self.unnamed:
            return {"": dense[next(iter(self.sizes))]}
        weights = sparse_weights((point.payload or {}).get("sparse_vector"))
        if not weights:
            return dense
        return {**dense, SPARSE_NAME: models.SparseVector(indices=list(weights), values=list(weights.values()))}


def prepare(client: QdrantClient, name: str, sizes: Mapping[str, int], *, legacy: bool = False) -> Layout:
    """Create the collection (``legacy``: with one unnamed vector), or find out how the one there holds these vectors.

    ``sizes`` has the primary model first. Other vectors there are a ``ContractError``.
    """
    primary = next(iter(sizes.values()))
    if not client.collection_exists(name):
        vectors = {n: models.VectorParams(size=size, distance=models.Distance.COSINE) for n, size in sizes.items()}
        if legacy:
            client.create_collection(name, vectors_config=next(iter(vectors.values())))
        else:
            sparse = {SPARSE_NAME: models.SparseVectorParams()}
            client.create_collection(name, vectors_config=vectors, sparse_vectors_config=sparse)
        return Layout(sizes, legacy)
    params = client.get_collection(name).config.params
    if isinstance(params.vectors, models.VectorParams):
        if params.vectors.size == primary:
            return Layout(sizes, unnamed=True)
        there: Any = {"": params.vectors.size}
    else:
        there = {n: vector.size for n, vector in (params.vectors or {}).items()}
    sparse_there = sorted(params.sparse_vectors or {})
    if legacy or any(there.get(n) != size for n, size in sizes.items()) or SPARSE_NAME not in sparse_there:
        expected = f"one unnamed vector of {primary}" if legacy else f"{dict(sizes)} and sparse {SPARSE_NAME!r}"
        raise ContractError(
            f"Qdrant collection {name!r} exists with other vectors: expected {expected}, found {there} and sparse "
            f"{sparse_there}. Name another one with --collection"
        )
    return Layout(sizes, unnamed=False)


def converted(bundle: Bundle, layout: Layout) -> Iterator[Any]:
    """Convert the points of a bundle for the client; payloads gain ``upload_digest``.

    With an unnamed vector they also gain ``local_upload_timestamp``, as version 4.0's scripts wrote it.

    Raises:
        ContractError: for a line that is no point.
    """
    more = {"local_upload_timestamp": datetime.now().isoformat()} if layout.unnamed else {}
    for number, point in enumerate(points(bundle), start=1):
        if point is None or point.payload is None or not {*layout.sizes} <= {*(point.vectors or {})}:
            raise ContractError(
                f"{bundle.names.file('qdrant.jsonl')}, line {number}: is no point with the vectors of the statistics. "
                "Run ensemble-assets validate on the bundle"
            )
        vectors = layout.vectors(point)
        payload = {**point.payload, **more, DIGEST: _digest(point)}
        yield models.PointStruct(id=point.row, vector=vectors.get("", vectors), payload=payload)


def _digest(point: Point) -> str:
    content = {key: value for key, value in (point.payload or {}).items() if key not in _CLOCKS}
    return hashlib.blake2b(json.dumps(content).encode() + point.vectors_text, digest_size=16).hexdigest()


def sparse_weights(vector: Any) -> dict[int, float]:
    """Add up weights by index: two terms of one chunk may share an index, and Qdrant wants every index once."""
    weights: dict[int, float] = {}
    if isinstance(vector, dict):
        for index, value in zip(vector["indices"], vector["values"], strict=True):
            weights[index] = weights.get(index, 0.0) + value
    return weights
