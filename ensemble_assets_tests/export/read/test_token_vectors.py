"""Vectors of single tokens: two files more, judged by a gate, and sent into Qdrant by ``upload`` and by the script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

import qdrant_client
from qdrant_client import models

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.read.bundle_reader import open_bundle, token_vectors
from ensemble_assets.export.read.qdrant import NewCollection, upload_bundle
from ensemble_assets.export.suite import Limits, judge_bundle
from ensemble_assets.export.write.token_vectors import TokenVectors
from ensemble_assets_tests.export.bundles import PREFIX
from ensemble_assets_tests.export.read.test_qdrant import NAME, bundle
from ensemble_assets_tests.export.write.test_upload_script import run

COUNT, WIDTH = 7, 5
LENGTHS = (3, 1, 4, 0, 2, 6, 1)


def tokens(seed: int = 0) -> TokenVectors:
    vectors = np.random.default_rng(seed).integers(-127, 128, (sum(LENGTHS), WIDTH)).astype(np.int8)
    return TokenVectors(vectors, np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64))


def max_sim(question: np.ndarray, tokens: TokenVectors, row: int) -> float:
    """Add up the largest cosine of every token of the question, as plainly as it can be written."""
    chunk = tokens.vectors[tokens.offsets[row] : tokens.offsets[row + 1]].astype(float)
    chunk /= np.linalg.norm(chunk, axis=1, keepdims=True)
    return float((question / np.linalg.norm(question, axis=1, keepdims=True) @ chunk.T).max(axis=1).sum())


def scores(client: Any, question: np.ndarray) -> dict[int, float]:
    points = client.query_points(NAME, query=question.tolist(), using="tokens", limit=COUNT).points
    return {point.id: point.score for point in points}


def test_without_them_nothing_is_different(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    assert token_vectors(open_bundle(folder)) is None
    assert list(folder.glob("*token*")) == []
    script = (folder / f"{PREFIX}_upload_script.py").read_text()
    assert not any(word in script for word in ("TOKEN", "token_vectors", "@END@", "numpy"))


def test_they_go_when_they_are_no_longer_asked_for(tmp_path: Path) -> None:
    folder = bundle(tmp_path, tokens=tokens())
    assert len(list(folder.glob("*token*"))) == 2
    bundle(tmp_path)
    assert list(folder.glob("*token*")) == []


def test_upload_and_script_give_the_same_scores_as_the_files(tmp_path: Path) -> None:
    given = tokens()
    folder = bundle(tmp_path, tokens=given)
    by_package = qdrant_client.QdrantClient(":memory:")
    done = upload_bundle(open_bundle(folder), by_package, batch_size=3)
    assert "tokens" in done.searches
    assert upload_bundle(open_bundle(folder), by_package).sent == 0
    ran = run(folder, "--path", str(tmp_path / "storage"))
    assert ran.returncode == 0, ran.stderr
    again = run(folder, "--path", str(tmp_path / "storage"), "--start-at", "2")
    assert again.returncode == 0, again.stderr
    by_script = qdrant_client.QdrantClient(path=str(tmp_path / "storage"))
    for seed in range(5):
        question = np.random.default_rng(100 + seed).normal(size=(4, WIDTH))
        wanted = {row: max_sim(question, given, row) for row in range(COUNT) if LENGTHS[row]}
        assert scores(by_package, question) == pytest.approx(wanted, abs=1e-4)
        assert scores(by_script, question) == pytest.approx(wanted, abs=1e-4)
    by_script.close()


def test_changed_vectors_are_sent_again(tmp_path: Path) -> None:
    client = qdrant_client.QdrantClient(":memory:")
    upload_bundle(open_bundle(bundle(tmp_path, tokens=tokens())), client)
    changed = tokens()
    changed.vectors[0] = changed.vectors[0][::-1]
    assert upload_bundle(open_bundle(bundle(tmp_path, tokens=changed)), client).sent == 1


def test_a_collection_that_cannot_hold_them_is_refused(tmp_path: Path) -> None:
    client = qdrant_client.QdrantClient(":memory:")
    upload_bundle(open_bundle(bundle(tmp_path / "plain")), client)
    folder = bundle(tmp_path / "with", tokens=tokens())
    with pytest.raises(ContractError, match=r"without the multivector 'tokens'.*--collection"):
        upload_bundle(open_bundle(folder), client)
    storage = str(tmp_path / "storage")
    assert run(tmp_path / "plain" / "guide", "--path", storage).returncode == 0
    ran = run(folder, "--path", storage)
    assert ran.returncode == 1
    assert "Name another one with --collection" in ran.stderr


def test_one_unnamed_vector_has_no_place_for_them(tmp_path: Path) -> None:
    client = qdrant_client.QdrantClient(":memory:")
    folder = bundle(tmp_path, tokens=tokens())
    assert upload_bundle(open_bundle(folder), client, new=NewCollection(legacy=True)).points == COUNT
    ran = run(folder, "--path", str(tmp_path / "storage"), "--layout", "legacy")
    assert ran.returncode == 0, ran.stderr


def test_more_than_a_server_takes_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    many = TokenVectors(
        np.ones((7 + (1 << 20) // 512, 512), np.int8), np.array([0, *range(2, 8), 7 + (1 << 20) // 512])
    )
    folder = bundle(tmp_path, tokens=many)
    client = qdrant_client.QdrantClient(":memory:")
    with pytest.raises(ContractError, match=r"chunk 6 has 2048 token vectors of 512 numbers.*less than 1,048,576"):
        upload_bundle(open_bundle(folder), client)
    assert not client.collection_exists(NAME)
    ran = run(folder, "--path", str(tmp_path / "storage"))
    assert ran.returncode == 1
    assert "more than Qdrant takes" in ran.stderr


def zero(vectors: np.ndarray, offsets: np.ndarray) -> str:
    vectors[4] = 0
    return "row 4: has norm 0"


def backwards(vectors: np.ndarray, offsets: np.ndarray) -> str:
    offsets[2] = 0
    return "without a decrease"


def too_far(vectors: np.ndarray, offsets: np.ndarray) -> str:
    offsets[-1] += 1
    return "expected numbers from 0 to 17"


@pytest.mark.parametrize("damage", [zero, backwards, too_far])
def test_the_gate_finds_damage(tmp_path: Path, damage: Callable[[np.ndarray, np.ndarray], str]) -> None:
    folder = bundle(tmp_path, tokens=tokens())
    files = [folder / f"{PREFIX}_token_{name}.npy" for name in ("vectors", "offsets")]
    results = {each.name: each for each in judge_bundle(open_bundle(folder), Limits())}
    assert results["vectors_finite_and_unit"].problems == ()
    vectors, offsets = map(np.load, files)
    sentence = damage(vectors, offsets)
    for file, array in zip(files, (vectors, offsets), strict=True):
        np.save(file, array)
    results = {each.name: each for each in judge_bundle(open_bundle(folder), Limits())}
    assert any(sentence in problem for problem in results["vectors_finite_and_unit"].problems)


@pytest.mark.parametrize("missing", ["vectors", "offsets"])
def test_the_gate_finds_a_file_without_the_other(tmp_path: Path, missing: str) -> None:
    folder = bundle(tmp_path, tokens=tokens())
    (folder / f"{PREFIX}_token_{missing}.npy").unlink()
    results = {each.name: each for each in judge_bundle(open_bundle(folder), Limits())}
    assert "cannot be read" in results["vectors_finite_and_unit"].problems[0]


def test_arrays_that_do_not_fit_are_no_bundle(tmp_path: Path) -> None:
    whole = tokens()
    short = TokenVectors(whole.vectors[:-1], whole.offsets)
    with pytest.raises(ContractError, match="token offsets"):
        bundle(tmp_path, tokens=short)


def test_the_real_engine_compares_as_we_do(tmp_path: Path) -> None:
    """Qdrant's Rust engine, in half precision as an upload asks for it."""
    edge = pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is a development dependency")
    config = edge.EdgeVectorParams(
        size=WIDTH,
        distance=edge.Distance.Cosine,
        multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        datatype=edge.VectorStorageDatatype.Float16,
    )
    (tmp_path / "shard").mkdir()
    shard = edge.EdgeShard.create(str(tmp_path / "shard"), edge.EdgeConfig(vectors={"tokens": config}))
    given = tokens()
    rows = [row for row in range(COUNT) if LENGTHS[row]]
    pieces = {row: given.vectors[given.offsets[row] : given.offsets[row + 1]].astype(float).tolist() for row in rows}
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(row, {"tokens": pieces[row]}, {}) for row in rows]))
    question = np.random.default_rng(7).normal(size=(4, WIDTH))
    nearest = edge.Query.Nearest(question.tolist(), using="tokens")
    by_engine = {point.id: point.score for point in shard.query(edge.QueryRequest(limit=COUNT, query=nearest))}
    shard.close()
    assert by_engine == pytest.approx({row: max_sim(question, given, row) for row in rows}, abs=4e-3)


def test_the_multivector_has_no_index_and_half_precision(tmp_path: Path) -> None:
    client = qdrant_client.QdrantClient(":memory:")
    upload_bundle(open_bundle(bundle(tmp_path, tokens=tokens())), client)
    made = client.get_collection(NAME).config.params.vectors["tokens"]
    assert made.hnsw_config == models.HnswConfigDiff(m=0)
    assert made.datatype == models.Datatype.FLOAT16
