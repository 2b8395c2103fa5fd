"""Write and read the journal of a run: one JSONL file to which every process of the run appends as things happen.

Each line goes to the kernel in one append, so lines of several processes do not mix, and a killed process loses nothing
that it had reported. Reading puts spans together again, also those whose process died before it could end them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_assets.common.events import Event
from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets.telemetry.allowed_values import Scalar
from ensemble_assets.telemetry.span_record import SpanRecord, SpanStart, Tally

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def journal_path(folder: Path, run: str) -> Path:
    """Name a run's journal; ``run`` is the run id as telemetry shows it."""
    return folder / f"telemetry-{run}.jsonl"


class Journal:
    """Appends to one run's file. Opened on first use; not shared between processes (each opens its own)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._torn = False

    def started(self, start: SpanStart, attributes: Mapping[str, Scalar]) -> None:
        """Write that a span began."""
        self._write({"kind": "start", **vars(start), "attributes": dict(attributes)})

    def happened(self, start: SpanStart, event: Event) -> None:
        """Write an event on a span."""
        self._write({"kind": "event", "stage_id": start.stage_id, "span_id": start.span_id, "stage": start.stage,
                     "name": event.name, "at": event.at, "facts": event.facts})  # fmt: skip

    def ended(self, start: SpanStart, status: str, ended_at: float, attributes: Mapping[str, Scalar]) -> None:
        """Write that a span ended."""
        self._write({"kind": "span", **vars(start), "status": status, "ended_at": ended_at,
                     "attributes": dict(attributes)})  # fmt: skip

    def close(self) -> None:
        """Close the file; writing opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the journal against the run's other processes, so that only one publishes metrics at a time."""
        descriptor = self._open()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        return self._descriptor

    def _write(self, line: Mapping[str, Any]) -> None:
        data = _ENCODER.encode(line).encode() + b"\n"
        if self._torn:  # a full disk cut the last line: start a new one
            data = b"\n" + data
        self._torn = True  # stays so if the write raises, since part of the line may be on disk then
        self._torn = os.write(self._open(), data) != len(data)


@dataclass
class JournalContent:
    """The spans, progress events (each with its stage) and number of unreadable lines of a journal.

    Spans come in the order in which they ended; spans whose process died come last, with status ``unfinished``.
    """

    spans: list[SpanRecord] = field(default_factory=list)
    samples: list[tuple[str, Event]] = field(default_factory=list)
    unreadable: int = 0


def read_journal(path: Path, progress: bool = True) -> JournalContent:
    """Read a journal, also while others write it. A missing file is an empty journal.

    Progress events are most of the lines, and metrics do not need them: without ``progress`` they are skipped.
    """
    lines, unreadable = _lines(path, () if progress else _PROGRESS)
    content = JournalContent(unreadable=unreadable)
    tallies: dict[str, Tally] = {}
    open_spans: dict[str, dict[str, Any]] = {}
    ended: list[dict[str, Any]] = []
    for line in lines:
        if line["kind"] == "start":
            open_spans[line["span_id"]] = {**line, "status": "unfinished", "ended_at": line["started_at"]}
            if line["stage_id"] == line["span_id"]:
                tallies[line["span_id"]] = Tally(line["attributes"].get("collection", ""), line["stage"])
        elif line["kind"] == "span":
            open_spans.pop(line["span_id"], None)
            ended.append(line)
        else:
            event = Event(line["name"], line["at"], line["facts"])
            for span in (open_spans[key] for key in (line["span_id"], line["stage_id"]) if key in open_spans):
                span["ended_at"] = max(span["ended_at"], event.at)
            if line["stage_id"] in tallies:
                tallies[line["stage_id"]].add(event)
                if event.name in ("device.memory", "batch.done"):
                    content.samples.append((line["stage"], event))
    for line in (*ended, *open_spans.values()):
        tally = tallies.get(line["span_id"])
        own = {name: line[name] for name in _SPAN_KEYS}
        content.spans.append(SpanRecord(**own, **(tally.record_fields() if tally else {})))
    return content


_START_KEYS = frozenset(SpanStart.__dataclass_fields__) | {"attributes"}
_SPAN_KEYS = _START_KEYS | {"status", "ended_at"}
_REQUIRED: Mapping[str, frozenset[str]] = {
    "start": _START_KEYS,
    "event": frozenset({"stage_id", "span_id", "stage", "name", "at", "facts"}),
    "span": _SPAN_KEYS,
}

# progress lines are skipped unparsed, by how ``_ENCODER`` writes their name: without a space after the colon
_PROGRESS = tuple(f'"name":"{name}"'.encode() for name, spec in EVENTS.items() if spec.category == "progress")


def _lines(path: Path, unwanted: tuple[bytes, ...]) -> tuple[list[dict[str, Any]], int]:
    if not path.is_file():
        return [], 0
    lines, unreadable = [], 0
    with path.open("rb") as stream:
        for raw in stream:
            if any(mark in raw for mark in unwanted):
                continue
            try:
                line = json.loads(raw)
                usable = _REQUIRED[line["kind"]] <= line.keys() and (line["kind"] != "event" or line["name"] in EVENTS)
            except (ValueError, TypeError, KeyError, AttributeError):
                usable = False
            if usable:
                lines.append(line)
            else:
                unreadable += raw.strip() != b""
    return lines, unreadable
