"""Model and worker spans below a stage, made from what the stage reports: leases open models, workers come and go.

So compute code opens no spans; it reports events, and this module knows which of them begin and end a child. Callers
that open children themselves (``ActiveSpan.model``) do not need it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ensemble_assets.common.events import Event, Value

if TYPE_CHECKING:
    from ensemble_assets.telemetry.spans import ActiveSpan


class ChildSpans:
    """The children of one stage's span. Not locked: the span's lock is held around every call.

    Args:
        stage: the stage's own span.
    """

    def __init__(self, stage: ActiveSpan) -> None:
        self._stage = stage
        self._model: ActiveSpan | None = None
        self._leases = 0
        self._devices: list[str] = []
        self._workers: dict[Value, ActiveSpan] = {}
        self._rows: Counter[ActiveSpan] = Counter()
        self._peaks: dict[ActiveSpan, int] = {}
        self._started = 0

    def before(self, event: Event) -> ActiveSpan:
        """The span that the event belongs to, opened if the event begins it."""
        device, model = event.facts.get("device"), event.facts.get("model")
        if event.name == "lease.acquired" and isinstance(model, str):
            self._leases += 1
            if self._model is None:
                self._model = self._stage.open_model(model, event.at, {})
                self._devices = []
            self._devices.append(str(device))
            self._model.set(device=",".join(self._devices))
        elif event.name == "worker.started":
            self._end_worker(device, event.at)
            parent = self._model or self._stage
            self._workers[device] = parent.open_worker(
                self._started, event.at, {"device": device, "model": self._slug()}
            )
            self._started += 1
        return self._workers.get(device) or self._model or self._stage

    def after(self, event: Event) -> None:
        """Ends what the event ends."""
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
        """Ends every child that is still open."""
        for device in list(self._workers):
            self._end_worker(device, at)
        if self._model is not None:
            self._end(self._model, at)
            self._model = None

    def _around(self, device: Value) -> list[ActiveSpan]:
        """The open children that something on a device belongs to: its worker and the model."""
        return [span for span in (self._workers.get(device), self._model) if span is not None]

    def _end_worker(self, device: Value, at: float) -> None:
        worker = self._workers.pop(device, None)
        if worker is not None:
            self._end(worker, at)

    def _end(self, span: ActiveSpan, at: float) -> None:
        span.set(rows=self._rows.pop(span, 0), peak_bytes=self._peaks.pop(span, None))
        span.end(at)

    def _slug(self) -> Value:
        return self._model.record().attributes.get("model") if self._model is not None else None
