"""The upload script that bundles carry, run as a user runs it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_assets.export.write.v40_files import upload_script, write_v40
from ensemble_assets_tests.export.bundles import PREFIX, Chunk, bundle_of, dense, live_sparse, unit_rows
from ensemble_assets_tests.export.qdrant_rest import rest_server

TWICE = {"term_weights": [{"term": "a", "weight": 0.5}, {"term": "a", "weight": 0.5}]}
CHUNKS = [Chunk("a", {"sparse_features": TWICE}), *(Chunk(f"chunk {i}", {"n": i}) for i in range(1, 7))]


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QDRANT_")}
    return subprocess.run(
        [sys.executable, str(folder / f"{PREFIX}_upload_script.py"), *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_holds_names_only() -> None:
    script = upload_script(bundle_of(CHUNKS, dense('we"ird', unit_rows(7, 4)), collection="@VECTORS@"))
    ast.parse(script)
    assert 'VECTORS = {"we\\"ird": 4}' in script
    assert 'COLLECTION = "@VECTORS@_v4_we\\"ird"' in script
    absolute = [word for word in script.split() if re.match(r"['\"(]*/\w", word)]
    assert absolute == []
    assert str(Path.cwd()) not in script
    assert sys.prefix not in script


def test_upload_twice_into_embedded_storage_gives_one_point_a_chunk(tmp_path: Path) -> None:
    qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")
    folder = tmp_path / "bundle"
    folder.mkdir()
    models = (dense("mini-1.5b", unit_rows(7, 4)), dense("other", unit_rows(7, 3)))
    write_v40(folder, bundle_of(CHUNKS, *models))
    storage = str(tmp_path / "storage")
    first = run(folder, "--path", storage, "--batch-size", "3")
    second = run(folder, "--start-at", "5", QDRANT_PATH=storage)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == "uploaded 7 points; collection 'guide_v4_mini_1.5b' holds 7\n"
    assert second.stdout == "uploaded 2 points; collection 'guide_v4_mini_1.5b' holds 7\n"
    client = qdrant_client.QdrantClient(path=storage)
    for row, vector in enumerate(models[1].vectors):
        found = client.query_points("guide_v4_mini_1.5b", query=vector.tolist(), using="other", limit=1).points
        assert found[0].id == row
    (point,) = client.retrieve("guide_v4_mini_1.5b", [0], with_vectors=True)
    assert point.payload["text_preview"] == "a"
    assert len(point.vector["sparse"].indices) == 1
    assert point.vector["sparse"].values == pytest.approx([2**0.5])
    client.close()


def test_a_chunk_finds_itself_by_its_live_sparse_vector(tmp_path: Path) -> None:
    qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")
    folder = tmp_path / "bundle"
    folder.mkdir()
    rows = [{f"token{row}": 1.0, "common": 0.1} for row in range(6)] + [{}]
    write_v40(folder, replace(bundle_of(CHUNKS), sparse=live_sparse(rows, [1] * 6 + [0])))
    assert run(folder, "--path", str(tmp_path / "s"), "--collection", "mine").returncode == 0
    client = qdrant_client.QdrantClient(path=str(tmp_path / "s"))
    vocabulary = sorted({token for row in rows for token in row} | {"[pad]"})
    for row in range(6):
        query = qdrant_client.models.SparseVector(indices=[vocabulary.index(f"token{row}")], values=[1.0])
        assert client.query_points("mine", query=query, using="sparse", limit=1).points[0].id == row
    assert client.count("mine").count == 7
    client.close()


def test_a_collection_with_other_vectors_is_refused_in_words(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")
    for name, width in (("one", 4), ("two", 5)):
        (tmp_path / name).mkdir()
        write_v40(tmp_path / name, bundle_of(CHUNKS, dense("mini", unit_rows(7, width))))
    assert run(tmp_path / "one", "--path", str(tmp_path / "s")).returncode == 0
    refused = run(tmp_path / "two", "--path", str(tmp_path / "s"))
    assert refused.returncode == 1
    assert "exists with other vectors: expected {'mini': 5}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_help_needs_no_server(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")
    write_v40(tmp_path, bundle_of(CHUNKS))
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0
    assert all(option in shown.stdout for option in ("--url", "--host", "--port", "--api-key", "--path"))


BY_ARGUMENTS = (["--host", "127.0.0.1", "--port", "{port}", "--api-key", "k-4711", "--no-https"], {})
BY_ENVIRONMENT = (
    [],
    {"QDRANT_HOST": "127.0.0.1", "QDRANT_PORT": "{port}", "QDRANT_API_KEY": "k-4711", "QDRANT_HTTPS": "0"},
)
BY_URL = (["--url", "http://127.0.0.1:{port}"], {"QDRANT_API_KEY": "k-4711", "QDRANT_HOST": "nowhere.invalid"})


@pytest.mark.parametrize(("arguments", "environment"), [BY_ARGUMENTS, BY_ENVIRONMENT, BY_URL], ids="aeu")
def test_host_port_and_key_reach_the_server_however_they_are_given(
    arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")
    write_v40(tmp_path, bundle_of(CHUNKS, dense("mini", unit_rows(7, 4)), dense("other", unit_rows(7, 3))))
    with rest_server() as server:
        filled = {name: value.format(port=server.port) for name, value in environment.items()}
        done = run(tmp_path, *(word.format(port=server.port) for word in arguments), "--batch-size", "3", **filled)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "uploaded 7 points; collection 'guide_v4_mini' holds 7\n"
    assert server.keys == {"k-4711"}
    assert server.requests.count("PUT /collections/guide_v4_mini/points") == 3
    layout = server.collections["guide_v4_mini"]
    assert {name: vector["size"] for name, vector in layout["vectors"].items()} == {"mini": 4, "other": 3}
    assert list(layout["sparse_vectors"]) == ["sparse"]
    points = server.points["guide_v4_mini"]
    assert sorted(points) == list(range(7))
    assert set(points[0]["vector"]) == {"mini", "other", "sparse"}
    assert points[3]["payload"]["text_preview"] == "chunk 3"
