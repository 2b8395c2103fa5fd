"""Upload a bundle into Qdrant, and search there: dense, sparse, and both together.

In a collection of its own, points keep the bundle's ids; ``qdrant_ids`` makes those for a shared one. A point that is
there with the same content, whenever it was exported, is not sent again, so a second upload sends nothing and an
interrupted one goes on where it was. The script in the bundle does the plain upload without this package. Importing
this module raises ``SettingsError`` where qdrant-client is not installed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ensemble_assets.common.defaults import QDRANT_POINTS, QDRANT_REQUEST_MB
from ensemble_assets.common.errors import ContractError, SettingsError
from ensemble_assets.export.read.bundle_reader import Bundle, Point, points, read_object, token_vectors
from ensemble_assets.export.write.names import target_collection

try:
    from qdrant_client import models

    from ensemble_assets.export.read.qdrant_ids import chunk_ids, require_own
    from ensemble_assets.export.read.qdrant_layout import (
        DIGEST,
        ORIGIN_KEYS,
        SPARSE_NAME,
        TOKENS_NAME,
        NewCollection,
        batches,
        converted,
        prepare,
    )
    from ensemble_assets.export.read.qdrant_server import Patience, connect, require_collection_name
except ImportError:
    raise SettingsError("uploading needs qdrant-client: pip install 'ensemble-assets[qdrant]'") from None

_TOLERANCE = 1e-4
_DEPTH = 100
_PAGE = 1000
"""Ids in one request: a few tens of kilobytes."""

__all__ = ("NewCollection", "Patience", "Uploaded", "connect", "describe", "upload_bundle")

_AGAIN = "Upload again; if it stays so, run ensemble-assets validate on the bundle"


@dataclass(frozen=True)
class Uploaded:
    """The result of an upload: new points, removed points of earlier exports, and successful kinds of search."""

    collection: str
    points: int
    sent: int
    removed: int
    searches: tuple[str, ...]


def upload_bundle(
    bundle: Bundle,
    client: Any,
    collection: str = "",
    batch_size: int = QDRANT_POINTS,
    progress: Callable[[int], None] = lambda done: None,
    *,
    new: NewCollection | None = None,
    point_ids: str = "auto",
    max_request_mb: int = QDRANT_REQUEST_MB,
) -> Uploaded:
    """Upload the points that are not there yet, remove those of earlier exports, and search.

    ``collection`` defaults to the bundle's own name; ``progress`` gets the number of points that are there.
    ``point_ids`` is ``row``, ``chunk`` (see ``qdrant_ids``) or ``auto``: ``chunk`` where another collection is named.
    Other vectors there, points of other origin with the same ids, points missing afterwards and a chunk that does not
    find itself are a ``ContractError``.
    """
    stats = read_object(bundle.path("stats.json"))
    primary = str(stats["model_config"]["name"])
    widths = {slug: int(layout["dimension"]) for slug, layout in stats["dense_vector_layout"].items()}
    origin = _origin(bundle)
    own = origin.get("qdrant_collection") or _named(bundle)
    name = collection or target_collection(own, primary)
    require_collection_name(name)
    by_chunk = point_ids == "chunk" or (point_ids == "auto" and name != target_collection(own, primary))

    def ids_of() -> Callable[[Point], Any]:
        return chunk_ids(own) if by_chunk else attrgetter("row")

    sizes = {primary: widths[primary], **widths}
    layout = prepare(client, name, sizes, new or NewCollection(), token_vectors(bundle))
    require_own(client, name, map(ids_of(), filter(None, points(bundle))), origin)
    probe: Any = None
    ids: set[Any] = set()
    sent = 0
    for batch in batches(converted(bundle, layout, ids_of()), batch_size, max_request_mb << 20):
        if missing := _not_there(client, name, batch):
            client.upsert(name, points=missing, wait=True)
            sent += len(missing)
            if lost := _not_there(client, name, missing):
                raise ContractError(
                    f"Qdrant collection {name!r}: expected {len(batch)} points of this bundle from id {batch[0].id} "
                    f"on, found {len(batch) - len(lost)}. Upload again"
                )
        probe = max(batch if probe is None else [probe, *batch], key=_sparse_norm)
        ids.update(point.id for point in batch)
        progress(len(ids))
    removed = _remove_stale(client, name, origin, ids)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Local mode performs exact", UserWarning)  # exact is what is asked for
        searches = _search_for(client, name, probe, primary) if probe else ()
    return Uploaded(name, len(ids), sent, removed, searches)


def _origin(bundle: Bundle) -> dict[str, str]:
    """Give the origin that the payloads state; bundles that older programs wrote may say nothing."""
    first = next(points(bundle), None)
    payload = (first.payload if first else None) or {}
    return {key: str(payload[key]) for key in ORIGIN_KEYS if payload.get(key)}


def _named(bundle: Bundle) -> str:
    return str(bundle.manifest.get("collection") or bundle.folder.resolve().name)


def _sparse_norm(point: Any) -> float:
    """Square the sparse norm. No other chunk scores higher for the sparse vector of the chunk with the largest one."""
    vectors = point.vector
    has_sparse = isinstance(vectors, dict) and SPARSE_NAME in vectors
    return sum(value * value for value in vectors[SPARSE_NAME].values) if has_sparse else 0.0


def _not_there(client: Any, name: str, batch: list[Any]) -> list[Any]:
    """List the points of the batch that are not stored with this content."""
    stored = client.retrieve(name, ids=[point.id for point in batch], with_payload=[DIGEST], with_vectors=False)
    there = {record.id: (record.payload or {}).get(DIGEST) for record in stored}
    return [point for point in batch if there.get(point.id) != point.payload[DIGEST]]


def _remove_stale(client: Any, name: str, origin: dict[str, str], ids: set[Any]) -> int:
    """Remove points of an earlier export of this collection, and return their number. Points of other origin stay."""
    if not origin or client.count(name, exact=True).count == len(ids):
        return 0
    same = models.Filter(
        must=[models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in origin.items()]
    )
    stale: list[Any] = []
    offset: Any = None
    while True:
        records, offset = client.scroll(
            name, scroll_filter=same, limit=_PAGE, offset=offset, with_payload=False, with_vectors=False
        )
        stale += [record.id for record in records if record.id not in ids]
        if offset is None:
            break
    for start in range(0, len(stale), _PAGE):
        client.delete(name, points_selector=models.PointIdsList(points=stale[start : start + _PAGE]), wait=True)
    return len(stale)


def _search_for(client: Any, name: str, probe: Any, primary: str) -> tuple[str, ...]:
    """Search for the probe by each of its vectors, and expect that no other chunk scores higher."""
    exact = models.SearchParams(exact=True)
    alone = models.Filter(must=[models.HasIdCondition(has_id=[probe.id])])
    vectors = probe.vector if isinstance(probe.vector, dict) else {"": probe.vector}
    for kind, query in vectors.items():
        candidates = None
        if kind == TOKENS_NAME:  # they order the candidates of another list: comparing all chunks takes minutes
            candidates = models.Prefetch(query=vectors[primary], using=primary, limit=_DEPTH, params=exact)
        best, own = (
            client.query_points(
                name, query, kind or None, candidates, limit=1, search_params=exact, query_filter=only
            ).points
            for only in (None, alone)
        )
        if not own or own[0].score < best[0].score - _TOLERANCE * abs(best[0].score):
            raise ContractError(
                f"Qdrant collection {name!r}: chunk {probe.id} does not find itself by {kind or primary}. {_AGAIN}"
            )
    if SPARSE_NAME not in vectors:
        return tuple(kind or primary for kind in vectors)
    lists = [
        models.Prefetch(query=vectors[kind], using=kind, limit=_DEPTH, params=exact) for kind in (primary, SPARSE_NAME)
    ]
    hybrid = client.query_points(name, prefetch=lists, query=models.FusionQuery(fusion=models.Fusion.RRF), limit=_DEPTH)
    if probe.id not in {point.id for point in hybrid.points}:
        raise ContractError(
            f"Qdrant collection {name!r}: chunk {probe.id} does not find itself by both lists. {_AGAIN}"
        )
    return (*vectors, "hybrid")


def describe(uploaded: Uploaded) -> str:
    """Word the result in one line for people."""
    return (
        f"{uploaded.collection}: {uploaded.points} points ({uploaded.sent} sent, {uploaded.removed} old ones removed); "
        f"a chunk finds itself by {json.dumps(uploaded.searches)[1:-1] or 'nothing: there are none'}"
    )
