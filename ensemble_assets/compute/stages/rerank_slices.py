"""Pairs through the CrossEncoder in slices by rank: all queries' best candidates first, as deep as time allows.

How deep that is, is ``latency_budget``'s to say; what becomes of the logits is ``rerank``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.stages.held_model import HeldModel
from ensemble_assets.compute.stages.rerank_depth import GROWTH, Allowance, Governor
from ensemble_assets.compute.tokens.token_tables import TokenBodies, TokenTable, pair_lengths, pair_table
from ensemble_assets.compute.tokens.tokenizer import Vocabulary


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
