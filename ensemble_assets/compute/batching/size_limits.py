"""Limit the size of a batch by the memory model, past successes and past failures. Pure arithmetic.

``planner`` chooses the rows of a batch within these limits; ``size_history`` keeps them between runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ensemble_assets.common.defaults import BATCH_TOKENS
from ensemble_assets.compute.batching.memory_model import Observation, PeakModel
from ensemble_assets.compute.tokens.token_tables import Batch

_DRIFT = 1.2
"""A batch that is no probe may exceed what has worked by this factor: rows get shorter from batch to batch."""

_FIRST_PART = 8
"""The first batches hold this part of the largest one: they run on all devices at once, and may all fail."""

_LOST_PER_BATCH_IN_FLIGHT = 2
"""Batches that may be lost for each that is in flight: in simulated worlds 14 were, with eight in flight."""

_MOST_FAILURES = 8
"""Failures that are remembered: the last ones, so that the bound follows a changed machine."""

_BELOW = 0.93
"""Share of a failed size up to which the bound grows back: that size itself would fail again."""

_REGROWTH = 1.15
"""Growth of the bound with every batch that fits."""

_PATIENCE = 32
"""Successes after which a size that failed is tried again. Doubles with every failure."""


@dataclass(frozen=True)
class SizeSettings:
    """Limits of a batch, in padded tokens; None for no such limit.

    Attributes:
        initial_tokens: size of the first batches of an unknown model; less if that is much of all tokens.
        growth: a probe may be this many times the largest batch that worked.
        share: a batch holds at most this share of all tokens, so that devices end together.
        saturation_tokens: but it may always hold this many, so that devices stay busy.
        redo_allowance: share of all tokens that may be computed again. After a failure, larger sizes than have worked
            are tried only within it.
        at_once: batches of a new size that may be lost together: those that are in flight on four devices.
    """

    initial_tokens: int = BATCH_TOKENS
    growth: float = 2.0
    share: float = 1 / 40
    saturation_tokens: int = 16384
    max_tokens: int | None = None
    max_rows: int | None = None
    redo_allowance: float = 0.03
    at_once: int = 4


class Failure(NamedTuple):
    """A batch that did not fit: padded tokens, tokens of its longest row, and what the allocator could hold."""

    tokens: int
    longest: int
    cap_bytes: int


@dataclass(frozen=True)
class KnownSizes:
    """Knowledge of earlier runs about batch sizes of one model on one kind of device.

    ``worked_tokens`` are the most padded tokens of a batch that fitted, ``worked_square`` the most tokens times longest
    row. ``failures`` are the last batches that did not fit although no other program took memory.
    """

    observations: tuple[Observation, ...] = ()
    worked_tokens: int = 0
    worked_square: int = 0
    failures: tuple[Failure, ...] = ()


class FailedSizes:
    """The bound that failures set on batches, in padded tokens: halved by a failure, then growing to just below it.

    A failure that the memory model explains (it predicts more than there was) sets no bound: the model would not allow
    that batch again. An unexplained failure limits tokens, since its cause is unknown.
    """

    def __init__(self, failures: Iterable[Failure] = ()) -> None:
        self._failures: deque[Failure] = deque(failures, maxlen=_MOST_FAILURES)
        self._bound = min((failure.tokens * _BELOW for failure in self._failures), default=math.inf)
        self._patience = _PATIENCE
        self._successes = 0

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The last failures."""
        return tuple(self._failures)

    def failed(self, failure: Failure) -> None:
        """Learn from a batch that did not fit."""
        self._failures.append(failure)
        self._bound = min(self._bound, failure.tokens / 2)
        self._successes = 0
        self._patience *= 2

    def succeeded(self, model: PeakModel) -> None:
        """Learn from a batch that fitted: the bound grows, and after many successes beyond the failed size."""
        self._successes += 1
        if self._successes >= self._patience:
            self._successes = 0
            raised = [failure._replace(tokens=int(failure.tokens * _REGROWTH) + 1) for failure in self._failures]
            self._failures = deque(raised, maxlen=_MOST_FAILURES)
        self._bound = min(self._bound * _REGROWTH, self._least(model) * _BELOW)

    def bound(self, model: PeakModel, worked_tokens: int, affordable_tokens: float) -> float:
        """Return the largest batch in padded tokens; ``model`` explains failures by the memory that it predicts.

        A size that has not worked yet may be risked with ``affordable_tokens`` at most.
        """
        least = self._least(model)
        if math.isinf(least):
            self._bound = least
            return least
        self._bound = min(self._bound, least * _BELOW)
        return self._bound if self._bound <= affordable_tokens else min(self._bound, max(worked_tokens, least / 2))

    def unexplained(self, model: PeakModel) -> bool:
        """Whether a size failed that the model's memory does not explain."""
        return math.isfinite(self._least(model))

    def _least(self, model: PeakModel) -> float:
        """The smallest size that failed without an explanation."""
        return min(
            (float(failure.tokens) for failure in self._failures if not _explains(model, failure)), default=math.inf
        )


