"""What can become of a batch, as the worker that ran it tells the one who planned it. Data only, picklable."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_assets.common.errors import StageError
from ensemble_assets.compute.devices.ceiling import Headroom


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


class DeviceOutOfMemoryError(Exception):
    """One batch did not fit into a device's memory. Carries numbers only; the batch itself is the caller's."""


class ModelFailedError(StageError):
    """A model raised something else than out-of-memory on a batch.

    The original exception's message may quote the input, so only ``failure_word`` of it is kept, as ``reason``.
    """

    def __init__(self, model: str, reason: str, size: int, longest: int) -> None:
        super().__init__(f"{model}: the model failed on a batch of {size} rows of up to {longest} tokens ({reason})")
        self.model = model
        self.reason = reason
        self.size = size
        self.longest = longest

    def __reduce__(self) -> tuple[type[ModelFailedError], tuple[str, str, int, int]]:
        """So that workers can send it to their parent."""
        return ModelFailedError, (self.model, self.reason, self.size, self.longest)
