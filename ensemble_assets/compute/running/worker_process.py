"""Serve batches in a worker process: one device, one model, one parent at the other end of a connection.

A worker dies with its parent. Of an error it reports class and place, since messages may quote the input.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ensemble_assets.common.errors import EnsembleError, failure_word
from ensemble_assets.compute.backends.forward import Forward, ForwardFactory
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.planner import Assignment
from ensemble_assets.compute.devices.ceiling import Ceiling, Headroom, MemoryGuard, PeakSampler
from ensemble_assets.compute.devices.device import Device, DeviceSession
from ensemble_assets.compute.running.run_batch import BatchRunner, OutputArrays
from ensemble_assets.compute.running.shared_folder import load_table, open_outputs

LOAD_AGAIN_SECONDS = 0.5
"""Pause before weights that did not fit are loaded again."""

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


@dataclass(frozen=True)
class Order:
    """The work of one worker: device and limits, model, folder of table and outputs, period of the sampler.

    Weights that do not fit are tried again for ``freed_seconds``.
    """

    device: Device
    factory: ForwardFactory
    folder: Path
    ceiling: Ceiling
    freed_seconds: float
    sampler_seconds: float


@dataclass(frozen=True)
class Ready:
    """The model is loaded, and takes ``base_bytes`` of the allocator.

    ``reserve_bytes`` are in use outside of the allocator (context, libraries, other processes).
    """

    base_bytes: int
    reserve_bytes: int
    headroom: Headroom
    precision: str


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


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (prctl(2), Linux)."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)


def _serve(connection: Connection[Any, Any]) -> None:
    order: Order = _receive(connection)
    session = order.device.open()
    guard = MemoryGuard(session, order.ceiling)
    with PeakSampler(guard, order.sampler_seconds) as sampler:
        guard.measure()
        forward = _load(order, session)
        session.begin_peak()
        base = session.peak_bytes()
        specs = order.factory.outputs
        outputs = OutputArrays(specs, open_outputs(order.folder, list(specs)))
        runner = BatchRunner(session, guard, forward, load_table(order.folder), outputs)
        connection.send(Ready(base, guard.settle(), guard.measure(), forward.precision))
        while not isinstance(request := _receive(connection), Leave):
            if isinstance(request, Assignment):
                connection.send(runner.run(request.number, request.batch))
            else:
                connection.send(Measured(guard.measure()))
        del runner
        order.factory.unload(forward)
        session.release_cache()  # the next lease waits for this memory
    connection.send(Farewell(guard.peak_used, tuple(sampler.timeline.points)))


def _load(order: Order, session: DeviceSession) -> Forward:
    """Load the model. Where a dead process frees its memory late, try again until it fits or time is up."""
    deadline = time.monotonic() + (order.freed_seconds if order.device.frees_late else 0.0)
    while True:
        try:
            return order.factory.load(order.device.torch_device)
        except DeviceOutOfMemoryError:
            if time.monotonic() >= deadline:
                raise
        session.release_cache()
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
