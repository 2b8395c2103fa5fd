"""The manifest's section says what the spans and events said, in the contract's layout."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.metrics import METRICS, full_name
from ensemble_assets.telemetry.span_record import telemetry_section
from ensemble_assets_tests.telemetry.full_run import report_everything, telemetry


@pytest.fixture
def records(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path))
    report_everything(run)
    return run.records()


def test_the_section_has_the_keys_of_the_contract(records):
    section = telemetry_section(records)
    assert list(section) == [
        "spans", "metrics", "lease_events_recorded", "batch_progress_events_recorded", "mitigation_events_recorded"
    ]  # fmt: skip
    assert list(section["spans"]) == [f"rag.{stage}" for stage in TIMED_STAGES]
    for span in section["spans"].values():
        assert list(span) == ["span_id", "status", "attributes", "timestamp"]
        assert (len(span["span_id"]), span["status"]) == (16, "active")
        assert datetime.fromisoformat(span["timestamp"]).tzinfo is not None
    assert json.loads(json.dumps(section, allow_nan=False)) == section


def test_counts_are_those_of_the_events(records):
    section = telemetry_section(records)
    per_category = {
        key: len(TIMED_STAGES) * sum(spec.category in categories for spec in EVENTS.values())
        for key, categories in {
            "lease_events_recorded": {"lease"},
            "batch_progress_events_recorded": {"progress"},
            "mitigation_events_recorded": {"mitigation", "fallback"},
        }.items()
    }
    assert {key: section[key] for key in per_category} == per_category
    assert min(per_category.values()) > 0


def test_metrics_are_named_under_the_stage_that_emitted_them(records):
    section = telemetry_section(records, namespace="team_a")
    assert set(section["metrics"]) == set(TIMED_STAGES)
    named = {name for stage in section["metrics"].values() for name in stage["metrics"]}
    assert named == {full_name("team_a", name) for name in METRICS}
    assert "team_a_dense_latency_seconds" not in section["metrics"]["rerank"]["metrics"]
    assert {stage["status"] for stage in section["metrics"].values()} == {"emitted"}


def test_switched_off_stages_and_metrics_say_why():
    run = telemetry()
    with run.stage("dense"):
        pass
    with run.stage("rerank") as span:
        span.skip("feature_disabled")
    section = telemetry_section(run.records(), metrics_enabled=False)
    rerank = section["spans"]["rag.rerank"]
    assert (rerank["status"], rerank["reason"]) == ("skipped", "feature_disabled")
    assert section["metrics"] == {
        "dense": {"status": "skipped", "reason": "metrics_disabled", "metrics": []},
        "rerank": {"status": "skipped", "reason": "feature_disabled", "metrics": []},
    }


def test_the_stage_that_writes_the_manifest_is_in_it(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path))
    with run.stage("dense"):
        pass
    with run.stage("export", points=8) as span:
        section = telemetry_section([*run.records(), span.record()])
    assert section["spans"]["rag.export"]["attributes"]["points"] == 8
    assert section["spans"]["rag.export"]["status"] == "active"


def test_of_several_tries_the_last_one_counts():
    run = telemetry()
    with pytest.raises(RuntimeError), run.stage("dense", items=1):
        raise RuntimeError
    with run.stage("dense", attempt=1, items=2):
        pass
    assert telemetry_section(reversed(run.records()))["spans"]["rag.dense"]["attributes"]["items"] == 2


def test_no_record_gives_an_empty_section_and_a_bad_namespace_an_error(records):
    assert telemetry_section([]) == {
        "spans": {}, "metrics": {},
        "lease_events_recorded": 0, "batch_progress_events_recorded": 0, "mitigation_events_recorded": 0,
    }  # fmt: skip
    with pytest.raises(SettingsError, match=r"metrics\.namespace"):
        telemetry_section(records, namespace="a b")
