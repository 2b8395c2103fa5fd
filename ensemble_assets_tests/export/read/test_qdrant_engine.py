"""A bundle's points in Qdrant's own Rust engine: ids, named vectors, searches by dense, sparse and both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ensemble_assets.export.read.bundle_reader import open_bundle, points
from ensemble_assets.export.read.qdrant import SPARSE_NAME
from ensemble_assets_tests.export.read.test_qdrant import bundle

edge = pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is a development dependency")

SIZES = {"mini-1.5b": 8, "other": 3}


@pytest.fixture
def shard(tmp_path: Path) -> Any:
    vectors = {name: edge.EdgeVectorParams(size=size, distance=edge.Distance.Cosine) for name, size in SIZES.items()}
    config = edge.EdgeConfig(vectors=vectors, sparse_vectors={SPARSE_NAME: edge.EdgeSparseVectorParams()})
    (tmp_path / "shard").mkdir()
    opened = edge.EdgeShard.create(str(tmp_path / "shard"), config)
    loaded = []
    for point in points(open_bundle(bundle(tmp_path / "bundle", count=50))):
        assert point is not None
        assert point.payload is not None
        sparse = point.payload["sparse_vector"]
        vectors = {**(point.vectors or {}), SPARSE_NAME: edge.SparseVector(sparse["indices"], sparse["values"])}
        loaded.append(edge.Point(point.row, vectors, {"n": point.payload["n"], "vectors": vectors_of(point)}))
    opened.update(edge.UpdateOperation.upsert_points(loaded))
    yield opened
    opened.close()


def vectors_of(point: Any) -> list[str]:
    return list(point.vectors)


def test_every_point_is_there_and_finds_itself_by_dense_sparse_and_both(shard: Any, tmp_path: Path) -> None:
    assert shard.count(edge.CountRequest(exact=True)) == 50
    for point in points(open_bundle(tmp_path / "bundle" / "guide")):
        assert point is not None
        assert point.payload is not None
        sparse = point.payload["sparse_vector"]
        asked: dict[str, Any] = dict(point.vectors or {})
        for name, vector in asked.items():
            found = shard.query(edge.QueryRequest(limit=1, query=edge.Query.Nearest(vector, using=name)))
            assert found[0].id == point.row, name
        weights = edge.SparseVector(sparse["indices"], sparse["values"])
        by_sparse = edge.Query.Nearest(weights, using=SPARSE_NAME)
        assert shard.query(edge.QueryRequest(limit=1, query=by_sparse))[0].id == point.row
        lists = [edge.Prefetch(limit=10, query=edge.Query.Nearest(asked["mini-1.5b"], using="mini-1.5b"))]
        lists.append(edge.Prefetch(limit=10, query=by_sparse))
        both = shard.query(edge.QueryRequest(limit=5, prefetches=lists, query=edge.Fusion.Rrf(60), with_payload=True))
        assert both[0].id == point.row
        assert both[0].payload["n"] == point.row
