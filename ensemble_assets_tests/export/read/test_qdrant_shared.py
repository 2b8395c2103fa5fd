"""Several bundles in one Qdrant collection: ids of their own, nothing of others replaced, unchanged points stay."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

import qdrant_client

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.read.qdrant import upload_bundle
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, dense, unit_rows
from ensemble_assets_tests.export.runs import everything_off


def bundle(output: Path, name: str, texts: list[str], ids: bool = True) -> Any:
    vectors = unit_rows(40, 8)
    rows = [sum(text.encode()) % 40 for text in texts]  # the same text has the same vector wherever it stands
    chunks = [Chunk(text, {"chunk_id": text.split(":")[0]} if ids else {}) for text in texts]
    inputs = bundle_of(chunks, dense("mini", vectors[rows]), collection=name)
    return open_bundle(write_bundle(output, inputs, lambda written: everything_off()).folder)


@pytest.fixture
def client() -> Any:
    return qdrant_client.QdrantClient(":memory:")


def origins(client: Any, name: str = "all") -> list[str]:
    return sorted(point.payload["qdrant_collection"] for point in client.scroll(name, limit=100)[0])


def test_two_bundles_in_one_collection_are_both_there(tmp_path: Path, client: Any) -> None:
    both = [bundle(tmp_path, name, [f"1: only in {name}", f"2: only in {name}"]) for name in ("a", "b")]
    for each in both:
        assert upload_bundle(each, client, "all").sent == 2
    assert origins(client) == ["a", "a", "b", "b"]
    assert [upload_bundle(each, client, "all").sent for each in both] == [0, 0]
    assert all(uuid.UUID(str(point.id)).version == 5 for point in client.scroll("all", limit=9)[0])


@pytest.mark.parametrize("ids", [True, False])
def test_a_file_in_front_changes_no_id_and_sends_only_itself(ids: bool, tmp_path: Path, client: Any) -> None:
    upload_bundle(bundle(tmp_path / "old", "a", ["1: one", "2: two"], ids), client, "all")
    before = {point.id: point.payload["text_preview"] for point in client.scroll("all", limit=9)[0]}
    done = upload_bundle(bundle(tmp_path / "new", "a", ["0: new", "1: one", "2: two"], ids), client, "all")
    after = {point.id: point.payload["text_preview"] for point in client.scroll("all", limit=9)[0]}
    assert before.items() <= after.items()
    assert (len(after), done.removed) == (3, 0)


def test_ids_that_repeat_in_a_bundle_get_points_of_their_own(tmp_path: Path, client: Any) -> None:
    assert upload_bundle(bundle(tmp_path, "a", ["1: one", "1: two", "1: one"]), client, "all").points == 3
    assert client.count("all").count == 3


def test_points_of_others_with_the_same_ids_are_refused_before_anything_is_written(tmp_path: Path, client: Any) -> None:
    upload_bundle(bundle(tmp_path, "a", ["1: one", "2: two"]), client, "all", point_ids="row")
    with pytest.raises(ContractError, match=r"point 0 is there and is not of this bundle \(a\).*--point-ids chunk"):
        upload_bundle(bundle(tmp_path, "b", ["1: x", "2: y", "3: z"]), client, "all", point_ids="row")
    assert origins(client) == ["a", "a"]
    client.upsert("all", [qdrant_client.models.PointStruct(id=2, vector={"mini": [1.0] * 8}, payload={"mine": 1})])
    with pytest.raises(ContractError, match=r"point 2 is there .* \(it names no collection\)"):
        upload_bundle(bundle(tmp_path, "a", ["1: one", "2: two", "3: three"]), client, "all", point_ids="row")
    assert client.count("all").count == 3


def test_a_collection_of_its_own_keeps_the_bundles_ids(tmp_path: Path, client: Any) -> None:
    for named in ("", "a_v4_mini"):
        done = upload_bundle(bundle(tmp_path, "a", ["1: one", "2: two"]), client, named)
        assert sorted(point.id for point in client.scroll(done.collection, limit=9)[0]) == [0, 1]


def test_points_with_rows_as_ids_give_way_to_those_with_ids_of_their_own(tmp_path: Path, client: Any) -> None:
    made = bundle(tmp_path, "a", ["1: one", "2: two"])
    upload_bundle(made, client, "all", point_ids="row")
    assert (upload_bundle(made, client, "all").removed, client.count("all").count) == (2, 2)


def test_a_collection_with_another_distance_is_refused(tmp_path: Path, client: Any) -> None:
    size = qdrant_client.models.VectorParams(size=8, distance=qdrant_client.models.Distance.EUCLID)
    client.create_collection("all", vectors_config={"mini": size}, sparse_vectors_config={"sparse": {}})
    with pytest.raises(ContractError, match="exists with distance Euclid: expected Cosine"):
        upload_bundle(bundle(tmp_path, "a", ["1: one"]), client, "all")
