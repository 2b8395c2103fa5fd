"""The UI's server, without a browser: what the command line ran is there, runs are launched, bad values are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets.orchestration.assets import ALL_ASSETS
from ensemble_assets_tests.orchestration.pipeline import write_collection
from ensemble_assets_tests.ui.graphql import Dagster
from ensemble_assets_tests.ui.pictures import run_demo
from ensemble_assets_tests.ui.server import ROOT, dagster_ui


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(1800)
def test_the_demo_is_listed_and_runs_are_launched_or_refused(tmp_path: Path) -> None:
    home, output, corpora = tmp_path / "home", tmp_path / "output", tmp_path / "corpora"
    run_demo(home, output)  # what `make run` does
    write_collection(corpora / "notes", count=6)
    with dagster_ui(home, corpora, output, wait_seconds=600) as url:
        dagster = Dagster(url)
        assets = dagster.assets()
        for asset in ALL_ASSETS:
            node = assets[asset.key.path[-1]]
            [latest] = [found for found in node["latestMaterializationByPartition"] if found]
            numbers = [e for e in latest["metadataEntries"] if "intValue" in e or "floatValue" in e]
            assert numbers, f"{asset.key}: nothing to plot"
        checks = dagster.checks("export_bundle")
        assert checks
        assert {found["status"] for found in checks.values() if found} == {"SUCCEEDED"}
        assert None not in checks.values()

        refused = dagster.launch("retrieval_bundle", "notes", config_of({"rerank": {"depth": 0}}))
        assert refused["__typename"] != "LaunchRunSuccess"
        assert "rerank.depth: 0 is not accepted" in json.dumps(refused)
        wrong_word = dagster.launch("retrieval_bundle", "notes", config_of({"fusion": {"method": "magic"}}))
        assert wrong_word["__typename"] == "RunConfigValidationInvalid"

        dagster.add_collection("notes")
        launched = dagster.launch("retrieval_bundle", "notes", config_of({"enable_rerank": False}))
        assert launched["__typename"] == "LaunchRunSuccess", launched


def config_of(settings: dict[str, object]) -> dict[str, object]:
    return {"resources": {"settings": {"config": settings}}}


def test_the_server_is_started_on_this_machine_only() -> None:
    assert "-h 127.0.0.1" in (ROOT / "Makefile").read_text()
