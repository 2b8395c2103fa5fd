"""One node's part of a computation on a Ray cluster: lease what Ray gave this process, compute a shard, report.

Nothing here imports Ray: an actor calls ``compute_shard``, and so can a test. Who gets which shard is ``ray_cluster``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble_assets.common.errors import EnsembleError, failure_word
from ensemble_assets.common.events import Event, EventLog
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.devices.discovery import discover_devices
from ensemble_assets.compute.devices.leases import MemoryGate, lease_gpus
from ensemble_assets.compute.running.run_table import ParallelSettings, run_parallel
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets.settings.sources import process_environment

LOCK_DIR_VARIABLE = "EMBEDDER_PATHS_LOCK_DIR"
"""Where a node keeps its device locks, if its own environment says so; else where the driver does."""


@dataclass(frozen=True)
class NodeOptions:
    """How every node computes.

    Attributes:
        on_cpu: workers, batches and limits of a node without GPUs.
        on_gpu: the same for one with GPUs.
        lock_folder: folder of device locks on every node; a path on its own disk.
        lease_timeout: seconds to wait for a device.
        ceiling_bytes: most memory in use on any device.
        threads: CPU threads; 0 for all.
        run: id of the run, for the lease's record.
    """

    on_cpu: ParallelSettings
    on_gpu: ParallelSettings
    lock_folder: Path
    lease_timeout: float
    ceiling_bytes: int
    threads: int = 0
    run: str = ""


@dataclass(frozen=True)
class Order:
    """What a shard is computed for."""

    model: str
    stage: str
    options: NodeOptions


@dataclass(frozen=True)
class ShardReport:
    """How a shard went; exactly one of ``result``, ``error`` and ``word`` is set.

    Attributes:
        result: its outputs, rows in the shard's order.
        events: what was reported meanwhile.
        error: an error whose message is safe to show.
        word: class name of any other error, whose message may quote the input.
    """

    result: TableResult | None = None
    events: tuple[Event, ...] = ()
    error: Exception | None = None
    word: str = ""


def compute_shard(table: TokenTable, factory: ForwardFactory, order: Order) -> ShardReport:
    """Lease this process's devices and run the shard on them; never raises."""
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
    options, environment = order.options, process_environment()
    # Ray names the GPUs that it gave this process in the usual variable.
    devices = discover_devices(environment.get("CUDA_VISIBLE_DEVICES"), threads=options.threads).chosen
    with lease_gpus(
        order.model,
        order.stage,
        lock_folder=Path(environment.get(LOCK_DIR_VARIABLE) or options.lock_folder),
        events=events,
        devices=devices,
        timeout=options.lease_timeout,
        run=options.run,
        gate=MemoryGate(ceiling_bytes=options.ceiling_bytes),
    ) as lease:
        return run_parallel(table, factory, lease, _settings(options, devices), events)


def _settings(options: NodeOptions, devices: tuple[Device, ...]) -> ParallelSettings:
    on_cpu = all(device.torch_device == "cpu" for device in devices)
    return options.on_cpu if on_cpu else options.on_gpu
