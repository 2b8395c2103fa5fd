"""Upload a bundle into Qdrant, and search there: dense, sparse, and both together.

Points keep the bundle's ids, so a second upload changes nothing. A batch that is there already, from the same export,
is skipped, so an interrupted upload goes on where it was. The script in the bundle does the plain upload without this
package. Importing this module raises ``SettingsError`` where qdrant-client is not installed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ensemble_assets.common.defaults import QDRANT_POINTS
from ensemble_assets.common.errors import ContractError, SettingsError
from ensemble_assets.export.read.bundle_reader import Bundle, points, read_object
from ensemble_assets.export.write.names import target_collection

try:
    from qdrant_client import QdrantClient, models
except ImportError:
    raise SettingsError("uploading needs qdrant-client: pip install 'ensemble-assets[qdrant]'") from None

SPARSE_NAME = "sparse"
_CLOCK = "kaggle_export_timestamp"
_TOLERANCE = 1e-4
_DEPTH = 100
_AGAIN = "Upload again; if it stays so, run ensemble-assets validate on the bundle"


@dataclass(frozen=True)
class Uploaded:
    """The result of an upload: new points, removed points of earlier exports, and successful kinds of search."""

    collection: str
    points: int
    sent: int
    removed: int
    searches: tuple[str, ...]


def connect(url: str, path: str, api_key: str | None) -> QdrantClient:
    """Connect to a server, or to embedded storage in a folder; ``SettingsError`` if the storage is in use."""
    if url:
        return QdrantClient(url=url, api_key=api_key)
    Path(path).mkdir(parents=True, exist_ok=True)
    try:
        return QdrantClient(path=path)
    except RuntimeError:
        raise SettingsError(
            f"the embedded storage in {Path(path).name} is in use by another process. Wait for it, or use a server"
        ) from None


def upload_bundle(
    bundle: Bundle,
    client: QdrantClient,
    collection: str = "",
    batch_size: int = QDRANT_POINTS,
    progress: Callable[[int], None] = lambda done: None,
) -> Uploaded:
    """Upload all points, remove those of earlier exports, and search.

    ``collection`` defaults to the bundle's own name; ``progress`` gets the number of points that are there. Other
    vectors there, a wrong count and a chunk that does not find itself are a ``ContractError``.
    """
    stats = read_object(bundle.path("stats.json"))
    sizes = {name: int(layout["dimension"]) for name, layout in stats["dense_vector_layout"].items()}
    primary = str(stats["model_config"]["name"])
    name = collection or target_collection(
        str(bundle.manifest.get("collection") or bundle.folder.resolve().name), primary
    )
    _prepare(client, name, sizes)
    probe: Any = None
    total = sent = 0
    source = _converted(bundle)
    while batch := list(islice(source, batch_size)):
        if not _is_there(client, name, batch):
            client.upsert(name, points=batch, wait=True)
            sent += len(batch)
        probe = max(batch if probe is None else [probe, *batch], key=_sparse_norm)
        total += len(batch)
        progress(total)
    removed = _remove_stale(client, name, bundle, total, str(probe.payload.get(_CLOCK)) if probe else "")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Local mode performs exact", UserWarning)  # exact is what is asked for
        searches = _search_for(client, name, probe, primary) if probe else ()
    return Uploaded(name, total, sent, removed, searches)


def _sparse_norm(point: Any) -> float:
    """Square the sparse norm. No other chunk scores higher for the sparse vector of the chunk with the largest one."""
    return sum(value * value for value in point.vector[SPARSE_NAME].values) if SPARSE_NAME in point.vector else 0.0


def _prepare(client: QdrantClient, name: str, sizes: dict[str, int]) -> None:
    """Create the collection, or make sure that the one there can hold these vectors."""
    if not client.collection_exists(name):
        vectors = {n: models.VectorParams(size=size, distance=models.Distance.COSINE) for n, size in sizes.items()}
        client.create_collection(
            name, vectors_config=vectors, sparse_vectors_config={SPARSE_NAME: models.SparseVectorParams()}
        )
        return
    params = client.get_collection(name).config.params
    there = {n: vector.size for n, vector in params.vectors.items()} if isinstance(params.vectors, dict) else {}
    if any(there.get(n) != size for n, size in sizes.items()) or SPARSE_NAME not in (params.sparse_vectors or {}):
        raise ContractError(
            f"Qdrant collection {name!r} exists with other vectors: expected {sizes} and sparse {SPARSE_NAME!r}, found "
            f"{there} and sparse {sorted(params.sparse_vectors or {})}. Name another one with --collection"
        )


def _converted(bundle: Bundle) -> Iterator[Any]:
    """Convert the points of a bundle for the client."""
    for number, point in enumerate(points(bundle), start=1):
        if point is None or point.payload is None or point.vectors is None:
            raise ContractError(
                f"{bundle.names.file('qdrant.jsonl')}, line {number}: is no point. "
                "Run ensemble-assets validate on the bundle"
            )
        vectors = dict(point.vectors)
        if weights := _weights(point.payload.get("sparse_vector")):
            vectors[SPARSE_NAME] = models.SparseVector(indices=list(weights), values=list(weights.values()))
        yield models.PointStruct(id=point.row, vector=vectors, payload=point.payload)


def _weights(vector: Any) -> dict[int, float]:
    """Add up weights by index: two terms of one chunk may share an index, and Qdrant wants every index once."""
    weights: dict[int, float] = {}
    if isinstance(vector, dict):
        for index, value in zip(vector["indices"], vector["values"], strict=True):
            weights[index] = weights.get(index, 0.0) + value
    return weights


def _is_there(client: QdrantClient, name: str, batch: list[Any]) -> bool:
    """Whether every point of the batch is there, from this very export."""
    expected = {point.id: str(point.payload.get(_CLOCK)) for point in batch}
    stored = client.retrieve(name, ids=list(expected), with_payload=[_CLOCK], with_vectors=False)
    return {record.id: str((record.payload or {}).get(_CLOCK)) for record in stored} == expected


def _remove_stale(client: QdrantClient, name: str, bundle: Bundle, total: int, clock: str) -> int:
    """Remove points of an earlier export of this collection, and expect ``total`` of the export at ``clock``.

    Points of other origin stay. Gives the number of points removed.
    """
    this_export = models.FieldCondition(key=_CLOCK, match=models.MatchValue(value=clock))
    own = bundle.manifest.get("collection")
    before = after = client.count(name, exact=True).count
    if before != total and own:
        of_collection = models.FieldCondition(key="qdrant_collection", match=models.MatchValue(value=own))
        stale = models.Filter(must=[of_collection], must_not=[this_export])
        client.delete(name, points_selector=models.FilterSelector(filter=stale), wait=True)
        after = client.count(name, exact=True).count
    count = client.count(name, count_filter=models.Filter(must=[this_export]), exact=True).count
    if count != total:
        raise ContractError(
            f"Qdrant collection {name!r}: expected {total} points of this export, found {count}. Upload again"
        )
    return int(before - after)


def _search_for(client: QdrantClient, name: str, probe: Any, primary: str) -> tuple[str, ...]:
    """Search for the probe by each of its vectors, and expect that no other chunk scores higher."""
    exact = models.SearchParams(exact=True)
    alone = models.Filter(must=[models.HasIdCondition(has_id=[probe.id])])
    for kind, query in probe.vector.items():
        best, own = (
            client.query_points(name, query=query, using=kind, limit=1, search_params=exact, query_filter=only).points
            for only in (None, alone)
        )
        if not own or own[0].score < best[0].score - _TOLERANCE * abs(best[0].score):
            raise ContractError(
                f"Qdrant collection {name!r}: chunk {probe.id} does not find itself by {kind}. {_AGAIN}"
            )
    if SPARSE_NAME not in probe.vector:
        return tuple(probe.vector)
    lists = [
        models.Prefetch(query=probe.vector[kind], using=kind, limit=_DEPTH, params=exact)
        for kind in (primary, SPARSE_NAME)
    ]
    hybrid = client.query_points(name, prefetch=lists, query=models.FusionQuery(fusion=models.Fusion.RRF), limit=_DEPTH)
    if probe.id not in {point.id for point in hybrid.points}:
        raise ContractError(
            f"Qdrant collection {name!r}: chunk {probe.id} does not find itself by both lists. {_AGAIN}"
        )
    return (*probe.vector, "hybrid")


def describe(uploaded: Uploaded) -> str:
    """Word the result in one line for people."""
    return (
        f"{uploaded.collection}: {uploaded.points} points ({uploaded.sent} sent, {uploaded.removed} old ones removed); "
        f"a chunk finds itself by {json.dumps(uploaded.searches)[1:-1] or 'nothing: there are none'}"
    )
