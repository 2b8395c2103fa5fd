"""Serve batches in a worker process: one device, one model at a time, one parent at the other end of a connection.

The parent sends ``Prepare`` as often as it wants, then ``Order`` with the lock files of its lease, then a ``Work`` for
every table. A worker dies with its parent. Of an error it reports class and place, since messages may quote the input.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ensemble_assets.common.errors import EnsembleError, failure_word
from ensemble_assets.common.stopping import die_with
from ensemble_assets.compute.backends.forward import Forward, ForwardFactory, OutputSpec, packing_of
from ensemble_assets.compute.batching.assignment import Assignment
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.devices.ceiling import Ceiling, Headroom, MemoryGuard, PeakSampler
from ensemble_assets.compute.devices.device import Device, DeviceSession
from ensemble_assets.compute.running.run_batch import BatchRunner, OutputArrays, RunningBatch
from ensemble_assets.compute.running.shared_folder import load_table, open_outputs

LOAD_AGAIN_SECONDS = 0.5
"""Pause before weights that did not fit are loaded again."""


@dataclass(frozen=True)
class Prepare:
    """Request to import what a model is loaded with. No device is opened."""

    factory: ForwardFactory


@dataclass(frozen=True)
class Order:
    """The device of one worker and its limits; ``locks`` open lock files follow. The sampler has a period in seconds.

    Weights that do not fit are tried again for ``freed_seconds``.
    """

    device: Device
    ceiling: Ceiling
    freed_seconds: float
    sampler_seconds: float
    locks: int


@dataclass(frozen=True)
class Work:
    """Request to serve batches of the table in a folder, with the model that is loaded if ``factory`` is None.

    ``outputs`` describe the arrays beside the table. ``number`` counts the tables of a lease.
    """

    number: int
    folder: Path
    outputs: Mapping[str, OutputSpec]
    factory: ForwardFactory | None


@dataclass(frozen=True)
class Ready:
    """Answer to the ``Work`` of a number: the model is loaded, and takes ``base_bytes`` of the allocator.

    ``reserve_bytes`` are in use outside of the allocator (context, libraries, other processes). ``loaded`` says whether
    the model was loaded for this table.
    """

    number: int
    loaded: bool
    base_bytes: int
    reserve_bytes: int
    headroom: Headroom
    precision: str
    packing: str


@dataclass(frozen=True)
class TableGone:
    """Answer to the ``Work`` of a number whose folder is no more: others had done its rows while the model loaded."""

    number: int


@dataclass(frozen=True)
class Measured:
    """Answer to ``MeasureMemory``."""

    headroom: Headroom


@dataclass(frozen=True)
class Farewell:
    """Answer to ``Leave``: the device's peak, all processes counted, and its memory as (epoch seconds, bytes)."""

    peak_used: int
    timeline: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on: the exception's ``failure_word``, its place in the code, and itself if safe to show."""

    reason: str
    place: str
    cause: BaseException | None = None


@dataclass(frozen=True)
class MeasureMemory:
    """Request to measure memory."""


@dataclass(frozen=True)
class Leave:
    """Request to end."""


