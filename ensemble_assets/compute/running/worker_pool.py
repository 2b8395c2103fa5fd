"""Run rows through a model in worker processes: one per leased device, batches pulled from one queue.

The parent plans batches and holds no model. Results land by row number in arrays that all processes map.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import psutil

from ensemble_assets.common.errors import DeviceError, EnsembleError
from ensemble_assets.common.events import EventSink
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
from ensemble_assets.compute.batching.table_result import OUT_OF_MEMORY
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running import worker_process as messages
from ensemble_assets.compute.running.shared_folder import create_outputs, load_outputs, save_table, work_folder
from ensemble_assets.compute.running.worker_settings import PassResult, WorkerSettings
from ensemble_assets.compute.tokens.token_tables import TokenTable

_FAREWELL_SECONDS = 5.0
"""Time for a worker to report its peak, and to die: both take milliseconds unless a driver hangs."""

_BOOTSTRAP = (
    "import json, os, sys; sys.path[:] = json.loads(sys.argv[1]); os.environ.update(json.loads(sys.argv[2])); "
    "from ensemble_assets.compute.running.worker_process import main; main(int(sys.argv[3]), int(sys.argv[4]))"
)
"""The worker's program. Compute libraries read the device's variables when they are imported, so they are set first."""


def run_in_workers(
    table: TokenTable,
    planner: BatchPlanner,
    factory: ForwardFactory,
    lease: Lease,
    settings: WorkerSettings,
    events: EventSink,
) -> PassResult:
    """Run the planner's rows of a table on all devices of the lease, whose locks the workers hold too."""
    with work_folder(settings.work_folder) as folder:
        save_table(folder, table)
        create_outputs(folder, factory.outputs, table)
        pool = WorkerPool(lease, factory, folder, settings, events)
        pool.run(planner)
        outputs = load_outputs(folder, factory.outputs)
    return PassResult(outputs, pool.not_finite, pool.peak_bytes, pool.precision, pool.largest_batch)


