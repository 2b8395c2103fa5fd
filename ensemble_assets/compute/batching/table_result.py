"""The result of running a token table through a model, and the reasons for a row without outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.compute_devices import UsedDevices, merge_devices

OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "not_finite"
NO_TOKENS = "no_tokens"


class TokenOutputs(Protocol):
    """Outputs per token of all rows of a table."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, ``[n] int64``; 0 where it failed, or has no outputs per token."""

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read one output of some rows, ``[tokens of the rows, *shape]``, row after row."""


@dataclass(frozen=True)
class TableResult:
    """Outputs and costs of a run. The default is a run of no rows.

    Attributes:
        outputs: ``[n, *shape]`` per output of the forward; rows that failed are zero.
        failed_rows: reason by row: ``out_of_memory``, ``not_finite``, ``no_tokens``, the reason for which
            devices were lost with the row, or an exception's ``failure_word``.
        seconds: wall time, loading included.
        tokens: tokens of the distinct rows that ran, padding not counted.
        peak_bytes: most memory in use on any device, see ``devices.device.MemoryReading.used``.
        precision_redone: distinct rows computed again in fp32 because they were not finite.
        by_token: outputs per token of all rows; None where the forward has none.
    """

    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    failed_rows: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    peak_bytes: int = 0
    precision_redone: int = 0
    distinct_rows: int = 0
    device: UsedDevices = field(default_factory=UsedDevices)
    precision: str = "none"
    largest_batch: int = 0
    reused_rows: int = 0
    by_token: TokenOutputs | None = None


def merge_results(parts: Sequence[TableResult]) -> TableResult:
    """Add up the costs of runs over different rows. Outputs and failed rows are left for the caller to place."""
    if not parts:
        return TableResult()
    return replace(
        parts[-1],
        outputs={},
        failed_rows={},
        device=merge_devices(part.device for part in parts),
        **{name: sum(getattr(part, name) for part in parts) for name in _ADD_UP},
        **{name: max(getattr(part, name) for part in parts) for name in ("peak_bytes", "largest_batch")},
    )


_ADD_UP = ("seconds", "tokens", "precision_redone", "distinct_rows", "reused_rows")
