"""Fit a bundle's points to a Qdrant collection: named vectors, or the one unnamed vector of version 4.0's scripts."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from ensemble_assets.artefacts.fast_json import parse_value
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.read.bundle_reader import Bundle, Point, list_items, points
from ensemble_assets.export.write.token_vectors import TokenVectors

SPARSE_NAME, TOKENS_NAME = "sparse", "tokens"
TEXT = "text"
"""Payload key of a chunk's text, where it is asked for."""
DIGEST = "upload_digest"
"""Payload key of the hash by which an upload knows the points that are there already."""

_CLOCKS = frozenset({"kaggle_export_timestamp", "kaggle_processing_timestamp"})
"""Payload keys that say when a point was made. They may differ from point to point and are no part of its content."""


@dataclass(frozen=True)
class Layout:
    """Vectors that a collection has, whether they are unnamed, and the keys that its payloads gain.

    With ``tokens`` a point has the vectors of its chunk's tokens too, unless the collection has one unnamed vector.
    """

    sizes: Mapping[str, int]
    unnamed: bool
    tokens: TokenVectors | None = None
    text: bool = False
    echo: bool = True

    def vectors(self, point: Point) -> dict[str, Any]:
        """Give a point's vectors by their names in the collection; ``""`` is the unnamed one."""
        dense = point.vectors or {}
        if self.unnamed:
            return {"": dense[next(iter(self.sizes))]}
        weights = sparse_weights((point.payload or {}).get("sparse_vector"))
        sparse = models.SparseVector(indices=list(weights), values=list(weights.values()))
        tokens = self.tokens_of(point)
        more = {TOKENS_NAME: tokens.tolist()} if len(tokens) else {}
        return {**dense, **({SPARSE_NAME: sparse} if weights else {}), **more}

    def tokens_of(self, point: Point) -> NDArray[np.int8]:
        """Give the vectors of a chunk's tokens, whose length Qdrant makes 1: ``[tokens, width]``."""
        if self.tokens is None or self.unnamed:
            return np.empty((0, 0), np.int8)
        return self.tokens.vectors[slice(*self.tokens.offsets[point.row : point.row + 2])]

    def payload(self, point: Point, text: str) -> dict[str, Any]:
        """Give a point's payload, with ``upload_digest``; the sparse vector stays where the collection has none."""
        own = dict(point.payload or {})
        if not (self.echo or self.unnamed):
            own.pop("sparse_vector", None)
        if self.text:
            own[TEXT] = text
        shown = () if own == point.payload else (sorted(own), own.get(TEXT))
        return own | {DIGEST: digest(point, shown, self.tokens_of(point).tobytes())}


@dataclass(frozen=True)
class NewCollection:
    """How payloads are filled, and a collection is made that is not there yet. Zeros are the server's own choice.

    Payloads have the chunk's text with ``text``, and repeat the sparse vector with ``echo``.

    A ``legacy`` one has one unnamed vector and no sparse one. ``on_disk`` are vectors, sparse index and payloads;
    vectors with ``quantization`` ``scalar`` (int8) or ``binary`` stay in memory. ``indexes`` are payload keys, as
    ``key`` (a keyword) or ``key:type``.
    """

    legacy: bool = False
    on_disk: bool = False
    quantization: str = "none"
    hnsw_m: int = 0
    hnsw_ef: int = 0
    indexes: tuple[str, ...] = ()
    text: bool = False
    echo: bool = True

    def create(self, client: Any, name: str, sizes: Mapping[str, int], tokens: int = 0) -> None:
        """Create the collection with its indexes; vectors of single tokens are ``tokens`` wide."""
        disk = self.on_disk or None
        vectors = {n: models.VectorParams(size=size, distance=_COSINE, on_disk=disk) for n, size in sizes.items()}
        if tokens:
            vectors[TOKENS_NAME] = models.VectorParams(
                size=tokens,
                distance=_COSINE,
                on_disk=disk,
                multivector_config=_MAX_SIM,
                hnsw_config=models.HnswConfigDiff(m=0),  # they order candidates and find none: no index
                datatype=models.Datatype.FLOAT16,  # half the memory; they are bytes
            )
        sparse = {SPARSE_NAME: models.SparseVectorParams(index=models.SparseIndexParams(on_disk=disk))}
        hnsw = models.HnswConfigDiff(m=self.hnsw_m or None, ef_construct=self.hnsw_ef or None, on_disk=disk)
        client.create_collection(
            name,
            vectors_config=next(iter(vectors.values())) if self.legacy else vectors,
            sparse_vectors_config=None if self.legacy else sparse,
            hnsw_config=hnsw,
            on_disk_payload=disk,
            quantization_config=_QUANTIZATION[self.quantization],
        )


