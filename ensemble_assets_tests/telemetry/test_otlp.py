"""OTLP against real receivers in this process that decode the protobuf; settings that cannot work say so."""

from __future__ import annotations

import importlib.util
import socket
import time
from dataclasses import replace

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra ensemble-assets[otlp]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs the extra ensemble-assets[otlp]")

from opentelemetry.exporter.otlp.proto.http import trace_exporter

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.telemetry import exporters, ids
from ensemble_assets.telemetry.allowed_names import EVENTS, SPANS
from ensemble_assets.telemetry.exporters import TelemetryOptions, otlp_exporter, otlp_package, resource_of
from ensemble_assets.telemetry.metrics import METRICS, full_name
from ensemble_assets_tests.telemetry.documented import RESOURCE_ATTRIBUTES
from ensemble_assets_tests.telemetry.full_run import RUN_ID, report_everything, telemetry
from ensemble_assets_tests.telemetry.receivers import grpc_receiver, http_receiver, otlp_environment

PROTOCOLS = {"http/protobuf": http_receiver, "grpc": grpc_receiver}


def _attribute(pairs, key):
    return next(pair.value for pair in pairs if pair.key == key)


def _run(monkeypatch, endpoint, timeout_seconds=3.0, **further):
    return telemetry(
        TelemetryOptions(otlp=otlp_environment(monkeypatch, endpoint, **further), timeout_seconds=timeout_seconds)
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_span_event_and_metric_arrives_in_one_trace(protocol, monkeypatch):
    with PROTOCOLS[protocol]() as received:
        headers = "authorization=Bearer%20token,x-scope=a"
        report_everything(_run(monkeypatch, received.endpoint, PROTOCOL=protocol, HEADERS=headers))
        spans, metrics = received.spans(), received.metrics()
    assert {span.name for span in spans} == SPANS.keys()
    assert {span.trace_id.hex() for span in spans} == {RUN_ID.replace("-", "")}
    assert {event.name for span in spans for event in span.events} == {
        name for name, spec in EVENTS.items() if spec.category != "progress"
    }
    assert {metric.name for metric in metrics} == {full_name("rag", name) for name in METRICS}
    assert {h["authorization"] for h in received.headers} == {"Bearer token"}
    resources = [r.resource for m in received.messages for r in getattr(m, "resource_spans", [])]
    assert {pair.key for resource in resources for pair in resource.attributes} <= RESOURCE_ATTRIBUTES.keys()


def test_parents_and_ids_are_those_derived_from_the_run(monkeypatch):
    with http_receiver() as received:
        report_everything(_run(monkeypatch, received.endpoint))
        by_name = {span.name: span for span in received.spans()}
    root = f"{ids.span_id(ids.trace_id(RUN_ID), 'rag.run'):016x}"
    assert by_name["rag.run"].span_id.hex() == root
    assert by_name["rag.run"].parent_span_id == b""
    assert by_name["rag.dense"].parent_span_id.hex() == root
    assert by_name["rag.dense.model"].parent_span_id == by_name["rag.dense"].span_id
    assert by_name["rag.dense.worker"].parent_span_id == by_name["rag.dense.model"].span_id


def test_what_is_sent_is_what_the_journal_has(tmp_path, monkeypatch):
    with http_receiver() as received:
        variables = otlp_environment(monkeypatch, received.endpoint)
        run = telemetry(TelemetryOptions(journal_folder=tmp_path, otlp=variables))
        with run.stage("fusion", items=5, method="rrf") as span:
            span.emit("mitigation.split", rows=4, into=None)
        (sent,) = received.spans()
        histogram = next(m for m in received.metrics() if m.name == "rag_fusion_latency_seconds").histogram
    (record,) = run.records()
    kinds = ("string_value", "int_value", "double_value", "bool_value")
    values = {
        pair.key: next(getattr(pair.value, k) for k in kinds if pair.value.HasField(k)) for pair in sent.attributes
    }
    assert values == dict(record.attributes)
    assert sent.start_time_unix_nano == int(record.started_at * 1e9)
    assert sent.end_time_unix_nano == int(record.ended_at * 1e9)
    (event,) = sent.events
    assert [(pair.key, pair.value.int_value) for pair in event.attributes] == [("rows", 4)]
    (point,) = histogram.data_points
    latency = record.attributes["latency_seconds"]
    assert (point.count, point.sum, point.min, point.max) == (1, latency, latency, latency)
    assert sum(point.bucket_counts) == 1
    assert tuple(point.explicit_bounds) == METRICS["fusion_latency_seconds"].buckets


def test_a_failed_stage_sends_the_class_of_the_error_only(monkeypatch):
    with http_receiver() as received:
        run = _run(monkeypatch, received.endpoint)
        with pytest.raises(ValueError, match="what is the"), run.stage("rerank"):
            raise ValueError("what is the airspeed of an unladen swallow")
        (span,) = received.spans()
    assert span.status.message == "ValueError"
    assert _attribute(span.attributes, "error_type").string_value == "ValueError"
    assert not span.events
    assert not any(b"swallow" in body for body in received.bodies)


@pytest.mark.parametrize(("preference", "sent", "kind"), [("delta", [5.0, 5.0], 1), ("cumulative", [5.0, 10.0], 2)])
def test_temporality_and_compression_are_honoured(monkeypatch, preference, sent, kind):
    with http_receiver() as received:
        further = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": preference, "COMPRESSION": "gzip"}
        run = _run(monkeypatch, received.endpoint, **further)
        for _ in range(2):
            with run.stage("fusion", items=5):
                pass
        items = [m for m in received.metrics() if m.name == "rag_stage_items_total"]
    assert [metric.sum.data_points[0].as_double for metric in items] == sent
    assert {metric.sum.aggregation_temporality for metric in items} == {kind}
    assert all(headers["content-encoding"] == "gzip" for headers in received.headers)


def test_a_dead_receiver_neither_fails_the_stage_nor_is_asked_twice(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    run = _run(monkeypatch, endpoint, timeout_seconds=0.2)
    for stage in ("dense", "sparse"):
        with run.stage(stage):
            pass
    failures = [event.facts for record in run.records() for event in record.events]
    assert failures == [
        {"exporter": "otlp_traces", "error_type": "ConnectionError"},
        {"exporter": "otlp_metrics", "error_type": "ConnectionError"},
    ]


def test_a_collector_that_drops_packets_costs_one_time_out_per_run(tmp_path, monkeypatch):
    waited = []

    class Silent:
        def __init__(self, timeout):
            self.timeout = timeout

        def export(self, spans):
            waited.append(self.timeout)
            time.sleep(0.2)
            return trace_exporter.SpanExportResult.FAILURE

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", Silent)
    options = TelemetryOptions(journal_folder=tmp_path, otlp=otlp_environment(monkeypatch, "http://10.255.255.1:4318"))
    options = replace(options, timeout_seconds=0.3)
    for stage in ("dense", "sparse", "fusion"):  # in the UI every step is a process with its own exporters
        with telemetry(options).stage(stage):
            pass
    assert waited == [0.3]


UNUSABLE = {
    "no scheme": ("collector:4317", {}, "has no http://"),
    "unknown protocol": ("http://127.0.0.1:9", {"PROTOCOL": "http/json"}, "accepted are http/protobuf, grpc"),
    "unknown compression": ("http://127.0.0.1:9", {"COMPRESSION": "deflate"}, ""),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_variables_of_a_platform_that_cannot_work_are_a_warning_and_counted(case, monkeypatch, caplog):
    endpoint, further, words = UNUSABLE[case]
    run = _run(monkeypatch, endpoint, timeout_seconds=0.2, **further)
    with run.stage("dense"):
        pass
    [record] = run.records()
    failed = [event.facts["exporter"] for event in record.events if event.name == "telemetry.export_failed"]
    assert record.status != "failed"
    assert "otlp_traces" in failed
    assert words in caplog.text


def test_a_variable_that_cannot_be_read_does_not_fail_the_stage(monkeypatch):
    run = _run(monkeypatch, "http://localhost:4318", TIMEOUT="soon")
    with run.stage("fusion", items=2):
        pass
    (record,) = run.records()
    assert record.attributes["items"] == 2
    assert [event.facts for event in record.events] == [
        {"exporter": name, "error_type": "ValueError"} for name in ("otlp_traces", "otlp_metrics")
    ]


def test_an_exporter_that_cannot_be_made_does_not_fail_the_stage(monkeypatch):
    def broken(*_):
        raise RuntimeError("wrong version of a library")

    monkeypatch.setattr(exporters, "otlp_exporter", broken)
    run = _run(monkeypatch, "http://localhost:4318")
    with run.stage("fusion", items=2):
        pass
    (record,) = run.records()
    assert record.attributes["items"] == 2
    assert [event.facts for event in record.events] == [
        {"exporter": name, "error_type": "RuntimeError"} for name in ("otlp_traces", "otlp_metrics")
    ]


def test_a_receiver_that_refuses_is_reported(monkeypatch):
    with http_receiver() as received:
        received.status = 400
        run = _run(monkeypatch, received.endpoint)
        with run.stage("fusion"):
            pass
    assert {event.facts["exporter"] for event in run.records()[0].events} == {"otlp_traces", "otlp_metrics"}


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}, {}])
def test_nothing_is_sent_without_an_endpoint_or_when_switched_off(off):
    base = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"} if off else {}
    assert otlp_package({**base, **off}, "traces") is None
    assert otlp_exporter({**base, **off}, "traces", 3.0) is None


