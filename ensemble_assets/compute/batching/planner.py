"""Plan batches: choose rows, learn from outcomes, split what did not fit. Pure logic, without clock, device or process.

Rows go longest first, so batches hardly pad and the last ones are short. A batch gets as many rows as the fitted model
of peak memory allows within the device's available memory, and never more than

* about what has worked so far. Every ``lookahead``-th batch is a probe, which may hold ``growth`` times as much;
* a fixed share of all tokens: a lost batch then costs little, and devices end together;
* what failed before: the size is halved, then grows back to just below it. It grows beyond only while all tokens that
  were computed again stay within an allowance.

The plan of batch ``k`` uses only outcomes of batches up to ``k - lookahead``. So the order in which devices finish does
not change the plan, as long as there are at most ``lookahead / 2`` devices of equal memory and nothing fails. No device
waits for a late outcome; ``Tally.out_of_step`` counts them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.batching.assignment import Assignment, Hold, Part, Tally
from ensemble_assets.compute.batching.size_limits import KnownSizes, SizeLimits, SizeSettings
from ensemble_assets.compute.batching.table_result import OUT_OF_MEMORY
from ensemble_assets.compute.devices.ceiling import Headroom
from ensemble_assets.compute.tokens.token_tables import Batch

_SINGLE_ATTEMPTS = 2
"""Attempts at a single row that does not fit: the first failure may be chance (fragmentation)."""

_MOST_ATTEMPTS = 8
"""Attempts at a single row that waits for other programs' memory each time. A run must end at last."""

_STEP_UP = 1.05
"""A single row is tried again once it may take this much more memory than when it failed."""

_STRIKES = 8
"""After so many single rows in a row failed or did not fit, only the shortest row is tried: it shows if any works."""


@dataclass(frozen=True)
class PlannerSettings:
    """Settings of the batch planner: limits of size, and the number of latest batches whose outcomes are not used."""

    sizes: SizeSettings = field(default_factory=SizeSettings)
    lookahead: int = 4


