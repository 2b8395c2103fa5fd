"""Canaries pushed through every entry of telemetry: none gets out, in runs that succeed, fall back or fail."""

from __future__ import annotations

import base64
import json
import logging

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra ensemble-assets[otlp]")

from ensemble_assets.common.events import Event, EventLog
from ensemble_assets.common.stages import MODEL_STAGES, TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS, FIELDS, SPANS
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets.telemetry.run_telemetry import CurrentSpanSink, RunTelemetry
from ensemble_assets.telemetry.span_record import telemetry_section
from ensemble_assets.telemetry.spans import entered
from ensemble_assets_tests.telemetry.canaries import CANARIES, leaks
from ensemble_assets_tests.telemetry.full_run import COLLECTION
from ensemble_assets_tests.telemetry.receivers import http_receiver, otlp_environment


class CanaryError(ValueError):
    """Quotes its input, as tokenizers and models like to do."""


def _push(run: RunTelemetry, canary: str) -> None:
    """``canary`` as value of every attribute and fact, as name of attributes, facts and events, and as an exception."""
    values = dict.fromkeys(FIELDS, canary)
    for stage in TIMED_STAGES:
        with pytest.raises(CanaryError):
            _push_into(run, stage, canary, values)
    run.finish_run(0.0, failed=CanaryError(canary))


def _push_into(run: RunTelemetry, stage: str, canary: str, values: dict[str, str]) -> None:
    with run.stage(stage, **{name: canary for name in SPANS[f"rag.{stage}"].attributes if name != "attempt"}) as span:
        span.set(**{canary: 1, "query": canary, "text": canary}, **values)
        for name in EVENTS:
            span.emit(name, **values, **{canary: canary})
        span.emit(canary, count=1)
        span.record_event(Event(canary, 1.0, {canary: canary}))
        span.record_event(Event("batch.done", 1.0, values))
        CurrentSpanSink(run, EventLog()).emit("fallback.sparse", **values)
        if stage in MODEL_STAGES:
            given = {"model": canary, "device": canary, canary: canary}
            with entered(span.open_model(canary, 1.0, given)) as model, entered(model.open_worker(3, 1.0, given)):
                pass
        span.skip(canary)
        raise CanaryError(canary)


@pytest.mark.parametrize("canary", CANARIES, ids=range(len(CANARIES)))
def test_no_canary_leaves_by_any_exporter(canary, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    with http_receiver() as received, http_receiver() as gateway:
        options = TelemetryOptions(
            journal_folder=tmp_path,
            textfile_folder=tmp_path,
            otlp=otlp_environment(monkeypatch, received.endpoint),
            pushgateway=gateway.endpoint,
        )
        run = RunTelemetry(canary, COLLECTION, options)
        _push(run, canary)
        section = telemetry_section(run.records())
        bodies = {
            "otlp": b"".join(received.bodies),
            "pushed": b"".join([*gateway.bodies, *map(str.encode, gateway.paths)]),
        }
    files = {path.name: path.read_bytes() + path.name.encode() for path in tmp_path.iterdir()}
    said = {**bodies, **files, "manifest": json.dumps(section).encode(), "log": caplog.text.encode()}
    assert {where for where, data in said.items() if leaks(data, (canary,))} == set()
    assert all(said.values()), "every place was written to"
    dropped = [record.attributes["dropped_attributes"] for record in run.records()]
    assert min(dropped) > len(FIELDS), "what was kept out is counted"


def test_the_search_finds_planted_canaries():
    for canary in CANARIES:
        encoded = base64.b64encode(canary.encode()).decode()
        for form in (canary, canary.upper(), json.dumps({"a": canary}), f"key={encoded}", f'{{"a": "{encoded}"}}'):
            assert canary in leaks(f"x {form} y".encode()), form
        for word in filter(lambda word: len(word) > 6, canary.replace(",", " ").split()):
            assert canary in leaks(f"<b>{word}</b>".encode()), word
    assert leaks(b"all quiet") == []


def test_names_that_are_declared_but_are_no_slugs_leave_as_hashes(tmp_path):
    person, address = CANARIES[:2]
    run = RunTelemetry("r", person, TelemetryOptions(journal_folder=tmp_path))
    with run.stage("dense") as span:
        span.declare_model(address, "1")
        span.emit("lease.acquired", device="cpu", model=address)
    (record,) = read_journal(run.journal_path).spans
    assert record.attributes["collection"].startswith("h-")
    assert leaks(run.journal_path.read_bytes()) == []