@pytest.mark.parametrize(
    ("timeouts", "seconds"),
    [({}, 3.0), ({"TIMEOUT": "7"}, 3.0), ({"TIMEOUT": "2"}, 2.0), ({"TIMEOUT": "2", "TRACES_TIMEOUT": "2.5"}, 2.5)],
)
def test_an_export_is_given_the_shorter_of_the_variable_and_the_cap(monkeypatch, timeouts, seconds):
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda **arguments: arguments)
    variables = otlp_environment(monkeypatch, "http://general:4318", **timeouts)
    assert otlp_exporter(variables, "traces", 3.0) == {"timeout": seconds}, "the exporter reads everything else itself"


def test_each_signal_has_variables_of_its_own(monkeypatch):
    variables = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:1/own/path",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    assert (otlp_package(variables, "traces"), otlp_package(variables, "metrics")) == ("grpc", None)
    with http_receiver() as general, http_receiver() as own:
        run = _run(monkeypatch, general.endpoint, TRACES_ENDPOINT=f"{own.endpoint}/v1/traces")
        with run.stage("fusion", items=5):
            pass
    assert own.paths == ["POST /v1/traces"]
    assert general.paths == ["POST /v1/metrics"]


def test_a_protocol_that_has_no_exporter_is_named():
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL.*http/protobuf, grpc"):
        otlp_package(variables, "traces")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_missing_exporter_package_is_a_clear_error(protocol, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with pytest.raises(SettingsError, match=r"pip install 'ensemble-assets\[otlp\]'"):
        otlp_package(variables, "traces")


def test_the_resource_carries_only_listed_attributes():
    variables = {
        "OTEL_SERVICE_NAME": "anna schmidt",
        "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=search,host.name=annas-laptop,deployment.environment.name=a%20b",
    }
    attributes = dict(resource_of(variables, RUN_ID).attributes)
    assert attributes.pop("service.version")
    assert attributes == {"service.name": "ensemble-assets", "service.namespace": "search", "run_id": RUN_ID}


def test_what_the_environment_says_about_the_host_is_not_sent(monkeypatch):
    with http_receiver() as received:
        named = {"OTEL_SERVICE_NAME": "annas-laptop", "OTEL_RESOURCE_ATTRIBUTES": "host.name=annas-laptop,user=anna"}
        for name, value in named.items():
            monkeypatch.setenv(name, value)
        run = telemetry(TelemetryOptions(otlp=otlp_environment(monkeypatch, received.endpoint)))
        with run.stage("fusion", items=5):
            pass
    assert len(received.bodies) == 2
    assert not any(b"anna" in body for body in received.bodies), "these variables were not handed on by the settings"


def test_credentials_are_not_shown():
    options = TelemetryOptions(
        otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_EXPORTER_OTLP_HEADERS": "key=s3cret"},
        pushgateway="http://user:s3cret@h:1",
    )
    assert "s3cret" not in repr(options)
