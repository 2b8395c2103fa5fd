"""Compute shards on a node of a Ray cluster: lease the devices that Ray gave this process, run the rows, report.

Ray is not imported here, so a test can use a ``Node`` as Ray does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ensemble_assets.common.errors import EnsembleError, failure_word
from ensemble_assets.common.events import Event, EventLog
from ensemble_assets.compute.backends.forward import ForwardFactory, without_packing
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.discovery import discover_devices
from ensemble_assets.compute.devices.leases import MemoryGate, lease_devices
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.tokens.token_tables import TokenTable

LOCK_DIR_VARIABLE = "EMBEDDER_PATHS_LOCK_DIR"
"""Variable of a node's own environment for its folder of device locks; the default is the driver's folder."""


@dataclass(frozen=True)
class NodeOptions:
    """Settings of every node, without and with GPUs.

    ``environment`` is called on the node and returns its environment. ``lock_folder`` is on the node's own disk. 0
    ``threads`` are all. ``run`` is the run's id, for the lease's note.
    """

    on_cpu: WorkerSettings
    on_gpu: WorkerSettings
    environment: Callable[[], Mapping[str, str]]
    lock_folder: Path
    lease_timeout: float
    ceiling_bytes: int
    threads: int = 0
    run: str = ""


@dataclass(frozen=True)
class Order:
    """The purpose and the options of computing shards."""

    model: str
    stage: str
    options: NodeOptions


@dataclass(frozen=True)
class ShardReport:
    """The outcome of a shard: its result, an error that is safe to show, or the class name of any other error.

    The rows of the result are in the shard's order.
    """

    result: TableResult | None = None
    events: tuple[Event, ...] = ()
    error: Exception | None = None
    word: str = ""


class Node:
    """A process on a node, which keeps its devices and its model from one shard to the next.

    After an error it has neither, and the next shard takes them anew.
    """

    def __init__(self) -> None:
        self._log = EventLog()
        self._kept = ExitStack()
        self._identity = ""
        self._run: Callable[[TokenTable], TableResult] | None = None

    def compute(self, table: TokenTable, factory: ForwardFactory, order: Order) -> ShardReport:
        """Run a shard on the devices that Ray gave this process. Never raises: errors are in the report."""
        try:
            result = self._runner(factory, order)(table)
        except (EnsembleError, DeviceOutOfMemoryError) as error:
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return ShardReport(events=self.close(), error=error)
        except Exception as error:  # noqa: BLE001 - reported to the driver, which raises it as a stage error
            return ShardReport(events=self.close(), word=failure_word(error))
        return ShardReport(result, self._events())

    def close(self) -> tuple[Event, ...]:
        """Give the devices back, and return the events since the last report."""
        self._release()
        return self._events()

    def _release(self) -> None:
        self._run = None
        self._kept.close()

    def _events(self) -> tuple[Event, ...]:
        events, self._log.events = tuple(self._log.events), []
        return events

    def _runner(self, factory: ForwardFactory, order: Order) -> Callable[[TokenTable], TableResult]:
        """Lease the devices and hold the model, unless this is so already. Every shard brings its own copy of it."""
        if self._run is not None and self._identity == factory.identity:
            return self._run
        self._release()
        options, environment = order.options, order.options.environment()
        # Ray names the GPUs that it gave this process in the usual variable.
        devices = discover_devices(environment.get("CUDA_VISIBLE_DEVICES"), threads=options.threads).chosen
        keep = self._kept.enter_context
        lease = keep(
            lease_devices(
                order.model,
                order.stage,
                lock_folder=Path(environment.get(LOCK_DIR_VARIABLE) or options.lock_folder),
                events=self._log,
                devices=devices,
                timeout=options.lease_timeout,
                run=options.run,
                gate=MemoryGate(ceiling_bytes=options.ceiling_bytes),
            )
        )
        on_cpu = all(device.torch_device == "cpu" for device in devices)
        settings = options.on_cpu if on_cpu else options.on_gpu
        runner = keep(LocalRunner(settings).holding(lease, self._log))
        # a driver without devices asks for packed rows, but a CPU's are slower than padded ones
        model = keep(runner.loaded(without_packing(factory) if on_cpu else factory))
        self._identity = factory.identity
        self._run = partial(runner, factory=model, lease=lease, events=self._log)
        return self._run
