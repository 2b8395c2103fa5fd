"""The journal survives several writers, killed processes, torn lines and full disks."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from ensemble_assets.common.events import Event
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.journal import Journal, journal_path, read_journal
from ensemble_assets.telemetry.span_record import MAX_EVENTS, SpanStart, metric_values
from ensemble_assets_tests.telemetry.full_run import report_everything, telemetry

START = SpanStart("rag.dense", "aa" * 8, "bb" * 8, "cc" * 16, "aa" * 8, "dense", 10.0)


def _write_many(path, number):
    journal = Journal(path)
    for at in range(300):
        journal.happened(START, Event("batch.done", float(at), {"number": number, "rows": at}))


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "telemetry.jsonl"
    Journal(path).started(START, {"collection": "docling"})
    forking = multiprocessing.get_context("fork")
    writers = [forking.Process(target=_write_many, args=(path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    content = read_journal(path)
    assert content.unreadable == 0
    for number in range(4):
        assert [e.facts["rows"] for _, e in content.samples if e.facts["number"] == number] == list(range(300))
    assert content.spans[0].counts == {"batch.done": 1200}


def test_reading_gives_back_what_the_process_knew(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path))
    report_everything(run)
    read = run.records()
    assert read == run._ended
    assert metric_values(read) == metric_values(run._ended)


def test_reading_without_progress_leaves_only_that_out(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path))
    report_everything(run)
    whole, short = (read_journal(run.journal_path, progress) for progress in (True, False))
    assert metric_values(short.spans) == metric_values(whole.spans)
    assert [span.events for span in short.spans] == [span.events for span in whole.spans]
    assert (len(short.samples), short.unreadable) == (0, 0)
    assert len(whole.samples) > 0


def test_a_span_without_an_end_is_read_as_unfinished_with_its_events(tmp_path):
    path = tmp_path / "telemetry.jsonl"
    journal = Journal(path)
    journal.started(START, {"collection": "docling"})
    journal.happened(START, Event("mitigation.split", 12.5, {"rows": 4}))
    (span,) = read_journal(path).spans
    assert (span.status, span.ended_at, span.counts) == ("unfinished", 12.5, {"mitigation.split": 1})


def test_torn_and_foreign_lines_are_counted_and_the_rest_is_read(tmp_path):
    path = tmp_path / "telemetry.jsonl"
    Journal(path).started(START, {"collection": "docling"})
    with path.open("ab") as stream:
        stream.write(b'{"kind":"event","na\n[1]\n7\n{"kind":"unknown"}\n\xff\xfe\n\n')
        stream.write(
            b'{"kind":"event","stage_id":"x","span_id":"x","stage":"x","name":"no.such.event","at":1,"facts":{}}\n'
        )
    Journal(path).ended(START, "active", 11.0, {"collection": "docling"})
    content = read_journal(path)
    assert content.unreadable == 6
    assert [span.status for span in content.spans] == ["active"]


def test_a_short_write_does_not_spoil_the_next_line(tmp_path, monkeypatch):
    path = tmp_path / "telemetry.jsonl"
    journal = Journal(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    journal.started(START, {})
    monkeypatch.undo()
    journal.started(START, {})
    content = read_journal(path)
    assert (content.unreadable, len(content.spans)) == (1, 1)


def test_a_missing_journal_is_empty(tmp_path):
    assert read_journal(tmp_path / "none.jsonl").spans == []


def test_a_record_keeps_a_bounded_number_of_events_and_counts_all(tmp_path):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path))
    with run.stage("sparse") as span:
        for _ in range(MAX_EVENTS + 50):
            span.emit("fallback.sparse", reason="no_tokens", source="metadata", count=2)
    for record in (span.record(), *run.records()):
        assert len(record.events) == MAX_EVENTS
        assert record.counts == {"fallback.sparse": MAX_EVENTS + 50}
        (fallbacks,) = metric_values([record]).numbers["sparse_fallback_total"].values()
        assert fallbacks == 2 * (MAX_EVENTS + 50)


@pytest.mark.parametrize("folder", ["missing/deeper", "."])
def test_the_folder_is_made_when_it_is_first_needed(tmp_path, folder):
    run = telemetry(TelemetryOptions(journal_folder=tmp_path / folder))
    assert run.journal_path == journal_path(tmp_path / folder, run.run_id)
    with run.stage("fusion"):
        pass
    assert run.journal_path.is_file()