_COSINE = models.Distance.COSINE
_NONE = models.VectorParams(size=1, distance=_COSINE)
_MAX_SIM = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
_QUANTIZATION = {
    "none": None,
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
}

ORIGIN_KEYS = ("qdrant_collection", "collection_alias")
"""Payload keys that name the collection of a point. A server in strict mode filters by indexed keys only."""


def prepare(
    client: Any, name: str, sizes: Mapping[str, int], new: NewCollection, tokens: TokenVectors | None = None
) -> Layout:
    """Create the collection, or find out how the one there holds these vectors.

    ``sizes`` has the primary model first. Other vectors there are a ``ContractError``, and a chunk with more token
    vectors than a server takes.
    """
    width = 0
    if tokens is not None and not new.legacy:
        width = tokens.vectors.shape[1]
        _require_room(tokens)
    layout = replace(_layout_there(client, name, sizes, new, width), text=new.text, echo=new.echo, tokens=tokens)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Payload indexes have no effect", UserWarning)  # nor are they needed there
        for index in (*ORIGIN_KEYS, *new.indexes):
            key, _, kind = index.partition(":")
            client.create_payload_index(name, key, models.PayloadSchemaType(kind or "keyword"), wait=True)
    return layout


def _require_room(tokens: TokenVectors) -> None:
    counts, width = np.diff(tokens.offsets), tokens.vectors.shape[1]
    row = int(np.argmax(counts)) if len(counts) else 0
    if len(counts) and counts[row] * width >= _MOST_NUMBERS:
        raise ContractError(
            f"chunk {row} has {counts[row]} token vectors of {width} numbers, and Qdrant takes less than "
            f"{_MOST_NUMBERS:,} numbers. Cut chunks shorter, or export without export.token_vectors"
        )


def _layout_there(client: Any, name: str, sizes: Mapping[str, int], new: NewCollection, width: int) -> Layout:
    primary = next(iter(sizes.values()))
    legacy = new.legacy
    if not client.collection_exists(name):
        new.create(client, name, sizes, width)
        return Layout(sizes, legacy)
    params = client.get_collection(name).config.params
    all_there = [params.vectors] if isinstance(params.vectors, models.VectorParams) else (params.vectors or {}).values()
    distances = {vector.distance for vector in all_there} - {_COSINE}
    if distances:
        raise ContractError(
            f"Qdrant collection {name!r} exists with distance {min(distances).value}: expected Cosine, which ranks as "
            "the bundle does. Name another one with --collection"
        )
    if isinstance(params.vectors, models.VectorParams):
        if params.vectors.size == primary:
            return Layout(sizes, unnamed=True)
        there: Any = {"": params.vectors.size}
    else:
        there = {n: vector.size for n, vector in (params.vectors or {}).items()}
        if width and params.vectors.get(TOKENS_NAME, _NONE).multivector_config != _MAX_SIM:
            raise ContractError(
                f"Qdrant collection {name!r} exists without the multivector {TOKENS_NAME!r} for the bundle's token "
                "vectors. Name another one with --collection, or export without export.token_vectors"
            )
    sparse_there = sorted(params.sparse_vectors or {})
    wanted = {**sizes, **({TOKENS_NAME: width} if width else {})}
    if legacy or any(there.get(n) != size for n, size in wanted.items()) or SPARSE_NAME not in sparse_there:
        expected = f"one unnamed vector of {primary}" if legacy else f"{wanted} and sparse {SPARSE_NAME!r}"
        raise ContractError(
            f"Qdrant collection {name!r} exists with other vectors: expected {expected}, found {there} and sparse "
            f"{sparse_there}. Name another one with --collection"
        )
    return Layout(sizes, unnamed=False)


