"""Define the events that stages report while they run, and a log that collects them.

Their values are numbers, booleans, ids and short fixed words, never texts of chunks or queries.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Event:
    """One event: a fixed dotted name, its time in seconds since the epoch, and its values by name."""

    name: str
    at: float
    facts: dict[str, Value]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types for artefact facts and telemetry files."""
        return {"name": self.name, "at": self.at, **self.facts}


class EventSink(Protocol):
    """Receives events."""

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now."""


@dataclass
class EventLog:
    """Collects events in order, in memory."""

    events: list[Event] = field(default_factory=list)

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now."""
        self.record(Event(name, time.time(), facts))

    def record(self, event: Event) -> None:
        """Record an event with its own time."""
        self.events.append(event)

    def named(self, prefix: str) -> list[Event]:
        """Return the events whose name is ``prefix`` or starts with ``prefix.``."""
        return [e for e in self.events if e.name == prefix or e.name.startswith(prefix + ".")]