class BatchPlanner:
    """Hands out every row exactly once, in batches that fit.

    ``lengths`` ``[n] int64`` are the tokens of every row of the table; ``rows`` ``[m] int64`` are to run, each once.
    ``elsewhere_bytes`` is the most that an allocator on another device could hold, were other programs gone: rows that
    need so much are left to that device. ``packed`` says that no device computes padding, so that batches are counted
    without it.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        rows: NDArray[np.int64],
        settings: PlannerSettings,
        events: EventSink,
        earlier: KnownSizes | None = None,
    ) -> None:
        self._lengths = np.maximum(lengths, 1)
        self._fresh = rows[np.argsort(-self._lengths[rows], kind="stable")]
        self._settings = settings
        self._events = events
        self.sizes = SizeLimits(settings.sizes, int(self._lengths[rows].sum()), earlier)
        self.tally = Tally()
        self.failed: dict[int, str] = {}
        self._left = len(rows)
        self._parts: deque[Part] = deque()
        self._running: dict[int, tuple[Assignment, Part]] = {}
        self._peaks: dict[int, tuple[Batch, int] | None] = {}
        self._planned = 0
        self._learned = 0
        self._strikes: dict[bool, int] = {}
        self._base_bytes = 0
        self._checks: set[int] = set()
        self.elsewhere_bytes = 0.0
        self.packed = False

    @property
    def done(self) -> bool:
        """Whether every row is finished or has failed."""
        return self._left == 0

    @property
    def waiting_rows(self) -> int:
        """Rows that no device has."""
        return sum(len(part.rows) for part in self._waiting())

    def loaded(self, base_bytes: int) -> None:
        """Learn the allocator bytes of the loaded model."""
        self._base_bytes = base_bytes
        self.sizes.model.observe(0, 0, base_bytes)

    def plan(self, headroom: Headroom) -> Assignment | Hold:
        """Plan the next batch for a device with this headroom."""
        if self.done:
            return Hold.DONE
        self._learn_up_to(self._planned - self._settings.lookahead)
        part = self._take_shortest(headroom) if self._checking else self._next_part(headroom)
        if isinstance(part, Hold):
            return part
        if self._checking:
            self._checks.add(self._planned)
        self.tally.out_of_step += self._learned < self._planned - self._settings.lookahead + 1
        longest = int(self._lengths[part.rows[0]])
        batch = Batch(part.rows, longest, int(self._lengths[part.rows].sum()) if self.packed else 0)
        predicted = int(self.sizes.model.predict(batch.tokens, longest)) if self.sizes.model.fitted else None
        assignment = Assignment(self._planned, batch, predicted, alone=part.losses > 0)
        self._planned += 1
        self._running[assignment.number] = (assignment, part)
        return assignment

    def finished(self, number: int, peak_bytes: int) -> None:
        """Record that a batch's rows are done."""
        assignment, _ = self._running.pop(number)
        self._peaks[number] = (assignment.batch, peak_bytes)
        self._left -= assignment.batch.size
        self._strikes.clear()
        self.tally.batches += 1
        self.tally.tokens += assignment.batch.tokens

    def out_of_memory(self, number: int, headroom: Headroom) -> None:
        """Record that a batch did not fit into this headroom, and plan its rows again."""
        assignment, part = self._running.pop(number)
        batch = assignment.batch
        self._peaks[number] = None
        self.tally.out_of_memory += 1
        self.tally.redone_tokens += batch.tokens
        self._events.emit("mitigation.oom", rows=batch.size, tokens=batch.tokens, cap_bytes=headroom.cap)
        squeezed = headroom.others > 0 and headroom.cap < (assignment.predicted_bytes or 0)
        if not squeezed:
            self.sizes.failed(batch, headroom.cap)
        if batch.size > 1:
            self._split(part, OUT_OF_MEMORY)
            return
        if not self._retry_single(part, headroom):
            self._fail(part, OUT_OF_MEMORY, last=self._checking and number in self._checks)

    def model_failed(self, number: int, reason: str) -> None:
        """Record that the model raised on a batch. It is halved until the rows that make it raise stand alone."""
        assignment, part = self._running.pop(number)
        self._peaks[number] = None
        self.tally.redone_tokens += assignment.batch.tokens
        if assignment.batch.size > 1:
            self._split(part, reason)
            return
        self._strike(reason)
        self._fail(part, reason, last=self._checking and number in self._checks)

    def withdrawn(self, number: int) -> None:
        """Record that a batch did not begin before its device was lost, and plan its rows again."""
        _, part = self._running.pop(number)
        self._peaks[number] = None
        self._parts.appendleft(part)

    def returned(self, number: int, reason: str) -> bool:
        """Record that a batch's device was lost, and plan its rows again; say if that narrowed down the rows to blame.

        The first time, the next device gets them at once. From the second time on the rows are suspected: they are
        halved and wait until all other rows are done, and a single one has failed.
        """
        assignment, part = self._running.pop(number)
        self._peaks[number] = None
        self.tally.lost_tokens += assignment.batch.tokens
        if not part.losses:
            self._parts.appendleft(replace(part, losses=1))
            return False
        if assignment.batch.size > 1:
            self._split(replace(part, losses=2), reason)
        else:
            self._fail(part, reason)
        return True

    def fits_shortest(self, cap_bytes: int) -> bool:
        """Whether the shortest waiting row is predicted to fit, and has not shown that no row does."""
        shortest = min(self._waiting(), key=self._shortness)
        needs = shortest.needs if self._checking else 0
        return max(self._base_bytes, self.sizes.need(int(self._lengths[shortest.rows[-1]])), needs) < cap_bytes

    def _strike(self, reason: str) -> None:
        """Count a single row that failed; want of memory and errors of the model say nothing of each other."""
        for_memory = reason == OUT_OF_MEMORY
        self._strikes = {for_memory: self._strikes.get(for_memory, 0) + 1}

    @property
    def _checking(self) -> bool:
        return max(self._strikes.values(), default=0) >= _STRIKES

    def _waiting(self) -> list[Part]:
        """List the parts that no device has, the fresh rows last."""
        return [*self._parts, Part(self._fresh)] if len(self._fresh) else list(self._parts)

    def _shortness(self, part: Part) -> tuple[bool, int]:
        """Order parts by their shortest row; rows that may cost a device come last."""
        return part.suspected, int(self._lengths[part.rows[-1]])

    def _split(self, part: Part, reason: str) -> None:
        half = len(part.rows) // 2
        if part.suspected:
            self._parts.extend(part.cut(half))
        else:
            self._parts.extendleft(reversed(part.cut(half)))
        self._events.emit("mitigation.split", rows=len(part.rows), into=half, reason=reason)

    def _retry_single(self, part: Part, headroom: Headroom) -> bool:
        """Try a row once more, or wherever it may have more memory than before; say if it will be tried again."""
        attempts = part.attempts + 1
        hold = self._hold(part.rows[0], int(headroom.cap * _STEP_UP) + 1, headroom)
        had_more = 0 < part.needs < headroom.cap  # than at its last attempt, so that this one may be chance again
        if hold is not Hold.DRAINED:
            self._strike(OUT_OF_MEMORY)
        if attempts >= (_MOST_ATTEMPTS if hold or had_more else _SINGLE_ATTEMPTS):
            return False
        least = int(headroom.cap * _STEP_UP) + 1 if hold else headroom.cap  # no smaller device gets it next
        self._parts.appendleft(replace(part, attempts=attempts, needs=least if hold or self.elsewhere_bytes else 0))
        return True

    def _fail(self, part: Part, reason: str, *, last: bool = False) -> None:
        """Record that a row has failed. If it is the ``last`` that was tried, waiting rows are given up with it.

        Want of memory says nothing of shorter rows, which may wait because a device was lost with them.
        """
        row = int(part.rows[0])
        self._events.emit("mitigation.row_failed", row=row, longest=int(self._lengths[row]), reason=reason)
        least = int(self._lengths[row]) if reason == OUT_OF_MEMORY else 0
        given_up = self._give_up(least) if last else []
        if given_up:
            self._events.emit("mitigation.gave_up", rows=sum(len(each.rows) for each in given_up), reason=reason)
        for failed in (part, *given_up):
            self._left -= len(failed.rows)
            self.failed.update(dict.fromkeys(failed.rows.tolist(), reason))

    def _give_up(self, least: int) -> list[Part]:
        """Take the waiting rows of at least so many tokens away."""
        waiting = self._waiting()
        counts = [int((self._lengths[part.rows] >= least).sum()) for part in waiting]  # they come longest first
        shorter = [part.cut(count)[1] if count else part for part, count in zip(waiting, counts, strict=True)]
        self._fresh = shorter.pop().rows if len(self._fresh) else self._fresh
        self._parts = deque(part for part in shorter if len(part.rows))
        return [part.cut(count)[0] for part, count in zip(waiting, counts, strict=True) if count]

    def _take_shortest(self, headroom: Headroom) -> Part | Hold:
        """Take the shortest waiting row, to see whether any works, unless others must free memory for it first."""
        waiting = self._waiting()
        if not waiting:
            return Hold.DRAINED
        index = min(range(len(waiting)), key=lambda at: self._shortness(waiting[at]))
        part = waiting[index]
        if headroom.others > 0 and part.needs > headroom.cap:
            return Hold.MEMORY
        if self._hold(part.rows[-1], part.needs, headroom) is Hold.DRAINED:
            return Hold.DRAINED
        longer = part.rows[:-1]
        if index == len(self._parts):
            self._fresh = longer
        elif len(longer):
            self._parts[index] = replace(part, rows=longer)
        else:
            del self._parts[index]
        return replace(part, rows=part.rows[-1:])

    def _next_part(self, headroom: Headroom) -> Part | Hold:
        """Take rows for one batch: rows that came back first, then fresh ones, suspected ones last.

        The rest of a large part stays, and so do fresh rows that only another device can hold.
        """
        why = Hold.DRAINED
        for index, part in enumerate(self._parts):
            if part.suspected and len(self._fresh):
                continue
            if hold := self._hold(part.rows[0], part.needs, headroom):
                why = hold if hold is Hold.MEMORY else why
                continue
            rows = self._fitting(part.rows, headroom)
            del self._parts[index]
            if rows == len(part.rows):
                return part
            now, later = part.cut(rows)
            self._parts.insert(index, later)
            self._events.emit("mitigation.resized", rows=len(part.rows), into=rows)
            return now
        at = bisect_left(self._fresh, True, key=lambda row: self._hold(row, 0, headroom) is not Hold.DRAINED)
        if at == len(self._fresh):
            return why
        if hold := self._hold(self._fresh[at], 0, headroom):
            return hold
        rows = at + self._fitting(self._fresh[at:], headroom)
        part, self._fresh = Part(self._fresh[at:rows]), np.delete(self._fresh, slice(at, rows))
        return part

    def _hold(self, row: np.int64, refused: int, headroom: Headroom) -> Hold | None:
        """Say why a row is not tried now: it waits for other programs, or is left to a larger device.

        It needs ``refused`` bytes at least, and what is predicted. A prediction may be wrong, so the largest device
        tries every row. A single row cannot be split: it may go to the hard limit.
        """
        here = headroom.cap + headroom.others
        predicted = self.sizes.need(int(self._lengths[row]))
        if here < self.elsewhere_bytes:
            predicted = min(predicted, self.elsewhere_bytes)
        least = max(refused, int(predicted))
        if headroom.cap < least <= here:
            return Hold.MEMORY
        return Hold.DRAINED if here < least <= self.elsewhere_bytes else None

    def _fitting(self, rows: NDArray[np.int64], headroom: Headroom) -> int:
        """Count the rows, longest first, that make a batch now: at least one."""
        longest = int(self._lengths[rows[0]])
        # One batch in ``lookahead`` tries a larger size. Its outcome is known before the next one is planned.
        probe = self._planned % self._settings.lookahead == 0
        tokens = self.sizes.allowed_tokens(longest, headroom.available, self.tally.redone_tokens, probe)
        most = min(len(rows), self._settings.sizes.max_rows or len(rows))
        if self.packed:
            return max(1, int(np.searchsorted(np.cumsum(self._lengths[rows[:most]]), tokens, side="right")))
        return min(most, max(1, int(tokens // longest)))

    def _learn_up_to(self, number: int) -> None:
        """Learn from the batches up to ``number``, in order, as far as they have ended."""
        while self._learned <= number and self._learned in self._peaks:
            outcome = self._peaks.pop(self._learned)
            self._learned += 1
            if outcome is not None:
                self.sizes.worked(*outcome)
