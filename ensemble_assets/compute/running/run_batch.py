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
from ensemble_assets.compute.backends.forward import Forward, OutputSpec
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


class BatchRunner:
    """A model on an opened device, the rows it reads and the arrays it writes."""

    def __init__(
        self, session: DeviceSession, guard: MemoryGuard, forward: Forward, table: TokenTable, outputs: OutputArrays
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
        not_finite = self._outputs.store(self._table, batch.rows, results)
        return outcomes.Finished(number, peak, time.perf_counter() - started, self._guard.measure(), tuple(not_finite))
