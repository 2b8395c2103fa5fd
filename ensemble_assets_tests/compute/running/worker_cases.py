"""Models and sinks for tests with real worker processes: importable, since a worker is a fresh interpreter."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ensemble_assets.common.errors import DeviceError, InputError, ModelUnavailableError
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.run_table import TableRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets_tests.compute.running.doubles import DoubleFactory, DoubleForward, table_of
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.simulated.device import OPEN_SESSIONS, SimulatedDevice
from ensemble_assets_tests.simulated.model import SimulatedForward, SimulatedModel, expected_vector

SECRET = "the secret text"


def random_table(rows: int = 200, longest: int = 60, seed: int = 0) -> TokenTable:
    """Distinct rows of 1 to ``longest`` tokens, in no order."""
    random = np.random.default_rng(seed)
    return table_of([[*random.integers(5, 500, random.integers(0, longest)), 1000 + row] for row in range(rows)])


def simulated(count: int, **facts: Any) -> tuple[SimulatedDevice, ...]:
    return tuple(SimulatedDevice(uuid=f"SIM-{number}", **facts) for number in range(count))


def fixed_batches(tokens: int = 256) -> PlannerSettings:
    """One size for all batches: the plan depends on nothing that happens."""
    return PlannerSettings(SizeSettings(initial_tokens=tokens, max_tokens=tokens))


def meet(folder: Path, parties: int, name: str = "") -> None:
    """Wait until so many workers have come here; ``name`` tells this one from the others, else its process does."""
    (folder / f"begun-{name or os.getpid()}").touch()
    while len(list(folder.glob("begun-*"))) < parties:
        time.sleep(0.002)


@dataclass(frozen=True)
class Together(SimulatedModel):
    """Every worker's first batch waits until each of ``parties`` workers has one: all of them take part.

    Attributes:
        folder: where workers say that they have begun.
        parties: how many there are.
        slow: the device whose batches take ``slow_seconds`` more.
    """

    folder: Path = Path()
    parties: int = 1
    slow: str = ""
    slow_seconds: float = 0.0

    def load(self, device: str) -> _TogetherForward:
        super().load(device)
        return _TogetherForward(self, OPEN_SESSIONS[device])


@dataclass(frozen=True)
class FitsOnOne(Together):
    """A device on which the weights do not fit counts as having begun: the others go on once it has tried."""

    def load(self, device: str) -> _TogetherForward:
        try:
            return super().load(device)
        except DeviceOutOfMemoryError:
            (self.folder / f"begun-{OPEN_SESSIONS[device].device.uuid}").touch()
            raise


class _TogetherForward(SimulatedForward):
    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        model: Any = self._model
        meet(model.folder, model.parties, self._session.device.uuid)
        if self._session.device.uuid == model.slow:
            time.sleep(model.slow_seconds)
        return super().__call__(table, batch)


@dataclass(frozen=True)
class Unloadable(SimulatedModel):
    """Raises while loading, on every device or on one.

    Attributes:
        error: ``missing``, ``foreign``, ``two arguments``, ``end of file`` or ``hangs``; ``late`` loads after a second.
        on: the device; empty for all.
    """

    error: str = "missing"
    on: str = ""

    def load(self, device: str) -> SimulatedForward:
        if not device.endswith(self.on):
            return super().load(device)
        if self.error == "hangs":
            time.sleep(1e6)
        if self.error == "late":
            time.sleep(1.0)
            return super().load(device)
        raise {
            "missing": ModelUnavailableError("its files are not here"),
            "foreign": ValueError(SECRET),
            "two arguments": InputError("a", "b", "c"),
            "end of file": EOFError(SECRET),
            "no memory": DeviceOutOfMemoryError("its weights do not fit"),
        }[self.error]


@dataclass(frozen=True)
class LoadsAfter(DoubleFactory):
    """Loads on one device only when a file is there."""

    file: Path = Path()
    on: str = ""

    def load(self, device: str) -> DoubleForward:
        while device.endswith(self.on) and not self.file.exists():
            time.sleep(0.002)
        return super().load(device)


@dataclass(frozen=True)
class HostMemoryModel(PlainFactory):
    """Takes real host memory: so many bytes per padded token, touched."""

    bytes_per_token: int
    outputs: Mapping[str, OutputSpec] = field(default_factory=lambda: {"vector": OutputSpec((4,), "float32")})
    identity: str = "host-memory"

    def load(self, device: str) -> HostMemoryModel:
        return self

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        np.ones(batch.tokens * self.bytes_per_token, np.uint8).sum()
        return {"vector": np.stack([expected_vector(table, int(row)) for row in batch.rows])}


@dataclass(frozen=True)
class Overlapping(PlainFactory):
    """Computes in a thread, as a GPU computes beside its host; a batch ends only when the next one has come so far.

    Attributes:
        last: ``stage`` or ``launch``, what the next batch must have seen; empty for nothing.
        raises_on: rows on which computing raises.
        refuses_from: padded tokens from which a launch does not fit.
        poison: rows on which the device is lost.
    """

    last: str = "stage"
    raises_on: frozenset[int] = frozenset()
    refuses_from: int = 1 << 60
    poison: frozenset[int] = frozenset()
    outputs: Mapping[str, OutputSpec] = field(default_factory=lambda: {"vector": OutputSpec((4,), "float32")})
    identity: str = "overlapping"

    def load(self, device: str) -> _OverlappingForward:
        return _OverlappingForward(self)


class _OverlappingForward:
    """Counts rows as they are staged and launched; see ``StagedForward``."""

    precision = "fp32"

    def __init__(self, model: Overlapping) -> None:
        self.model = model
        self.seen = {"stage": 0, "launch": 0}
        self.pool = ThreadPoolExecutor(1)

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        raise AssertionError("it is called in parts")

    def release(self) -> None:
        self.pool.shutdown()

    def stage(self, table: TokenTable, batch: Batch) -> tuple[TokenTable, Batch]:
        self.seen["stage"] += batch.size
        return table, batch

    def launch(self, staged: tuple[TokenTable, Batch]) -> _OverlappingBatch:
        table, batch = staged
        if batch.tokens >= self.model.refuses_from:
            raise DeviceOutOfMemoryError("too large")
        self.seen["launch"] += batch.size
        wanted = min(len(table), self.seen["launch"] + 1) if self.model.last else 0
        return _OverlappingBatch(self.pool.submit(self._compute, table, batch, wanted))

    def _compute(self, table: TokenTable, batch: Batch, wanted: int) -> Mapping[str, np.ndarray]:
        while wanted and self.seen[self.model.last] < wanted:
            time.sleep(0.001)
        rows = batch.rows.tolist()
        if self.model.raises_on.intersection(rows):
            raise ValueError(SECRET)
        if self.model.poison.intersection(rows):
            raise DeviceError("lost")
        return {"vector": np.stack([expected_vector(table, row) for row in rows])}


@dataclass(frozen=True)
class _OverlappingBatch:
    future: Future[Mapping[str, np.ndarray]]
    looks: list[bool] = field(default_factory=list)

    def done(self) -> bool:
        self.looks.append(self.future.done())
        assert len(self.looks) == 1, "a worker waits, and does not look again and again"
        return self.looks[0]

    def wait(self) -> None:
        self.future.exception()

    def result(self) -> Mapping[str, np.ndarray]:
        return self.future.result()


@dataclass(frozen=True)
class AsksItself(PlainFactory):
    """Answers for every row in which process it was computed and how many threads that process was given.

    Attributes:
        meeting: where the first batch of each of ``parties`` processes waits for those of the others. Without it the
            first process that is ready may compute all rows before another one has started.
    """

    meeting: Path
    parties: int
    outputs: Mapping[str, OutputSpec] = field(default_factory=lambda: {"process": OutputSpec((2,), "int64")})
    identity: str = "asks-itself"

    def load(self, device: str) -> AsksItself:
        return self

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        meet(self.meeting, self.parties)
        threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        return {"process": np.tile(np.array([os.getpid(), threads]), (batch.size, 1))}


@dataclass
class ActingLog(EventLog):
    """An event log that does something when an event comes, in the process that planned it.

    Attributes:
        act: called with (log, name, facts) after each event was kept.
    """

    act: Callable[[ActingLog, str, Mapping[str, Any]], None] = lambda log, name, facts: None

    def emit(self, name: str, **facts: Any) -> None:
        super().emit(name, **facts)
        self.act(self, name, facts)

    def pids(self) -> dict[str, int]:
        """Worker process by device; the last one started."""
        return {str(event.facts["device"]): int(event.facts["pid"]) for event in self.named("worker.started")}


def kill_after(batches: int, *devices: str) -> Callable[[ActingLog, str, Mapping[str, Any]], None]:
    """Kills these devices' workers once so many batches are done."""

    def act(log: ActingLog, name: str, facts: Mapping[str, Any]) -> None:
        if name == "batch.done" and len(log.named("batch.done")) == batches:
            for device in devices:
                os.kill(log.pids()[device], signal.SIGKILL)

    return act


