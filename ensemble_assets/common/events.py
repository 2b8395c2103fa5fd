"""What stages report while they run: events with names, numbers and ids, and a sink that collects them.

Stages call the sink; telemetry, manifests and Dagster metadata are all made from what it collected, so there is one
bookkeeping. Texts never go in: values are numbers, booleans, ids and short fixed words.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Event:
    """Something that happened: a fixed dotted name, when (seconds since the epoch) and a few facts."""

    name: str
    at: float
    facts: dict[str, Value]

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary for artefact facts and telemetry files."""
        return {"name": self.name, "at": self.at, **self.facts}


class EventSink(Protocol):
    """Where stages send events."""

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now."""
        ...


@dataclass
class EventLog:
    """An event sink that keeps everything in order, in memory."""

    events: list[Event] = field(default_factory=list)

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now."""
        self.events.append(Event(name, time.time(), facts))

    def extend(self, events: Iterable[Event]) -> None:
        """Take over events that were recorded elsewhere (a worker process)."""
        self.events.extend(events)

    def named(self, prefix: str) -> list[Event]:
        """The events whose name is ``prefix`` or starts with ``prefix.``."""
        return [e for e in self.events if e.name == prefix or e.name.startswith(prefix + ".")]
