"""Upload to a server with limits: request size, a key, strict mode, faults that pass, a prefix; and to none at all."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

from ensemble_assets.cli.main import main
from ensemble_assets.common.errors import ContractError, RefusedError, ServerError, SettingsError
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.read.qdrant import NewCollection, Patience, connect, upload_bundle
from ensemble_assets.export.read.qdrant_server import ports_of
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets_tests.export.bundles import Chunk, bundle_of, dense, unit_rows
from ensemble_assets_tests.export.limited_server import limited_server
from ensemble_assets_tests.export.runs import everything_off

AT_ONCE = Patience(timeout=10, first_wait=0.0)


def bundle(output: Path, count: int = 12, blob: int = 0) -> Any:
    chunks = [Chunk(f"chunk {i} about boats", {"chunk_id": f"c{i}", "orig": "é" * blob}) for i in range(count)]
    inputs = bundle_of(chunks, dense("mini", unit_rows(count, 8)), collection="guide")
    return open_bundle(write_bundle(output, inputs, lambda written: everything_off()).folder)


def test_requests_stay_below_a_limit_in_bytes(tmp_path: Path) -> None:
    with limited_server(most_bytes=1 << 20) as server:
        client = connect(server.url, "", None, patience=AT_ONCE)
        done = upload_bundle(bundle(tmp_path, blob=60_000), client, max_request_mb=1)
        assert (done.sent, server.engine.count(done.collection).count) == (12, 12)
        assert len(server.sizes) > 1
        assert max(server.sizes) <= 1 << 20
        with pytest.raises(ContractError, match=r"chunk 0 \(c0\) alone makes a request of up to 2 MB.*is 1\. Shorten"):
            upload_bundle(bundle(tmp_path, blob=200_000), client, max_request_mb=1)
        with pytest.raises(RefusedError, match=r"refuses a request as too large \(413\)\. Lower qdrant.max_request_mb"):
            upload_bundle(bundle(tmp_path, blob=200_000), client, max_request_mb=32)


def test_passing_faults_are_tried_again_and_lasting_ones_are_one_sentence(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    with limited_server(faults=[0, 503, 429, 0, 502]) as server:
        client = connect(server.url, "", None, patience=AT_ONCE)
        assert upload_bundle(made, client, batch_size=3).sent == 12
        assert server.faults == []
        server.faults = [503] * 9
        with pytest.raises(ServerError, match=r"the Qdrant server at 127.0.0.1:\d+ answers 503"):
            upload_bundle(made, client)


def test_a_server_in_strict_mode_finds_its_indexes(tmp_path: Path) -> None:
    with limited_server() as server:
        client = connect(server.url, "", None, patience=AT_ONCE)
        upload_bundle(bundle(tmp_path), client, new=NewCollection(indexes=("page:integer",)))
        assert server.indexed == {"qdrant_collection", "collection_alias", "page"}
        assert upload_bundle(bundle(tmp_path, count=5), client).removed == 7


def test_a_new_collection_is_made_as_the_options_say(tmp_path: Path) -> None:
    with limited_server() as server:
        client = connect(server.url, "", None, patience=AT_ONCE)
        plan = NewCollection(on_disk=True, quantization="scalar", hnsw_m=32, hnsw_ef=200)
        made = server.created[upload_bundle(bundle(tmp_path), client, new=plan).collection]
        assert made["vectors"]["mini"]["on_disk"] is True
        assert (made["hnsw_config"]["m"], made["hnsw_config"]["ef_construct"]) == (32, 200)
        assert made["quantization_config"]["scalar"]["type"] == "int8"
        assert made["on_disk_payload"] is True
        upload_bundle(bundle(tmp_path), client, "other", new=NewCollection(quantization="binary"))
        assert "binary" in server.created["other"]["quantization_config"]
        upload_bundle(bundle(tmp_path), client, "third")
        assert not {"quantization_config", "on_disk_payload"} & set(server.created["third"]), (
            "the server's own defaults"
        )


def test_a_path_before_the_interface_and_a_key(tmp_path: Path) -> None:
    with limited_server(prefix="/qdrant", key="secret") as server:
        done = upload_bundle(bundle(tmp_path), connect(server.url, "", "secret", patience=AT_ONCE))
        assert done.sent == 12
        server.requests.clear()
        with pytest.raises(RefusedError, match=r"refuses the API key \(401\). Set QDRANT_API_KEY"):
            upload_bundle(bundle(tmp_path), connect(server.url, "", "wrong", patience=AT_ONCE))
        refused = [request for request in server.requests if "/collections" in request]
        assert len(refused) == 1, "a wrong key is not tried again"


def test_the_ports_of_an_address() -> None:
    assert ports_of("http://a", 0) == (6333,)
    assert ports_of("localhost", 0) == (6333,)
    assert ports_of("https://a/prefix", 0) == (443, 6333)
    assert ports_of("https://a", 8443) == (8443,)
    assert ports_of("https://a:9/x", 8443) == (9,)
    with pytest.raises(SettingsError, match="its port is no number"):
        ports_of("http://a:port", 0)


def test_a_server_that_is_not_there_is_one_sentence_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle(tmp_path).folder
    with pytest.raises(SystemExit) as ended:
        main(["upload", str(folder), "--url", "http://127.0.0.1:9", "--retries", "0"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: the Qdrant server at 127.0.0.1:9 does not answer (")
    assert len(said.splitlines()) == 1


def test_the_clients_thread_does_not_warn_beside_that_sentence() -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        connect("http://127.0.0.1:9", "", None, patience=AT_ONCE)
        warnings.warn("Failed to obtain server version. Unable to check", UserWarning, stacklevel=1)
    assert not warned


@pytest.mark.parametrize("body", ["<html>hello</html>", '{"result": ', "{}"])
def test_a_server_that_is_not_qdrants_is_one_sentence(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle(tmp_path)
    with limited_server() as server:
        monkeypatch.setattr(server, "raw", body.encode())
        client = connect(server.url, "", None, patience=AT_ONCE)
        with pytest.raises(RefusedError, match=r"at 127.0.0.1:\d+ does not answer as Qdrant does. Check the address"):
            upload_bundle(made, client)


def test_addresses_and_keys_may_have_blanks_around_and_keys_are_not_shown(tmp_path: Path) -> None:
    with limited_server(key="secret") as server:
        client = connect(f" {server.url} ", "", "secret\n", patience=AT_ONCE)
        assert upload_bundle(bundle(tmp_path), client).sent == 12
    for key in ("schlüssel", "two\nlines"):
        with pytest.raises(SettingsError, match="has characters that no key has") as refused:
            connect("http://127.0.0.1:9", "", key)
        assert key not in str(refused.value)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "x" * 300, "a\nb", "what?", " a\\b"])
def test_a_name_that_no_server_takes_is_refused_before_anything_is_sent(name: str, tmp_path: Path) -> None:
    with limited_server() as server:
        client = connect(server.url, "", None, patience=AT_ONCE)
        with pytest.raises(SettingsError, match=r"Qdrant collection .* a name has 1 to 255 characters"):
            upload_bundle(bundle(tmp_path), client, name)
        assert not [request for request in server.requests if "/collections" in request]
        assert upload_bundle(bundle(tmp_path), client, "日本 docs").collection == "日本 docs"
        assert server.engine.count("日本 docs").count == 12


def test_a_folder_that_is_no_storage_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "meta.json").write_text("{garbage")
    for name, words in (("file", "File exists"), ("file/x", "Not a directory"), ("damaged", "cannot be read")):
        with pytest.raises(SettingsError, match=rf"the embedded storage in \w+ .*{words}.*Give another folder"):
            connect("", str(tmp_path / name), None)


def test_the_command_passes_its_options_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle(tmp_path).folder
    with limited_server(faults=[0, 0, 503]) as server:
        with pytest.raises(SystemExit) as ended:
            main(
                ["upload", str(folder), "--url", "http://127.0.0.1", "--port", str(server.port), "--point-ids", "chunk"]
            )
        assert ended.value.code == 0, capsys.readouterr().err
        [record] = server.engine.scroll("guide_v4_mini", limit=1)[0]
        assert len(str(record.id)) == 36