_MOST_NUMBERS = 1 << 20
"""Numbers of one multivector from which a server refuses it."""

_NUMBER_BYTES = 8
"""Most bytes of a token vector's component in a request, as in ``-127.0, ``."""


@dataclass(frozen=True)
class Prepared:
    """A point for the client; ``size`` is at least its bytes in a request, ``label`` its chunk in words."""

    point: Any
    size: int
    label: str


def converted(bundle: Bundle, layout: Layout, ids: Callable[[Point], Any]) -> Iterator[Prepared]:
    """Convert the points of a bundle for the client; payloads gain ``upload_digest``.

    With an unnamed vector they also gain ``local_upload_timestamp``, as version 4.0's scripts wrote it. A line that is
    no point is a ``ContractError``.
    """
    more = {"local_upload_timestamp": datetime.now().isoformat()} if layout.unnamed else {}
    texts = map(parse_value, list_items(bundle.path("texts.json"))) if layout.text else repeat("")
    for number, (point, text) in enumerate(zip(points(bundle), texts, strict=False), start=1):
        if point is None or point.payload is None or not {*layout.sizes} <= {*(point.vectors or {})}:
            raise ContractError(
                f"{bundle.names.file('qdrant.jsonl')}, line {number}: is no point with the vectors of the statistics. "
                "Run ensemble-assets validate on the bundle"
            )
        vectors = layout.vectors(point)
        payload = {**layout.payload(point, text), **more}
        struct = models.PointStruct(id=ids(point), vector=vectors.get("", vectors), payload=payload)
        # a sparse vector is in the bundle's payload too, as text of about the same length
        size = len(json.dumps(payload)) + len(json.dumps(point.payload)) + len(point.vectors_text)
        size += _NUMBER_BYTES * layout.tokens_of(point).size
        yield Prepared(struct, size, f"chunk {point.row} ({point.payload.get('chunk_id')})")


def batches(prepared: Iterable[Prepared], most_points: int, most_bytes: int) -> Iterator[list[Any]]:
    """Gather points into requests below both limits; one point over the limit is a ``ContractError``."""
    batch: list[Any] = []
    room = most_bytes
    for each in prepared:
        if each.size > most_bytes:
            raise ContractError(
                f"{each.label} alone makes a request of up to {each.size / 2**20:.0f} MB, and qdrant.max_request_mb is "
                f"{most_bytes / 2**20:.0f}. Shorten its metadata, or raise this limit and the server's"
            )
        if batch and (len(batch) == most_points or each.size > room):
            yield batch
            batch, room = [], most_bytes
        batch.append(each.point)
        room -= each.size
    if batch:
        yield batch


def digest(point: Point, shown: object = (), tokens: bytes = b"") -> str:
    """Hash the content of a point without its time stamps, and the choice of its payload's keys if that is not all."""
    content = {key: value for key, value in (point.payload or {}).items() if key not in _CLOCKS}
    more = (json.dumps(shown).encode() if shown else b"") + tokens
    return hashlib.blake2b(json.dumps(content).encode() + point.vectors_text + more, digest_size=16).hexdigest()


def sparse_weights(vector: Any) -> dict[int, float]:
    """Add up weights by index: two terms of one chunk may share an index, and Qdrant wants every index once."""
    weights: dict[int, float] = {}
    if isinstance(vector, dict):
        for index, value in zip(vector["indices"], vector["values"], strict=True):
            weights[index] = weights.get(index, 0.0) + value
    return weights
