"""How long rerank may take, and how deep it gets within that: arithmetic and one small state machine, no models.

The two references are those of ``core.stage_seconds``. Either may be exceeded by a share (10 %), and rerank, which
comes last and can stop anywhere, gets what the stages before it left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.stages.held_model import HeldModel
from ensemble_assets.compute.tokens.token_tables import TokenBodies, TokenTable, pair_lengths, pair_table
from ensemble_assets.compute.tokens.tokenizer import Vocabulary

Against = Literal["sla", "own_dense", "off"]

DEFAULT_FLOOR = 5
GROWTH = 2.0
"""A slice at most doubles what was scored before, so that its predicted time rests on as much work as it has."""


@dataclass(frozen=True)
class Allowance:
    """What rerank may take.

    Attributes:
        against: which ratio decides; ``off`` where there is no limit.
        seconds: for rerank; negative where the stages before it have overspent; None without a limit.
        floor: candidates per query that are scored whatever it takes.
        reference: seconds that the limit is a share of; None without a limit.
        reason: why there is no limit: ``budget_off``, ``no_baseline`` or ``costs_unknown``; empty where there is one.
    """

    against: Against = "off"
    seconds: float | None = None
    floor: int = DEFAULT_FLOOR
    reason: str = "budget_off"
    reference: float | None = None


NO_LIMIT = Allowance()


def rerank_allowance(
    against: Against, share: float, floor: int, spent: StageSeconds, plain_dense: float | None
) -> Allowance:
    """What is left for rerank: ``(1 + share) * reference - spent``.

    Args:
        against: ``sla``: reference is ``plain_dense``, spent is everything else; ``own_dense``: reference is this run's
            dense stage, spent is dense, sparse and fusion; ``off``: no limit.
        share: by how much the reference may be exceeded, 0.1 for 10 %.
        floor: see ``Allowance``.
        spent: without rerank.
        plain_dense: seconds of the stored baseline; None where there is none, which for ``sla`` means no limit.
    """
    if against == "off":
        return Allowance("off", None, floor, "budget_off")
    if against == "own_dense":
        return Allowance(against, (1 + share) * spent.dense - spent.ranking, floor, "", spent.dense)
    if plain_dense is None:
        return Allowance(against, None, floor, "no_baseline")
    return Allowance(against, (1 + share) * plain_dense - spent.total, floor, "", plain_dense)


@dataclass
class Governor:
    """Says, slice after slice, down to which rank every query is scored next; stops when time is short.

    All queries' rank 1 comes before any query's rank 2, so what was reached is a prefix of every query's candidates.
    The first slice is the floor and is always run. Later ones double the depth; one that would not fit is cut to the
    rank that is predicted to, and is the last. So depths are the same in every run that has time enough.

    Attributes:
        allowance: the limit and the floor.
        requested: depth that is wanted.
        work: ``[requested + 1] float64``, tokens of all pairs of rank 1 to d at place d (0 at place 0).
        started: when the stage began, on ``clock``.
        growth: a slice's depth is at most this times what was reached; infinite where a slice has a large fixed cost.
        clock: seconds.
        reached: depth so far.
    """

    allowance: Allowance
    requested: int
    work: NDArray[np.float64]
    started: float
    growth: float = GROWTH
    clock: Callable[[], float] = time.perf_counter
    reached: int = 0
    _busy: float = field(default=0.0, init=False)
    _computed: float = field(default=0.0, init=False)
    _cut: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.allowance.floor < 1:
            raise SettingsError(f"rerank.floor is {self.allowance.floor}; expected at least 1")

    def next_depth(self) -> int:
        """The depth of the next slice; ``reached`` itself where there is none."""
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
        affordable = self.work[self.reached] + left * self._rate()
        fits = int(np.searchsorted(self.work, affordable, side="right")) - 1
        depth = max(self.reached, min(wanted, fits))
        self._cut = depth < wanted
        return depth

    def ran(self, depth: int, seconds: float, tokens: float) -> None:
        """A slice down to ``depth`` took so many seconds; ``tokens`` are those that were computed, not reused."""
        self._busy += seconds
        self._computed += tokens
        self.reached = depth

    def seconds_left(self) -> float:
        """Until the limit; infinite without one."""
        if self.allowance.seconds is None:
            return float("inf")
        return self.allowance.seconds - (self.clock() - self.started)

    def _rate(self) -> float:
        """Tokens per second so far, loading included; infinite where nothing had to be computed."""
        return self._computed / self._busy if self._busy > 0 and self._computed > 0 else float("inf")


@dataclass(frozen=True)
class TimeLimit:
    """What scoring may take, since when, and on which clock (seconds)."""

    allowance: Allowance
    started: float
    clock: Callable[[], float]


@dataclass(frozen=True)
class PairWork:
    """All pairs as tokens: rank of each, its rows of query and chunk bodies, and how a table is made of some."""

    ranks: NDArray[np.uint32]
    rows: NDArray[np.int64]
    queries: TokenBodies
    chunks: TokenBodies
    known: Vocabulary
    max_tokens: int

    def table(self, pairs: NDArray[np.int64]) -> TokenTable:
        """Some pairs, in the given order."""
        return pair_table(self.queries, self.chunks, self.rows[pairs], self.known.template, self.max_tokens)

    def tokens_to(self, depth: int) -> NDArray[np.float64]:
        """Tokens of all pairs of rank 1 to d, at place d; ``[depth + 1] float64``."""
        lengths = pair_lengths(self.queries, self.chunks, self.rows, self.known.template, self.max_tokens)
        return np.cumsum(np.bincount(self.ranks, weights=lengths, minlength=depth + 1)).astype(np.float64)


@dataclass
class SliceResults:
    """What all slices gave: logits and failures by pair, costs by slice."""

    logits: NDArray[np.float32]
    failed: dict[int, str]
    results: list[TableResult]
    reached: int = 0
    truncated: int = 0
    tokens: int = 0


def score_slices(work: PairWork, held: HeldModel, limit: TimeLimit) -> SliceResults:
    """Score slice after slice, each holding some ranks of all queries, as deep as the governor says."""
    allowance, requested = limit.allowance, int(work.ranks.max())
    events = held.context.events
    growth = float("inf") if held.reloads else GROWTH
    governor = Governor(allowance, requested, work.tokens_to(requested), limit.started, growth, limit.clock)
    if allowance.seconds is not None:
        events.emit(
            "budget.granted",
            against=allowance.against,
            baseline_seconds=allowance.reference,
            budget_seconds=allowance.seconds,
            requested_depth=requested,
        )
    made = SliceResults(np.full(len(work.ranks), np.nan, np.float32), {}, [])
    while (depth := governor.next_depth()) > governor.reached:
        pairs = np.flatnonzero((work.ranks > governor.reached) & (work.ranks <= depth))
        table = work.table(pairs)
        begun = limit.clock()
        result = held.run(table, f"ranks-{governor.reached + 1}-{depth}", pairs)
        governor.ran(depth, limit.clock() - begun, result.tokens)
        made.logits[pairs] = result.outputs["logit"]
        made.failed |= {int(pairs[row]): reason for row, reason in result.failed_rows.items()}
        made.truncated += int(table.truncated.sum())
        made.tokens += int(table.offsets[-1])
        made.results.append(result)
    made.reached = governor.reached
    if allowance.seconds is not None:
        events.emit(
            "budget.spent",
            against=allowance.against,
            budget_seconds=allowance.seconds,
            left_seconds=governor.seconds_left(),
            requested_depth=requested,
            reached_depth=made.reached,
        )
    return made
