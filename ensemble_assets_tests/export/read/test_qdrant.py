"""Upload into embedded Qdrant: counts, searches, doing it again, going on after an interruption."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

import qdrant_client

from ensemble_assets.cli.main import main
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.read.qdrant import NewCollection, upload_bundle
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets_tests.export.bundles import CLOCK, PREFIX, Chunk, bundle_of, dense, live_sparse, unit_rows
from ensemble_assets_tests.export.runs import everything_off

NAME = "guide_v4_mini_1.5b"


def bundle(
    output: Path, count: int = 7, clock: str = CLOCK, sparse: bool = True, first: str = "chunk 0", **changes: Any
) -> Path:
    models = (dense("mini-1.5b", unit_rows(count, 8)), dense("other", unit_rows(count, 3, seed=1)))
    chunks = [Chunk(f"chunk {i}" if i else first, {"n": i}) for i in range(count)]
    inputs = bundle_of(chunks, *models, clock=clock, **changes)
    if sparse:
        rows = [{f"t{i}": 1.0 + i, "common": 0.5} for i in range(count)]
        inputs = replace(inputs, sparse=live_sparse(rows, [1] * count))
    return write_bundle(output, inputs, lambda written: everything_off()).folder


@pytest.fixture
def client() -> Any:
    return qdrant_client.QdrantClient(":memory:")


def test_a_chunk_finds_itself_by_every_vector_and_by_both_together(tmp_path: Path, client: Any) -> None:
    done = upload_bundle(open_bundle(bundle(tmp_path)), client, batch_size=3)
    assert (done.collection, done.points, done.sent, done.removed) == (NAME, 7, 7, 0)
    assert done.searches == ("mini-1.5b", "other", "sparse", "hybrid")
    assert client.count(NAME).count == 7
    record = client.retrieve(NAME, ids=[4], with_payload=True)[0]
    assert record.payload["n"] == 4


def test_uploading_again_sends_nothing_and_a_broken_off_upload_goes_on(tmp_path: Path, client: Any) -> None:
    opened = open_bundle(bundle(tmp_path))

    class BrokenOffError(Exception):
        pass

    def stop(done: int) -> None:
        if done >= 4:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        upload_bundle(opened, client, batch_size=2, progress=stop)
    assert client.count(NAME).count == 4
    assert upload_bundle(opened, client, batch_size=2).sent == 3
    assert upload_bundle(opened, client, batch_size=2).sent == 0


def test_an_upload_that_was_killed_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, storage = bundle(tmp_path / "b", count=400), tmp_path / "storage"
    command = [sys.executable, "-m", "ensemble_assets.cli", "upload", str(folder), "--path", str(storage)]
    with subprocess.Popen([*command, "--batch-size", "2"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"40 points\n" in process.stderr, "it ended before"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(SystemExit) as ended:
        main(["upload", str(folder), "--path", str(storage), "--batch-size", "2"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    sent = int(re.search(r"400 points \((\d+) sent", out)[1])
    assert 0 < sent <= 360, "those of the killed process were not sent again"
    assert "hybrid" in out


def test_a_new_export_replaces_the_old_points_and_leaves_those_of_others(tmp_path: Path, client: Any) -> None:
    upload_bundle(open_bundle(bundle(tmp_path / "old")), client)
    vector = {"mini-1.5b": [1.0] + [0.0] * 7, "other": [1.0, 0.0, 0.0]}
    client.upsert(NAME, [qdrant_client.models.PointStruct(id=999, vector=vector, payload={"mine": True})])
    newer = open_bundle(bundle(tmp_path / "new", count=5, clock="2026-02-02T00:00:00.000001", first="other chunk 0"))
    done = upload_bundle(newer, client)
    assert (done.sent, done.removed) == (1, 2), "only its first chunk is another"
    assert {point.id for point in client.scroll(NAME, limit=100)[0]} == {0, 1, 2, 3, 4, 999}


@pytest.mark.shared
def test_a_bundle_of_the_old_program_uploads_is_searchable_and_uploads_again(
    shared: Path, tmp_path: Path, client: Any
) -> None:
    folder = shutil.copytree(shared / "legacy" / "bundle_v4.0", tmp_path / "docling")
    lines = (folder / f"{PREFIX}_qdrant.jsonl").read_text(encoding="utf-8").splitlines()
    stamps = {json.loads(line)["payload"]["kaggle_export_timestamp"] for line in lines}
    assert len(stamps) == 6, "the old program took the time anew for every point"
    for expected in (6, 0):
        done = upload_bundle(open_bundle(folder), client, batch_size=4)
        assert (done.collection, done.points, done.sent) == ("docling_v4_jina_code_embeddings_1.5b", 6, expected)
        assert done.searches == ("jina-code-embeddings-1.5b",)
    vector = json.loads(lines[4])["vectors"]["jina-code-embeddings-1.5b"]
    best = client.query_points(done.collection, query=vector, using="jina-code-embeddings-1.5b", limit=1).points[0]
    assert best.payload["text_preview"] == json.loads(lines[best.id])["payload"]["text_preview"]


def test_without_a_manifest_the_payload_names_the_collection_not_the_folder(tmp_path: Path, client: Any) -> None:
    folder = bundle(tmp_path).rename(tmp_path / "moved")
    (folder / "processing_summary.json").unlink()
    assert upload_bundle(open_bundle(folder), client).collection == NAME


def test_unchanged_points_are_not_sent_again_whatever_their_time_stamps(tmp_path: Path, client: Any) -> None:
    upload_bundle(open_bundle(bundle(tmp_path)), client)
    later = bundle(tmp_path, clock="2027-01-01T00:00:00")
    assert upload_bundle(open_bundle(later), client).sent == 0
    points = later / f"{PREFIX}_qdrant.jsonl"
    points.write_text(points.read_text().replace('"n": 3', '"n": 4'))
    assert upload_bundle(open_bundle(later), client).sent == 1
    points.write_text(points.read_text().replace("[0.", "[-0.", 1))
    assert upload_bundle(open_bundle(later), client).sent == 1, "a vector counts too"


def test_the_legacy_layout_has_one_unnamed_vector_and_a_time_stamp_of_the_upload(tmp_path: Path, client: Any) -> None:
    opened = open_bundle(bundle(tmp_path))
    done = upload_bundle(opened, client, new=NewCollection(legacy=True))
    assert (done.sent, done.searches) == (7, ("mini-1.5b",))
    params = client.get_collection(NAME).config.params
    assert (params.vectors.size, params.sparse_vectors) == (8, None)
    record = client.retrieve(NAME, ids=[4], with_payload=True)[0]
    assert datetime.fromisoformat(record.payload["local_upload_timestamp"]).year >= 2026
    assert client.query_points(NAME, query=unit_rows(7, 8)[4].tolist(), limit=1).points[0].id == 4, "as old servers ask"
    assert upload_bundle(opened, client, new=NewCollection(legacy=True)).sent == 0


def test_an_existing_collection_with_an_unnamed_vector_is_filled_as_it_is(tmp_path: Path, client: Any) -> None:
    opened = open_bundle(bundle(tmp_path))
    cosine = qdrant_client.models.Distance.COSINE
    client.create_collection(NAME, vectors_config=qdrant_client.models.VectorParams(size=8, distance=cosine))
    assert upload_bundle(opened, client).searches == ("mini-1.5b",)
    assert client.query_points(NAME, query=unit_rows(7, 8)[2].tolist(), limit=1).points[0].id == 2
    client.delete_collection(NAME)
    client.create_collection(NAME, vectors_config=qdrant_client.models.VectorParams(size=9, distance=cosine))
    with pytest.raises(ContractError, match=r"expected .*'mini-1.5b': 8.* found \{'': 9\}"):
        upload_bundle(opened, client)


def test_the_legacy_layout_is_not_put_into_a_collection_with_named_vectors(tmp_path: Path, client: Any) -> None:
    opened = open_bundle(bundle(tmp_path))
    upload_bundle(opened, client)
    with pytest.raises(ContractError, match="expected one unnamed vector of 8, found"):
        upload_bundle(opened, client, new=NewCollection(legacy=True))


def test_without_sparse_vectors_there_is_no_hybrid_search(tmp_path: Path, client: Any) -> None:
    assert upload_bundle(open_bundle(bundle(tmp_path, sparse=False)), client).searches == ("mini-1.5b", "other")


def test_payloads_have_the_text_and_no_copy_of_the_sparse_vector_where_it_is_asked_for(
    tmp_path: Path, client: Any
) -> None:
    opened = open_bundle(bundle(tmp_path))
    upload_bundle(opened, client)
    (plain,) = client.retrieve(NAME, ids=[3], with_payload=True, with_vectors=True)
    lean = NewCollection(text=True, echo=False)
    assert upload_bundle(opened, client, new=lean).sent == 7
    (changed,) = client.retrieve(NAME, ids=[3], with_payload=True, with_vectors=True)
    assert changed.vector == plain.vector
    assert changed.payload["text"] == "chunk 3"
    assert {*plain.payload} - {*changed.payload} == {"sparse_vector"}
    assert {*changed.payload} - {*plain.payload} == {"text"}
    assert upload_bundle(opened, client, new=lean).sent == 0
    assert upload_bundle(opened, client).sent == 7
    assert client.retrieve(NAME, ids=[3], with_payload=True)[0].payload == plain.payload


def test_an_unnamed_vector_keeps_the_sparse_one_in_the_payload(tmp_path: Path, client: Any) -> None:
    upload_bundle(open_bundle(bundle(tmp_path)), client, new=NewCollection(legacy=True, echo=False))
    assert "sparse_vector" in client.retrieve(NAME, ids=[3], with_payload=True)[0].payload


def test_a_collection_with_other_vectors_is_refused(tmp_path: Path, client: Any) -> None:
    size = qdrant_client.models.VectorParams(size=5, distance=qdrant_client.models.Distance.COSINE)
    client.create_collection(NAME, vectors_config={"mini-1.5b": size})
    with pytest.raises(ContractError, match=r"exists with other vectors: expected .*'other': 3"):
        upload_bundle(open_bundle(bundle(tmp_path)), client)


def test_lost_points_and_wrong_vectors_are_noticed(tmp_path: Path, client: Any, monkeypatch: Any) -> None:
    opened = open_bundle(bundle(tmp_path))
    upload_bundle(opened, client)
    monkeypatch.setattr(client, "upsert", lambda *given, **named: None)
    client.delete(NAME, points_selector=[2])
    with pytest.raises(ContractError, match="expected 7 points of this bundle from id 0 on, found 6"):
        upload_bundle(opened, client)
    monkeypatch.undo()
    upload_bundle(opened, client)
    swapped = {"mini-1.5b": unit_rows(7, 8)[0].tolist()}
    client.update_vectors(NAME, [qdrant_client.models.PointVectors(id=6, vector=swapped)])
    with pytest.raises(ContractError, match=r"chunk 6 does not find itself by mini-1.5b"):
        upload_bundle(opened, client)


def test_the_command_uploads_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, storage = bundle(tmp_path / "b"), tmp_path / "storage"
    for expected in ("7 sent", "0 sent"):
        with pytest.raises(SystemExit) as ended:
            main(["upload", str(folder), "--path", str(storage)])
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out
    client = qdrant_client.QdrantClient(path=str(storage))
    assert client.count(NAME).count == 7
    client.close()
    assert json.loads((storage / "meta.json").read_text())["collections"]


@pytest.mark.parametrize(("terminal", "end"), [(True, "\r"), (False, "\n")])
def test_without_a_place_the_storage_lies_beside_the_bundle_and_the_count_leaves_a_terminals_line(
    terminal: bool, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = bundle(tmp_path / "out" / "notes")
    with pytest.raises(SystemExit) as ended:
        main(["upload", str(folder)])
    assert ended.value.code == 0
    assert (folder.parent / ".qdrant" / "meta.json").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    said = capsys.readouterr().err
    assert said.endswith(f" points{end}")
    assert ("\r" in said) is terminal


def test_the_command_takes_the_layout(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with pytest.raises(SystemExit) as ended:
        main(["upload", str(bundle(tmp_path / "b")), "--path", str(storage), "--layout", "legacy"])
    assert ended.value.code == 0
    client = qdrant_client.QdrantClient(path=str(storage))
    assert client.get_collection(NAME).config.params.vectors.size == 8
    client.close()


@pytest.mark.parametrize("arguments", [["missing"], ["missing", "--url", "http://a", "--path", "b"]])
def test_bad_usage_gives_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["upload", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err
