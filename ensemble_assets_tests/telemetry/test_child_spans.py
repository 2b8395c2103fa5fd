"""Model and worker spans follow from what compute reports; it opens none itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.events import Event
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets_tests.telemetry.full_run import MODEL, REVISION, telemetry

OTHER = "bge-m3"


@pytest.fixture
def run(tmp_path):
    return telemetry(TelemetryOptions(journal_folder=tmp_path))


def _play(run, events, stage="dense"):
    """Events as ``(name, at, facts)`` on a stage; the spans by name and the span that each event landed on."""
    with run.stage(stage) as span:
        span.declare_model(MODEL, REVISION)
        for name, at, facts in events:
            span.record_event(Event(name, at, facts))
    return span, read_journal(run.journal_path).spans


def _lease(name, at, model=MODEL, device="cuda:0"):
    return (f"lease.{name}", at, {"device": device, "model": model, "stage": "dense"})


def test_a_lease_is_a_model_span_and_two_models_are_two(run):
    events = [
        _lease("acquired", 10.0),
        _lease("released", 15.0),
        _lease("acquired", 16.0, OTHER),
        _lease("released", 18.0, OTHER),
    ]
    stage, spans = _play(run, events)
    first, second = (span for span in spans if span.name == "rag.dense.model")
    assert (first.attributes["model"], first.started_at, first.ended_at) == (MODEL, 10.0, 15.0)
    assert (second.attributes["model"], second.attributes["latency_seconds"]) == (OTHER, 2.0)
    assert {first.parent_id, second.parent_id} == {stage.start.span_id}
    assert first.attributes["revision"] == "0.1.0"
    assert "revision" not in second.attributes
    assert "dropped_attributes" not in stage.record().attributes, "registered models need no declaration"


def test_a_lease_of_several_devices_is_one_model_span(run):
    events = [
        _lease("acquired", 10.0), _lease("acquired", 10.1, device="cuda:1"),
        _lease("released", 15.0), _lease("released", 15.1, device="cuda:1"),
    ]  # fmt: skip
    _, spans = _play(run, events)
    (model,) = (span for span in spans if span.name == "rag.dense.model")
    assert (model.started_at, model.ended_at) == (10.0, 15.1)


def test_the_same_model_twice_gives_two_spans_of_different_id(run):
    lease = [_lease("acquired", 10.0), _lease("released", 11.0)]
    _, spans = _play(run, lease + lease)
    ids = [span.span_id for span in spans if span.name == "rag.dense.model"]
    assert len(set(ids)) == 2


def test_workers_hang_below_their_model_and_their_events_on_them(run):
    events = [
        _lease("acquired", 10.0), _lease("acquired", 10.0, device="cuda:1"),
        ("worker.started", 11.0, {"device": "cuda:0", "pid": 1}),
        ("worker.started", 11.5, {"device": "cuda:1", "pid": 2}),
        ("batch.done", 11.7, {"device": "cuda:1", "rows": 3}),
        ("batch.done", 11.8, {"device": "cuda:0", "rows": 5}),
        ("batch.done", 11.9, {"device": "cuda:0", "rows": 2}),
        ("mitigation.reassigned", 12.0, {"device": "cuda:1", "rows": 8}),
        ("mitigation.precision", 12.5, {"rows": 2}),
        ("worker.lost", 13.0, {"device": "cuda:1", "reason": "out_of_memory"}),
        ("device.peak", 14.0, {"device": "cuda:0", "used_bytes": 7}),
        _lease("released", 15.0), _lease("released", 15.0, device="cuda:1"),
    ]  # fmt: skip
    _, spans = _play(run, events)
    (model,) = (span for span in spans if span.name == "rag.dense.model")
    lost, done = (span for span in spans if span.name == "rag.dense.worker")
    assert (lost.started_at, lost.ended_at, lost.attributes["device"]) == (11.5, 13.0, "cuda:1")
    assert (done.attributes["worker"], done.attributes["peak_bytes"], done.ended_at) == (0, 7, 14.0)
    assert done.attributes["model"] == MODEL
    assert [span.attributes["rows"] for span in (lost, done, model)] == [3, 7, 10]
    assert (model.attributes["peak_bytes"], model.attributes["device"]) == (7, "cuda:0,cuda:1")
    assert {lost.parent_id, done.parent_id} == {model.span_id}
    text = run.journal_path.read_text().splitlines()
    for name, owner in (("mitigation.reassigned", lost), ("mitigation.precision", model)):
        (line,) = (line for line in text if f'"name":"{name}"' in line)
        assert f'"span_id":"{owner.span_id}"' in line


def test_a_worker_that_is_started_again_ends_the_one_before(run):
    events = [("worker.started", 11.0, {"device": "cuda:0"}), ("worker.started", 12.0, {"device": "cuda:0"})]
    stage, spans = _play(run, events)
    first, second = (span for span in spans if span.name == "rag.dense.worker")
    assert (first.ended_at, second.attributes["worker"]) == (12.0, 1)
    assert second.parent_id == stage.start.span_id, "without a lease, workers hang below the stage"


def test_a_failed_stage_leaves_no_child_open(run):
    def fail():
        with run.stage("dense") as span:
            span.emit("lease.acquired", device="cuda:0", model=MODEL)
            span.emit("worker.started", device="cuda:0")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert {span.name: span.status for span in read_journal(run.journal_path).spans} == {
        "rag.dense.worker": "active", "rag.dense.model": "active", "rag.dense": "failed"
    }  # fmt: skip


def test_events_after_the_end_open_nothing(run):
    with run.stage("dense") as span:
        pass
    span.emit("lease.acquired", device="cuda:0", model=MODEL)
    assert [span.name for span in read_journal(run.journal_path).spans] == ["rag.dense"]


DEVICES = st.sampled_from(["cuda:0", "cuda:1"])
ANY_EVENT = st.tuples(
    st.sampled_from(
        ["lease.acquired", "lease.released", "worker.started", "worker.lost", "device.peak", "mitigation.oom"]
    ),
    st.fixed_dictionaries({"device": DEVICES, "model": st.sampled_from([MODEL, OTHER])}),
)


@given(st.lists(ANY_EVENT, max_size=25))
def test_any_order_of_events_gives_a_tree_without_open_or_lost_spans(events):
    with tempfile.TemporaryDirectory() as folder:
        run = telemetry(TelemetryOptions(journal_folder=Path(folder)))
        stage, spans = _play(run, [(name, float(at), facts) for at, (name, facts) in enumerate(events)])
    assert stage.record().counts == {name: sum(n == name for n, _ in events) for name, _ in events}
    assert {span.status for span in spans} == {"active"}
    known = {span.span_id for span in spans}
    assert len(known) == len(spans)
    assert {span.parent_id for span in spans} - known == {stage.start.parent_id}
    workers = [span for span in spans if span.name == "rag.dense.worker"]
    assert len(workers) == sum(name == "worker.started" for name, _ in events)
