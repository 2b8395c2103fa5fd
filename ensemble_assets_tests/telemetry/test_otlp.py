"""OTLP against real receivers in this process that decode the protobuf; settings that cannot work say so."""

from __future__ import annotations

import importlib.util
import socket

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra ensemble-assets[otlp]")
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs the extra ensemble-assets[otlp]")

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.telemetry import ids, otlp
from ensemble_assets.telemetry.allowed_names import EVENTS, RESOURCE_ATTRIBUTES, SPANS
from ensemble_assets.telemetry.metrics import METRICS, full_name
from ensemble_assets.telemetry.options import TelemetryOptions
from ensemble_assets_tests.telemetry.full_run import RUN_ID, report_everything, telemetry
from ensemble_assets_tests.telemetry.receivers import grpc_receiver, http_receiver

PROTOCOLS = {"http/protobuf": http_receiver, "grpc": grpc_receiver}


def _attribute(pairs, key):
    return next(pair.value for pair in pairs if pair.key == key)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_span_event_and_metric_arrives_in_one_trace(protocol):
    with PROTOCOLS[protocol]() as received:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20token,x-scope=a",
        }
        report_everything(telemetry(TelemetryOptions(otlp=variables)))
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


def test_parents_and_ids_are_those_derived_from_the_run():
    with http_receiver() as received:
        run = telemetry(TelemetryOptions(otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint}))
        report_everything(run)
        by_name = {span.name: span for span in received.spans()}
    root = f"{ids.span_id(ids.trace_id(RUN_ID), 'rag.run'):016x}"
    assert by_name["rag.run"].span_id.hex() == root
    assert by_name["rag.run"].parent_span_id == b""
    assert by_name["rag.dense"].parent_span_id.hex() == root
    assert by_name["rag.dense.model"].parent_span_id == by_name["rag.dense"].span_id
    assert by_name["rag.dense.worker"].parent_span_id == by_name["rag.dense.model"].span_id


def test_a_failed_stage_sends_the_class_of_the_error_only():
    with http_receiver() as received:
        run = telemetry(TelemetryOptions(otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint}))
        with pytest.raises(ValueError, match="what is the"), run.stage("rerank"):
            raise ValueError("what is the airspeed of an unladen swallow")
        (span,) = received.spans()
    assert span.status.message == "ValueError"
    assert _attribute(span.attributes, "error_type").string_value == "ValueError"
    assert not span.events
    assert not any(b"swallow" in body for body in received.bodies)


def test_delta_temporality_is_honoured():
    with http_receiver() as received:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        run = telemetry(TelemetryOptions(otlp=variables))
        for _ in range(2):
            with run.stage("fusion", items=5):
                pass
        items = [m for m in received.metrics() if m.name == "rag_stage_items_total"]
    assert [metric.sum.data_points[0].as_double for metric in items] == [5.0, 5.0]
    assert {metric.sum.aggregation_temporality for metric in items} == {1}
    assert all(headers["content-encoding"] == "gzip" for headers in received.headers)


def test_a_dead_receiver_neither_fails_the_stage_nor_is_asked_twice():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    options = TelemetryOptions(otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, timeout_seconds=0.2)
    run = telemetry(options)
    for stage in ("dense", "sparse"):
        with run.stage(stage):
            pass
    failures = [event.facts for record in run.records() for event in record.events]
    assert failures == [
        {"exporter": "otlp_traces", "error_type": "ConnectionError"},
        {"exporter": "otlp_metrics", "error_type": "ConnectionError"},
    ]


def test_an_exporter_that_cannot_be_made_does_not_fail_the_stage(monkeypatch):
    def broken(_):
        raise RuntimeError("wrong version of a library")

    monkeypatch.setattr(otlp, "span_exporter", broken)
    monkeypatch.setattr(otlp, "metric_exporter", broken)
    run = telemetry(TelemetryOptions(otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}))
    with run.stage("fusion", items=2):
        pass
    (record,) = run.records()
    assert record.attributes["items"] == 2
    assert [event.facts for event in record.events] == [
        {"exporter": name, "error_type": "RuntimeError"} for name in ("otlp_traces", "otlp_metrics")
    ]


def test_a_receiver_that_refuses_is_reported():
    with http_receiver() as received:
        received.status = 400
        run = telemetry(TelemetryOptions(otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint}))
        with run.stage("fusion"):
            pass
    assert {event.facts["exporter"] for event in run.records()[0].events} == {"otlp_traces", "otlp_metrics"}


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}, {}])
def test_nothing_is_sent_without_an_endpoint_or_when_switched_off(off):
    base = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"} if off else {}
    assert otlp.otlp_target({**base, **off}, "traces") is None


def test_signal_variables_win_over_general_ones():
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://general:4318/",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces:1/own/path",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "7",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2.5",
    }
    traces, metrics = (otlp.otlp_target(variables, signal) for signal in ("traces", "metrics"))
    assert (traces.endpoint, traces.timeout) == ("https://traces:1/own/path", 2.5)
    assert (metrics.endpoint, metrics.timeout) == ("http://general:4318/v1/metrics", 7.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROTOCOL", "http/json"), ("COMPRESSION", "brotli"), ("TIMEOUT", "soon"), ("TIMEOUT", "-1"),
     ("HEADERS", "secret"), ("CERTIFICATE", "/no/such/ca.pem"), ("ENDPOINT", "localhost:4318")],
)  # fmt: skip
def test_a_wrong_variable_is_named_before_anything_runs(name, value):
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", f"OTEL_EXPORTER_OTLP_{name}": value}
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP") as raised:
        TelemetryOptions(otlp=variables)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_missing_exporter_package_is_a_clear_error(protocol, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with pytest.raises(SettingsError, match=r"pip install 'ensemble-assets\[otlp\]'"):
        TelemetryOptions(otlp=variables)


def test_the_resource_carries_only_listed_attributes():
    variables = {
        "OTEL_SERVICE_NAME": "anna schmidt",
        "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=search,host.name=annas-laptop,deployment.environment.name=a%20b",
    }
    assert dict(otlp.resource(variables, "1.0", RUN_ID).attributes) == {
        "service.name": "ensemble-assets",
        "service.version": "1.0",
        "service.namespace": "search",
        "run_id": RUN_ID,
    }


def test_credentials_are_not_shown():
    options = TelemetryOptions(
        otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1", "OTEL_EXPORTER_OTLP_HEADERS": "key=s3cret"},
        pushgateway="http://user:s3cret@h:1",
    )
    assert "s3cret" not in repr(options)
    assert "s3cret" not in repr(otlp.otlp_target(options.otlp, "traces"))