def run_on(
    devices: Any, table: TokenTable, model: Any, root: Path, events: EventLog | None = None, **settings: Any
) -> tuple[Any, EventLog]:
    """Lease the devices, take the table through the model on one worker each; the result and what was reported."""
    log = ActingLog() if events is None else events
    workers = replace(WorkerSettings(fixed_batches(), work_folder=root / "work"), **settings)
    with (
        lease_devices("m", "dense", lock_folder=root / "locks", events=log, devices=devices, timeout=30.0) as lease,
        TableRunner(LocalRunner(workers)).holding(lease, log) as runner,
    ):
        result = runner(table, model, lease=lease, events=log)
    return result, log


def is_running(process: psutil.Process) -> bool:
    """Dead but not yet collected by whoever inherited it counts as dead: its memory and files are gone."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_dead(living: Callable[[], Any], seconds: float = 120.0) -> bool:
    """Whether soon nobody is left; an exit that has begun takes as long as the machine makes it take."""
    deadline = time.monotonic() + seconds
    while living() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not living()


def assert_nothing_is_left(log: ActingLog, devices: Any, root: Path) -> None:
    """No worker process, no held lease, no work folder."""
    for pid in (int(event.facts["pid"]) for event in log.named("worker.started")):
        with suppress(psutil.NoSuchProcess):
            assert not is_running(psutil.Process(pid))
    with lease_devices("m", "dense", lock_folder=root / "locks", events=EventLog(), devices=devices, timeout=0.0):
        pass
    assert list((root / "work").iterdir()) == []
