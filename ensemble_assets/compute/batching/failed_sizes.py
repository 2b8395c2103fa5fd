"""Batch sizes that did not fit, and how large a batch may be because of them. Pure arithmetic."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ensemble_assets.compute.batching.memory_model import PeakModel

_KEPT = 8
_BELOW = 0.93
_REGROWTH = 1.15
_PATIENCE = 32  # successes before a size that failed is thought to be worth another try; doubles with every failure


class Failure(NamedTuple):
    """A batch that did not fit: padded tokens, tokens of its longest row, and what the allocator could hold."""

    tokens: int
    longest: int
    cap_bytes: int


class FailedSizes:
    """Keeps the bound on batches, in padded tokens: halved by a failure, growing back to just below what failed.

    A failure that the memory model explains (it predicts more than there was) bounds nothing: the model would not plan
    that batch again. What it cannot explain may depend on anything, so it is taken as a limit on tokens.
    """

    def __init__(self, failures: Iterable[Failure] = ()) -> None:
        self._failures: deque[Failure] = deque(failures, maxlen=_KEPT)
        self._bound = min((failure.tokens * _BELOW for failure in self._failures), default=math.inf)
        self._patience = _PATIENCE
        self._successes = 0

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The last failures."""
        return tuple(self._failures)

    def failed(self, failure: Failure) -> None:
        """A batch did not fit."""
        self._failures.append(failure)
        self._bound = min(self._bound, failure.tokens / 2)
        self._successes = 0
        self._patience *= 2

    def succeeded(self, model: PeakModel) -> None:
        """A batch fitted: the bound grows, after many also beyond what failed."""
        self._successes += 1
        if self._successes >= self._patience:
            self._successes = 0
            kept = [failure._replace(tokens=int(failure.tokens * _REGROWTH) + 1) for failure in self._failures]
            self._failures = deque(kept, maxlen=_KEPT)
        self._bound = min(self._bound * _REGROWTH, self._least(model) * _BELOW)

    def bound(self, model: PeakModel, worked_tokens: int, affordable_tokens: float) -> float:
        """The largest batch in padded tokens.

        Args:
            model: explains failures, or not.
            worked_tokens: the largest batch that worked.
            affordable_tokens: a size that has neither worked nor is half of one that failed must not be larger, since
                it may be lost.
        """
        least = self._least(model)
        if math.isinf(least):
            self._bound = least
            return least
        self._bound = min(self._bound, least * _BELOW)
        return self._bound if self._bound <= affordable_tokens else min(self._bound, max(worked_tokens, least / 2))

    def _least(self, model: PeakModel) -> float:
        """The smallest size that failed without an explanation."""
        return min((float(one.tokens) for one in self._failures if not _explains(model, one)), default=math.inf)


def _explains(model: PeakModel, failure: Failure) -> bool:
    return model.known and model.predict(failure.tokens, failure.longest) * (1 + model.error) > failure.cap_bytes
