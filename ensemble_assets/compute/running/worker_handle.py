"""A worker process as its parent sees it: started with the lease in its hands, spoken to, ended for certain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

from ensemble_assets.compute.running.worker_process import Leave, Order
from ensemble_assets.settings.sources import process_environment

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ensemble_assets.compute.running.worker_process import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


class WorkerHandle:
    """One worker process.

    It is a fresh interpreter, not a fork: threads and a CUDA context do not survive one. It inherits the lock files of
    the lease and this connection, nothing else.

    Args:
        name: how it is called in messages and events.
        order: what it is started for.
        descriptors: open lock files that it must hold.
    """

    def __init__(self, name: str, order: Order, descriptors: Sequence[int]) -> None:
        self.name = name
        mine, theirs = Pipe()
        self.connection: Connection[Any, Any] = mine
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter and this package
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(), *descriptors),
                stdin=subprocess.DEVNULL,
                env={**process_environment(), **order.device.environment()},
            )
        with suppress(BrokenPipeError):  # it died at once; reading will say so
            self.connection.send(order)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: object) -> None:
        """Tell the worker something; that it is gone shows when it is read from."""
        with suppress(OSError):
            self.connection.send(message)

    def leave(self) -> None:
        """Ask it to end."""
        self.send(Leave())

    def kill(self) -> None:
        """Have the kernel end it; does not wait."""
        self.connection.close()
        self._process.kill()

    def end(self, seconds: float = 10.0) -> bool:
        """Kill it and wait; whether it is gone."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None if it still runs after so long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode
