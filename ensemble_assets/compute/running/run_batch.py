"""Run one batch on one device and report its outcome: the step that worker processes and this process share.

Memory is measured before and after, outputs are checked and stored by row. ``batching`` decides what comes next.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, failure_word
from ensemble_assets.compute.backends.forward import Forward, OutputSpec, StagedForward
from ensemble_assets.compute.batching import batch_outcome as outcomes
from ensemble_assets.compute.devices.ceiling import MemoryGuard
from ensemble_assets.compute.devices.device import DeviceSession
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class OutputArrays:
    """The arrays of a forward's outputs over all rows of a table, by name; ``specs`` say where a row's values are."""

    specs: Mapping[str, OutputSpec]
    arrays: Outputs

    def store(self, table: TokenTable, rows: NDArray[np.int64], results: Outputs) -> list[int]:
        """Write a batch's results to the places of their rows, and return the rows with a NaN or an infinity.

        Outputs per token do not count there: where one is not finite, the row's others or its comparisons are not.
        """
        finite = np.ones(len(rows), np.bool_)
        for name, values in results.items():
            spec = self.specs[name]
            self.arrays[name][spec.places(table, rows)] = values
            if values.dtype.kind == "f" and not spec.per_token:
                finite &= np.isfinite(values).reshape(len(rows), -1).all(axis=1)
        return [int(row) for row in rows[~finite]]


@dataclass
class RunningBatch:
    """A batch on its way. A step runs in its ``with`` block, which keeps a failure of the batch and ends the step.

    Attributes:
        made: of the last step: inputs, then outputs or their source; nothing after a failure, so that memory is free.
        failed: whether there will be no outputs.
        reason: why the model failed; None if the batch did not fit.
        started: when it was launched, a ``perf_counter``.
        peak_bytes: the allocator's peak after the launch.
    """

    number: int
    batch: Batch
    made: Any = None
    failed: bool = False
    reason: str | None = None
    started: float = 0.0
    peak_bytes: int = 0

    def done(self) -> bool:
        """Whether finishing it takes no waiting."""
        return self.failed or isinstance(self.made, Mapping) or bool(self.made.done())

    def __enter__(self) -> RunningBatch:
        return self

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> bool:
        """Keep an error of the batch as a word without text; that of a lost device goes on."""
        match error:
            case outcomes.DeviceOutOfMemoryError() | MemoryError():
                pass
            case outcomes.ModelFailedError():
                self.reason = error.reason
            case Exception() if not isinstance(error, DeviceError):  # the stage decides what a row's failure means
                self.reason = failure_word(error)
            case _:
                return False
        self.made, self.failed = None, True
        return True


class BatchRunner:
    """A model on an opened device, the rows it reads and the arrays it writes.

    A batch is staged, launched and finished. The next one may be staged in another thread, and launched before this one
    is finished. Every step raises ``DeviceError`` if the device itself is lost, and calls the model by itself: few
    calls stand between a stage and its model.
    """

    def __init__(
        self, session: DeviceSession, guard: MemoryGuard, forward: Forward, table: TokenTable, outputs: OutputArrays
    ) -> None:
        self._session = session
        self._guard = guard
        self._forward = forward
        self._staged = forward if isinstance(forward, StagedForward) else None
        self._table = table
        self._outputs = outputs
        self._free_since = 0.0

    def stage(self, number: int, batch: Batch) -> RunningBatch:
        """Make a batch's inputs on the host, in any thread."""
        running = RunningBatch(number, batch)
        if self._staged is not None:
            with running:
                running.made = self._staged.stage(self._table, batch)
        return running

    def launch(self, running: RunningBatch) -> RunningBatch:
        """Have the device compute a staged batch; a forward that has no parts is called as a whole."""
        self._guard.before_batch()
        self._session.begin_peak()
        running.started = time.perf_counter()
        if not running.failed:
            with running:
                if self._staged is not None:
                    running.made = self._staged.launch(running.made)
                else:
                    running.made = self._forward(self._table, running.batch)
        running.peak_bytes = self._session.peak_bytes()
        return running

    def finish(self, running: RunningBatch) -> outcomes.Outcome:
        """Wait for a batch and store its outputs."""
        if self._staged is not None and not running.failed:
            with running:
                running.made = running.made.result()
        started, self._free_since = max(running.started, self._free_since), time.perf_counter()
        number, results, running.made = running.number, running.made, None
        if running.failed:
            at_failure = self._guard.measure()
            self._session.release_cache()  # after the with block: a traceback would pin the batch's tensors
            if running.reason is None:
                return outcomes.DidNotFit(number, at_failure, self._guard.measure())
            return outcomes.ModelFailed(number, running.reason, self._guard.measure())
        not_finite = self._outputs.store(self._table, running.batch.rows, results)
        seconds = time.perf_counter() - started
        return outcomes.Finished(number, running.peak_bytes, seconds, self._guard.measure(), tuple(not_finite))
