"""Real receivers for what telemetry sends: OTLP over HTTP and gRPC that decode the protobuf, and any body."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class Received:
    """What arrived.

    Attributes:
        endpoint: base URL to send to.
        bodies: decompressed request bodies.
        messages: decoded protobuf messages.
        headers: of each request, names in lower case.
        paths: of each request, with the method.
        status: what the receiver answers.
    """

    endpoint: str = ""
    bodies: list[bytes] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    status: int = 200

    def spans(self) -> list[Any]:
        requests = [m for m in self.messages if isinstance(m, ExportTraceServiceRequest)]
        return [s for m in requests for r in m.resource_spans for scope in r.scope_spans for s in scope.spans]

    def metrics(self) -> list[Any]:
        requests = [m for m in self.messages if isinstance(m, ExportMetricsServiceRequest)]
        return [s for m in requests for r in m.resource_metrics for scope in r.scope_metrics for s in scope.metrics]


_REQUESTS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


@contextmanager
def http_receiver() -> Iterator[Received]:
    """An HTTP server on a free port of this machine that decodes OTLP and keeps any other body."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            received.bodies.append(body)
            received.headers.append({name.lower(): value for name, value in self.headers.items()})
            received.paths.append(f"{self.command} {self.path}")
            if self.path in _REQUESTS:
                received.messages.append(_REQUESTS[self.path].FromString(body))
            self.send_response(received.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:  # the name that http.server looks for
            self._take()

        def do_PUT(self) -> None:
            self._take()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def otlp_environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, **further: str) -> dict[str, str]:
    """Sets the variables that OTLP exporters read from the environment; also returned, as the settings hand them on."""
    names = {"ENDPOINT": endpoint, **further}
    variables = {name if name.startswith("OTEL_") else f"OTEL_EXPORTER_OTLP_{name}": v for name, v in names.items()}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@contextmanager
def grpc_receiver() -> Iterator[Received]:
    """A gRPC server on a free port of this machine with the OTLP trace and metrics services."""
    import grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    received = Received()

    def take(request: Message, context: Any) -> None:
        received.messages.append(request)
        received.bodies.append(request.SerializeToString())
        received.headers.append(dict(context.invocation_metadata()))

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802
            take(request, context)
            return ExportTraceServiceResponse()

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802
            take(request, context)
            return ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    received.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield received
    finally:
        server.stop(None).wait()
