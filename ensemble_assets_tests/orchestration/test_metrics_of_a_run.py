"""The switch and the name space of metrics reach a whole run, and its manifest says what its journal says."""

from __future__ import annotations

from collections import Counter

import pytest

from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets_tests.orchestration.pipeline import Pipeline


def test_metrics_that_are_off_are_neither_written_nor_said_to_be(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDER_METRICS_ENABLED", "off")
    outcome = pipeline.run({"metrics.textfile_dir": str(pipeline.root / "prom")})
    assert not (pipeline.root / "prom").exists()
    metrics = outcome.manifest()["telemetry"]["metrics"]
    assert {(stage["status"], stage["reason"]) for stage in metrics.values()} == {("skipped", "metrics_disabled")}
    assert outcome.manifest()["telemetry"]["spans"]["rag.dense"]["status"] == "active", "spans stay"


def test_the_name_space_is_that_of_the_environment_and_the_manifest_tells_the_journals_story(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDER_METRICS_NAMESPACE", "team_a")
    outcome = pipeline.run({"metrics.textfile_dir": str(pipeline.root / "prom")})
    lines = (pipeline.root / "prom" / "ensemble_assets_notes.prom").read_text().splitlines()
    assert {line.split(" ")[2].split("_")[0:2] == ["team", "a"] for line in lines if line.startswith("# TYPE")} == {
        True
    }
    telemetry = outcome.manifest()["telemetry"]
    assert "team_a_sparse_coverage_ratio" in telemetry["metrics"]["sparse"]["metrics"]
    (journal,) = (pipeline.root / "output" / ".artifacts" / "telemetry").glob("*.jsonl")
    spans = {span.name: span for span in read_journal(journal).spans if span.is_stage}
    for name, told in telemetry["spans"].items():
        assert told["span_id"] == spans[name].span_id
        milliseconds = told["attributes"].pop("latency_ms")  # an old reader's name of latency_seconds
        whole = 1000 * float(spans[name].attributes["latency_seconds"])
        if spans[name].stage == "export":  # the manifest is written before the export ends
            assert milliseconds < whole
        else:
            assert milliseconds == pytest.approx(whole, abs=5e-4)
        assert told["attributes"].items() <= spans[name].attributes.items()
    counted: Counter[str] = Counter()
    for span in spans.values():
        for name, number in span.counts.items():
            counted[EVENTS[name].category] += number
    assert telemetry["lease_events_recorded"] == counted["lease"] > 0
    assert telemetry["batch_progress_events_recorded"] == counted["progress"] > 0
    assert telemetry["mitigation_events_recorded"] == counted["mitigation"] + counted["fallback"]
