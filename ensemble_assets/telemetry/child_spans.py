"""Make model and worker spans below a stage from its events: leases open models, workers come and go.

Compute code reports events and opens no spans. This module knows which events begin and end a child.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from ensemble_assets.common.events import Event, Value


class OpenSpan(Protocol):
    """An open span as seen from here: ``spans.ActiveSpan``."""

    def open_model(self, slug: str, at: float, attributes: Mapping[str, Value]) -> OpenSpan:
        """Open a child for one model."""
        ...

    def open_worker(self, number: int, at: float, attributes: Mapping[str, Value]) -> OpenSpan:
        """Open a child for one worker."""
        ...

    def set(self, /, **attributes: Value) -> None:
        """Set attributes."""
        ...

    def write(self, event: Event) -> None:
        """Put an event onto the span."""
        ...

    def end(self, at: float | None = None) -> None:
        """End the span."""
        ...


class ChildSpans:
    """The children of one stage's span. Not locked: the span's lock is held around every call.

    Args:
        stage: the stage's own span.
    """

    def __init__(self, stage: OpenSpan) -> None:
        self._stage = stage
        self._model: OpenSpan | None = None
        self._slug: str | None = None
        self._leases = 0
        self._devices: list[str] = []
        self._workers: dict[Value, OpenSpan] = {}
        self._rows: Counter[OpenSpan] = Counter()
        self._peaks: dict[OpenSpan, int] = {}
        self._started = 0

    def span_of(self, event: Event) -> OpenSpan:
        """Find the span that the event belongs to; open it if the event begins it."""
        device, model = event.facts.get("device"), event.facts.get("model")
        if event.name == "lease.acquired" and isinstance(model, str):
            self._leases += 1
            if self._model is None:
                self._model, self._slug = self._stage.open_model(model, event.at, {}), model
                self._devices = []
            self._devices.append(str(device))
            self._model.set(device=",".join(self._devices))
        elif event.name == "worker.started":
            self._end_worker(device, event.at)
            parent = self._model or self._stage
            about: dict[str, Value] = {"device": device, "model": self._slug if self._model else None}
            self._workers[device] = parent.open_worker(self._started, event.at, about)
            self._started += 1
        return self._workers.get(device) or self._model or self._stage

    def close_after(self, event: Event) -> None:
        """End the spans that the event ends, and add its numbers up."""
        device = event.facts.get("device")
        if event.name == "batch.done":
            self._rows.update(dict.fromkeys(self._around(device), int(event.facts.get("rows") or 0)))
        elif event.name == "device.peak":
            for span in self._around(device):
                self._peaks[span] = max(self._peaks.get(span, 0), int(event.facts.get("used_bytes") or 0))
            self._end_worker(device, event.at)
        elif event.name == "worker.lost":
            self._end_worker(device, event.at)
        elif event.name == "lease.released" and self._leases:
            self._leases -= 1
            if not self._leases:
                self.end_all(event.at)

    def end_all(self, at: float) -> None:
        """End every child that is still open."""
        for device in list(self._workers):
            self._end_worker(device, at)
        if self._model is not None:
            self._end(self._model, at)
            self._model = None

    def _around(self, device: Value) -> list[OpenSpan]:
        """List the open children that work on a device belongs to: its worker and the model."""
        return [span for span in (self._workers.get(device), self._model) if span is not None]

    def _end_worker(self, device: Value, at: float) -> None:
        worker = self._workers.pop(device, None)
        if worker is not None:
            self._end(worker, at)

    def _end(self, span: OpenSpan, at: float) -> None:
        span.set(rows=self._rows.pop(span, 0), peak_bytes=self._peaks.pop(span, None))
        span.end(at)