class WorkerPool:
    """The workers of one lease, started together and gone when ``run`` ends, whatever happens.

    ``peak_bytes`` is the most memory in use on any device, all processes counted; ``largest_batch`` is in rows.
    """

    def __init__(
        self, lease: Lease, factory: ForwardFactory, folder: Path, settings: WorkerSettings, events: EventSink
    ) -> None:
        self._lease = lease
        self._factory = factory
        self._folder = folder
        self._settings = settings
        self._events = events
        self._orders: dict[str, messages.Order] = {}
        self._workers: dict[str, WorkerHandle] = {}
        self._peaks: dict[str, list[int]] = {}
        self._does_not_fit: DeviceOutOfMemoryError | None = None
        self._loading_ends: dict[str, float] = {}
        self.not_finite: list[int] = []
        self.peak_bytes = 0
        self.precision = "none"
        self.largest_batch = 0

    def run(self, planner: BatchPlanner) -> None:
        """Start the workers, run all batches, end the workers."""
        try:
            self._start_all()
            dispatcher = Dispatcher(planner, list(self._workers), self._events, self._settings.patience)
            try:
                for action in dispatcher.actions(time.monotonic, lambda wakeup: self._listen(dispatcher, wakeup)):
                    self._act(action)
            except EnsembleError:
                if self._does_not_fit is not None and dispatcher.failure() is not None:
                    raise self._does_not_fit from None  # says more than that no worker is left
                raise
            self.largest_batch = dispatcher.largest_batch
            self._say_goodbye()
        finally:
            for worker in self._workers.values():  # all at once, then wait for each
                worker.kill()
            for worker in list(self._workers.values()):
                self._end(worker)

    def _start_all(self) -> None:
        per_device = self._settings.workers_per_device
        for device in self._lease.devices:
            ceiling = self._settings.ceiling.within(device.total_bytes).shared_by(per_device)
            for index in range(per_device):
                name = device.uuid if per_device == 1 else f"{device.uuid}#{index}"
                share = _with_its_share(device, per_device)
                self._orders[name] = messages.Order(
                    share,
                    self._factory,
                    self._folder,
                    ceiling,
                    self._settings.freed_seconds,
                    self._settings.sampler_seconds,
                )
                self._start(name)

    def _start(self, name: str) -> None:
        self._loading_ends[name] = time.monotonic() + self._settings.load_seconds
        self._workers[name] = WorkerHandle(name, self._orders[name], self._lease.descriptors)
        self._events.emit("worker.started", device=name, pid=self._workers[name].pid)

    def _act(self, action: Action) -> None:
        match action:
            case Run():
                self._workers[action.device].send(action.assignment)
            case Measure():
                self._workers[action.device].send(messages.MeasureMemory())
            case Stop():
                self._end(self._workers[action.device])
            case Start():
                self._start(action.device)

    def _listen(self, dispatcher: Dispatcher, wakeup: float | None) -> None:
        """Wait for messages of workers, at most until ``wakeup`` or the end of the loading time, and handle them."""
        times = [self._loading_ends[name] for name in dispatcher.expected]
        times += [] if wakeup is None else [wakeup]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        by_connection = {worker.connection: worker for worker in self._workers.values()}
        for connection in wait(list(by_connection), timeout):
            self._hear(by_connection[connection], dispatcher)  # type: ignore[index]
        for name in sorted(dispatcher.expected):
            if name in self._workers and time.monotonic() >= self._loading_ends[name]:
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
            case messages.Ready():
                self._events.emit("worker.ready", device=worker.name, base_bytes=message.base_bytes,
                                  reserve_bytes=message.reserve_bytes, precision=message.precision)  # fmt: skip
                self.precision = message.precision
                dispatcher.joined(worker.name, message.base_bytes, message.headroom)
            case messages.Measured():
                dispatcher.measured(worker.name, message.headroom)
            case messages.Failed():
                self._fail(worker, dispatcher, message)
            case _:
                dispatcher.outcome(worker.name, message)
                if isinstance(message, Finished):
                    self.not_finite += message.not_finite
                    self.peak_bytes = max(self.peak_bytes, message.headroom.used)

    def _fail(self, worker: WorkerHandle, dispatcher: Dispatcher, message: messages.Failed) -> None:
        """Give up the device if the device failed; end the stage if the model did."""
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

    def _say_goodbye(self) -> None:
        """Ask all workers to leave and record the peaks they report. A worker without an answer is ended anyway."""
        for worker in self._workers.values():
            worker.send(messages.Leave())
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for worker in self._workers.values():
            if not worker.connection.poll(max(0.0, deadline - time.monotonic())):
                continue
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                continue
            if isinstance(message, messages.Farewell):
                self._record_peak(worker.name, message)

    def _record_peak(self, device: str, message: messages.Farewell) -> None:
        peaks = self._peaks.setdefault(device.partition("#")[0], [])
        peaks.append(message.peak_used)
        on_host = all(leased.torch_device == "cpu" for leased in self._lease.devices)
        # On a GPU every worker sees the memory of all processes, on a host only its own.
        self.peak_bytes = max(self.peak_bytes, sum(peaks) if on_host else message.peak_used)
        self._events.emit("device.peak", device=device, used_bytes=message.peak_used)
        for at, used in message.timeline:
            self._events.emit("device.memory", device=device, sampled_at=at, used_bytes=used)


class WorkerHandle:
    """One worker process, as its parent sees it.

    It is a fresh interpreter, since threads and a CUDA context do not survive a fork. It inherits the environment, this
    connection and ``descriptors``, the lock files of the lease.
    """

    def __init__(self, name: str, order: messages.Order, descriptors: Sequence[int]) -> None:
        self.name = name
        variables, parent = json.dumps(dict(order.device.environment())), str(os.getpid())
        mine, theirs = Pipe()
        self.connection: Connection[Any, Any] = mine
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter and this package
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), variables, str(theirs.fileno()), parent],
                pass_fds=(theirs.fileno(), *descriptors),
                stdin=subprocess.DEVNULL,
            )
        with suppress(BrokenPipeError):  # it died at once, and the next read finds that out
            self.connection.send(order)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message. A worker that is gone is noticed when its answer is read."""
        with suppress(OSError):
            self.connection.send(message)

    def kill(self) -> None:
        """Have the kernel end the process, without waiting for its end."""
        self.connection.close()
        self._process.kill()

    def end(self, seconds: float = 10.0) -> bool:
        """Kill the process and wait for its end; whether it is gone."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def wait(self, seconds: float) -> int | None:
        """Wait for the process to end: its exit status, or None if it still runs after ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode


def _with_its_share(device: Device, workers: int) -> Device:
    """Give a CPU worker its share of the cores, unless the number of threads was set; leave other devices."""
    if workers < 2 or not isinstance(device, CpuDevice) or device.threads:
        return device
    return replace(device, threads=max(1, len(psutil.Process().cpu_affinity() or [0]) // workers))
