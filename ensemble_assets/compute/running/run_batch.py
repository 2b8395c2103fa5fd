"""Run one batch on one device and report its outcome: the step that worker processes and this process share.

Memory is measured before and after, outputs are checked and stored by row. ``batching`` decides what comes next.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, failure_word
from ensemble_assets.compute.backends.forward import Forward
from ensemble_assets.compute.batching import batch_outcome as outcomes
from ensemble_assets.compute.devices.ceiling import MemoryGuard
from ensemble_assets.compute.devices.device import DeviceSession
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable

Outputs = Mapping[str, NDArray[Any]]


class BatchRunner:
    """A model on an opened device, the rows it reads and the arrays it writes.

    ``outputs`` are ``[n, *shape]`` per output of the forward; row ``i`` of a batch lands at its row number.
    """

    def __init__(
        self, session: DeviceSession, guard: MemoryGuard, forward: Forward, table: TokenTable, outputs: Outputs
    ) -> None:
        self._session = session
        self._guard = guard
        self._forward = forward
        self._table = table
        self._outputs = outputs

    def run(self, number: int, batch: Batch) -> outcomes.Outcome:
        """Run one batch and store its outputs; ``DeviceError`` if the device itself is lost."""
        self._guard.before_batch()
        self._session.begin_peak()
        started = time.perf_counter()
        reason, results = None, None
        try:
            results = self._forward(self._table, batch)
        except (outcomes.DeviceOutOfMemoryError, MemoryError):
            pass
        except DeviceError:
            raise
        except outcomes.ModelFailedError as error:
            reason = error.reason
        except Exception as error:  # noqa: BLE001  # a row's failure is recorded and the stage decides what it means
            reason = failure_word(error)
        if results is None:
            at_failure = self._guard.measure()
            self._session.release_cache()  # after the except block: a traceback would pin the batch's tensors
            if reason is None:
                return outcomes.DidNotFit(number, at_failure, self._guard.measure())
            return outcomes.ModelFailed(number, reason, self._guard.measure())
        peak = self._session.peak_bytes()
        not_finite = store(self._outputs, batch.rows, results)
        return outcomes.Finished(number, peak, time.perf_counter() - started, self._guard.measure(), tuple(not_finite))


def store(outputs: Outputs, rows: NDArray[np.int64], results: Outputs) -> list[int]:
    """Write a batch's results to their rows, and return the rows with a NaN or an infinity."""
    finite = np.ones(len(rows), np.bool_)
    for name, values in results.items():
        outputs[name][rows] = values
        if values.dtype.kind == "f":
            finite &= np.isfinite(values).reshape(len(rows), -1).all(axis=1)
    return [int(row) for row in rows[~finite]]
