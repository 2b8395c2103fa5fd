"""Run distinct rows on the leased devices of this machine, in this process or in worker processes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.planner import BatchPlanner
from ensemble_assets.compute.batching.size_history import SizeHistory
from ensemble_assets.compute.batching.table_result import NOT_FINITE, TableResult
from ensemble_assets.compute.devices.device import used_devices
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.in_process import run_in_process
from ensemble_assets.compute.running.worker_pool import run_in_workers
from ensemble_assets.compute.running.worker_settings import WorkerSettings, widen_batches
from ensemble_assets.compute.tokens.token_tables import TokenTable


class Runner(Protocol):
    """Runs rows through a model. Rows have at least one token; ``run_table`` runs equal rows once."""

    @property
    def loads_here(self) -> bool:
        """Whether the model is loaded in this process."""
        ...

    def __call__(self, table: TokenTable, factory: ForwardFactory, *, lease: Lease, events: EventSink) -> TableResult:
        """Run every row of ``table``.

        The same rows in the same batches give the same bits, whichever device of one kind runs them and in whatever
        order they end. Other batches (another device size, a failure on the way) pad rows differently. That changes
        fp32 results by rounding: less than 1e-5 per component of a unit vector, 1e-4 of a sparse weight or a logit of
        size 10.

        Raises:
            ModelUnavailableError: if the model cannot be loaded.
            DeviceOutOfMemoryError: if its weights fit on no device.
            DeviceError: if other programs keep the memory of every device.
            StageError: if no worker is left.
        """
        ...


@dataclass(frozen=True)
class LocalRunner:
    """A ``Runner`` on the devices of the lease."""

    settings: WorkerSettings = field(default_factory=WorkerSettings)

    @property
    def loads_here(self) -> bool:
        """Whether the model is loaded in this process."""
        return self.settings.workers_per_device == 0

    def __call__(
        self,
        table: TokenTable,
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        again: NDArray[np.int64] | None = None,
    ) -> TableResult:
        """Run every row of ``table``; see ``Runner``.

        ``again`` has the rows of a second pass in fp32, ``[m] int64``: only these run, and fail if they are not finite
        then.
        """
        started = time.perf_counter()
        rows = np.arange(len(table)) if again is None else again
        history, kinds = SizeHistory(self.settings.size_history), "+".join(lease.kinds)
        run, batches = run_in_workers, self.settings.batches
        if self.loads_here:
            run, batches = run_in_process, widen_batches(batches, factory.width)
        planner = BatchPlanner(table.lengths, rows, batches, events, history.recall(factory.identity, kinds))
        done = run(table, planner, factory, lease, self.settings, events)
        history.keep(factory.identity, kinds, planner.sizes.learned())
        failed = dict(planner.failed)
        if again is not None:
            failed |= dict.fromkeys(done.not_finite, NOT_FINITE)
        for name, values in done.outputs.items():
            values[factory.outputs[name].places(table, np.array(sorted(failed), np.int64))] = 0
        result = TableResult(
            outputs=done.outputs,
            failed_rows=failed,
            seconds=time.perf_counter() - started,
            tokens=int(table.lengths[rows].sum()),
            peak_bytes=done.peak_bytes,
            distinct_rows=len(rows),
            device=used_devices(lease.devices),
            precision=done.precision,
            largest_batch=done.largest_batch,
        )
        if again is None and done.not_finite:
            return self._redone(result, np.array(sorted(done.not_finite)), table, factory, lease, events)
        return result

    def _redone(
        self,
        first: TableResult,
        rows: NDArray[np.int64],
        table: TokenTable,
        factory: ForwardFactory,
        lease: Lease,
        events: EventSink,
    ) -> TableResult:
        """Run rows that are not finite again in fp32, and put their outputs into the first pass's result."""
        events.emit("mitigation.precision", rows=len(rows), precision="fp32")
        full_precision = factory.full_precision()
        second: TableResult | None = None
        if full_precision is not None:
            with suppress(ModelUnavailableError, DeviceOutOfMemoryError):
                second = self(table, full_precision, lease=lease, events=events, again=rows)
        for name, values in first.outputs.items():
            places = factory.outputs[name].places(table, rows)
            values[places] = 0 if second is None else second.outputs[name][places]
        failed = dict.fromkeys(rows.tolist(), NOT_FINITE) if second is None else second.failed_rows
        return replace(
            first,
            failed_rows=first.failed_rows | failed,
            seconds=first.seconds + (0.0 if second is None else second.seconds),
            peak_bytes=first.peak_bytes if second is None else max(first.peak_bytes, second.peak_bytes),
            precision_redone=len(rows),
        )
