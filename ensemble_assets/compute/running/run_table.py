"""A token table through a model on all leased devices.

Equal rows are computed once, rows that are not finite are done again in fp32, batch sizes are remembered between runs.
Workers, batches and memory are other modules' parts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory, HasFullPrecision
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.size_history import BatchMemory
from ensemble_assets.compute.batching.table_result import NOT_FINITE, TableResult
from ensemble_assets.compute.devices.device import used_devices
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.equal_rows import DistinctRows
from ensemble_assets.compute.running.in_process import InProcess
from ensemble_assets.compute.running.run_batch import Outputs
from ensemble_assets.compute.running.shared_folder import create_outputs, save_table, take_outputs, work_folder
from ensemble_assets.compute.running.worker_pool import WorkerPool
from ensemble_assets.compute.running.worker_settings import (
    DEFAULT_BATCH_TOKENS,
    PassResult,
    WorkerSettings,
    cpu_batches,
)
from ensemble_assets.compute.tokens.token_tables import TokenTable


@dataclass(frozen=True)
class ParallelSettings:
    """How a table is taken through a model.

    Attributes:
        workers: processes, batches, memory limits.
        batch_memory: file of batch sizes that worked before; None remembers nothing.
        work_folder: where arrays lie meanwhile; None is beside the results, or the system's temporary folder.
    """

    workers: WorkerSettings = field(default_factory=WorkerSettings)
    batch_memory: Path | None = None
    work_folder: Path | None = None


def run_parallel(
    table: TokenTable,
    factory: ForwardFactory,
    lease: Lease,
    settings: ParallelSettings,
    events: EventSink,
    output_folder: Path | None = None,
) -> TableResult:
    """Run every row of ``table`` through the model on all devices of the lease.

    The same rows in the same batches give the same bits, whatever device of one kind runs them and in what order they
    end. Other batches (another device size, a failure on the way) pad rows differently, which changes fp32 results by
    rounding: by less than 1e-5 per component of a unit vector, 1e-4 of a sparse weight or a logit of size 10.

    Args:
        table: ``n`` rows.
        factory: the model; every worker loads it.
        lease: devices that are ours.
        settings: how to run.
        events: gets ``batch.done``, ``worker.*``, ``device.*`` and ``mitigation.*``.
        output_folder: outputs become memory-mapped ``<output>.npy`` files in it, when all rows are done; None returns
            them in memory.

    Raises:
        ModelUnavailableError: if the model cannot be loaded.
        DeviceOutOfMemoryError: if its weights fit on no device.
        DeviceError: if other programs keep the memory of every device.
        StageError: if no worker is left.
    """
    started = time.perf_counter()
    distinct = DistinctRows.of(table)
    rows, failed = distinct.rows, dict(distinct.empty)
    with work_folder(settings.work_folder or output_folder) as folder:
        outputs = create_outputs(folder, factory.outputs, len(table))
        job = _Job(table, outputs, lease, folder, settings, events)
        done = job.run(factory, rows) if len(rows) else PassResult()
        failed |= done.failed
        failed |= job.redo_in_fp32(factory, done.not_finite)
        for values in outputs.values():
            values[sorted(failed)] = 0
        distinct.spread(outputs)
        taken = take_outputs(folder, list(outputs), output_folder)
    return TableResult(
        outputs=taken,
        failed_rows=distinct.spread_failures(failed),
        seconds=time.perf_counter() - started,
        tokens=int(table.lengths[rows].sum()),
        peak_bytes=done.peak_bytes,
        precision_redone=len(done.not_finite),
        distinct_rows=len(distinct.first),
        device=used_devices(lease.devices) if len(rows) else UsedDevices(),
        precision=done.precision,
        largest_batch=done.largest_batch,
    )


@dataclass(frozen=True)
class ParallelRunner:
    """``run_parallel`` in the shape that stages call."""

    settings: ParallelSettings

    def __call__(
        self,
        table: TokenTable,
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        folder: Path | None = None,
    ) -> TableResult:
        """Run every row; see ``run_parallel``."""
        return run_parallel(table, factory, lease, self.settings, events, folder)


def in_process_runner(batch_tokens: int = DEFAULT_BATCH_TOKENS) -> ParallelRunner:
    """Computes in this process, on the lease's first device, which must be a CPU; remembers nothing."""
    return ParallelRunner(ParallelSettings(WorkerSettings(cpu_batches(batch_tokens), workers_per_device=0)))


@dataclass(frozen=True)
class _Job:
    """One table on one lease."""

    table: TokenTable
    outputs: Outputs
    lease: Lease
    folder: Path
    settings: ParallelSettings
    events: EventSink

    def run(self, factory: ForwardFactory, rows: NDArray[np.int64]) -> PassResult:
        """Take rows through one model; batch sizes are recalled before and kept afterwards."""
        known = BatchMemory(self.settings.batch_memory)
        kind = "+".join(sorted({device.kind for device in self.lease.devices}))
        with self._pool(factory) as pool:
            result = pool.run(self.table.lengths, rows, known.recall(factory.identity, kind))
        known.keep(factory.identity, kind, result.sizes)
        return result

    def redo_in_fp32(self, factory: ForwardFactory, rows: list[int]) -> dict[int, str]:
        """Compute rows that were not finite again in fp32; the rows that failed for good."""
        if not rows:
            return {}
        self.events.emit("mitigation.precision", rows=len(rows), precision="fp32")
        if not isinstance(factory, HasFullPrecision):
            return dict.fromkeys(rows, NOT_FINITE)
        try:
            again = self.run(factory.full_precision(), np.array(sorted(rows), np.int64))
        except (ModelUnavailableError, DeviceOutOfMemoryError):
            return dict.fromkeys(rows, NOT_FINITE)
        return dict.fromkeys(again.not_finite, NOT_FINITE) | again.failed

    def _pool(self, factory: ForwardFactory) -> WorkerPool | InProcess:
        workers = self.settings.workers
        if workers.workers_per_device == 0:
            return InProcess(self.lease.devices[0], factory, self.table, self.outputs, workers, self.events)
        if not (self.folder / "table-ids.npy").exists():
            save_table(self.folder, self.table)
        return WorkerPool(self.lease, factory, self.folder, workers, self.events)


class Runner(Protocol):
    """Anything that takes a token table through a model on leased devices."""

    def __call__(
        self,
        table: TokenTable,
        factory: ForwardFactory,
        *,
        lease: Lease,
        events: EventSink,
        folder: Path | None = None,
    ) -> TableResult:
        """Run every row; see ``parallel.run_parallel``."""
        ...
