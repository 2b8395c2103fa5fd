"""A daemon with a good and a broken collection: the part of the operations tests that `make test` runs."""

from __future__ import annotations

import json

import pytest

from ensemble_assets_tests.operations.deployment import Deployment, all_finished, by_collection
from ensemble_assets_tests.orchestration.pipeline import write_collection

BROKEN = '[{"text": "fine, canary-4711"},\n {"text": ]'


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_broken_collection_fails_alone_names_file_and_line_and_leaves_nothing_behind(deployment: Deployment) -> None:
    write_collection(deployment.corpora / "good", count=6)
    write_collection(deployment.corpora / "broken", count=2)
    (deployment.corpora / "broken" / "more_chunks.json").write_text(BROKEN)
    deployment.dagster("sensor", "start", "corpora", "-m", deployment.location)
    deployment.dagster("sensor", "start", "incidents", "-m", deployment.location)
    deployment.start_daemon()
    deployment.wait(all_finished(2), 900, "the end of both runs")
    with deployment.instance() as instance:
        assert by_collection(instance) == {"good": ["SUCCESS"], "broken": ["FAILURE"]}
        deployment.wait(lambda now: deployment.taken_slots(now) == 0, 120, "a free pool")
    assert deployment.complete_bundles() == ["good"]
    assert deployment.leftovers() == []
    assert not (deployment.output / "broken").exists()
    incidents = deployment.output / ".incidents"
    deployment.wait(lambda now: any(incidents.glob("*.json")), 240, "the incident record")
    [path] = incidents.glob("*.json")
    incident = json.loads(path.read_text())
    assert (incident["collection"], incident["trigger"], incident["asked_because"]) == ("broken", "corpora", "added")
    [failed] = incident["failed_steps"]
    assert failed["step"] == "chunks"
    assert "more_chunks.json, line 2" in failed["reason"]
    assert "canary" not in path.read_text()
