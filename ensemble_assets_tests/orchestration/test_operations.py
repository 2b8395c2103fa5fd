"""Sensors, schedules and jobs on a real instance: what they ask for, once, and why."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import psutil
import pytest

from ensemble_assets.build import build_definitions
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.orchestration.incidents import failed_step, in_words, incident_of, post, write_incident
from ensemble_assets.orchestration.jobs import DENSE_ONLY, REASON_TAG, RETRIEVAL_BUNDLE, TRIGGER_TAG, UPLOAD
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.schedules import NIGHTLY
from ensemble_assets.orchestration.sensors.corpora import corpora
from ensemble_assets.orchestration.sensors.dead_runs import RunProcess
from ensemble_assets_tests.orchestration.pipeline import Pipeline, write_collection

MIDNIGHT = datetime.datetime(2026, 11, 23, 2, tzinfo=datetime.UTC)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


class Ticks:
    """The sensor ``corpora``, tick after tick, as the daemon drives it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None
        self.said = ""

    def tick(self) -> dict[str, str]:
        """Reason by collection of the runs that were asked for; partitions are added as Dagster would."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = corpora(context)
        if isinstance(result, dg.SkipReason):
            self.cursor, self.said = context.cursor, str(result.skip_message)
            return {}
        assert isinstance(result, dg.SensorResult)
        for request in result.dynamic_partitions_requests or []:
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        self.cursor, self.said = result.cursor, ""
        return {str(r.partition_key): r.tags[REASON_TAG] for r in result.run_requests or []}


def test_the_sensor_adds_what_is_new_runs_what_changed_and_reports_what_is_gone(
    configured: Pipeline, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]
) -> None:
    sensor, root = Ticks(instance), configured.root / "corpora"
    assert sensor.tick() == {"notes": "added"}
    assert instance.get_dynamic_partitions("collection") == ["notes"]
    assert sensor.tick() == {}
    assert "1 collections, nothing to run" in sensor.said

    write_collection(root / "more", count=2)
    (root / "notes" / "README.md").write_text("not an input")
    assert sensor.tick() == {"more": "added"}
    (root / "more" / "queries.jsonl").write_text('{"query_id": "q", "text": "another"}\n')
    assert sensor.tick() == {"more": "added"}, "it was never read, so it is still new"

    (root / "notes").rename(configured.root / "away")
    assert sensor.tick() == {}
    assert "without a folder here: notes" in sensor.said
    assert "Folders are gone, what was made of them stays: notes" in capfd.readouterr().err
    instance.add_dynamic_partitions("collection", ["of another root"])
    assert sensor.tick() == {}
    assert "Folders are gone" not in capfd.readouterr().err, "it is said once, and of folders that were here"
    instance.delete_dynamic_partition("collection", "of another root")
    assert set(instance.get_dynamic_partitions("collection")) == {"notes", "more"}, "nothing is deleted"
    (configured.root / "away").rename(root / "notes")
    assert sensor.tick() == {"notes": "added"}

    (root / "not.es").mkdir()
    (root / "not.es" / "x_chunks.json").write_text("[]")
    (root / "not es").mkdir()
    (root / "not es" / "x_chunks.json").write_text("[]")
    assert sensor.tick() == {}
    assert "both get the name 'not_es'" in sensor.said


def test_the_sensor_says_what_is_wrong_with_the_root(
    configured: Pipeline, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDER_CHUNKED_DIR", str(configured.root / "nowhere"))
    sensor = Ticks(instance)
    assert sensor.tick() == {}
    assert "is not a folder. Set paths.chunked_dir" in sensor.said


def tick_of(schedule: str, instance: dg.DagsterInstance, pipeline: Pipeline) -> list[dg.RunRequest] | str:
    definitions = build_definitions(computing=pipeline.computing)
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=MIDNIGHT, repository_def=definitions.get_repository_def()
    )
    evaluated = definitions.resolve_schedule_def(schedule).evaluate_tick(context)
    return str(evaluated.skip_message) if evaluated.skip_message else list(evaluated.run_requests or [])


def test_the_nightly_schedule_runs_what_is_stale_and_says_why(
    configured: Pipeline, stored: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reasons() -> str:
        asked = tick_of(NIGHTLY, stored, configured)
        return asked if isinstance(asked, str) else asked[0].tags[REASON_TAG]

    assert "never_materialised:chunks" in reasons()
    assert configured.run(instance=stored).succeeded
    assert reasons() == "1 collections, none is stale"
    sensor = Ticks(stored)
    sensor.cursor = "{"
    assert sensor.tick() == {}, "a damaged cursor runs nothing that was read as it is"
    monkeypatch.setenv("EMBEDDER_ENABLE_RERANK", "off")
    assert reasons() == "switched:reranked_candidates"
    monkeypatch.delenv("EMBEDDER_ENABLE_RERANK")
    (configured.root / "corpora" / "notes" / "queries.jsonl").unlink()
    assert reasons() == "chunks_changed"
    [request] = tick_of(NIGHTLY, stored, configured)
    assert isinstance(request, dg.RunRequest)
    assert (request.partition_key, request.run_key) == ("notes", "nightly_stale:2026-11-23T02:00:notes")
    assert request.tags[TRIGGER_TAG] == NIGHTLY
    stored.create_run_for_job(
        build_definitions().resolve_job_def(RETRIEVAL_BUNDLE), tags={"dagster/partition": "notes"}
    )
    assert reasons() == "1 collections, none is stale", "a run of it is under way"


def test_a_failed_check_is_a_reason_to_run_again(configured: Pipeline, stored: dg.DagsterInstance) -> None:
    journals = configured.root / "output" / ".artifacts" / "telemetry"
    journals.mkdir(parents=True)
    (journals / "planted.jsonl").write_text('{"query": "where is the river number 0"}')
    assert not configured.run(instance=stored).succeeded
    [request] = tick_of(NIGHTLY, stored, configured)
    assert isinstance(request, dg.RunRequest)
    assert "check_failed:no_raw_queries" in request.tags[REASON_TAG]


def test_the_schedule_is_stopped_and_in_the_zone_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_OPERATIONS_TIMEZONE", "Europe/Berlin")
    monkeypatch.setenv("EMBEDDER_OPERATIONS_NIGHTLY_CRON", "30 1 * * *")
    schedule = build_definitions().resolve_schedule_def(NIGHTLY)
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.execution_timezone == "Europe/Berlin"
    assert schedule.cron_schedule == "30 1 * * *"
    assert schedule.job_name == RETRIEVAL_BUNDLE


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TIMEZONE", "Mars/Olympus", "operations.timezone: 'Mars/Olympus' is not a time zone"),
        ("TIMEZONE", "../../etc/passwd", "operations.timezone"),
        ("NIGHTLY_CRON", "at two", "operations.nightly_cron: 'at two' is not a time"),
        ("NIGHTLY_CRON", "99 * * * *", "operations.nightly_cron: '99 * * * *' is not a time"),
    ],
)
def test_a_wrong_time_or_zone_is_refused_when_the_definitions_load(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    from ensemble_assets.common.errors import SettingsError

    monkeypatch.setenv(f"EMBEDDER_OPERATIONS_{variable}", value)
    with pytest.raises(SettingsError, match=message.replace("*", r"\*")):
        build_definitions()


def test_the_other_jobs_run_without_configuration_and_leave_the_bundle_in_use_alone(
    configured: Pipeline, instance: dg.DagsterInstance
) -> None:
    assert configured.run().succeeded
    used = (configured.root / "output" / "notes" / "processing_summary.json").read_bytes()
    instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
    job = build_definitions(computing=configured.computing).resolve_job_def(DENSE_ONLY)
    assert job.execute_in_process(partition_key="notes", instance=instance).success
    reference = configured.root / "output" / ".dense_only" / "notes" / "processing_summary.json"
    toggles = json.loads(reference.read_text())["feature_toggles"]
    assert (toggles["enable_sparse"], toggles["enable_rerank"]) == (False, False)
    assert toggles["sources"]["enable_rerank"] == "job dense_only"
    assert (configured.root / "output" / "notes" / "processing_summary.json").read_bytes() == used
    pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")
    upload = build_definitions(computing=configured.computing).resolve_job_def(UPLOAD)
    assert upload.execute_in_process(partition_key="notes", instance=instance).success
    assert (configured.root / "output" / ".qdrant").is_dir(), "the job uploads although the setting is off"


# Failed runs and runs whose process is gone


@pytest.fixture
def broken_run(configured: Pipeline, instance: dg.DagsterInstance) -> dg.DagsterRun:
    (configured.root / "corpora" / "notes" / "more_chunks.json").write_text('[{"text": "canary-4711"},\n {"text": ]')
    outcome = configured.run(instance=instance)
    run = instance.get_run_by_id(outcome.result.run_id)
    assert run is not None
    return run


def test_a_failed_run_becomes_a_record_that_names_file_and_line_and_holds_no_text(
    broken_run: dg.DagsterRun, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    incident = incident_of(instance, broken_run)
    assert (incident["job"], incident["collection"]) == (RETRIEVAL_BUNDLE, "notes")
    [failed] = incident["failed_steps"]
    assert failed["step"] == "chunks"
    assert "more_chunks.json" in failed["reason"]
    assert "line 2" in failed["reason"]
    path = write_incident(tmp_path / "incidents", incident)
    assert json.loads(path.read_text()) == incident
    assert "canary" not in path.read_text()
    assert in_words(incident).startswith("retrieval_bundle of notes failed in chunks: ")
    lost = {**incident, "failed_steps": []}
    assert in_words(lost) == "retrieval_bundle of notes failed: its process was lost"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(SettingsError("paths: no such place"), "paths: no such place"), (KeyError("canary-4711"), None)],
)
def test_a_step_that_was_tried_again_in_vain_is_described_by_its_own_error(error: Exception, reason: str) -> None:
    @dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
    def broken() -> None:
        raise error

    @dg.job
    def job() -> None:
        broken()

    events = job.execute_in_process(raise_on_error=False).all_events
    [failure] = [event for event in events if event.is_step_failure]
    assert failed_step(failure) == {"step": "broken", "error": type(error).__name__, "reason": reason}


class Receiver(BaseHTTPRequestHandler):
    """A webhook's server."""

    received: list[dict[str, object]] = []  # noqa: RUF012 - one per test module is what is wanted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(json.loads(body))
        self.send_response(200 if self.path == "/hook" else 500)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Not on the terminal."""


def test_the_sensor_posts_the_record_to_a_real_server_and_loses_nothing_if_that_fails(
    broken_run: dg.DagsterRun, instance: dg.DagsterInstance, configured: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_assets.orchestration.sensors.incidents import incidents

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    failure = next(e for e in instance.all_logs(broken_run.run_id) if e.dagster_event and e.dagster_event.is_failure)
    context = dg.build_run_status_sensor_context(
        sensor_name="incidents", dagster_instance=instance, dagster_run=broken_run,
        dagster_event=failure.dagster_event,
    ).for_run_failure()  # fmt: skip
    try:
        monkeypatch.setenv("EMBEDDER_INCIDENT_WEBHOOK", f"{address}/hook")
        incidents(context)
        assert Receiver.received[-1]["incident"]["run_id"] == broken_run.run_id  # type: ignore[index]
        assert "canary" not in json.dumps(Receiver.received)
        record = configured.root / "output" / ".incidents" / f"{broken_run.run_id}.json"
        record.unlink()
        monkeypatch.setenv("EMBEDDER_INCIDENT_WEBHOOK", f"{address}/broken")
        incidents(context)
        assert record.is_file()
        assert (
            post(f"{address}/broken", {"job": "j", "collection": "c", "failed_steps": []}) == "the server answered 500"
        )
    finally:
        server.shutdown()
        server.server_close()
    assert post("file:///etc/passwd", {}) == "is not an address that begins with http:// or https://"
    unreachable = post(f"{address}/hook", {"job": "j", "collection": None, "failed_steps": []})
    assert str(unreachable).startswith("the server could not be reached")


def test_a_process_that_took_a_dead_ones_number_is_not_the_runs() -> None:
    me = psutil.Process()
    assert RunProcess(me.pid, time.time()).alive
    assert not RunProcess(me.pid, me.create_time() - 60).alive
    assert not RunProcess(2**22 - 1, time.time()).alive
