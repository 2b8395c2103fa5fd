"""What the sections compute on: a device, its limits, runs of token tables, and programs beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.ceiling import SAMPLER, Ceiling
from ensemble_assets.compute.devices.cuda import CudaDevice, list_cuda_devices
from ensemble_assets.compute.devices.device import MemoryReading
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets_tests.gpu.cases import ROOT, HungryModel
from ensemble_assets_tests.simulated.device import SimulatedDevice
from ensemble_assets_tests.simulated.model import Faults, MemoryNeeds, SimulatedModel, Speed, expected_vector

GB = 1_000_000_000


@dataclass
class Log(EventLog):
    """An event log that does something when an event comes."""

    act: Callable[[Log, str, Mapping[str, Any]], None] = lambda log, name, facts: None

    def emit(self, name: str, **facts: Any) -> None:
        super().emit(name, **facts)
        self.act(self, name, facts)

    def after(self, name: str) -> float:
        """Seconds from the first event of a name to the last event."""
        return self.events[-1].at - self.named(name)[0].at


@dataclass(frozen=True)
class Bench:
    """A device and a folder for everything that is written.

    Attributes:
        device: a GPU, or a simulated one whose memory is arithmetic.
        folder: gone after the run.
        used_before: bytes in use on the device before the first section.
    """

    device: CudaDevice | SimulatedDevice
    folder: Path
    used_before: int

    @property
    def simulated(self) -> bool:
        """Whether there is no card."""
        return isinstance(self.device, SimulatedDevice)

    def hungry(
        self, bytes_per_token: int, seconds: float = 0.0, poison: frozenset[int] = frozenset()
    ) -> ForwardFactory:
        """A model that takes so much memory, of the card or of the simulation, and loses the device on some rows."""
        if isinstance(self.device, CudaDevice):
            return HungryModel(bytes_per_token, seconds=seconds, poison_rows=poison)
        needs = MemoryNeeds(64 << 20, float(bytes_per_token))
        return SimulatedModel(needs, Speed(1e8, max(seconds, 1e-3)), Faults(poison_rows=poison))

    def run(
        self, table: TokenTable, model: ForwardFactory, ceiling_bytes: int, log: EventLog, **settings: Any
    ) -> TableResult:
        """Lease the device and take a table through a model in a worker process."""
        sizes = SizeSettings(initial_tokens=2_000, saturation_tokens=20_000)
        workers = WorkerSettings(PlannerSettings(sizes), Ceiling(ceiling_bytes), work_folder=self.folder / "work")
        with self.lease(log) as lease:
            return LocalRunner(replace(workers, **settings))(table, model, lease=lease, events=log)

    def unreadable(self) -> Bench:
        """This bench, with a device of which some readings fail."""
        kind = UnreadableCard if self.simulated else UnreadableGpu
        facts = {each.name: getattr(self.device, each.name) for each in fields(self.device)}
        return replace(self, device=kind(**facts))

    def lease(self, log: EventLog, timeout: float = 60.0) -> Any:
        """Lease the device with locks of this run."""
        locks = self.folder / "locks"
        return lease_devices("model", "dense", lock_folder=locks, events=log, devices=[self.device], timeout=timeout)

    def program(self, name: str, *arguments: object) -> subprocess.Popen[str]:
        """Start a program of ``programs`` in a process of its own; it answers with lines of JSON."""
        command = [sys.executable, "-m", "ensemble_assets_tests.gpu.acceptance.programs", name, self.device.uuid]
        command += [str(self.folder), *map(str, arguments)]
        environment = [f"{key}={value}" for key, value in self.device.environment().items()]
        return subprocess.Popen(["env", *environment, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    @contextmanager
    def watched(self) -> Iterator[Callable[[], NDArray[np.float64]]]:
        """Watch the card from a process of its own; yields how to read (epoch seconds, bytes in use), ``[n, 2]``."""
        path = self.folder / f"watch-{time.monotonic_ns()}"
        path.touch()
        process = self.program("watch", path)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield lambda: np.loadtxt(path, ndmin=2)
        finally:
            process.kill()
            process.wait()


def make_bench(kind: str, folder: Path) -> Bench:
    """The first GPU of the machine, or a simulated card with what real cards have."""
    (folder / "work").mkdir(exist_ok=True)
    device = list_cuda_devices()[0] if kind == "cuda" else simulated_card()
    return Bench(device, folder, device.memory().used)


def simulated_card(uuid: str = "SIM-0", total_bytes: int = 16 * GB) -> SimulatedDevice:
    """A card with memory that is never free, late kernels, large pages, fragmentation and errors of three kinds."""
    return SimulatedDevice(
        uuid=uuid,
        total_bytes=total_bytes,
        context_bytes=450_000_000,
        lazy_bytes=150_000_000,
        granule_bytes=20 << 20,
        fragmentation=0.08,
        reserved_bytes=473_000_000,
        racing=0.2,
        failing=0.05,
        raw_errors=True,
        lingers=1.0,
    )


class _Unreadable:
    """A device whose sampler cannot read the memory three times in a row, from its second reading on."""

    def open(self) -> Any:
        session: Any = super().open()  # type: ignore[misc]
        usual, readings = session.memory, count()

        def memory() -> MemoryReading:
            if threading.current_thread().name == SAMPLER and next(readings) in UNREADABLE:
                raise DeviceError("a reading that fails")
            return cast("MemoryReading", usual())

        session.memory = memory
        return session


class UnreadableGpu(_Unreadable, CudaDevice):
    """A GPU of that kind."""


class UnreadableCard(_Unreadable, SimulatedDevice):
    """A simulated one."""


UNREADABLE = range(1, 4)
"""Numbers of the readings that fail."""


def answer(process: subprocess.Popen[str], seconds: float = 120.0) -> Any:
    """The last line of a program that ends by itself."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"a program ended with status {process.returncode}"
    return json.loads(output.splitlines()[-1])


def random_table(lengths: NDArray[np.int64], vocabulary: int = 500, seed: int = 0) -> TokenTable:
    """Rows of random tokens of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(5, vocabulary, int(offsets[-1]), np.int32)
    return TokenTable(ids, offsets, np.zeros(len(lengths), np.bool_), None)


def wrong_rows(result: TableResult, table: TokenTable) -> list[int]:
    """Rows of a hungry model whose vector is not the right one, of those that have not failed."""
    expected = np.stack([expected_vector(table, row) for row in range(len(table))])
    wrong = np.flatnonzero((result.outputs["vector"] != expected).any(axis=1))
    return [int(row) for row in wrong if row not in result.failed_rows]


@dataclass(frozen=True)
class Section:
    """A part of the acceptance run.

    Attributes:
        run: returns facts, with ``passed`` among them.
        seconds: deadline.
    """

    run: Callable[[Bench], dict[str, Any]]
    seconds: float = field(default=60.0)
