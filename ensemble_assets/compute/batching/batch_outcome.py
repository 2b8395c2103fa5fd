"""The outcomes of a batch, which a worker sends to the planner, and the errors of a model. Picklable data."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_assets.common.errors import StageError
from ensemble_assets.compute.devices.ceiling import Headroom


@dataclass(frozen=True)
class Finished:
    """All rows of the batch are stored; those in ``not_finite`` are to be done again in full precision.

    ``peak_bytes`` is the allocator's peak during the batch, ``headroom`` the memory left on the device now.
    """

    number: int
    peak_bytes: int
    seconds: float
    headroom: Headroom
    not_finite: tuple[int, ...] = ()


@dataclass(frozen=True)
class DidNotFit:
    """The device ran out of memory; no row of the batch is stored. ``headroom`` is after cleaning up."""

    number: int
    at_failure: Headroom
    headroom: Headroom


@dataclass(frozen=True)
class ModelFailed:
    """The model raised another error; no row of the batch is stored.

    ``reason`` is the class name of the exception, whose message may quote the input and is dropped.
    """

    number: int
    reason: str
    headroom: Headroom


Outcome = Finished | DidNotFit | ModelFailed


class DeviceOutOfMemoryError(Exception):
    """A batch did not fit into a device's memory. The message holds numbers only."""


class ModelFailedError(StageError):
    """A model raised another error than out-of-memory on a batch of ``size`` rows, the longest of ``longest`` tokens.

    ``reason`` is the ``failure_word`` of the exception, whose message may quote the input.
    """

    def __init__(self, model: str, reason: str, size: int, longest: int) -> None:
        super().__init__(f"{model}: the model failed on a batch of {size} rows of up to {longest} tokens ({reason})")
        self.model = model
        self.reason = reason
        self.size = size
        self.longest = longest

    def __reduce__(self) -> tuple[type[ModelFailedError], tuple[str, str, int, int]]:
        """Pickle the arguments, so that workers can send the error to their parent."""
        return ModelFailedError, (self.model, self.reason, self.size, self.longest)
