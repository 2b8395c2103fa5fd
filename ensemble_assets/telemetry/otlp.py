"""OTLP: what the standard ``OTEL_EXPORTER_OTLP_*`` variables ask for, and exporters made from it.

The variables come in as a mapping (``settings`` reads the environment). The exporter packages are an optional extra and
are imported only when an endpoint is given.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from opentelemetry.sdk.metrics import Counter, Histogram
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.telemetry.allowed_values import is_slug

Signal = Literal["traces", "metrics"]

_PROTOCOLS = {"http/protobuf": "http", "grpc": "grpc"}
_COMPRESSIONS = ("none", "gzip")
_RESOURCE_KEYS = ("service.namespace", "deployment.environment.name")


@dataclass(frozen=True)
class OtlpTarget:
    """Where one signal goes.

    Attributes:
        endpoint: full URL for HTTP (path included), target for gRPC.
        transport: ``http`` or ``grpc``.
        headers: sent with every request; may hold credentials, so they are never shown.
        timeout: seconds per request.
        compression: ``none`` or ``gzip``.
        certificate: CA file, or empty for the system's.
        delta: whether counters and histograms are sent as changes instead of totals (metrics only).
    """

    endpoint: str
    transport: str
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    compression: str
    certificate: str
    delta: bool = False

    @property
    def temporality(self) -> dict[type, AggregationTemporality]:
        """Temporality per kind of instrument."""
        kind = AggregationTemporality.DELTA if self.delta else AggregationTemporality.CUMULATIVE
        return {Counter: kind, Histogram: kind}

    @property
    def insecure(self) -> bool:
        """Whether gRPC goes without TLS."""
        return urlsplit(self.endpoint).scheme != "https"


def otlp_target(variables: Mapping[str, str], signal: Signal) -> OtlpTarget | None:
    """Where ``signal`` goes according to the standard variables; None when no endpoint is set.

    Args:
        variables: ``OTEL_*`` variables; ``OTEL_EXPORTER_OTLP_TRACES_*`` and ``_METRICS_*`` win over general ones.
        signal: traces or metrics.

    Raises:
        SettingsError: if a variable has a value that is not accepted, or the exporter package is not installed.
    """
    if _off(variables, signal):
        return None
    own = variables.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    base = variables.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    if not (own or base):
        return None
    protocol = _choice(variables, signal, "PROTOCOL", "http/protobuf", tuple(_PROTOCOLS))
    transport = _PROTOCOLS[protocol]
    endpoint = own or (f"{base.rstrip('/')}/v1/{signal}" if transport == "http" else base)
    _check_endpoint(endpoint, signal)
    _check_installed(transport)
    certificate = _value(variables, signal, "CERTIFICATE")
    if certificate and not Path(certificate).is_file():
        raise SettingsError("OTEL_EXPORTER_OTLP_CERTIFICATE names no file; give the path of a CA certificate")
    return OtlpTarget(
        endpoint=endpoint,
        transport=transport,
        headers=_headers(_value(variables, signal, "HEADERS")),
        timeout=_timeout(_value(variables, signal, "TIMEOUT")),
        compression=_choice(variables, signal, "COMPRESSION", "none", _COMPRESSIONS),
        certificate=certificate,
        delta=variables.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower() == "delta",
    )


def span_exporter(target: OtlpTarget) -> SpanExporter:
    """An exporter of spans to ``target``."""
    exporter: SpanExporter = _exporter_class(target, "trace_exporter", "OTLPSpanExporter")(**_arguments(target))
    return exporter


def metric_exporter(target: OtlpTarget) -> MetricExporter:
    """An exporter of metrics to ``target``."""
    exporter: MetricExporter = _exporter_class(target, "metric_exporter", "OTLPMetricExporter")(**_arguments(target))
    return exporter


def resource(variables: Mapping[str, str], version: str, run_id: str) -> Resource:
    """What OTLP says about the sender: ``allow_list.RESOURCE_ATTRIBUTES`` and nothing else."""
    pairs = (pair.partition("=")[::2] for pair in variables.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    given = {key.strip(): unquote(value.strip()) for key, value in pairs}
    kept = {key: given[key] for key in _RESOURCE_KEYS if is_slug(given.get(key))}
    name = variables.get("OTEL_SERVICE_NAME", "")
    service = name if is_slug(name) else "ensemble-assets"
    return Resource({"service.name": service, "service.version": version, **kept, "run_id": run_id})


def _off(variables: Mapping[str, str], signal: Signal) -> bool:
    disabled = variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or variables.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() == "none"


def _value(variables: Mapping[str, str], signal: Signal, name: str) -> str:
    own = variables.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", "").strip()
    return own or variables.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()


def _choice(variables: Mapping[str, str], signal: Signal, name: str, default: str, choices: Sequence[str]) -> str:
    value = _value(variables, signal, name) or default
    if value not in choices:
        raise SettingsError(f"OTEL_EXPORTER_OTLP_{name} is {value[:32]!r}; accepted are {', '.join(choices)}")
    return value


def _check_endpoint(endpoint: str, signal: Signal) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingsError(
            f"the OTLP endpoint for {signal} (OTEL_EXPORTER_OTLP[_{signal.upper()}]_ENDPOINT) "
            "is not a URL with a scheme and a host; give one such as http://localhost:4318"
        )


def _check_installed(transport: str) -> None:
    try:
        found = importlib.util.find_spec(f"opentelemetry.exporter.otlp.proto.{transport}")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise SettingsError(
            f"an OTLP endpoint is set, but opentelemetry-exporter-otlp-proto-{transport} is not installed. "
            "Install it with: pip install 'ensemble-assets[otlp]', or unset OTEL_EXPORTER_OTLP_ENDPOINT"
        )


def _headers(text: str) -> dict[str, str]:
    headers = {}
    for number, pair in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        key, sign, value = pair.partition("=")
        if not sign or not key.strip():
            raise SettingsError(f"OTEL_EXPORTER_OTLP_HEADERS: entry {number} is not key=value; values are URL-encoded")
        headers[unquote(key.strip()).lower()] = unquote(value.strip())
    return headers


def _timeout(text: str) -> float:
    """Seconds, as the Python exporters read it (the specification says milliseconds)."""
    try:
        seconds = float(text or 10)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"OTEL_EXPORTER_OTLP_TIMEOUT is {text[:32]!r}; a number of seconds above 0 is expected")
    return seconds


def _exporter_class(target: OtlpTarget, module: str, name: str) -> Any:
    found = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{target.transport}.{module}")
    return getattr(found, name)


def _arguments(target: OtlpTarget) -> dict[str, Any]:
    common = {"endpoint": target.endpoint, "headers": dict(target.headers), "timeout": target.timeout}
    if target.transport == "http":
        compression = importlib.import_module("opentelemetry.exporter.otlp.proto.http").Compression
        return {
            **common,
            "compression": compression(target.compression),
            "certificate_file": target.certificate or None,
        }
    grpc = importlib.import_module("grpc")
    root = Path(target.certificate).read_bytes() if target.certificate else None
    credentials = None if target.insecure else grpc.ssl_channel_credentials(root)
    compression = grpc.Compression.Gzip if target.compression == "gzip" else grpc.Compression.NoCompression
    return {**common, "insecure": target.insecure, "credentials": credentials, "compression": compression}
