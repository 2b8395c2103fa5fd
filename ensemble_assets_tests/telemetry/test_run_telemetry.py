"""Spans across threads, processes and failures."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from ensemble_assets.artefacts.records import FusionRecord, SparseRecord
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.events import Event, EventLog
from ensemble_assets.telemetry import ids
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets.telemetry.run_telemetry import CurrentSpanSink
from ensemble_assets.telemetry.span_record import metric_values
from ensemble_assets.telemetry.spans import entered, error_word
from ensemble_assets_tests.telemetry.full_run import MODEL, RUN_ID, telemetry
from ensemble_assets_tests.telemetry.receivers import http_receiver


def _spans(run):
    return {span.name: span for span in read_journal(run.journal_path).spans}


@pytest.fixture
def run(tmp_path):
    return telemetry(TelemetryOptions(journal_folder=tmp_path))


def _case(name, folder, endpoint="", code=0):
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_assets_tests.telemetry.process_cases", name, str(folder), endpoint],
        env={**os.environ, **({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {})},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr


def test_processes_join_one_trace_without_coordination(tmp_path, run):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra ensemble-assets[otlp]")
    with http_receiver() as received:
        with run.stage("dense") as span, entered(span.open_model(MODEL, time.time(), {})):
            pass
        _case("exit", tmp_path, received.endpoint)
        run.finish_run(time.time())
        sent = {span.name: span for span in received.spans()}
    spans = _spans(run)
    assert {span.trace_id for span in spans.values()} == {RUN_ID.replace("-", "")}
    assert spans["rag.dense.model"].parent_id == spans["rag.dense"].span_id
    assert spans["rag.dense"].parent_id == spans["rag.sparse"].parent_id == spans["rag.run"].span_id
    assert sent.keys() == {"rag.sparse"}, "this process has no endpoint, the other one has"
    assert sent["rag.sparse"].parent_span_id.hex() == spans["rag.run"].span_id
    assert spans["rag.sparse"].counts == {"mitigation.split": 1}


def test_a_process_that_ends_with_os_exit_has_sent_everything(tmp_path, run):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra ensemble-assets[otlp]")
    with http_receiver() as received:
        _case("exit", tmp_path, received.endpoint)
        (span,), metrics = received.spans(), received.metrics()
    assert (span.name, [event.name for event in span.events]) == ("rag.sparse", ["mitigation.split"])
    assert "rag_stage_items_total" in {metric.name for metric in metrics}
    assert (
        'rag_stage_items_total{collection="docling",stage="sparse"} 3.0'
        in (tmp_path / "ensemble_assets_docling.prom").read_text()
    )


def test_a_killed_process_leaves_what_it_had_reported(tmp_path, run):
    _case("kill", tmp_path, code=-signal.SIGKILL)
    spans = _spans(run)
    assert (spans["rag.dense"].status, spans["rag.dense.model"].status) == ("unfinished", "active")
    assert spans["rag.dense"].counts == {"batch.done": 1, "mitigation.oom": 1}
    assert spans["rag.dense"].attributes["items"] == 3


def test_metrics_of_a_run_come_from_all_its_processes(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path, textfile_folder=tmp_path))
    _case("exit", tmp_path)
    with run.stage("export", items=4):
        pass
    text = (tmp_path / "ensemble_assets_docling.prom").read_text()
    assert 'rag_stage_items_total{collection="docling",stage="sparse"} 3.0' in text
    assert 'rag_stage_items_total{collection="docling",stage="export"} 4.0' in text


def test_a_failed_stage_is_marked_and_the_error_passes_through(run):
    error = ValueError("the quick brown fox")
    with pytest.raises(ValueError, match="fox") as raised, run.stage("rerank", items=3):
        raise error
    assert raised.value is error
    span = _spans(run)["rag.rerank"]
    assert (span.status, span.attributes["error_type"]) == ("failed", "ValueError")
    assert "fox" not in run.journal_path.read_text()
    (failures,) = metric_values([span]).numbers["stage_failures_total"].values()
    assert failures == 1


def test_an_error_class_that_is_not_listed_is_named_by_its_nearest_base():
    class AnnaSchmidtError(KeyError):
        pass

    class Bare(BaseException):
        pass

    assert error_word(AnnaSchmidtError()) == "KeyError"
    assert error_word(Bare()) == "BaseException"


def test_a_stage_that_is_off_has_a_skipped_span(run):
    with run.stage("rerank") as span:
        span.skip("feature_disabled")
    record = span.record()
    assert (record.status, record.attributes["reason"]) == ("skipped", "feature_disabled")
    assert _spans(run)["rag.rerank"] == record
    assert metric_values([record]).names() == ()


def test_stages_without_models_have_no_model_and_worker_spans(run):
    events = ("lease.acquired", "worker.started", "device.peak")
    with run.stage("fusion") as span:
        for name in events:
            span.record_event(Event(name, 1.0, {"device": "cpu", "model": MODEL}))
    assert span.record().counts == dict.fromkeys(events, 1)
    assert _spans(run).keys() == {"rag.fusion"}


def test_an_unknown_stage_is_a_programming_error(run):
    with pytest.raises(ValueError, match="dense, sparse, fusion, rerank, export"), run.stage("embedding"):
        pass


def test_the_sink_forwards_to_the_innermost_span_and_keeps_a_log(run):
    log = EventLog()
    sink = CurrentSpanSink(run, log)
    with run.stage("sparse") as stage, entered(stage.open_model(MODEL, time.time(), {})) as model:
        sink.emit("mitigation.split", rows=4)
    sink.emit("mitigation.split", rows=5)
    assert [event.name for event in log.events] == ["mitigation.split", "mitigation.split"]
    lines = [line for line in run.journal_path.read_text().splitlines() if "mitigation.split" in line]
    assert len(lines) == 1, "outside any stage an event has no span"
    assert model.start.span_id in lines[0]
    assert stage.record().counts == {"mitigation.split": 1}


def test_events_of_other_threads_go_to_the_open_stage(run):
    sink = CurrentSpanSink(run, EventLog())
    with run.stage("dense") as stage:
        thread = threading.Thread(target=sink.emit, args=("device.memory",), kwargs={"device": "cpu", "used_bytes": 5})
        thread.start()
        thread.join()
    assert stage.record().counts == {"device.memory": 1}


def test_many_threads_lose_no_event(run):
    with run.stage("dense") as stage:
        threads = [
            threading.Thread(target=lambda: [stage.emit("mitigation.split", rows=1) for _ in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stage.record().counts == {"mitigation.split": 800}
    assert _spans(run)["rag.dense"].counts == {"mitigation.split": 800}


def test_a_stage_record_becomes_attributes_metrics_and_the_fallbacks_nobody_reported(run):
    record = SparseRecord(
        "sparse", "partial", device=UsedDevices("cuda", ("GPU-0", "GPU-1")), precision="fp16", seconds=2.0,
        tokens=900, items=30, truncated=4, tokens_dropped=70, peak_bytes=9_000_000_000, precision_redone=2,
        fallback_count=5, fallback_reasons={"out_of_memory": 3, "no_tokens": 2},
        coverage_ratio=0.9, model="a model that nobody declared",
    )  # fmt: skip
    with run.stage("sparse") as span:
        span.emit("fallback.sparse", reason="out_of_memory", source="metadata", count=1)
        span.describe(record)
    kept = span.record()
    assert kept.attributes["outcome"] == "partial"
    assert kept.attributes["device"] == "GPU-0,GPU-1"
    assert "dropped_attributes" not in kept.attributes, "facts for others are not ours to count"
    values = metric_values([kept])
    fallbacks: Counter[str] = Counter()
    for labels, number in values.numbers["sparse_fallback_total"].items():
        fallbacks[dict(labels)["reason"]] += number
    assert fallbacks == {"out_of_memory": 3, "no_tokens": 2}
    single = {name: next(iter(series.values())) for name, series in values.numbers.items() if len(series) == 1}
    expected = {
        "stage_items_total": 30, "stage_tokens_total": 900, "truncated_chunks_total": 4, "precision_fallback_total": 2,
        "gpu_peak_bytes": 9e9, "sparse_coverage_ratio": 0.9,
    }  # fmt: skip
    assert expected.items() <= single.items()


def test_a_record_sets_only_what_its_span_may_have_and_what_was_measured(run):
    with run.stage("fusion") as span:
        span.describe(FusionRecord("fusion", "completed", items=20, device=UsedDevices("cpu"), depth=100, method="rrf"))
    attributes = span.record().attributes
    assert attributes["items"] == 20
    assert attributes["depth"] == 100
    assert not {"tokens", "peak_bytes", "dropped_attributes"} & attributes.keys()


def test_peaks_per_device_win_over_the_peak_of_the_stage(run):
    with run.stage("dense", peak_bytes=9, device="cuda:0,cuda:1") as span:
        span.emit("device.peak", device="cuda:0", used_bytes=7)
        span.emit("device.peak", device="cuda:1", used_bytes=9)
    peaks = metric_values([span.record()]).numbers["gpu_peak_bytes"]
    assert {dict(labels)["device"]: value for labels, value in peaks.items()} == {"cuda:0": 7, "cuda:1": 9}


def test_retries_and_repeats_have_span_ids_of_their_own(tmp_path):
    first, retry = (telemetry(TelemetryOptions(journal_folder=tmp_path)) for _ in range(2))
    with first.stage("dense") as a, first.stage("dense") as b:
        pass
    with retry.stage("dense", attempt=1) as c:
        pass
    with telemetry().stage("dense") as same_as_a:
        pass
    assert len({span.start.span_id for span in (a, b, c)}) == 3
    assert same_as_a.start.span_id == a.start.span_id


def test_a_retry_that_succeeds_replaces_what_its_failed_tries_measured(tmp_path, run):
    _case("kill", tmp_path, code=-signal.SIGKILL)
    with pytest.raises(RuntimeError), run.stage("dense", attempt=1, items=3):
        raise RuntimeError
    with run.stage("dense", attempt=2, items=3):
        pass
    assert [record.status for record in run.records()] == ["failed", "active", "unfinished"]
    numbers = metric_values(run.records()).numbers
    assert [*numbers["stage_items_total"].values()] == [3]
    assert [*numbers["stage_failures_total"].values()] == [0]
    assert [*numbers["mitigations_total"].values()] == [1], "what happened in the killed try did happen"


def test_telemetry_pickles_as_settings_only(tmp_path, run):
    with run.stage("dense"):
        again = pickle.loads(pickle.dumps(run))
    assert again.run_id == run.run_id
    assert again.options == run.options
    with again.stage("sparse"):
        pass
    spans = _spans(run)
    assert spans["rag.sparse"].parent_id == spans["rag.dense"].parent_id
    assert spans["rag.sparse"].trace_id == spans["rag.dense"].trace_id


def test_a_forked_child_makes_its_own_machinery(run):
    with run.stage("dense") as stage:
        mine = run._here()
        child = os.fork()
        if child == 0:
            code = 2
            try:
                with run.stage("sparse"):
                    code = 0 if run._here() is not mine else 1
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    spans = _spans(run)
    assert spans["rag.dense"].span_id == stage.start.span_id
    assert spans["rag.sparse"].parent_id == spans["rag.dense"].parent_id


def test_nothing_is_made_before_it_is_used_and_nothing_is_written_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = telemetry()
    assert run._process is None
    with run.stage("dense", items=1) as stage:
        stage.emit("mitigation.split", rows=1)
    assert list(tmp_path.iterdir()) == []
    assert [record.span_id for record in run.records()] == [stage.start.span_id]


def test_a_journal_that_cannot_be_written_does_not_fail_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    run = telemetry(TelemetryOptions(journal_folder=tmp_path / "file", textfile_folder=tmp_path / "file"))
    with run.stage("dense") as stage:
        stage.emit("mitigation.split", rows=1)
    failures = [event.facts["exporter"] for event in stage.record().events if event.name == "telemetry.export_failed"]
    assert failures == ["journal", "textfile"]
    assert str(tmp_path) not in caplog.text
    assert [record.counts for record in run.records()] == [{"mitigation.split": 1, "telemetry.export_failed": 2}]


def test_metrics_are_written_even_if_the_journal_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    run = telemetry(TelemetryOptions(journal_folder=tmp_path / "file", textfile_folder=tmp_path))
    with run.stage("dense", items=2):
        pass
    assert 'stage="dense"} 2.0' in (tmp_path / "ensemble_assets_docling.prom").read_text()


def test_the_record_of_an_open_span_is_complete_so_far(run):
    with run.stage("export", points=8) as stage:
        record = stage.record()
    assert (record.status, record.attributes["points"]) == ("active", 8)
    assert record.span_id == f"{ids.span_id(ids.trace_id(RUN_ID), 'rag.export', 'docling', 0, 0):016x}"


def test_a_run_id_that_is_no_uuid_does_not_show(tmp_path):
    run = type(telemetry())("anna schmidt's run", "docling", options=TelemetryOptions(journal_folder=tmp_path))
    with run.stage("fusion"):
        pass
    text = run.journal_path.read_text()
    assert "anna" not in text + run.journal_path.name


def test_a_span_that_has_ended_still_takes_what_comes_late_without_a_warning(run, caplog):
    with run.stage("fusion") as span:
        pass
    span.set(items=3)
    span.emit("device.peak", device="cpu", used_bytes=5)
    assert span.record().attributes["items"] == 3
    assert span.record().counts == {"device.peak": 1}
    assert caplog.text == ""


def test_a_failed_run_has_a_failed_root(run):
    record = run.finish_run(time.time() - 2, failed=RuntimeError("secret"))
    assert (record.name, record.status, record.parent_id) == ("rag.run", "failed", "")
    assert record.attributes["latency_seconds"] >= 2
