"""How large a batch may be: what the memory model, past successes and past failures allow. Pure arithmetic.

Keeping this between runs is ``batch_memory``'s part; which rows make the batch is ``controller``'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_assets.compute.batching.failed_sizes import FailedSizes, Failure
from ensemble_assets.compute.batching.memory_model import Observation, PeakModel
from ensemble_assets.compute.tokens.token_tables import Batch

_DRIFT = 1.2  # beyond what has worked, without a probe: rows get shorter from batch to batch
_FIRST_PART = 8  # of the largest batch: the first ones run on all devices at once, and all of them may not fit
_AT_ONCE = 4  # batches of a new size that may be lost together, one on each device


@dataclass(frozen=True)
class SizeSettings:
    """Limits of a batch, in padded tokens.

    Attributes:
        initial_tokens: size of the first batches where nothing is known; less where that is much of all work.
        growth: a probe may be this many times the largest that worked.
        share: no batch is more than this share of all tokens,
        saturation_tokens: unless it is smaller than this, where devices would not be busy.
        max_tokens: no batch is larger, whatever the memory; None for no such limit.
        max_rows: the same in rows.
        redo_allowance: once a size has failed, larger ones than have worked are tried only while all that was redone
            stays within this share of all tokens.
    """

    initial_tokens: int = 4096
    growth: float = 2.0
    share: float = 1 / 40
    saturation_tokens: int = 16384
    max_tokens: int | None = None
    max_rows: int | None = None
    redo_allowance: float = 0.03


@dataclass(frozen=True)
class SizeMemory:
    """What is known about batch sizes of one model on one kind of device.

    Attributes:
        observations: peaks of batches, for the memory model.
        worked_tokens: most padded tokens that went through.
        worked_square: most tokens times longest that went through.
        failures: the last batches that did not fit although nobody else took memory.
    """

    observations: tuple[Observation, ...] = ()
    worked_tokens: int = 0
    worked_square: int = 0
    failures: tuple[Failure, ...] = ()


class BatchSizes:
    """Learns from every batch and says how large the next may be.

    Args:
        settings: the limits.
        total_tokens: tokens of all work.
        memory: what earlier runs learned.
    """

    def __init__(self, settings: SizeSettings, total_tokens: int, memory: SizeMemory | None = None) -> None:
        known = memory or SizeMemory()
        self.model = PeakModel(known.observations)
        self._settings = settings
        self._total = total_tokens
        self._worked_tokens = known.worked_tokens
        self._worked_square = known.worked_square
        self._failed = FailedSizes(known.failures)
        self._surprises = 0

    def memory(self) -> SizeMemory:
        """What is worth keeping for the next run."""
        return SizeMemory(self.model.observations, self._worked_tokens, self._worked_square, self._failed.failures)

    def need(self, longest: int) -> float:
        """Predicted peak of a single row in bytes, error included; 0 where nothing is known."""
        return self.model.predict(longest, longest) * (1 + self.model.error) if self.model.known else 0.0

    def allowed_tokens(self, longest: int, available_bytes: int, redone_tokens: int, probe: bool) -> float:
        """The largest batch of rows up to ``longest`` that may be tried now, in padded tokens; may be under one row.

        Args:
            longest: tokens of the longest row.
            available_bytes: what the device's allocator may hold.
            redone_tokens: tokens that had to be computed again so far.
            probe: whether the batch may be much larger than what has worked.
        """
        settings = self._settings
        tokens = max(float(settings.saturation_tokens), settings.share * self._total)
        known = max(
            min(self._worked_tokens, self._worked_square / longest), min(settings.initial_tokens, tokens / _FIRST_PART)
        )
        if settings.max_tokens is not None:
            tokens = min(tokens, settings.max_tokens)
        tokens = min(tokens, known * self._growth(known, redone_tokens, probe))
        if self.model.known:
            tokens = min(tokens, self.model.tokens_within(available_bytes, longest))
        return min(tokens, self._failed.bound(self.model, self._worked_tokens, self._affordable(redone_tokens, probe)))

    def _growth(self, known: float, redone_tokens: int, probe: bool) -> float:
        """By how much a batch may exceed what has worked."""
        if not self._worked_tokens:
            return 1.0
        if probe:
            return self._settings.growth
        return min(_DRIFT, max(1.0, self._affordable(redone_tokens, probe) / known))

    def _affordable(self, redone_tokens: int, probe: bool) -> float:
        """The largest batch that may be lost: one probe is on its way at a time, other batches on every device."""
        left = self._settings.redo_allowance * self._total - redone_tokens
        return left if probe else left / _AT_ONCE

    def worked(self, batch: Batch, peak_bytes: int) -> None:
        """A batch went through."""
        self.model.observe(batch.tokens, batch.longest, peak_bytes)
        self._worked_tokens = max(self._worked_tokens, batch.tokens)
        self._worked_square = max(self._worked_square, batch.tokens * batch.longest)
        self._surprises = 0
        self._failed.succeeded(self.model)

    def failed(self, batch: Batch, cap_bytes: int) -> None:
        """A batch did not fit into ``cap_bytes`` although nobody else had taken memory.

        If its size had worked before, once is taken for chance (fragmentation, a driver's whim); twice in a row is not.
        """
        known = batch.tokens <= self._worked_tokens and batch.tokens * batch.longest <= self._worked_square
        self._surprises += 1
        if known and self._surprises < 2:
            return
        if known:
            self._worked_tokens = batch.tokens // 2
        self._failed.failed(Failure(batch.tokens, batch.longest, cap_bytes))
