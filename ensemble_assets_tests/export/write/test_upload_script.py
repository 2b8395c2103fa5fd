"""The upload script that bundles carry, run as a user runs it."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import signal
import subprocess
import sys
import venv
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

import qdrant_client

from ensemble_assets.export.write.v40_files import upload_script, write_v40
from ensemble_assets_tests.export.bundles import PREFIX, Chunk, bundle_of, dense, live_sparse, unit_rows
from ensemble_assets_tests.export.limited_server import limited_server

TWICE = {"term_weights": [{"term": "a", "weight": 0.5}, {"term": "a", "weight": 0.5}]}
CHUNKS = [Chunk("a", {"sparse_features": TWICE}), *(Chunk(f"chunk {i}", {"n": i}) for i in range(1, 7))]


def run(
    folder: Path, *arguments: str, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QDRANT_")}
    return subprocess.run(
        [python, str(folder / f"{PREFIX}_upload_script.py"), *arguments],
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
    for name, width in (("one", 4), ("two", 5)):
        (tmp_path / name).mkdir()
        write_v40(tmp_path / name, bundle_of(CHUNKS, dense("mini", unit_rows(7, width))))
    assert run(tmp_path / "one", "--path", str(tmp_path / "s")).returncode == 0
    refused = run(tmp_path / "two", "--path", str(tmp_path / "s"))
    assert refused.returncode == 1
    assert "exists with other vectors: expected {'mini': 5}" in refused.stderr
    assert "Traceback" not in refused.stderr


def killed_at(folder: Path, storage: Path, points: int, python: str = sys.executable) -> None:
    """Run the script and kill it with signal 9 when it has said that so many points are there."""
    command = [python, str(folder / f"{PREFIX}_upload_script.py"), "--path", str(storage), "--batch-size", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        while f"\r{points} points".encode() not in said:
            more = process.stderr.read(1)
            assert more, said.decode()
            said += more
        process.kill()
    assert process.returncode == -signal.SIGKILL


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    chunks = [Chunk(f"chunk {i}", {"n": i, "sparse_features": TWICE}) for i in range(count)]
    write_v40(folder, bundle_of(chunks, dense("mini", unit_rows(count, 4)), dense("other", unit_rows(count, 3))))
    return folder


def stored(storage: Path, folder: Path) -> None:
    """Expect exactly the points of the bundle, with their payloads and vectors."""
    client = qdrant_client.QdrantClient(path=str(storage))
    records = client.scroll("guide_v4_mini", limit=10_000, with_vectors=True)[0]
    client.close()
    expected = [json.loads(line) for line in (folder / f"{PREFIX}_qdrant.jsonl").read_text().splitlines()]
    assert [record.id for record in records] == [point["id"] for point in expected]
    for record, point in zip(records, expected, strict=True):
        assert record.payload == point["payload"]
        for name, vector in point["vectors"].items():
            assert record.vector[name] == pytest.approx(vector, abs=1e-6)
        assert record.vector["sparse"].indices == point["payload"]["sparse_vector"]["indices"][:1]


def test_a_killed_upload_is_made_whole_by_running_the_script_again(tmp_path: Path) -> None:
    folder, storage = many(tmp_path / "bundle", 40), tmp_path / "s"
    killed_at(folder, storage, 18)
    done = run(folder, "--path", str(storage))
    assert done.stdout == "uploaded 40 points; collection 'guide_v4_mini' holds 40\n", done.stderr
    stored(storage, folder)


def test_the_legacy_layout_is_one_unnamed_vector_and_a_second_upload_fills_it_as_it_is(tmp_path: Path) -> None:
    folder, storage = many(tmp_path / "bundle", 5), str(tmp_path / "s")
    for arguments in (["--layout", "legacy"], []):
        done = run(folder, "--path", storage, *arguments)
        assert done.stdout == "uploaded 5 points; collection 'guide_v4_mini' holds 5\n", done.stderr
    client = qdrant_client.QdrantClient(path=storage)
    params = client.get_collection("guide_v4_mini").config.params
    assert (params.vectors.size, params.sparse_vectors) == (4, None)
    (point,) = client.query_points("guide_v4_mini", query=unit_rows(5, 4)[3].tolist(), limit=1).points
    assert point.id == 3
    assert datetime.fromisoformat(point.payload["local_upload_timestamp"]).year >= 2026
    client.close()


@pytest.fixture(scope="module", params=["qdrant-client==1.12.*", "qdrant-client==1.15.*", "qdrant-client"])
def client_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a virtual environment with one version of the client."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", request.param]
    installed = subprocess.run(pip, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{request.param} cannot be installed: {installed.stderr[-200:]}")
    return python


@pytest.mark.nightly
def test_every_version_of_the_client_uploads_the_same_also_after_kills(client_python: str, tmp_path: Path) -> None:
    folder, storage = many(tmp_path / "bundle", 60), tmp_path / "s"
    for points in random.Random(4).sample(range(2, 60, 2), 8):
        killed_at(folder, storage, points, client_python)
    for _ in range(2):
        done = run(folder, "--path", str(storage), python=client_python)
        assert done.stdout == "uploaded 60 points; collection 'guide_v4_mini' holds 60\n", done.stderr
    stored(storage, folder)
    legacy = run(folder, "--path", str(tmp_path / "l"), "--layout", "legacy", python=client_python)
    assert legacy.stdout == "uploaded 60 points; collection 'guide_v4_mini' holds 60\n", legacy.stderr


def test_help_needs_no_server(tmp_path: Path) -> None:
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
    write_v40(tmp_path, bundle_of(CHUNKS, dense("mini", unit_rows(7, 4)), dense("other", unit_rows(7, 3))))
    with limited_server() as server:
        filled = {name: value.format(port=server.port) for name, value in environment.items()}
        done = run(tmp_path, *(word.format(port=server.port) for word in arguments), "--batch-size", "3", **filled)
        records = server.engine.scroll("guide_v4_mini", limit=10, with_vectors=True)[0]
    assert done.returncode == 0, done.stderr
    assert done.stdout == "uploaded 7 points; collection 'guide_v4_mini' holds 7\n"
    assert server.keys == {"k-4711"}
    assert server.requests.count("PUT /collections/guide_v4_mini/points") == 3
    layout = server.created["guide_v4_mini"]
    assert {name: vector["size"] for name, vector in layout["vectors"].items()} == {"mini": 4, "other": 3}
    assert list(layout["sparse_vectors"]) == ["sparse"]
    assert [record.id for record in records] == list(range(7))
    assert set(records[0].vector) == {"mini", "other", "sparse"}
    assert records[3].payload["text_preview"] == "chunk 3"


def test_a_refused_key_and_a_server_that_is_away_are_one_sentence(tmp_path: Path) -> None:
    write_v40(tmp_path, bundle_of(CHUNKS, dense("mini", unit_rows(7, 4))))
    with limited_server(key="right") as server:
        refused = run(tmp_path, "--url", server.url, "--api-key", "wrong")
    assert len([request for request in server.requests if "/collections" in request]) == 1, "it is not tried again"
    away = run(tmp_path, "--url", "http://127.0.0.1:9", "--retries", "0")
    for ended, word in ((refused, "401"), (away, "Connection refused")):
        assert ended.returncode == 1
        assert word in ended.stderr
        assert "Traceback" not in ended.stderr
