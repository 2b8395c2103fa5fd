"""What can become of a batch, as the worker that ran it tells the one who planned it. Data only, picklable."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_assets.compute.ceiling import Headroom


@dataclass(frozen=True)
class Finished:
    """All rows of the batch are stored.

    Attributes:
        number: of the assignment.
        peak_bytes: the allocator's peak during the batch.
        seconds: how long it took.
        headroom: memory left on the device now.
        not_finite: rows with a NaN or an infinity, to be done again in full precision.
    """

    number: int
    peak_bytes: int
    seconds: float
    headroom: Headroom
    not_finite: tuple[int, ...] = ()


@dataclass(frozen=True)
class DidNotFit:
    """The device ran out of memory; no row of the batch is stored.

    Attributes:
        number: of the assignment.
        at_failure: what the device had when it happened.
        headroom: memory left on the device now, after cleaning up.
    """

    number: int
    at_failure: Headroom
    headroom: Headroom


@dataclass(frozen=True)
class ModelFailed:
    """The model raised something else; no row of the batch is stored.

    Attributes:
        number: of the assignment.
        reason: class name of the exception; its message may quote the input and stays behind.
        headroom: memory left on the device now.
    """

    number: int
    reason: str
    headroom: Headroom


Outcome = Finished | DidNotFit | ModelFailed
