"""What comes out of a run of a token table through a model, and the words for why a row has nothing. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ensemble_assets.common.compute_devices import UsedDevices

OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "not_finite"
NO_TOKENS = "no_tokens"


@dataclass(frozen=True)
class TableResult:
    """What came out of a run.

    Attributes:
        outputs: ``[n, *shape]`` per output of the forward; rows that failed are zero.
        failed_rows: row -> why: ``out_of_memory``, ``not_finite``, ``no_tokens`` or ``failure_word`` of an exception.
        seconds: wall time, loading included.
        tokens: tokens of the distinct rows that ran, padding not counted.
        peak_bytes: most memory in use on any device; what counts is ``devices.device.MemoryReading.used``.
        precision_redone: distinct rows computed again in fp32 because they were not finite.
        distinct_rows: rows that were different from all before.
        device: the devices that ran rows; of kind ``none`` if there was nothing to run.
        precision: what the forward computed in.
        largest_batch: rows of the largest batch that worked.
        reused_rows: rows whose outputs an earlier run had computed.
    """

    outputs: dict[str, NDArray[Any]]
    failed_rows: dict[int, str]
    seconds: float
    tokens: int
    peak_bytes: int
    precision_redone: int
    distinct_rows: int
    device: UsedDevices
    precision: str
    largest_batch: int = 0
    reused_rows: int = 0
