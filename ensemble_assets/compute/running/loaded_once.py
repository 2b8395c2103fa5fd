"""Keep a model loaded between the runs of one block, and report parts of a table by the whole table's row numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.events import EventSink, Value
from ensemble_assets.compute.backends.forward import Forward, ForwardFactory


@contextmanager
def loaded_once(factory: ForwardFactory) -> Iterator[ForwardFactory]:
    """Make a factory that loads the model on first use and hands out the same one afterwards.

    The model is freed when the block ends. Only for use in this process: workers load their own.
    """
    once: Any = _LoadedOnce(factory)
    try:
        yield once
    finally:
        once.end()


class _LoadedOnce:
    """Hands out one loaded model and frees it only in ``end``."""

    def __init__(self, factory: ForwardFactory) -> None:
        self._factory = factory
        self._forward: Forward | None = None
        self.spec, self.traits, self.width = factory.spec, factory.traits, factory.width
        self.backend, self.reason = factory.backend, factory.reason
        self.identity, self.outputs = factory.identity, factory.outputs

    def full_precision(self) -> ForwardFactory | None:
        return self._factory.full_precision()

    def prepare(self) -> None:
        self._factory.prepare()

    def load(self, device: str) -> Forward:
        if self._forward is None:
            self._forward = self._factory.load(device)
        return self._forward

    def unload(self, forward: Forward) -> None:
        """Keep the model for the next run."""

    def end(self) -> None:
        if self._forward is not None:
            self._factory.unload(self._forward)
            self._forward = None


@dataclass(frozen=True)
class PartEvents:
    """An event sink for the run of some rows of a table; ``rows`` are their numbers in the whole one, ``[n] int64``."""

    sink: EventSink
    rows: NDArray[np.int64]

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now, with ``row`` translated to the whole table's number."""
        row = facts.get("row")
        if isinstance(row, int):
            facts["row"] = int(self.rows[row])
        self.sink.emit(name, **facts)
