"""The trace of a run ends, once, whoever started the run."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.run_end import BY_COMMAND_LINE, TRACE_SENSORS, resolve_run
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets_tests.orchestration.doubles import dense_double
from ensemble_assets_tests.orchestration.pipeline import Pipeline, fast_factories

SUCCESS, FAILURE, _ = TRACE_SENSORS


def _run(pipeline: Pipeline, instance: dg.DagsterInstance, computing: Computing, **tags: str) -> dg.DagsterRun:
    instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
    job = build_definitions(computing=computing).resolve_job_def(RETRIEVAL_BUNDLE)
    result = job.execute_in_process(
        partition_key="notes", instance=instance, run_config=pipeline.config(), raise_on_error=False, tags=tags
    )
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


def _hears(sensor: dg.SensorDefinition, instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    event = next(
        entry.dagster_event
        for entry in reversed(instance.all_logs(run.run_id))
        if entry.dagster_event and (entry.dagster_event.is_run_failure or entry.dagster_event.is_job_success)
    )
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor.name, dagster_instance=instance, dagster_run=run, dagster_event=event
    )
    answer = sensor(context)
    assert isinstance(answer, dg.SkipReason)
    return str(answer.skip_message)


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
        assert _hears(SUCCESS, instance, run) == "Root span recorded."
        assert _hears(SUCCESS, instance, run) == "The trace had ended already."
        assert _roots(pipeline, run) == [("active", "")]


def test_a_failed_run_ends_with_a_failed_root(pipeline: Pipeline) -> None:
    computing = Computing({**fast_factories(), "dense": dense_double(missing=True)})
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(pipeline, instance, computing)
        assert _hears(FAILURE, instance, run) == "Root span recorded."
        assert _roots(pipeline, run) == [("failed", "Failure")]


def test_a_run_of_the_command_line_in_another_folder_is_left_alone(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(pipeline, instance, pipeline.computing, **BY_COMMAND_LINE)
        (tmp_path / "output").rename(tmp_path / "elsewhere")
        assert _hears(SUCCESS, instance, run) == "The trace had ended already."
        assert not (tmp_path / "output").exists()


def test_settings_that_are_not_accepted_any_more_do_not_break_the_daemon(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = _run(pipeline, instance, pipeline.computing)
        monkeypatch.setenv("EMBEDDER_METRICS_ENABLED", "perhaps")
        assert "not accepted" in _hears(SUCCESS, instance, run)
    assert _roots(pipeline, run) == []


def test_the_settings_of_a_run_are_those_of_its_run_configuration(pipeline: Pipeline) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        settings = resolve_run(_run(pipeline, instance, pipeline.computing)).settings
    assert settings.paths.output_dir == str(pipeline.root / "output")
    assert settings.rerank.depth == 20


def test_the_sensors_run_without_being_switched_on() -> None:
    assert {sensor.default_status for sensor in TRACE_SENSORS} == {dg.DefaultSensorStatus.RUNNING}
    assert {sensor.name for sensor in build_definitions().sensors or ()} >= {sensor.name for sensor in TRACE_SENSORS}
