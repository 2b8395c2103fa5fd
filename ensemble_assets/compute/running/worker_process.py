"""The program of a worker process: one device, one model, batches by request until its parent is done with it.

It is started by ``worker_handle`` and speaks with it over one connection. It dies with its parent, it never prints, and
what it says about an error is a class name and a place in the code, since messages may quote the input.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ensemble_assets.common.errors import EnsembleError, failure_word
from ensemble_assets.compute.backends.forward import ForwardFactory, HasRelease
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.planner import Assignment
from ensemble_assets.compute.devices.ceiling import Ceiling, Headroom, MemoryGuard, PeakSampler
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.running.run_batch import BatchRunner
from ensemble_assets.compute.running.shared_folder import load_table, open_outputs

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Order:
    """What a worker is started for.

    Attributes:
        device: where to compute.
        factory: what to load.
        folder: where table and outputs are.
        ceiling: this worker's memory limits.
        sampler_seconds: period of the memory sampler.
    """

    device: Device
    factory: ForwardFactory
    folder: Path
    ceiling: Ceiling
    sampler_seconds: float


@dataclass(frozen=True)
class Ready:
    """The model is loaded.

    Attributes:
        base_bytes: what the loaded model takes of the allocator.
        reserve_bytes: what opening the device took outside of it (context, libraries).
        headroom: memory left on the device.
        precision: what the model computes in.
    """

    base_bytes: int
    reserve_bytes: int
    headroom: Headroom
    precision: str


@dataclass(frozen=True)
class Measured:
    """Answer to a request to measure."""

    headroom: Headroom


@dataclass(frozen=True)
class Farewell:
    """Last words: the device's peak, all processes counted, and its memory over time as (epoch seconds, bytes)."""

    peak_used: int
    timeline: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on.

    Attributes:
        reason: ``failure_word`` of the exception.
        place: file and line of the code.
        cause: the error itself where its message is safe to show.
    """

    reason: str
    place: str
    cause: BaseException | None = None


@dataclass(frozen=True)
class Look:
    """Request to measure memory."""


@dataclass(frozen=True)
class Leave:
    """Request to end."""


def main(descriptor: int, parent: int) -> None:
    """Serve the parent at the other end of ``descriptor``."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the whole group; the parent decides
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        _serve(connection)
    except BaseException as error:  # noqa: BLE001  # the last frame of this process: told to the parent, not printed
        _tell(connection, error)
        os._exit(1)
    os._exit(0)  # compute libraries' exit handlers can hang, and there is nothing left to save


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (prctl(2), Linux)."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it had already gone
        os._exit(1)


def _serve(connection: Connection[Any, Any]) -> None:
    order: Order = _receive(connection)
    used_before = order.device.memory().used
    session = order.device.open()
    guard = MemoryGuard(session, order.ceiling)
    reserve = guard.measure_reserve(used_before)
    with PeakSampler(guard, order.sampler_seconds) as sampler:
        guard.tick()
        forward = order.factory.load(order.device.torch_device)
        session.begin_peak()
        base = session.peak_bytes()
        runner = BatchRunner(
            session, guard, forward, load_table(order.folder), open_outputs(order.folder, list(order.factory.outputs))
        )
        connection.send(Ready(base, reserve, guard.tick(), getattr(forward, "precision", "fp32")))
        while not isinstance(request := _receive(connection), Leave):
            if isinstance(request, Assignment):
                connection.send(runner.run(request.number, request.batch))
            else:
                connection.send(Measured(guard.tick()))
        del runner
        if isinstance(forward, HasRelease):
            forward.release()
        session.release_cache()  # the next lease waits for this memory
    connection.send(Farewell(guard.peak_used, tuple(sampler.timeline.points)))


def _receive(connection: Connection[Any, Any]) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):  # the parent has gone, and nobody is left to tell
        os._exit(0)


def _tell(connection: Connection[Any, Any], error: BaseException) -> None:
    """The last message; if even that cannot be sent, the parent sees the connection end."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    with suppress(OSError):
        connection.send(Failed(failure_word(error), place, _safe_cause(error)))


def _safe_cause(error: BaseException) -> BaseException | None:
    """The error where its message may be shown and it survives the way to the parent."""
    if not isinstance(error, EnsembleError | DeviceOutOfMemoryError):
        return None
    error.__traceback__ = error.__cause__ = error.__context__ = None
    with suppress(Exception):  # an exception with arguments of its own may not unpickle, which would break the parent
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # made one call ago
        return error if isinstance(copy, type(error)) else None
    return None