def main(descriptor: int, parent: int) -> None:
    """Serve the parent, a process id, at the other end of the connection with this file descriptor."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the whole process group; the parent decides
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        _serve(connection)
    except BaseException as error:  # noqa: BLE001  # the last frame of this process; the parent reports it
        _report(connection, error)
        os._exit(1)
    os._exit(0)  # exit handlers of compute libraries can hang, and nothing is left to save


def _serve(connection: Connection[Any, Any]) -> None:
    request = _receive(connection)
    while isinstance(request, Prepare):
        with suppress(Exception):  # loading fails alike, and its error is reported
            request.factory.prepare()
        request = _receive(connection)
    order: Order = request
    for _ in range(order.locks):
        recv_handle(connection)  # open for as long as this process lives
    taken = order.device.memory().used if order.device.frees_late else None  # of a host it is this process's own
    session = order.device.open()
    guard = MemoryGuard(session, order.ceiling, taken)
    with PeakSampler(guard, order.sampler_seconds) as sampler:
        guard.measure()
        model = _LoadedModel(order, session)
        _Desk(connection, model, session, guard).serve()
        model.unload()  # the next lease waits for this memory
    connection.send(Farewell(guard.peak_used, tuple(sampler.timeline.points)))


@dataclass(frozen=True)
class _Computed:
    """Notice that the device has computed a batch, whose results may have been fetched already."""

    batch: RunningBatch


class _Desk:
    """Answers requests in their order.

    While the device computes a batch, a thread makes the inputs of the next one, which is launched before the first
    one's results are fetched. Another thread waits for the device, so that requests and results come into one inbox.
    """

    def __init__(
        self, connection: Connection[Any, Any], model: _LoadedModel, session: DeviceSession, guard: MemoryGuard
    ) -> None:
        self._connection = connection
        self._model = model
        self._session = session
        self._guard = guard
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._runner: BatchRunner | None = None
        self._running: RunningBatch | None = None
        self._waiter = ThreadPoolExecutor(1)

    def serve(self) -> None:
        """Serve requests until the parent asks to leave."""
        threading.Thread(target=self._read, name="stager", daemon=True).start()
        while not isinstance(request := self._next(), Leave):
            if isinstance(request, RunningBatch):
                self._launch(request)
                continue
            self._finish()
            if isinstance(request, BaseException):
                raise request
            if isinstance(request, Work):
                self._runner = None
                self._runner, answer = _begin(request, self._model, self._session, self._guard)
                self._connection.send(answer)
            else:
                self._connection.send(Measured(self._guard.measure()))
        self._finish()
        self._runner = None

    def _read(self) -> None:
        """Read requests, and make the inputs of batches; an error is for the other thread to raise."""
        request: Any = None
        while not isinstance(request, Leave | BaseException):
            try:
                request = _receive(self._connection)
                if isinstance(request, Assignment) and self._runner is not None:
                    request = self._runner.stage(request.number, request.batch)
            except BaseException as error:  # noqa: BLE001  # this thread hands on whatever ends it
                request = error
            self._inbox.put(request)

    def _next(self) -> Any:
        """Wait for a request; fetch the running batch's results as soon as they are there."""
        while isinstance(message := self._inbox.get(), _Computed):
            if message.batch is self._running:
                self._finish()
        return message

    def _launch(self, staged: RunningBatch) -> None:
        assert self._runner is not None
        launched = self._runner.launch(staged)
        self._finish()
        self._running = launched
        if launched.done():  # a host computes while it launches
            self._finish()
        else:
            self._waiter.submit(self._wait, launched, launched.made)

    def _wait(self, batch: RunningBatch, made: Any) -> None:
        with suppress(Exception):  # the same error comes when the results are fetched
            made.wait()
        self._inbox.put(_Computed(batch))

    def _finish(self) -> None:
        """Report the batch that the device computes, if there is one."""
        if self._running is not None and self._runner is not None:
            running, self._running = self._running, None
            self._connection.send(self._runner.finish(running))


def _begin(
    work: Work, model: _LoadedModel, session: DeviceSession, guard: MemoryGuard
) -> tuple[BatchRunner | None, Ready | TableGone]:
    forward = model.for_work(work)
    try:
        table, arrays = load_table(work.folder), open_outputs(work.folder, list(work.outputs))
    except FileNotFoundError:
        return None, TableGone(work.number)
    session.begin_peak()
    loaded = work.factory is not None
    facts = forward.precision, packing_of(forward)
    ready = Ready(work.number, loaded, session.peak_bytes(), guard.settle(), guard.measure(), *facts)
    return BatchRunner(session, guard, forward, table, OutputArrays(work.outputs, arrays)), ready


class _LoadedModel:
    """The model on the device: one at a time, since two may not fit together."""

    def __init__(self, order: Order, session: DeviceSession) -> None:
        self._order = order
        self._session = session
        self._loaded: tuple[ForwardFactory, Forward] | None = None

    def for_work(self, work: Work) -> Forward:
        """Return the model that a table needs, loaded."""
        if work.factory is None:
            assert self._loaded is not None
        else:
            self.unload()
            self._loaded = (work.factory, self._load(work.factory))
        self._session.release_cache()
        return self._loaded[1]

    def unload(self) -> None:
        """Free the model's memory."""
        if self._loaded is not None:
            factory, forward = self._loaded
            self._loaded = None
            factory.unload(forward)
        self._session.release_cache()

    def _load(self, factory: ForwardFactory) -> Forward:
        """Load a model. Where a dead process frees its memory late, try again until it fits or time is up."""
        device = self._order.device
        deadline = time.monotonic() + (self._order.freed_seconds if device.frees_late else 0.0)
        while True:
            try:
                return factory.load(device.torch_device)
            except DeviceOutOfMemoryError:
                if time.monotonic() >= deadline:
                    raise
            self._session.release_cache()
            time.sleep(LOAD_AGAIN_SECONDS)


def _receive(connection: Connection[Any, Any]) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):  # the parent is gone
        os._exit(0)


def _report(connection: Connection[Any, Any], error: BaseException) -> None:
    """Send the error as the last message. If that fails, the parent sees the connection end."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    with suppress(OSError):
        connection.send(Failed(failure_word(error), place, _safe_cause(error)))


def _safe_cause(error: BaseException) -> BaseException | None:
    """Return the error itself if its message may be shown and it can be unpickled, else None."""
    if not isinstance(error, EnsembleError | DeviceOutOfMemoryError):
        return None
    error.__traceback__ = error.__cause__ = error.__context__ = None
    with suppress(Exception):  # an exception with arguments of its own may not unpickle, which would break the parent
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # made one call ago
        return error if isinstance(copy, type(error)) else None
    return None
