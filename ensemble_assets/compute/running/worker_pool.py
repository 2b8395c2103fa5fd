"""Data parallelism inside a stage: one worker process per leased device, batches pulled from one queue.

The parent holds no model and no device memory. It plans (``controller``, ``dispatch``), the workers compute
(``worker_process``), results land by row number in arrays that all of them map (``work_folder``).
"""

from __future__ import annotations

import time
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, Finished
from ensemble_assets.compute.batching.dispatcher import DEVICE_FAILED, NO_ANSWER, WORKER_LOST, Dispatcher, Run, Stop
from ensemble_assets.compute.batching.planner import BatchController
from ensemble_assets.compute.batching.size_limits import SizeMemory
from ensemble_assets.compute.batching.table_result import OUT_OF_MEMORY
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.worker_handle import WorkerHandle
from ensemble_assets.compute.running.worker_process import Failed, Farewell, Look, Measured, Order, Ready
from ensemble_assets.compute.running.worker_settings import PassResult, WorkerSettings

_FAREWELL_SECONDS = 5.0


class WorkerPool:
    """The workers of one lease, started together and gone when the ``with`` block ends, whatever happens.

    Args:
        lease: its devices get the workers, which hold its locks too.
        factory: what to load.
        folder: a work folder with table and outputs in it.
        settings: how to run.
        events: where everything that happens is reported.
    """

    def __init__(
        self, lease: Lease, factory: ForwardFactory, folder: Path, settings: WorkerSettings, events: EventSink
    ) -> None:
        self._lease = lease
        self._factory = factory
        self._folder = folder
        self._settings = settings
        self._events = events
        self._workers: dict[str, WorkerHandle] = {}
        self._peaks: dict[str, list[int]] = {}
        self._does_not_fit: DeviceOutOfMemoryError | None = None
        self._started = time.monotonic()
        self.result = PassResult()

    def __enter__(self) -> WorkerPool:
        try:
            for device in self._lease.devices:
                ceiling = self._settings.ceiling.within(device.total_bytes).shared_by(self._settings.workers_per_device)
                for index in range(self._settings.workers_per_device):
                    name = device.uuid if self._settings.workers_per_device == 1 else f"{device.uuid}#{index}"
                    self._start(name, _with_its_share(device, self._settings.workers_per_device), ceiling)
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._part()
        finally:
            self._end_all()

    def run(self, lengths: NDArray[np.int64], rows: NDArray[np.int64], memory: SizeMemory | None = None) -> PassResult:
        """Take every row through the model.

        Args:
            lengths: ``[n] int64`` tokens per row of the table.
            rows: ``[m] int64`` the rows to do.
            memory: what earlier runs learned about batch sizes.

        Raises:
            ModelUnavailableError: if the model cannot be loaded.
            DeviceOutOfMemoryError: if its weights fit on no device.
            DeviceError: if other programs keep the memory of every device.
            StageError: if no worker is left.
        """
        controller = BatchController(lengths, rows, self._settings.controller, self._events, memory)
        dispatcher = Dispatcher(controller, list(self._workers), self._events, self._settings.patience)
        while not dispatcher.finished:
            self._act(dispatcher)
            failure = dispatcher.failure()
            if failure is not None:
                raise self._does_not_fit or failure
            self._listen(dispatcher)
        self.result.failed = controller.failed
        self.result.sizes = controller.sizes.memory()
        self.result.largest_batch = dispatcher.largest_batch
        return self.result

    def _start(self, name: str, device: Device, ceiling: Ceiling) -> None:
        order = Order(device, self._factory, self._folder, ceiling, self._settings.sampler_seconds)
        self._workers[name] = WorkerHandle(name, order, self._lease.descriptors)
        self._events.emit("worker.started", device=name, pid=self._workers[name].pid)

    def _act(self, dispatcher: Dispatcher) -> None:
        for action in dispatcher.decide(time.monotonic()):
            worker = self._workers[action.device]
            if isinstance(action, Run):
                worker.send(action.assignment)
            elif isinstance(action, Stop):
                self._end(worker)
            else:
                worker.send(Look())

    def _listen(self, dispatcher: Dispatcher) -> None:
        """Wait for the next message, or until something must be decided, and pass on what came."""
        loading_ends = self._started + self._settings.load_seconds if dispatcher.expected else None
        times = [at for at in (dispatcher.wakeup(), loading_ends) if at is not None]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        by_connection = {worker.connection: worker for worker in self._workers.values()}
        for connection in wait(list(by_connection), timeout):
            self._hear(by_connection[connection], dispatcher)  # type: ignore[index]
        if dispatcher.expected and time.monotonic() >= self._started + self._settings.load_seconds:
            for name in sorted(dispatcher.expected):
                detail = f"its model was not loaded after {self._settings.load_seconds:.0f} s"
                self._lose(self._workers[name], dispatcher, NO_ANSWER, detail)

    def _hear(self, worker: WorkerHandle, dispatcher: Dispatcher) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            status = worker.wait(_FAREWELL_SECONDS)
            self._lose(worker, dispatcher, WORKER_LOST, f"the process died (exit status {status})")
            return
        match message:
            case Ready():
                self._events.emit("worker.ready", device=worker.name, base_bytes=message.base_bytes,
                                  reserve_bytes=message.reserve_bytes, precision=message.precision)  # fmt: skip
                self.result.precision = message.precision
                dispatcher.joined(worker.name, message.base_bytes, message.headroom)
            case Measured():
                dispatcher.measured(worker.name, message.headroom)
            case Failed():
                self._fail(worker, dispatcher, message)
            case _:
                dispatcher.outcome(worker.name, message)
                if isinstance(message, Finished):
                    self.result.take(message)

    def _fail(self, worker: WorkerHandle, dispatcher: Dispatcher, message: Failed) -> None:
        """What is wrong with the device costs the device; what is wrong with the model ends the stage."""
        match message.cause:
            case DeviceOutOfMemoryError():
                self._does_not_fit = message.cause
                self._lose(worker, dispatcher, OUT_OF_MEMORY, str(message.cause))
            case DeviceError():
                self._lose(worker, dispatcher, DEVICE_FAILED, str(message.cause))
            case None:
                self._lose(worker, dispatcher, message.reason, f"{message.reason} at {message.place}")
            case _:
                raise message.cause

    def _lose(self, worker: WorkerHandle, dispatcher: Dispatcher, reason: str, detail: str) -> None:
        dispatcher.lost(worker.name, reason, detail)
        self._end(worker)

    def _end(self, worker: WorkerHandle) -> None:
        del self._workers[worker.name]
        if not worker.end():
            self._lease.abandon()
            self._events.emit("worker.stuck", device=worker.name, pid=worker.pid)

    def _end_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        for worker in list(self._workers.values()):
            self._end(worker)

    def _part(self) -> None:
        """Ask all to leave, and take their last words; who does not answer is ended all the same."""
        for worker in self._workers.values():
            worker.leave()
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for worker in self._workers.values():
            if not worker.connection.poll(max(0.0, deadline - time.monotonic())):
                continue
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                continue
            if isinstance(message, Farewell):
                self._keep(worker.name, message)

    def _keep(self, device: str, message: Farewell) -> None:
        of_device = self._peaks.setdefault(device.partition("#")[0], [])
        of_device.append(message.peak_used)
        on_host = all(leased.torch_device == "cpu" for leased in self._lease.devices)
        # on a GPU every worker sees the memory of all, on a host only its own
        self.result.peak_bytes = max(self.result.peak_bytes, sum(of_device) if on_host else message.peak_used)
        self._events.emit("device.peak", device=device, used_bytes=message.peak_used)
        for at, used in message.timeline:
            self._events.emit("device.memory", device=device, sampled_at=at, used_bytes=used)


def _with_its_share(device: Device, workers: int) -> Device:
    """A CPU whose cores several workers share, unless the number of threads was set; any other device as it is."""
    if workers < 2 or not isinstance(device, CpuDevice) or device.threads:
        return device
    return replace(device, threads=max(1, len(psutil.Process().cpu_affinity() or [0]) // workers))
