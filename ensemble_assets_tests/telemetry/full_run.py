"""A synthetic run that reports everything the allow-list knows: every span, attribute, event and fact."""

from __future__ import annotations

import time

from ensemble_assets.common.events import Value
from ensemble_assets.common.stages import MODEL_STAGES, TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS, FIELDS, SPANS
from ensemble_assets.telemetry.allowed_values import declare
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.run_telemetry import RunTelemetry
from ensemble_assets.telemetry.spans import entered

RUN_ID = "8fc48f76-2e94-424c-8001-054d624414a6"
MODEL, REVISION, COLLECTION = "all-minilm-l6-v2", "0.1.0", "docling"
DECLARED = declare(collection=(COLLECTION,), model=(MODEL,), revision=(REVISION,))
_WORDS = (
    MODEL, REVISION, COLLECTION, RUN_ID, "cpu", "dense", "active", "out_of_memory", "metadata", "sla", "fp32",
    "completed", "rrf", "ValueError", "journal", "packed",
)  # fmt: skip
_OWN = {"run_id", "collection", "stage", "status", "latency_seconds", "dropped_attributes"}


def sample(name: str) -> Value:
    """A value that field ``name`` accepts."""
    candidates: tuple[Value, ...] = (3, 0.5, True, *_WORDS)
    return next(value for value in candidates if FIELDS[name].check(value, DECLARED) is not None)


def facts(names: frozenset[str]) -> dict[str, Value]:
    return {name: sample(name) for name in sorted(names)}


def attributes(span: str) -> dict[str, Value]:
    return facts(SPANS[span].attributes - _OWN - {"attempt"})


def telemetry(options: TelemetryOptions | None = None) -> RunTelemetry:
    return RunTelemetry(RUN_ID, COLLECTION, options)


def report_everything(run: RunTelemetry) -> None:
    """Opens every span with every attribute and emits every event with every fact."""
    for stage in TIMED_STAGES:
        with run.stage(stage, **attributes(f"rag.{stage}")) as span:
            span.declare_model(MODEL, REVISION)
            span.set(not_on_the_list=1)
            for name, spec in EVENTS.items():
                span.emit(name, **facts(spec.facts))
            if stage in MODEL_STAGES:
                model = {k: v for k, v in attributes(f"rag.{stage}.model").items() if k != "model"}
                with entered(span.open_model(MODEL, time.time(), model)) as child:
                    worker = {k: v for k, v in attributes(f"rag.{stage}.worker").items() if k != "worker"}
                    with entered(child.open_worker(0, time.time(), worker)):
                        pass
    run.finish_run(0.0)
