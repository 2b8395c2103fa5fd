"""Compute a shard on a node of a Ray cluster: lease the devices that Ray gave this process, run the rows, report.

Ray is not imported here, so a test can call ``compute_shard`` as an actor does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.common.errors import EnsembleError, failure_word
from ensemble_assets.common.events import Event, EventLog
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.device import Device
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
    """The purpose and the options of a shard's computation."""

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


def compute_shard(table: TokenTable, factory: ForwardFactory, order: Order) -> ShardReport:
    """Lease this process's devices and run the shard on them. Never raises: errors are in the report."""
    events = EventLog()
    try:
        result = _compute(table, factory, order, events)
    except (EnsembleError, DeviceOutOfMemoryError) as error:
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return ShardReport(events=tuple(events.events), error=error)
    except Exception as error:  # noqa: BLE001 - reported to the driver, which raises it as a stage error
        return ShardReport(events=tuple(events.events), word=failure_word(error))
    return ShardReport(result, tuple(events.events))


def _compute(table: TokenTable, factory: ForwardFactory, order: Order, events: EventLog) -> TableResult:
    options, environment = order.options, order.options.environment()
    # Ray names the GPUs that it gave this process in the usual variable.
    devices = discover_devices(environment.get("CUDA_VISIBLE_DEVICES"), threads=options.threads).chosen
    with lease_devices(
        order.model,
        order.stage,
        lock_folder=Path(environment.get(LOCK_DIR_VARIABLE) or options.lock_folder),
        events=events,
        devices=devices,
        timeout=options.lease_timeout,
        run=options.run,
        gate=MemoryGate(ceiling_bytes=options.ceiling_bytes),
    ) as lease:
        return LocalRunner(_settings(options, devices))(table, factory, lease=lease, events=events)


def _settings(options: NodeOptions, devices: tuple[Device, ...]) -> WorkerSettings:
    on_cpu = all(device.torch_device == "cpu" for device in devices)
    return options.on_cpu if on_cpu else options.on_gpu
