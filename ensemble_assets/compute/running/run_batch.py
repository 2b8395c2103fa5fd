"""Run one batch on one device and report its outcome: the step that worker processes and this process share.

Memory is measured before and after, outputs are checked and stored by row. ``batching`` decides what comes next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, failure_word
from ensemble_assets.compute.backends.forward import Forward, Launched, OutputSpec, StagedForward
from ensemble_assets.compute.batching import batch_outcome as outcomes
from ensemble_assets.compute.devices.ceiling import MemoryGuard
from ensemble_assets.compute.devices.device import DeviceSession
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable

Outputs = Mapping[str, NDArray[Any]]
_Made = TypeVar("_Made")


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


@dataclass(frozen=True)
class _Failure:
    """A batch without outputs: it did not fit, or the model failed for a reason."""

    reason: str | None = None


@dataclass(frozen=True)
class StagedBatch:
    """A batch whose inputs are made."""

    number: int
    batch: Batch
    inputs: Any


@dataclass(frozen=True)
class RunningBatch:
    """A batch that the device computes, or that has failed already; ``peak_bytes`` are of the allocator."""

    number: int
    batch: Batch
    started: float
    peak_bytes: int
    launched: Launched | _Failure

    def done(self) -> bool:
        """Whether finishing it takes no waiting."""
        return isinstance(self.launched, _Failure) or self.launched.done()


@dataclass(frozen=True)
class _AtOnce:
    """Outputs of a forward that is called as a whole."""

    outputs: Outputs

    def done(self) -> bool:
        return True

    def result(self) -> Outputs:
        return self.outputs


class BatchRunner:
    """A model on an opened device, the rows it reads and the arrays it writes.

    A batch is staged, launched and finished. The next one may be staged in another thread, and launched before this one
    is finished. ``run`` does all three.
    """

    def __init__(
        self, session: DeviceSession, guard: MemoryGuard, forward: Forward, table: TokenTable, outputs: OutputArrays
    ) -> None:
        self._session = session
        self._guard = guard
        self._forward = forward
        self._table = table
        self._outputs = outputs
        self._free_since = 0.0

    def run(self, number: int, batch: Batch) -> outcomes.Outcome:
        """Run one batch and store its outputs; ``DeviceError`` if the device itself is lost."""
        return self.finish(self.launch(self.stage(number, batch)))

    def stage(self, number: int, batch: Batch) -> StagedBatch:
        """Make a batch's inputs on the host, in any thread."""
        forward = self._forward
        inputs = _attempt(lambda: forward.stage(self._table, batch)) if isinstance(forward, StagedForward) else None
        return StagedBatch(number, batch, inputs)

    def launch(self, staged: StagedBatch) -> RunningBatch:
        """Have the device compute a batch; ``DeviceError`` if the device itself is lost."""
        self._guard.before_batch()
        self._session.begin_peak()
        started = time.perf_counter()
        launched = staged.inputs if isinstance(staged.inputs, _Failure) else _attempt(lambda: self._begun(staged))
        return RunningBatch(staged.number, staged.batch, started, self._session.peak_bytes(), launched)

    def finish(self, running: RunningBatch) -> outcomes.Outcome:
        """Wait for a batch and store its outputs; ``DeviceError`` if the device itself is lost."""
        launched, number = running.launched, running.number
        results = launched if isinstance(launched, _Failure) else _attempt(launched.result)
        started, self._free_since = max(running.started, self._free_since), time.perf_counter()
        if isinstance(results, _Failure):
            at_failure = self._guard.measure()
            self._session.release_cache()  # after the except block: a traceback would pin the batch's tensors
            if results.reason is None:
                return outcomes.DidNotFit(number, at_failure, self._guard.measure())
            return outcomes.ModelFailed(number, results.reason, self._guard.measure())
        not_finite = self._outputs.store(self._table, running.batch.rows, results)
        seconds = time.perf_counter() - started
        return outcomes.Finished(number, running.peak_bytes, seconds, self._guard.measure(), tuple(not_finite))

    def _begun(self, staged: StagedBatch) -> Launched:
        if isinstance(self._forward, StagedForward):
            return self._forward.launch(staged.inputs)
        return _AtOnce(self._forward(self._table, staged.batch))


def _attempt(call: Callable[[], _Made]) -> _Made | _Failure:
    """Call, and return the failure of the batch if there is one; ``DeviceError`` if the device itself is lost."""
    try:
        return call()
    except (outcomes.DeviceOutOfMemoryError, MemoryError):
        return _Failure()
    except DeviceError:
        raise
    except outcomes.ModelFailedError as error:
        return _Failure(error.reason)
    except Exception as error:  # noqa: BLE001  # a row's failure is recorded and the stage decides what it means
        return _Failure(failure_word(error))
