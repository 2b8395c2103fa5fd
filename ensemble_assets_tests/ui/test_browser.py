"""The UI as a person uses it, in a real browser: materialise with defaults, then with reranking switched off."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import ensemble_assets
from ensemble_assets.export.suite import GATES
from ensemble_assets_tests.ui.browser import chromium, page
from ensemble_assets_tests.ui.graphql import Dagster
from ensemble_assets_tests.ui.server import dagster_ui

LOAD_MS = 120_000
SAMPLE = Path(ensemble_assets.__file__).parent / "sample"
DEMO = "pydoc"
JOB = "locations/ensemble_assets/jobs/retrieval_bundle"
PIPELINE = (
    "chunks",
    "queries",
    "dense_embeddings",
    "sparse_vectors",
    "fused_candidates",
    "reranked_candidates",
    "export_bundle",
)
RERANK_OFF = "resources:\n  settings:\n    config:\n      enable_rerank: false\n"


@pytest.mark.ui
@pytest.mark.models
@pytest.mark.timeout(3600)
def test_a_partition_is_materialised_from_the_browser_with_defaults_and_without_reranking(tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="Playwright is an optional extra: pip install 'ensemble-assets[ui]'")
    if chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    home, output = tmp_path / "home", tmp_path / "output"
    manifest = output / DEMO / "processing_summary.json"
    with dagster_ui(home, SAMPLE, output, wait_seconds=600) as url, page() as tab:
        dagster = Dagster(url)
        dagster.add_collection(DEMO)

        tab.goto(f"{url}/assets/export_bundle?view=lineage&lineageScope=upstream", wait_until="domcontentloaded")
        for asset in PIPELINE:  # the graph cuts long names in the middle
            tab.get_by_text(asset[:5]).first.wait_for(timeout=LOAD_MS, state="attached")
        tab.goto(f"{url}/{JOB}", wait_until="domcontentloaded")
        tab.get_by_role("button", name="Materialize all").first.click(timeout=LOAD_MS)
        tab.get_by_role("button", name="All", exact=True).click(timeout=LOAD_MS)
        tab.get_by_text("1 partition").first.wait_for(timeout=LOAD_MS)
        tab.get_by_role("button", name="Launch 1 run").click(timeout=LOAD_MS)
        first = wait_for_success(dagster, set())
        assert toggles_of(manifest) == (True, True)

        tab.goto(f"{url}/runs/{first}", wait_until="domcontentloaded")
        tab.get_by_text("Success", exact=True).first.wait_for(timeout=LOAD_MS)
        tab.goto(f"{url}/assets/export_bundle?view=checks", wait_until="domcontentloaded")
        for gate in GATES:
            tab.get_by_text(gate, exact=True).first.wait_for(timeout=LOAD_MS)
        assert {found["status"] for found in dagster.checks("export_bundle").values() if found} == {"SUCCEEDED"}
        assert tab.get_by_text("Failed", exact=True).count() == 0
        tab.goto(f"{url}/assets/dense_embeddings?view=overview", wait_until="domcontentloaded")
        tab.get_by_text("Plots", exact=True).first.click(timeout=LOAD_MS)
        tab.get_by_text("tokens_per_second").first.wait_for(timeout=LOAD_MS)
        tab.locator("canvas").first.wait_for(timeout=LOAD_MS)

        tab.goto(f"{url}/{JOB}/playground", wait_until="domcontentloaded")
        partition = tab.get_by_placeholder("Partition")
        partition.click(timeout=LOAD_MS)
        partition.fill(DEMO)
        tab.keyboard.press("Enter")
        tab.locator(".CodeMirror").first.click(timeout=LOAD_MS)
        tab.keyboard.press("Control+A")
        tab.keyboard.insert_text(RERANK_OFF)
        tab.get_by_text("No errors").wait_for(timeout=LOAD_MS)
        tab.get_by_role("button", name="Launch Run").click(timeout=LOAD_MS)
        wait_for_success(dagster, {first})
        assert toggles_of(manifest) == (True, False)


def toggles_of(manifest: Path) -> tuple[Any, Any]:
    found = json.loads(manifest.read_text())["feature_toggles"]
    return found["enable_sparse"], found["enable_rerank"]


def wait_for_success(dagster: Dagster, known: set[str], seconds: float = 1200) -> str:
    """The id of the run that was launched since, once it has succeeded."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        runs = dagster.ask("query { runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]["results"]
        fresh = [run["runId"] for run in runs if run["runId"] not in known]
        if fresh:
            assert dagster.wait_for_run(fresh[0], seconds) == "SUCCESS"
            return str(fresh[0])
        time.sleep(1)
    raise TimeoutError("no run was launched")
