"""Start worker processes, ahead of their devices where a stage knows that it will need them.

A process that was started ahead has imported its libraries and opened no device: it holds host memory only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
from typing import Any

from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.running import worker_process as messages

_BOOTSTRAP = (
    "import json, os, sys; sys.path[:] = json.loads(sys.argv[1]); os.environ.update(json.loads(sys.argv[2])); "
    "from ensemble_assets.compute.running.worker_process import main; main(int(sys.argv[3]), int(sys.argv[4]))"
)
"""The worker's program. Compute libraries read the device's variables when they are imported, so they are set first.
With -P modules are not looked for in the working folder."""


class WorkerHandle:
    """One worker process, as its parent sees it.

    It is a fresh interpreter, since threads and a CUDA context do not survive a fork. It inherits the environment and
    this connection. ``open`` gives it a device, a name and the lock files of the lease.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.name = ""
        self.variables = variables
        self.holds: ForwardFactory | None = None
        mine, theirs = Pipe()
        self.connection: Connection[Any, Any] = mine
        arguments = [json.dumps(sys.path), json.dumps(dict(variables)), str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter and this package
                [sys.executable, "-P", "-c", _BOOTSTRAP, *arguments],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def open(self, name: str, order: messages.Order, descriptors: Sequence[int]) -> None:
        """Have the worker take the lock files of the lease, then open its device.

        The locks come first: while the device's memory is in use, so are they.
        """
        self.name = name
        self.send(order)
        with suppress(OSError):
            for descriptor in descriptors:
                send_handle(self.connection, descriptor, self.pid)

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
        return self.wait(seconds) is not None

    def wait(self, seconds: float) -> int | None:
        """Wait for the process to end: its exit status, or None if it still runs after ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode


class WorkerSupply:
    """Workers that are started ahead, one of each of ``devices``, for the ``models`` that a stage will still hold.

    Workers that nobody took are ended with the block.
    """

    def __init__(self, devices: Sequence[Device], models: int) -> None:
        self._devices = devices
        self._models = models
        self._ready: list[WorkerHandle] = []

    def __enter__(self) -> WorkerSupply:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._ready:
            worker.kill()
        for worker in self._ready:
            worker.end()
        self._ready.clear()

    def start(self, factory: ForwardFactory) -> None:
        """Start what the next model needs, if there is one: processes that import what ``factory`` loads with."""
        if self._models < 1 or self._ready:
            return
        self._models -= 1
        for device in self._devices:
            worker = WorkerHandle(device.environment())
            worker.send(messages.Prepare(factory))
            self._ready.append(worker)

    def take(self, variables: Mapping[str, str]) -> WorkerHandle | None:
        """Hand out a living worker with these variables, if there is one."""
        for worker in [worker for worker in self._ready if worker.variables == variables]:
            self._ready.remove(worker)
            if worker.lives:
                return worker
            worker.end()
        return None
