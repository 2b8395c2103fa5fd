"""Run distinct rows on the leased devices of this machine, in this process or in worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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
from ensemble_assets.compute.devices.device import Device, used_devices
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.in_process import run_in_process
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.running.worker_handle import WorkerSupply
from ensemble_assets.compute.running.worker_pool import WorkerPool, shares
from ensemble_assets.compute.running.worker_settings import WorkerSettings, look_further, widen_batches
from ensemble_assets.compute.tokens.token_tables import TokenTable


class Runner(Protocol):
    """Runs rows through a model. Rows have at least one token; ``run_table`` runs equal rows once.

    A stage uses it in three steps: ``expecting`` around all of its models, ``holding`` around every lease, and
    ``loaded`` around the runs of one model. The defaults keep nothing between them.
    """

    round_trips: bool
    """Whether every run goes through the nodes of a cluster, so that fewer and larger runs are faster."""

    @property
    def in_workers(self) -> bool:
        """Whether other processes of this machine compute, so that this one can tokenise meanwhile."""
        return False

    def expecting(self, models: int) -> AbstractContextManager[Runner]:
        """Return a runner for a stage that will hold ``models``, one after another."""
        return nullcontext(self)

    def start(self, factory: ForwardFactory) -> None:
        """Start what the next lease will need for such a model, without a device."""
        return

    def holding(self, lease: Lease, events: EventSink) -> AbstractContextManager[Runner]:
        """Return a runner for the runs of one lease."""
        return nullcontext(self)

    def loaded(self, factory: ForwardFactory) -> AbstractContextManager[ForwardFactory]:
        """Return a factory whose model stays loaded between the runs of the block."""
        return nullcontext(factory)

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


@dataclass(frozen=True)
class LocalRunner(Runner):
    """A ``Runner`` on the devices of the lease.

    Without ``devices``, those that will be leased, no worker is started ahead. ``supply`` and ``pool`` are those of the
    stage and of the lease; without a pool every run has its own workers.
    """

    settings: WorkerSettings = field(default_factory=WorkerSettings)
    devices: tuple[Device, ...] = ()
    supply: WorkerSupply | None = None
    pool: WorkerPool | None = None
    round_trips = False

    @property
    def _here(self) -> bool:
        """Whether models are loaded in this process."""
        return self.settings.workers_per_device == 0

    @property
    def in_workers(self) -> bool:
        """Whether worker processes compute."""
        return not self._here

    @contextmanager
    def expecting(self, models: int) -> Iterator[LocalRunner]:
        """Make room for workers that are started ahead; those that nobody used are ended with the block."""
        if self._here or not self.devices:
            yield self
            return
        with WorkerSupply(shares(self.devices, self.settings.workers_per_device), models) as supply:
            yield replace(self, supply=supply)

    def start(self, factory: ForwardFactory) -> None:
        """Start the workers of the next lease, which import what ``factory`` loads with."""
        if self.supply is not None:
            self.supply.start(factory)

    @contextmanager
    def holding(self, lease: Lease, events: EventSink) -> Iterator[LocalRunner]:
        """Keep the workers of a lease for all its runs."""
        if self._here:
            yield self
            return
        with WorkerPool(lease, self.settings, events, self.supply) as pool:
            yield replace(self, pool=pool)

    def loaded(self, factory: ForwardFactory) -> AbstractContextManager[ForwardFactory]:
        """Keep the model loaded in this process; workers keep theirs anyway."""
        return loaded_once(factory) if self._here else nullcontext(factory)

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
        if not self._here and self.pool is None:
            with self.holding(lease, events) as held:
                return held(table, factory, lease=lease, events=events, again=again)
        started = time.perf_counter()
        rows = np.arange(len(table)) if again is None else again
        history, kinds = SizeHistory(self.settings.size_history), "+".join(lease.kinds)
        batches = self.settings.batches
        batches = look_further(batches) if self.pool else widen_batches(batches, factory.width)
        planner = BatchPlanner(table.lengths, rows, batches, events, history.recall(factory.identity, kinds))
        if self.pool is not None:
            done = self.pool.run(table, planner, factory, events)
        else:
            done = run_in_process(table, planner, factory, lease, self.settings, events)
        history.keep(factory.identity, kinds, planner.sizes.learned())
        failed = planner.failed | ({} if again is None else done.failed_rows)
        for name, values in done.outputs.items():
            values[factory.outputs[name].places(table, np.array(sorted(failed), np.int64))] = 0
        result = replace(
            done,
            failed_rows=failed,
            seconds=time.perf_counter() - started,
            tokens=int(table.lengths[rows].sum()),
            distinct_rows=len(rows),
            device=used_devices(lease.devices),
        )
        if again is None and done.failed_rows:
            return self._redone(result, np.array(sorted(done.failed_rows)), table, factory, lease, events)
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
        second = TableResult(failed_rows=dict.fromkeys(rows.tolist(), NOT_FINITE))
        if full_precision is not None:
            with suppress(ModelUnavailableError, DeviceOutOfMemoryError):
                second = self(table, full_precision, lease=lease, events=events, again=rows)
        for name, values in first.outputs.items():
            places = factory.outputs[name].places(table, rows)
            values[places] = second.outputs[name][places] if second.outputs else 0
        return replace(
            first,
            failed_rows=first.failed_rows | second.failed_rows,
            seconds=first.seconds + second.seconds,
            peak_bytes=max(first.peak_bytes, second.peak_bytes),
            precision_redone=len(rows),
        )
