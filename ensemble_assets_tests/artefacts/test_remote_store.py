"""A remote store: versions and local copies are swept like those of a local one, and copies in use stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from ensemble_assets.artefacts import store as store_module
from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import DenseRecord
from ensemble_assets.artefacts.store import ArtefactStore, artefact_store
from ensemble_assets.common.errors import ArtefactError

ASSET = "dense_embeddings"


@pytest.fixture
def base(tmp_path: Path) -> str:
    return f"memory://artefacts-{tmp_path.name}"


def save(store: ArtefactStore, value: float = 1.0) -> Artefact:
    writer = store.begin("docs", ASSET)
    writer.array("vectors", np.full((4, 3), value, dtype=np.float32))
    artefact = writer.seal(DenseRecord("dense", "completed", items=4))
    store.publish("docs", ASSET, artefact)
    return artefact


def remote_versions(base: str) -> set[str]:
    return {path.name for path in (UPath(base) / "docs" / ASSET).iterdir() if path.is_dir()}


def local_versions(cache: Path) -> set[str]:
    return {path.parent.name for path in cache.rglob("artefact.json")}


def test_a_version_is_uploaded_and_loaded_elsewhere(base: str, tmp_path: Path) -> None:
    save(artefact_store(base, tmp_path / "here"), 7.0)
    elsewhere = artefact_store(base, tmp_path / "there")
    assert elsewhere.exists("docs", ASSET)
    assert elsewhere.load("docs", ASSET).array("vectors")[0, 0] == 7.0
    assert elsewhere.peek("docs", ASSET).record == artefact_store(base, tmp_path / "here").peek("docs", ASSET).record


def test_replaced_versions_are_removed_there_and_here_but_one(base: str, tmp_path: Path) -> None:
    store = artefact_store(base, tmp_path / "cache", grace_seconds=0)
    names = [save(store, float(value)).folder.name for value in range(6)]
    assert len(remote_versions(base)) == 2
    assert names[-1] in remote_versions(base)
    assert len(local_versions(tmp_path / "cache")) == 2


def test_replaced_versions_stay_in_their_grace_time(base: str, tmp_path: Path) -> None:
    store = artefact_store(base, tmp_path / "cache")
    names = {save(store, float(value)).folder.name for value in range(4)}
    assert remote_versions(base) == local_versions(tmp_path / "cache") == names


def test_a_copy_in_use_survives_the_next_writer_and_is_not_downloaded_again(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "process_began", lambda pid: None)  # the version's writer has ended
    save(artefact_store(base, tmp_path / "here"), 7.0)
    elsewhere = artefact_store(base, tmp_path / "there")
    copy = elsewhere.load("docs", ASSET)
    elsewhere.begin("docs", ASSET).discard()
    assert (copy.folder / "artefact.json").is_file()
    inode = copy.folder.stat().st_ino
    assert elsewhere.load("docs", ASSET).folder.stat().st_ino == inode


def test_copies_are_swept_on_a_machine_that_only_loads(base: str, tmp_path: Path) -> None:
    writer, reader = artefact_store(base, tmp_path / "here"), artefact_store(base, tmp_path / "there", grace_seconds=0)
    for value in range(5):
        save(writer, float(value))
        assert reader.load("docs", ASSET).array("vectors")[0, 0] == value
    assert len(local_versions(tmp_path / "there")) == 2


def test_uploads_that_were_killed_are_removed_after_a_day_and_others_left_alone(base: str, tmp_path: Path) -> None:
    home = UPath(base) / "docs" / ASSET
    now = datetime.now(UTC)
    old, recent = (f"{now - timedelta(hours=hours):%Y%m%dT%H%M%S}-1-abcdef" for hours in (25, 23))
    for name in (old, recent, "not-a-version"):
        (home / name).mkdir(parents=True, exist_ok=True)
        (home / name / "vectors.npy").write_bytes(b"half")
    current = save(artefact_store(base, tmp_path / "cache")).folder.name
    assert remote_versions(base) == {recent, "not-a-version", current}


def test_two_bases_with_one_cache_do_not_sweep_each_others_copies(base: str, tmp_path: Path) -> None:
    one, other = (artefact_store(f"{base}/{name}", tmp_path / "cache", grace_seconds=0) for name in ("one", "other"))
    copy = save(one, 1.0).folder
    for value in range(4):
        save(other, float(value))
    assert copy.is_dir()


def test_a_version_that_vanishes_while_it_is_loaded_is_an_error_and_no_empty_copy(base: str, tmp_path: Path) -> None:
    name = save(artefact_store(base, tmp_path / "here")).folder.name
    home = UPath(base) / "docs" / ASSET
    home.fs.rm((home / name).path, recursive=True)
    with pytest.raises((ArtefactError, FileNotFoundError)):
        artefact_store(base, tmp_path / "there").load("docs", ASSET)
    assert not list((tmp_path / "there").rglob(name))
