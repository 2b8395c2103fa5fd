"""The double of the other tests and a real Qdrant server do the same, where a program ``qdrant`` is on the path."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")

from ensemble_assets.common.errors import ContractError, RefusedError, ServerError
from ensemble_assets.export.read.qdrant import NewCollection, Patience, connect, upload_bundle
from ensemble_assets_tests.export.limited_server import limited_server
from ensemble_assets_tests.export.read.test_qdrant_server import bundle

KEY = "k-4711"
ONCE = Patience(timeout=10, retries=0)
STRICT = {"ENABLED": "true", "UNINDEXED_FILTERING_RETRIEVE": "false", "UNINDEXED_FILTERING_UPDATE": "false"}


@contextmanager
def real_server(folder: Path) -> Iterator[str]:
    """A server of the program on the path, with a key and in strict mode; gives its address."""
    program = shutil.which("qdrant")
    if program is None:
        pytest.skip("there is no program qdrant on the path, so there is no real server to test against")
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        ports = {"HTTP_PORT": one.getsockname()[1], "GRPC_PORT": other.getsockname()[1]}
    given = {f"QDRANT__SERVICE__{name}": str(port) for name, port in ports.items()}
    given |= {f"QDRANT__STORAGE__COLLECTION__STRICT_MODE__{name}": value for name, value in STRICT.items()}
    given |= {"QDRANT__SERVICE__API_KEY": KEY, "QDRANT__SERVICE__HOST": "127.0.0.1"}
    given |= {"QDRANT__STORAGE__STORAGE_PATH": str(folder / "storage"), "QDRANT__TELEMETRY_DISABLED": "true"}
    url = f"http://127.0.0.1:{ports['HTTP_PORT']}"
    with subprocess.Popen([program], cwd=folder, env={**os.environ, **given}, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                with suppress(OSError), urllib.request.urlopen(f"{url}/healthz"):
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


@contextmanager
def double(folder: Path) -> Iterator[str]:
    with limited_server(key=KEY) as server:
        yield server.url


@pytest.fixture(params=[double, real_server], ids=["double", "real"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_both_take_find_and_remove_points_in_strict_mode(kind: Any, tmp_path: Path) -> None:
    with kind(tmp_path) as url:
        client = connect(url, "", KEY, patience=ONCE)
        made = bundle(tmp_path / "a")
        first = upload_bundle(made, client, new=NewCollection(on_disk=True, quantization="scalar"))
        again = upload_bundle(made, client)
        assert (first.sent, first.searches, again.sent) == (12, ("mini",), 0)
        assert upload_bundle(bundle(tmp_path / "a", count=5), client).removed == 7
        shared = [upload_bundle(made, client, "all", point_ids="chunk").points for _ in range(2)]
        assert (shared, client.count("all", exact=True).count) == ([5, 5], 5)
        client.create_collection("other", vectors_config={})
        with pytest.raises(ContractError, match="exists with other vectors"):
            upload_bundle(made, client, "other")
        client.close()


def test_both_refuse_a_wrong_key_and_a_large_request_and_are_gone_when_they_ended(kind: Any, tmp_path: Path) -> None:
    made = bundle(tmp_path / "a")
    with kind(tmp_path) as url:
        with pytest.raises(RefusedError, match=r"refuses the API key \(40[13]\)"):
            upload_bundle(made, connect(url, "", "wrong", patience=ONCE))
        large = bundle(tmp_path / "b", count=3, blob=6_000_000)
        with pytest.raises(RefusedError, match="refuses a request as too large"):
            upload_bundle(large, connect(url, "", KEY, patience=ONCE), max_request_mb=1000)
    with pytest.raises(ServerError, match="does not answer"):
        upload_bundle(made, connect(url, "", KEY, patience=ONCE))
