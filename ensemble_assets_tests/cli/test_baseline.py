"""``ensemble-assets baseline sla``: measures, stores, and says what is wrong with what it was given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets.artefacts.latency_baseline import content_fingerprint
from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets_tests.cli.test_run import run
from ensemble_assets_tests.orchestration.pipeline import write_collection


@pytest.mark.models
def test_the_baseline_of_a_collection_is_measured_and_stored_with_its_provenance(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes", count=5)
    finished = run(
        "baseline", "sla", "notes", "--repeats", "2", "--json", cwd=tmp_path, EMBEDDER_PATHS_CACHE_DIR="cache"
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    (said,) = json.loads(finished.stdout)
    (path,) = (tmp_path / "cache" / "baselines" / "sla").glob("*.json")
    assert json.loads(path.read_text()) == said
    assert (said["collection"], said["texts"]) == ("notes", 5)
    assert said["seconds"] > 0
    assert len(said["models"][0]["encode_seconds"]) == 2
    assert {"cpu", "cores"} <= set(said["host"])
    assert "sentence-transformers" in said["libraries"]
    assert "The river" not in finished.stdout + finished.stderr + path.read_text()


@pytest.mark.models
def test_the_baseline_is_of_the_texts_that_a_run_would_take(tmp_path: Path) -> None:
    folder = tmp_path / "corpora" / "notes"
    folder.mkdir(parents=True)
    (folder / "notes_chunks.json").write_text(json.dumps([{"text": "word " * 300, "metadata": {"chunk_id": "c0"}}]))
    finished = run(
        "baseline", "sla", "notes", "--repeats", "1", "--json", cwd=tmp_path,
        EMBEDDER_PATHS_CACHE_DIR="cache", EMBEDDER_MODELS_WINDOWS="2",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    whole, _ = read_chunks(folder, 2 * 256)
    assert json.loads(finished.stdout)[0]["content"] == content_fingerprint(whole["content_hash"])


def test_the_devices_are_leased_meanwhile(tmp_path: Path) -> None:
    """What another run computes at the same time would be part of the measured seconds."""
    write_collection(tmp_path / "corpora" / "notes", count=5)
    with lease_devices("m", "dense", lock_folder=tmp_path / "locks", events=EventLog(), devices=[CpuDevice()]):
        taken = run(
            "baseline", "sla", "notes", "--set", "device.lease_timeout=0", cwd=tmp_path,
            EMBEDDER_PATHS_CACHE_DIR="cache", EMBEDDER_PATHS_LOCK_DIR=str(tmp_path / "locks"),
        )  # fmt: skip
    assert taken.returncode == 1
    assert "is leased by" in taken.stderr
    assert not (tmp_path / "cache" / "baselines").exists()


def test_a_collection_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "corpora").mkdir()
    empty = run("baseline", "sla", cwd=tmp_path)
    assert (empty.returncode, "--sample" in empty.stderr) == (2, True)
    write_collection(tmp_path / "corpora" / "notes")
    unknown = run("baseline", "sla", "novels", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "novels" in unknown.stderr
    assert "notes" in unknown.stderr
