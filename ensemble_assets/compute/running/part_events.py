"""Some rows of a table run as a table of their own: what happens to them is told by their numbers in the whole one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.events import EventSink, Value


@dataclass(frozen=True)
class PartEvents:
    """An event sink for the run of a part.

    Attributes:
        sink: where the events go.
        rows: ``[n] int64``, the number in the whole table of every row of the part.
    """

    sink: EventSink
    rows: NDArray[np.int64]

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now, with ``row`` renumbered."""
        row = facts.get("row")
        if isinstance(row, int):
            facts["row"] = int(self.rows[row])
        self.sink.emit(name, **facts)
