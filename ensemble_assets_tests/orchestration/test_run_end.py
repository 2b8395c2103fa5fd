"""The trace of a run ends, once, whoever started the run."""

from __future__ import annotations

import re
import time
from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.run_end import BY_COMMAND_LINE, end_traces, resolve_run
from ensemble_assets.orchestration.sensors.housekeeping import housekeeping
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets_tests.orchestration.doubles import dense_double
from ensemble_assets_tests.orchestration.pipeline import Pipeline, fast_factories


def _run(pipeline: Pipeline, instance: dg.DagsterInstance, computing: Computing, **tags: str) -> dg.DagsterRun:
    instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
    job = build_definitions(computing=computing).resolve_job_def(RETRIEVAL_BUNDLE)
    result = job.execute_in_process(
        partition_key="notes", instance=instance, run_config=pipeline.config(), raise_on_error=False, tags=tags
    )
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


def _ended(instance: dg.DagsterInstance, since: float = 0.0) -> int:
    return end_traces(instance, since)[0]


def _roots(pipeline: Pipeline, run: dg.DagsterRun) -> list[tuple[str, str]]:
    journal = pipeline.root / "output" / ".artifacts" / "telemetry" / f"telemetry-{run.run_id}.jsonl"
    spans = read_journal(journal).spans
    assert {span.trace_id for span in spans} == {run.run_id.replace("-", "")}, "the trace id is the run id"
    roots = [span for span in spans if span.name == "rag.run"]
    stages = [span for span in spans if span.is_stage]
    assert all(span.parent_id == roots[0].span_id for span in stages if roots)
    return [(span.status, str(span.attributes.get("error_type", ""))) for span in roots]


def test_a_sensor_ends_the_trace_of_a_run_that_nobody_ended(pipeline: Pipeline) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(pipeline, instance, pipeline.computing)
        assert _roots(pipeline, run) == []
        ended, since = end_traces(instance, 0.0)
        assert ended == 1
        assert end_traces(instance, since) == (0, since), "a trace ends once"
        assert _roots(pipeline, run) == [("active", "")]


def test_a_failed_run_ends_with_a_failed_root(pipeline: Pipeline) -> None:
    computing = Computing({**fast_factories(), "dense": dense_double(missing=True)})
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(pipeline, instance, computing)
        assert _ended(instance) == 1
        assert _roots(pipeline, run) == [("failed", "Failure")]


def test_a_run_of_the_command_line_in_another_folder_is_left_alone(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        _run(pipeline, instance, pipeline.computing, **BY_COMMAND_LINE)
        (tmp_path / "output").rename(tmp_path / "elsewhere")
        assert _ended(instance) == 0
        assert not (tmp_path / "output").exists()


def test_settings_that_are_not_accepted_any_more_do_not_break_the_daemon(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(pipeline, instance, pipeline.computing)
        monkeypatch.setenv("EMBEDDER_METRICS_ENABLED", "perhaps")
        assert _ended(instance) == 0
    assert _roots(pipeline, run) == []


def test_the_settings_of_a_run_are_those_of_its_run_configuration(pipeline: Pipeline) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        settings = resolve_run(_run(pipeline, instance, pipeline.computing)).settings
    assert settings.paths.output_dir == str(pipeline.root / "output")
    assert settings.rerank.depth == 20


def test_a_run_that_ended_before_the_first_tick_of_the_sensor_but_was_stored_after_it_is_not_missed(
    pipeline: Pipeline,
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        _run(pipeline, instance, pipeline.computing)
        assert _ended(instance, since=time.time() + 30) == 1
        assert _ended(instance, since=time.time() + 3600) == 0


def test_housekeeping_runs_without_being_switched_on_adds_folders_and_asks_for_no_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert housekeeping.default_status == dg.DefaultSensorStatus.RUNNING
    monkeypatch.setenv("EMBEDDER_CHUNKED_DIR", str(pipeline.root / "corpora"))
    with dg.DagsterInstance.ephemeral() as instance:
        first = housekeeping(dg.build_sensor_context(instance=instance))
        assert isinstance(first, dg.SensorResult)
        assert not first.run_requests
        (added,) = first.dynamic_partitions_requests or ()
        assert list(added.partition_keys) == ["notes"]
        assert "added: notes" in str(first.skip_reason)
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        monkeypatch.setenv("EMBEDDER_CHUNKED_DIR", str(pipeline.root / "nowhere"))
        again = housekeeping(dg.build_sensor_context(instance=instance, cursor=first.cursor))
        assert isinstance(again, dg.SensorResult)
        assert "is not a folder" in str(again.skip_reason), "the other tasks are done all the same"


def test_automations_are_few_and_those_that_run_collections_wait_to_be_switched_on() -> None:
    made = build_definitions()
    status = {each.name: each.default_status.value for each in [*(made.sensors or ()), *(made.schedules or ())]}
    assert status == {
        "corpora": "STOPPED",
        "nightly_stale": "STOPPED",
        "incidents": "STOPPED",
        "housekeeping": "RUNNING",
    }
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (?:sensor|schedule) \| (on|off) \|", page, re.MULTILINE)
    assert dict(rows) == {name: "on" if state == "RUNNING" else "off" for name, state in status.items()}
