"""Which rows go through the model together: batches planned, learned from, split and shrunk. Pure logic.

No clock, no device, no process: the planner is told what happened and says what to do next. Real workers and the
simulation drive it alike (``dispatch`` decides which device gets a batch, and when to wait or give up).

How the plan is made. Rows go longest first, so batches hardly pad and the last ones are short. A batch gets as many
rows as the fitted model of peak memory allows within what the device has available, and never more than

* about what has worked so far, but for every ``lookahead``-th batch, which probes ``growth`` times that;
* a fixed share of all work: a lost batch costs little, and devices end together;
* what failed before: the size is halved, then grows back to just below it, and beyond only while all that was redone
  stays within an allowance.

Batch ``k`` is planned from the outcomes of batches up to ``k - lookahead``, as far as those are known. So up to half of
``lookahead`` devices, and any order of completion, give the same batches, as long as nothing fails and every device has
the same memory. ``Tally.out_of_step`` counts where an outcome came too late for that: no device waits for it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.batching.size_limits import KnownSizes, SizeLimits, SizeSettings
from ensemble_assets.compute.batching.table_result import OUT_OF_MEMORY
from ensemble_assets.compute.devices.ceiling import Headroom
from ensemble_assets.compute.tokens.token_tables import Batch

_SINGLE_ATTEMPTS = 2
_STEP_UP = 1.05
_STRIKES = 8  # single rows that the model may fail on, one after another, before it is asked whether it works at all


@dataclass(frozen=True)
class PlannerSettings:
    """How batches are planned.

    Attributes:
        sizes: how large they may be.
        lookahead: outcomes of the last so many batches are not used for planning; see the module's docstring.
    """

    sizes: SizeSettings = field(default_factory=SizeSettings)
    lookahead: int = 4


@dataclass(frozen=True)
class Assignment:
    """One batch to run; ``number`` counts them in the order of planning."""

    number: int
    batch: Batch
    predicted_bytes: int | None


class Hold(Enum):
    """Why there is no batch for a device right now."""

    MEMORY = "other processes hold the memory that the next batch needs"
    DRAINED = "all remaining batches are with other devices"
    DONE = "all rows are done"


@dataclass(frozen=True)
class _Part:
    """Rows, longest first, that came back: from a batch that was split, or whose device was lost."""

    rows: NDArray[np.int64]
    attempts: int = 0  # of a single row that did not fit
    needs: int = 0  # the cap must be so many bytes before it is tried again


@dataclass
class Tally:
    """What happened so far, in batches and padded tokens.

    Attributes:
        batches: finished ones.
        tokens: in them.
        redone_tokens: in batches that did not fit or on which the model raised.
        lost_tokens: in batches whose device was lost.
        out_of_memory: batches that did not fit.
        out_of_step: batches that had to be planned without an outcome that they should have known; where this is 0,
            the plan does not depend on which device was faster.
    """

    batches: int = 0
    tokens: int = 0
    redone_tokens: int = 0
    lost_tokens: int = 0
    out_of_memory: int = 0
    out_of_step: int = 0


class BatchPlanner:
    """Hands out every row exactly once, in batches that fit. See the module's docstring.

    Args:
        lengths: ``[n] int64`` tokens per row of the whole table.
        rows: ``[m] int64`` the rows to do, each once.
        settings: how batches are planned.
        events: where decisions are reported.
        memory: what earlier runs learned about sizes.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        rows: NDArray[np.int64],
        settings: PlannerSettings,
        events: EventSink,
        memory: KnownSizes | None = None,
    ) -> None:
        self._lengths = np.maximum(lengths, 1)
        self._fresh = rows[np.argsort(-self._lengths[rows], kind="stable")]
        self._settings = settings
        self._events = events
        self.sizes = SizeLimits(settings.sizes, int(self._lengths[rows].sum()), memory)
        self.tally = Tally()
        self.failed: dict[int, str] = {}
        self._left = len(rows)
        self._parts: deque[_Part] = deque()
        self._running: dict[int, tuple[Assignment, _Part]] = {}
        self._peaks: dict[int, tuple[Batch, int] | None] = {}
        self._planned = 0
        self._learned = 0
        self._strikes = 0
        self._checks: set[int] = set()

    @property
    def done(self) -> bool:
        """Whether every row is finished or has failed."""
        return self._left == 0

    @property
    def waiting_rows(self) -> int:
        """Rows that no device has yet."""
        return len(self._fresh) + sum(len(part.rows) for part in self._parts)

    def loaded(self, base_bytes: int) -> None:
        """A worker has its model in memory, which takes so many bytes of its allocator."""
        self.sizes.model.observe(0, 0, base_bytes)

    def plan(self, headroom: Headroom) -> Assignment | Hold:
        """The next batch for a device with this headroom."""
        if self.done:
            return Hold.DONE
        self._learn_up_to(self._planned - self._settings.lookahead)
        checking = self._strikes >= _STRIKES
        part = self._shortest() if checking else self._next_part(headroom)
        if isinstance(part, Hold):
            return part
        if checking:
            self._checks.add(self._planned)
        self.tally.out_of_step += self._learned < self._planned - self._settings.lookahead + 1
        longest = int(self._lengths[part.rows[0]])
        batch = Batch(part.rows, longest)
        predicted = int(self.sizes.model.predict(batch.tokens, longest)) if self.sizes.model.known else None
        assignment = Assignment(self._planned, batch, predicted)
        self._planned += 1
        self._running[assignment.number] = (assignment, part)
        return assignment

    def finished(self, number: int, peak_bytes: int) -> None:
        """A batch went through; its rows are done."""
        assignment, _ = self._running.pop(number)
        self._peaks[number] = (assignment.batch, peak_bytes)
        self._left -= assignment.batch.size
        self._strikes = 0
        self.tally.batches += 1
        self.tally.tokens += assignment.batch.tokens

    def out_of_memory(self, number: int, headroom: Headroom) -> None:
        """A batch did not fit into what the device had at that moment; none of its rows are done."""
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
        else:
            self._retry_single(part, headroom)

    def model_failed(self, number: int, reason: str) -> None:
        """The model raised on a batch; none of its rows are done. Halving it finds the rows that are to blame."""
        assignment, part = self._running.pop(number)
        self._peaks[number] = None
        self.tally.redone_tokens += assignment.batch.tokens
        if assignment.batch.size > 1:
            self._split(part, reason)
            return
        self._strikes += 1
        self._fail(part, reason)
        if number in self._checks:
            self._give_up(reason)

    def returned(self, number: int) -> None:
        """The device of a batch was lost before it finished; others get its rows."""
        assignment, part = self._running.pop(number)
        self._peaks[number] = None
        self.tally.lost_tokens += assignment.batch.tokens
        self._parts.appendleft(part)

    def _split(self, part: _Part, reason: str) -> None:
        half = len(part.rows) // 2
        self._parts.extendleft((_Part(part.rows[half:]), _Part(part.rows[:half])))
        self._events.emit("mitigation.split", rows=len(part.rows), into=half, reason=reason)

    def _retry_single(self, part: _Part, headroom: Headroom) -> None:
        """Once more in case it was chance; where others hold memory, only after some of that is back."""
        attempts = part.attempts + 1
        needs = int(headroom.cap * _STEP_UP) + 1
        if headroom.others > 0 and needs <= headroom.cap + headroom.others:
            self._parts.appendleft(_Part(part.rows, attempts, needs))
        elif attempts < _SINGLE_ATTEMPTS:
            self._parts.appendleft(_Part(part.rows, attempts))
        else:
            self._fail(part, OUT_OF_MEMORY)

    def _fail(self, part: _Part, reason: str) -> None:
        self._left -= len(part.rows)
        self.failed.update(dict.fromkeys(part.rows.tolist(), reason))
        row = int(part.rows[0])
        self._events.emit("mitigation.row_failed", row=row, longest=int(self._lengths[row]), reason=reason)

    def _give_up(self, reason: str) -> None:
        """The model fails on the shortest row too: it is broken, and what nobody has yet has failed."""
        parts = [*self._parts, _Part(self._fresh)] if len(self._fresh) else list(self._parts)
        self._events.emit("mitigation.gave_up", rows=self.waiting_rows, reason=reason)
        self._parts.clear()
        self._fresh = self._fresh[:0]
        for part in parts:
            self._left -= len(part.rows)
            self.failed.update(dict.fromkeys(part.rows.tolist(), reason))

    def _shortest(self) -> _Part | Hold:
        """The shortest row that nobody has, to see whether the model works on anything."""
        if len(self._fresh):
            part, self._fresh = _Part(self._fresh[-1:]), self._fresh[:-1]
            return part
        if self._parts:
            last = self._parts.pop()
            if len(last.rows) > 1:
                self._parts.append(_Part(last.rows[:-1]))
            return _Part(last.rows[-1:])
        return Hold.DRAINED

    def _next_part(self, headroom: Headroom) -> _Part | Hold:
        """Rows for one batch: what came back first, then fresh ones; the rest of a part that is too large stays."""
        for index, part in enumerate(self._parts):
            rows = self._fitting(part.rows, headroom, part.needs)
            if rows:
                del self._parts[index]
                if rows < len(part.rows):
                    self._parts.insert(index, _Part(part.rows[rows:]))
                    self._events.emit("mitigation.resized", rows=len(part.rows), into=rows)
                return _Part(part.rows[:rows], part.attempts, part.needs)
        rows = self._fitting(self._fresh, headroom, 0) if len(self._fresh) else 0
        if rows:
            part, self._fresh = _Part(self._fresh[:rows]), self._fresh[rows:]
            return part
        return Hold.MEMORY if self.waiting_rows else Hold.DRAINED

    def _fitting(self, rows: NDArray[np.int64], headroom: Headroom, needs: int) -> int:
        """How many of the rows, longest first, make a batch now; none where memory must come back first."""
        longest = int(self._lengths[rows[0]])
        least = max(needs, int(self.sizes.need(longest)))  # a single row cannot be split: it may go to the hard limit
        if headroom.others > 0 and headroom.cap < least <= headroom.cap + headroom.others:
            return 0
        probe = self._planned % self._settings.lookahead == 0
        tokens = self.sizes.allowed_tokens(longest, headroom.available, self.tally.redone_tokens, probe)
        return min(len(rows), self._settings.sizes.max_rows or len(rows), max(1, int(tokens // longest)))

    def _learn_up_to(self, number: int) -> None:
        """Take in the outcomes of batches up to ``number``, in order; stops at one that is still running."""
        while self._learned <= number and self._learned in self._peaks:
            outcome = self._peaks.pop(self._learned)
            self._learned += 1
            if outcome is not None:
                self.sizes.worked(*outcome)