def _explains(model: PeakModel, failure: Failure) -> bool:
    return model.fitted and model.predict(failure.tokens, failure.longest) * (1 + model.error) > failure.cap_bytes


class SizeLimits:
    """Learns from every batch how large the next one may be."""

    def __init__(self, settings: SizeSettings, total_tokens: int, earlier: KnownSizes | None = None) -> None:
        earlier = earlier or KnownSizes()
        self.model = PeakModel(earlier.observations)
        self._settings = settings
        self._total = total_tokens
        self._worked_tokens = earlier.worked_tokens
        self._worked_square = earlier.worked_square
        self._worked_bytes = max((observation.peak_bytes for observation in earlier.observations), default=0)
        self._failed = FailedSizes(earlier.failures)
        self._surprises = 0

    def learned(self) -> KnownSizes:
        """Return what the next run should know."""
        return KnownSizes(self.model.observations, self._worked_tokens, self._worked_square, self._failed.failures)

    def need(self, longest: int) -> float:
        """Predict the peak of a single row in bytes, error included; 0 before the first batch."""
        return self.model.predict(longest, longest) * (1 + self.model.error) if self.model.fitted else 0.0

    def allowed_tokens(self, longest: int, available_bytes: int, redone_tokens: int, probe: bool) -> float:
        """Return the largest batch that may be tried now, in padded tokens; may be less than one row.

        A ``probe`` may be much larger than any batch that worked. ``redone_tokens`` are those computed again so far.
        """
        settings = self._settings
        tokens = max(float(settings.saturation_tokens), settings.share * self._total)
        worked = max(self._has_worked(longest), min(settings.initial_tokens, tokens / _FIRST_PART))
        if settings.max_tokens is not None:
            tokens = min(tokens, settings.max_tokens)
        tokens = min(tokens, worked * self._growth(worked, redone_tokens, probe))
        if self.model.fitted:
            tokens = min(tokens, self.model.tokens_within(available_bytes, longest))
        return min(tokens, self._failed.bound(self.model, self._worked_tokens, self._affordable(redone_tokens, probe)))

    def _has_worked(self, longest: int) -> float:
        """Return the padded tokens that have worked with rows this long, by their number or by the memory they took.

        Rows get shorter, and as many tokens of shorter rows take less. After a failure that memory does not explain
        only the number counts.
        """
        by_number = min(self._worked_tokens, self._worked_square / longest)
        if not self.model.fitted or self._failed.unexplained(self.model):
            return by_number
        return max(by_number, self.model.tokens_within(self._worked_bytes, longest))

    def _growth(self, worked: float, redone_tokens: int, probe: bool) -> float:
        """The factor by which a batch may exceed the ``worked`` tokens."""
        if not self._worked_tokens:
            return 1.0
        if probe:
            return self._settings.growth
        return min(_DRIFT, max(1.0, self._affordable(redone_tokens, probe) / worked))

    def _affordable(self, redone_tokens: int, probe: bool) -> float:
        """The largest batch that may be lost. One probe runs at a time, and others are in flight on every device."""
        left = self._settings.redo_allowance * self._total - redone_tokens
        return left if probe else left / (_LOST_PER_BATCH_IN_FLIGHT * self._settings.at_once)

    def worked(self, batch: Batch, peak_bytes: int) -> None:
        """Learn from a batch that fitted."""
        self.model.observe(batch.tokens, batch.longest, peak_bytes)
        self._worked_tokens = max(self._worked_tokens, batch.tokens)
        self._worked_square = max(self._worked_square, batch.tokens * batch.longest)
        self._worked_bytes = max(self._worked_bytes, peak_bytes)
        self._surprises = 0
        self._failed.succeeded(self.model)

    def failed(self, batch: Batch, cap_bytes: int) -> None:
        """Learn from a batch that did not fit into ``cap_bytes`` although no other program had taken memory.

        If its size had worked before, one failure counts as chance (fragmentation); two in a row do not.
        """
        worked_before = batch.tokens <= self._worked_tokens and batch.tokens * batch.longest <= self._worked_square
        self._surprises += 1
        if worked_before and self._surprises < 2:
            return
        if worked_before:
            self._worked_tokens = batch.tokens // 2
        self._failed.failed(Failure(batch.tokens, batch.longest, cap_bytes))
