"""Run rows through models in worker processes: one per leased device, batches pulled from one queue.

The parent plans batches and holds no model. Results land by row number in arrays that all processes map. Workers live
as long as their lease: they get one table after another, and load another model where a table needs one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait

from ensemble_assets.common.errors import DeviceError, EnsembleError
from ensemble_assets.common.events import EventSink
from ensemble_assets.common.machine import usable_cores
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, Finished
from ensemble_assets.compute.batching.dispatcher import (
    DEVICE_FAILED,
    NO_ANSWER,
    WORKER_LOST,
    Action,
    Dispatcher,
    Measure,
    Run,
    Start,
    Stop,
)
from ensemble_assets.compute.batching.planner import BatchPlanner
from ensemble_assets.compute.batching.table_result import NOT_FINITE, OUT_OF_MEMORY, TableResult
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running import worker_process as messages
from ensemble_assets.compute.running.shared_folder import create_outputs, save_table, work_folder
from ensemble_assets.compute.running.worker_handle import WorkerHandle, WorkerSupply
from ensemble_assets.compute.running.worker_settings import IN_FLIGHT, WorkerSettings
from ensemble_assets.compute.tokens.token_tables import TokenTable

_FAREWELL_SECONDS = 5.0
"""Time for a worker to report its peak, and to die: both take milliseconds unless a driver hangs."""


@dataclass
class _Pass:
    """One table with one model: what workers are sent, when they must have loaded, and what came of it."""

    factory: ForwardFactory
    work: messages.Work
    dispatcher: Dispatcher
    loading_ends: dict[str, float] = field(default_factory=dict)
    not_finite: list[int] = field(default_factory=list)
    precision: str = "none"
    packings: set[str] = field(default_factory=set)
    does_not_fit: DeviceOutOfMemoryError | None = None


class WorkerPool:
    """The workers of one lease, whose locks they hold too. They start with the first table.

    After an error in ``run`` no worker is left, and the next call starts new ones. The block's end ends them all.
    """

    def __init__(
        self, lease: Lease, settings: WorkerSettings, events: EventSink, supply: WorkerSupply | None = None
    ) -> None:
        self._lease = lease
        self._settings = settings
        self._events = events
        self._supply = supply
        self._orders = dict(self._orders_of(lease, settings))
        self._workers: dict[str, WorkerHandle] = {}
        self._peaks: dict[str, int] = {}
        self._tables = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._say_goodbye()
        finally:
            self._end_all()

    def run(self, table: TokenTable, planner: BatchPlanner, factory: ForwardFactory, events: EventSink) -> TableResult:
        """Run the planner's rows of a table on all devices of the lease; ``events`` know the rows by their numbers.

        Rows that fail in the result are not finite.
        """
        with work_folder(self._settings.work_folder) as folder:
            save_table(folder, table)
            outputs = create_outputs(folder, factory.outputs, table)
            dispatcher = Dispatcher(planner, list(self._orders), events, self._settings.patience, IN_FLIGHT)
            self._tables += 1
            current = _Pass(factory, messages.Work(self._tables, folder, dict(factory.outputs), factory), dispatcher)
            try:
                self._run(current)
            except BaseException:
                self._end_all()
                raise
        return TableResult(
            outputs,
            dict.fromkeys(current.not_finite, NOT_FINITE),
            peak_bytes=self._peak_bytes(),
            precision=current.precision,
            largest_batch=dispatcher.largest_batch,
        )

    def _run(self, current: _Pass) -> None:
        for name in self._orders:
            self._set_to_work(name, current)
        try:
            for action in current.dispatcher.actions(time.monotonic, lambda wakeup: self._listen(current, wakeup)):
                self._act(action, current)
        except EnsembleError:
            if current.does_not_fit is not None and current.dispatcher.failure() is not None:
                raise current.does_not_fit from None  # says more than that no worker is left
            raise

    @staticmethod
    def _orders_of(lease: Lease, settings: WorkerSettings) -> list[tuple[str, messages.Order]]:
        per_device, orders = settings.workers_per_device, []
        for at, share in enumerate(shares(lease.devices, per_device)):
            name = share.uuid if per_device == 1 else f"{share.uuid}#{at % per_device}"
            ceiling = settings.ceiling.within(share.total_bytes).shared_by(per_device)
            seconds = settings.freed_seconds, settings.sampler_seconds
            orders.append((name, messages.Order(share, ceiling, *seconds, locks=len(lease.descriptors))))
        return orders

    def _set_to_work(self, name: str, current: _Pass) -> None:
        """Send a worker the table, and the model if it holds another; start the worker if there is none."""
        if name not in self._workers:
            variables = self._orders[name].device.environment()
            worker = (self._supply.take(variables) if self._supply else None) or WorkerHandle(variables)
            worker.open(name, self._orders[name], self._lease.descriptors)
            self._workers[name] = worker
            self._events.emit("worker.started", device=name, pid=worker.pid)
        worker = self._workers[name]
        worker.send(replace(current.work, factory=None) if worker.holds is current.factory else current.work)
        worker.holds = current.factory
        current.loading_ends[name] = time.monotonic() + self._settings.load_seconds

    def _act(self, action: Action, current: _Pass) -> None:
        match action:
            case Run():
                self._workers[action.device].send(action.assignment)
            case Measure():
                self._workers[action.device].send(messages.MeasureMemory())
            case Stop():
                self._end(self._workers[action.device])
            case Start():
                self._set_to_work(action.device, current)

    def _listen(self, current: _Pass, wakeup: float | None) -> None:
        """Wait for messages of workers, at most until ``wakeup`` or the end of the loading time, and handle them."""
        times = [current.loading_ends[name] for name in current.dispatcher.expected]
        times += [] if wakeup is None else [wakeup]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        by_connection = {worker.connection: worker for worker in self._workers.values()}
        for connection in wait(list(by_connection), timeout):
            self._hear(by_connection[connection], current)  # type: ignore[index]
        for name in sorted(current.dispatcher.expected):
            if name in self._workers and time.monotonic() >= current.loading_ends[name]:
                detail = f"its model was not loaded after {self._settings.load_seconds:.0f} s"
                self._lose(self._workers[name], current, NO_ANSWER, detail)

    def _hear(self, worker: WorkerHandle, current: _Pass) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            status = worker.wait(_FAREWELL_SECONDS)
            self._lose(worker, current, WORKER_LOST, f"the process died (exit status {status})")
            return
        match message:
            case messages.Ready():
                self._joined(worker, current, message)
            case messages.TableGone():
                if message.number == current.work.number:
                    self._lose(worker, current, "FileNotFoundError", "the work folder is gone")
            case messages.Measured():
                current.dispatcher.measured(worker.name, message.headroom)
            case messages.Failed():
                self._fail(worker, current, message)
            case _:
                current.dispatcher.outcome(worker.name, message)
                self._note_peak(worker.name, message.headroom.peak)
                if isinstance(message, Finished):
                    current.not_finite += message.not_finite

    def _joined(self, worker: WorkerHandle, current: _Pass, message: messages.Ready) -> None:
        if message.loaded:
            self._events.emit("worker.ready", device=worker.name, base_bytes=message.base_bytes,
                              reserve_bytes=message.reserve_bytes, precision=message.precision,
                              packing=message.packing)  # fmt: skip
        if self._supply is not None:
            self._supply.start(current.factory)  # the next model's workers, while this one computes
        if message.number != current.work.number:  # it was still loading when the others had done an earlier table
            return
        current.precision = message.precision
        current.packings.add(message.packing)
        current.dispatcher.planner.packed = current.packings == {"packed"}
        current.dispatcher.joined(worker.name, message.base_bytes, message.headroom)

    def _fail(self, worker: WorkerHandle, current: _Pass, message: messages.Failed) -> None:
        """Give up the device if the device failed; end the stage if the model did."""
        match message.cause:
            case DeviceOutOfMemoryError():
                current.does_not_fit = message.cause
                self._lose(worker, current, OUT_OF_MEMORY, str(message.cause))
            case DeviceError():
                self._lose(worker, current, DEVICE_FAILED, str(message.cause))
            case None:
                self._lose(worker, current, message.reason, f"{message.reason} at {message.place}")
            case _:
                raise message.cause

    def _lose(self, worker: WorkerHandle, current: _Pass, reason: str, detail: str) -> None:
        current.dispatcher.lost(worker.name, reason, detail)
        self._end(worker)

    def _end(self, worker: WorkerHandle) -> None:
        del self._workers[worker.name]
        if not worker.end():
            self._lease.abandon()
            self._events.emit("worker.stuck", device=worker.name, pid=worker.pid)

    def _end_all(self) -> None:
        for worker in self._workers.values():  # all at once, then wait for each
            worker.kill()
        for worker in list(self._workers.values()):
            self._end(worker)

    def _say_goodbye(self) -> None:
        """Ask all workers to leave and record the peaks they report. A worker without an answer is ended anyway."""
        for worker in self._workers.values():
            worker.send(messages.Leave())
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for worker in self._workers.values():
            with suppress(EOFError, OSError):
                while worker.connection.poll(max(0.0, deadline - time.monotonic())):
                    message = worker.connection.recv()
                    if isinstance(message, messages.Farewell):
                        self._record(worker.name, message)
                        break

    def _record(self, device: str, message: messages.Farewell) -> None:
        self._events.emit("device.peak", device=device, used_bytes=message.peak_used)
        for at, used in message.timeline:
            self._events.emit("device.memory", device=device, sampled_at=at, used_bytes=used)

    def _note_peak(self, device: str, peak: int) -> None:
        self._peaks[device] = max(self._peaks.get(device, 0), peak)

    def _peak_bytes(self) -> int:
        """Return the most memory in use on any device so far.

        On a GPU every worker sees the memory of all processes, on a host only its own.
        """
        on_host = all(leased.torch_device == "cpu" for leased in self._lease.devices)
        return (sum if on_host else max)(self._peaks.values() or [0])


def shares(devices: Sequence[Device], workers: int) -> list[Device]:
    """Return every device once for each of its workers.

    A CPU's workers have a share of its cores each, unless the number of threads was set.
    """
    cores = max(1, usable_cores() // workers)
    shared: list[Device] = []
    for device in devices:
        divided = workers > 1 and isinstance(device, CpuDevice) and not device.threads
        shared += [CpuDevice(cores, device.uuid) if divided else device] * workers
    return shared
