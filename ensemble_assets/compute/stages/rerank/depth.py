"""Score pairs in slices by rank, all queries' best candidates first, as deep as the latency budget allows.

``rerank_allowance`` says how long rerank may take, ``score_slices`` runs the slices, and ``Governor`` decides how deep
each one goes. Rerank comes last and can stop anywhere, so it gets the time that the stages before it left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.defaults import RERANK_FLOOR
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.stages.held_model import HeldModel
from ensemble_assets.compute.stages.rerank.pairs import PairRows

Against = Literal["sla", "own_dense", "off"]

GROWTH = 2.0
"""A slice at most doubles the depth: then the work measured before it is at least as large as its own."""


@dataclass(frozen=True)
class Allowance:
    """The time that rerank may take.

    Attributes:
        against: the reference; ``off`` where there is no limit.
        seconds: for rerank; negative where the stages before it have overspent; None without a limit.
        floor: candidates per query that are scored however long it takes.
        reference: seconds that the limit is a share of; None without a limit.
        reason: a fixed word where there is no limit: ``budget_off``, ``no_baseline`` or ``costs_unknown``; else empty.
    """

    against: Against = "off"
    seconds: float | None = None
    floor: int = RERANK_FLOOR
    reason: str = "budget_off"
    reference: float | None = None


NO_LIMIT = Allowance()


def rerank_allowance(
    against: Against, share: float, floor: int, spent: StageSeconds, plain_dense: float | None
) -> Allowance:
    """Compute the time that is left for rerank: ``(1 + share) * reference - spent``.

    For ``sla`` the reference is ``plain_dense``, the stored baseline (None: no limit), and every other stage counts as
    spent. For ``own_dense`` it is this run's dense stage, and dense, sparse and fusion count as spent.
    """
    if against == "off":
        return Allowance("off", None, floor, "budget_off")
    if against == "own_dense":
        return Allowance(against, (1 + share) * spent.dense - spent.ranking, floor, "", spent.dense)
    if plain_dense is None:
        return Allowance(against, None, floor, "no_baseline")
    return Allowance(against, (1 + share) * plain_dense - spent.total, floor, "", plain_dense)


@dataclass(frozen=True)
class TimeLimit:
    """The allowance of a stage that began at ``started`` on ``clock`` (seconds)."""

    allowance: Allowance
    started: float
    clock: Callable[[], float]


@dataclass
class SliceResults:
    """Results of all slices, down to depth ``reached``.

    ``logits`` are ``[n] float32`` by window, NaN where it was not scored; ``failed`` has the reasons. ``truncated``
    rows (late interaction: texts) lost ``tokens_dropped``.
    """

    logits: NDArray[np.float32]
    failed: dict[int, str]
    results: list[TableResult]
    reached: int = 0
    truncated: int = 0
    tokens_dropped: int = 0


def score_slices(work: PairRows, held: HeldModel, limit: TimeLimit) -> SliceResults:
    """Score slice after slice, each holding some ranks of all queries, as deep as the governor says."""
    allowance, clock = limit.allowance, limit.clock
    requested, events = int(work.ranks.max()), held.events
    tokens_to = np.cumsum(np.bincount(work.ranks, weights=work.lengths, minlength=requested + 1))
    # where every slice loads the model, that costs more than a too long slice, so make only two
    growth = float("inf") if held.round_trips else GROWTH
    governor = Governor(allowance, requested, tokens_to.astype(np.float64), limit.started, growth, clock)
    if allowance.seconds is not None:
        events.emit(
            "budget.granted",
            against=allowance.against,
            baseline_seconds=allowance.reference,
            budget_seconds=allowance.seconds,
            requested_depth=requested,
        )
    slices = SliceResults(np.full(len(work.ranks), np.nan, np.float32), {}, [])
    while (depth := governor.next_depth()) > governor.reached:
        chosen = np.flatnonzero((work.ranks > governor.reached) & (work.ranks <= depth))
        begun = clock()
        made = work.run(held, chosen)
        governor.record_slice(depth, clock() - begun, made.result.tokens)
        slices.logits[chosen] = made.logits
        slices.failed |= {int(chosen[row]): reason for row, reason in made.failed.items()}
        slices.truncated += made.truncated
        slices.tokens_dropped += made.tokens_dropped
        slices.results.append(made.result)
    slices.reached = governor.reached
    if allowance.seconds is not None:
        events.emit(
            "budget.spent",
            against=allowance.against,
            budget_seconds=allowance.seconds,
            left_seconds=governor.seconds_left(),
            requested_depth=requested,
            reached_depth=slices.reached,
        )
    return slices


@dataclass
class Governor:
    """Decides, slice after slice, down to which rank every query is scored next, and stops when time is short.

    All queries' rank 1 comes before any query's rank 2. So the scored candidates are a prefix of every query's list.
    The first slice is the floor and is always run. Later slices double the depth. A slice that would not fit is cut to
    the rank that is predicted to fit, and is the last. So depths are the same in every run that has time enough.

    Attributes:
        work: ``[requested + 1] float64``, tokens of all pairs of rank 1 to d at place d (0 at place 0).
        started: when the stage began, on ``clock``, in seconds.
        growth: a slice's depth is at most this times the depth before; infinite where a slice has a large fixed cost.
        reached: depth so far.
    """

    allowance: Allowance
    requested: int
    work: NDArray[np.float64]
    started: float
    growth: float = GROWTH
    clock: Callable[[], float] = time.perf_counter
    reached: int = 0
    _busy_seconds: float = field(default=0.0, init=False)
    _computed_tokens: float = field(default=0.0, init=False)
    _cut: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.allowance.floor < 1:
            raise SettingsError(f"rerank.floor is {self.allowance.floor}; expected at least 1")

    def next_depth(self) -> int:
        """Return the depth of the next slice; ``reached`` itself where there is none."""
        if self.allowance.seconds is None:
            return self.requested
        if self.reached == 0:
            return min(self.allowance.floor, self.requested)
        if self._cut or self.reached >= self.requested:
            return self.reached
        left = self.seconds_left()
        if left <= 0:
            return self.reached
        wanted = int(min(self.requested, self.reached * self.growth))
        affordable = self.work[self.reached] + left * self._tokens_per_second()
        fitting = int(np.searchsorted(self.work, affordable, side="right")) - 1
        depth = max(self.reached, min(wanted, fitting))
        self._cut = depth < wanted
        return depth

    def record_slice(self, depth: int, seconds: float, tokens: float) -> None:
        """Note that a slice down to ``depth`` took so many seconds for ``tokens`` computed (not reused) tokens."""
        self._busy_seconds += seconds
        self._computed_tokens += tokens
        self.reached = depth

    def seconds_left(self) -> float:
        """Return the seconds until the limit; infinite without one."""
        if self.allowance.seconds is None:
            return float("inf")
        return self.allowance.seconds - (self.clock() - self.started)

    def _tokens_per_second(self) -> float:
        """Return the speed so far, loading included; infinite where nothing had to be computed."""
        if self._busy_seconds > 0 and self._computed_tokens > 0:
            return self._computed_tokens / self._busy_seconds
        return float("inf")
