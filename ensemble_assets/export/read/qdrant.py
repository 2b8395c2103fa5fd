"""Upload a bundle into Qdrant, and search there: dense, sparse, and both together.

Points keep the bundle's ids, so a second upload changes nothing. A batch that is there already, from the same export,
is skipped, so an interrupted upload goes on where it was. The script in the bundle does the plain upload without this
package.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_assets.common.defaults import QDRANT_POINTS
from ensemble_assets.common.errors import ContractError, SettingsError
from ensemble_assets.export.read.bundle_reader import Bundle, Point, points, read_object
from ensemble_assets.export.write.names import target_collection

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

SPARSE_NAME = "sparse"
_CLOCK = "kaggle_export_timestamp"
_TOLERANCE = 1e-4
_DEPTH = 100


@dataclass(frozen=True)
class Uploaded:
    """The result of an upload.

    Attributes:
        collection: name in Qdrant.
        points: points of the bundle.
        sent: points that were not there yet.
        removed: points of an earlier export of the same collection that this bundle does not have.
        searches: kinds of search by which a chunk found itself.
    """

    collection: str
    points: int
    sent: int
    removed: int
    searches: tuple[str, ...]


@dataclass
class _Probe:
    """The chunk to search for: the one with the largest sparse norm, so no other chunk scores higher for its vector."""

    row: int = 0
    vectors: dict[str, list[float]] | None = None
    sparse: dict[int, float] | None = None
    norm: float = -1.0

    def offer(self, row: int, vectors: dict[str, list[float]], sparse: dict[int, float]) -> None:
        norm = sum(value * value for value in sparse.values())
        if norm > self.norm:
            self.row, self.vectors, self.sparse, self.norm = row, vectors, sparse, norm


def connect(url: str, path: str, api_key: str | None) -> QdrantClient:
    """Connect to a server, or to embedded storage in a folder.

    Raises:
        SettingsError: if qdrant-client is not installed or the storage is in use.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise SettingsError("uploading needs qdrant-client: pip install 'ensemble-assets[qdrant]'") from None
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

    Args:
        bundle: the folder.
        client: connected.
        collection: in Qdrant; the bundle's own name for it unless given.
        batch_size: points per request.
        progress: is called with the number of points that are there.

    Raises:
        ContractError: if the collection there holds other vectors, the counts differ afterwards, or a chunk does not
            find itself.
    """
    stats = read_object(bundle.path("stats.json"))
    sizes = {name: int(layout["dimension"]) for name, layout in stats["dense_vector_layout"].items()}
    primary = str(stats["model_config"]["name"])
    name = collection or target_collection(
        str(bundle.manifest.get("collection") or bundle.folder.resolve().name), primary
    )
    _prepare(client, name, sizes)
    probe, total, sent = _Probe(), 0, 0
    source = _converted(bundle, probe)
    while batch := list(islice(source, batch_size)):
        if not _is_there(client, name, batch):
            client.upsert(name, points=[point for point, _ in batch], wait=True)
            sent += len(batch)
        total += len(batch)
        progress(total)
    removed = _remove_stale(client, name, bundle, total)
    _require_count(client, name, bundle, total)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Local mode performs exact", UserWarning)  # exact is what is asked for
        searches = _require_found(client, name, probe, primary) if total else ()
    return Uploaded(name, total, sent, removed, searches)


def _prepare(client: QdrantClient, name: str, sizes: dict[str, int]) -> None:
    """Create the collection, or make sure that the one there can hold these vectors."""
    from qdrant_client import models

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


def _converted(bundle: Bundle, probe: _Probe) -> Iterator[tuple[Any, str]]:
    """Convert points for the client, each with its time stamp of export."""
    from qdrant_client import models

    for number, point in enumerate(points(bundle), start=1):
        if not isinstance(point, Point) or point.payload is None or point.vectors is None:
            raise ContractError(
                f"{bundle.names.file('qdrant.jsonl')}, line {number}: is no point. "
                "Run ensemble-assets validate on the bundle"
            )
        vectors = dict(point.vectors)
        weights = _weights(point.payload.get("sparse_vector"))
        probe.offer(point.row, dict(vectors), weights)
        if weights:
            vectors[SPARSE_NAME] = models.SparseVector(indices=list(weights), values=list(weights.values()))
        yield models.PointStruct(id=point.row, vector=vectors, payload=point.payload), str(point.payload.get(_CLOCK))


def _weights(vector: Any) -> dict[int, float]:
    """Add up weights by index: two terms of one chunk may share an index, and Qdrant wants every index once."""
    weights: dict[int, float] = {}
    if isinstance(vector, dict):
        for index, value in zip(vector["indices"], vector["values"], strict=True):
            weights[index] = weights.get(index, 0.0) + value
    return weights


def _is_there(client: QdrantClient, name: str, batch: list[tuple[Any, str]]) -> bool:
    """Whether every point of the batch is there, from this very export."""
    expected = {point.id: clock for point, clock in batch}
    stored = client.retrieve(name, ids=list(expected), with_payload=[_CLOCK], with_vectors=False)
    return {record.id: str((record.payload or {}).get(_CLOCK)) for record in stored} == expected


def _remove_stale(client: QdrantClient, name: str, bundle: Bundle, total: int) -> int:
    """Remove points of an earlier export of this collection; points of other origin stay."""
    from qdrant_client import models

    own = bundle.manifest.get("collection")
    before = client.count(name, exact=True).count
    if before == total or not own:
        return 0
    of_collection = models.FieldCondition(key="qdrant_collection", match=models.MatchValue(value=own))
    stale = models.Filter(must=[of_collection], must_not=[_from_this_export(bundle)])
    client.delete(name, points_selector=models.FilterSelector(filter=stale), wait=True)
    return int(before - client.count(name, exact=True).count)


def _from_this_export(bundle: Bundle) -> Any:
    from qdrant_client import models

    first = next(points(bundle), None)
    clock = str((first.payload or {}).get(_CLOCK)) if first else ""
    return models.FieldCondition(key=_CLOCK, match=models.MatchValue(value=clock))


def _require_count(client: QdrantClient, name: str, bundle: Bundle, total: int) -> None:
    from qdrant_client import models

    held = client.count(name, count_filter=models.Filter(must=[_from_this_export(bundle)]), exact=True).count
    if held != total:
        raise ContractError(
            f"Qdrant collection {name!r}: expected {total} points of this export, found {held}. Upload again"
        )


def _require_found(client: QdrantClient, name: str, probe: _Probe, primary: str) -> tuple[str, ...]:
    """Search for the probe by each of its vectors, and expect that no other chunk scores higher."""
    from qdrant_client import models

    exact = models.SearchParams(exact=True)
    alone = models.Filter(must=[models.HasIdCondition(has_id=[probe.row])])
    queries: dict[str, tuple[Any, str]] = {n: (vector, n) for n, vector in (probe.vectors or {}).items()}
    if probe.sparse:
        weights = models.SparseVector(indices=list(probe.sparse), values=list(probe.sparse.values()))
        queries[SPARSE_NAME] = (weights, SPARSE_NAME)
    for kind, (query, using) in queries.items():
        best = client.query_points(name, query=query, using=using, limit=1, search_params=exact).points
        own = client.query_points(
            name, query=query, using=using, limit=1, search_params=exact, query_filter=alone
        ).points
        if not own or own[0].score < best[0].score - _TOLERANCE * abs(best[0].score):
            raise ContractError(
                f"Qdrant collection {name!r}: chunk {probe.row} does not find itself by {kind}. {_AGAIN}"
            )
    if not probe.sparse:
        return tuple(queries)
    lists = [
        models.Prefetch(query=query, using=using, limit=_DEPTH, params=exact)
        for query, using in (queries[primary], queries[SPARSE_NAME])
    ]
    hybrid = client.query_points(name, prefetch=lists, query=models.FusionQuery(fusion=models.Fusion.RRF), limit=_DEPTH)
    if probe.row not in {point.id for point in hybrid.points}:
        raise ContractError(
            f"Qdrant collection {name!r}: chunk {probe.row} does not find itself by both lists. {_AGAIN}"
        )
    return (*queries, "hybrid")


_AGAIN = "Upload again; if it stays so, run ensemble-assets validate on the bundle"


def describe(uploaded: Uploaded) -> str:
    """Word the result in one line for people."""
    return (
        f"{uploaded.collection}: {uploaded.points} points ({uploaded.sent} sent, {uploaded.removed} old ones removed); "
        f"a chunk finds itself by {json.dumps(uploaded.searches)[1:-1] or 'nothing: there are none'}"
    )
