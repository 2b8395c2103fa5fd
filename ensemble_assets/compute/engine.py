"""What comes out of a run of a token table through a model, and which of its rows need to be run at all.

Running is other modules' part: ``parallel`` takes a table through, ``controller`` plans batches, ``execute`` runs one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.work import ForwardFactory, TokenTable

OUT_OF_MEMORY = "out_of_memory"
NOT_FINITE = "not_finite"
NO_TOKENS = "no_tokens"


@dataclass(frozen=True)
class EngineResult:
    """What came out of a run.

    Attributes:
        outputs: ``[n, *shape]`` per output of the forward; rows that failed are zero.
        failed_rows: row -> why: ``out_of_memory``, ``not_finite``, ``no_tokens`` or ``failure_word`` of an exception.
        seconds: wall time, loading included.
        tokens: tokens of the distinct rows that ran, padding not counted.
        peak_bytes: most memory in use on any device; what counts is ``devices.device.MemoryReading.used``.
        precision_redone: distinct rows computed again in fp32 because they were not finite.
        distinct_rows: rows that were different from all before.
        device: ``cpu`` or the UUIDs of the devices, joined by commas; ``none`` if there was nothing to run.
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
    device: str
    precision: str
    largest_batch: int = 0
    reused_rows: int = 0


@runtime_checkable
class HasFullPrecision(Protocol):
    """A factory that can make the same model in fp32."""

    def full_precision(self) -> ForwardFactory:
        """The same model in fp32."""
        ...


@runtime_checkable
class HasWidth(Protocol):
    """A factory that knows how wide its model's token states are."""

    @property
    def width(self) -> int:
        """0 where that is not known."""
        ...


@runtime_checkable
class HasRelease(Protocol):
    """A forward that can give its memory back at once: networks are in reference cycles and would wait for a sweep."""

    def release(self) -> None:
        """Drop the weights; the forward is of no use afterwards."""
        ...


def first_equal_rows(table: TokenTable) -> NDArray[np.int64]:
    """For every row the first row with the same tokens and segments (itself where there is none), ``[n] int64``."""
    first: dict[bytes, int] = {}
    same_as = np.empty(len(table), np.int64)
    bounds = table.offsets.tolist()
    seconds = None if table.second_from is None else table.second_from.tolist()
    for row in range(len(table)):
        digest = hashlib.blake2b(table.ids[bounds[row] : bounds[row + 1]].tobytes(), digest_size=16)
        if seconds is not None:
            digest.update(seconds[row].to_bytes(8, "little"))
        same_as[row] = first.setdefault(digest.digest(), row)
    return same_as
