"""Give points their ids in Qdrant, and see whether points of somebody else have these ids already.

A collection of its own takes the bundle's ids, which are rows. In a collection that several bundles share, the ids are
UUIDs of version 5 made of the collection's name and the chunk's id: no two bundles have the same, and a file that is
added in front of others changes none.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.read.bundle_reader import Point
from ensemble_assets.export.read.qdrant_layout import DIGEST, ORIGIN_KEYS

_NAMESPACE = uuid.UUID("6f0f4f0c-5b0e-5d7e-9a55-3f1c0c6b7e21")
"""Chosen once. Another one would give every point another id."""

_PAGE = 1000
"""Ids in one request: a few tens of kilobytes."""


def chunk_ids(collection: str) -> Callable[[Point], str]:
    """Give ids that hang on the collection and the chunk's id, or on its file and content where it has no id.

    A repeated id gets a number, in the bundle's order. Call the result once per point, in order.
    """
    seen: Counter[str] = Counter()

    def identity(point: Point) -> str:
        payload = point.payload or {}
        own = payload.get("chunk_id")
        if own is None:
            own = "\0".join(str(payload.get(key)) for key in ("source_path", "chunk_hash"))
        seen[str(own)] += 1
        number = f"\0{seen[str(own)]}" if seen[str(own)] > 1 else ""
        return str(uuid.uuid5(_NAMESPACE, f"{collection}\0{own}{number}"))

    return identity


def require_own(client: Any, name: str, ids: Iterable[Any], origin: Mapping[str, str]) -> None:
    """Require that no id is one of a point of other origin; ``ContractError`` names one. Nothing is written."""
    if not client.count(name, exact=True).count:
        return
    rest = iter(ids)
    while page := list(islice(rest, _PAGE)):
        for record in client.retrieve(name, ids=page, with_payload=[*ORIGIN_KEYS, DIGEST], with_vectors=False):
            payload = record.payload or {}
            theirs = {key: str(payload[key]) for key in ORIGIN_KEYS if payload.get(key)}
            if theirs != origin:
                raise ContractError(
                    f"Qdrant collection {name!r}: point {record.id} is there and is not of this bundle "
                    f"({theirs.get('qdrant_collection') or 'it names no collection'}); an upload would replace it. "
                    "Give --point-ids chunk, which gives every chunk an id of its own, or another --collection"
                )
