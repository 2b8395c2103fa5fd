"""Run rows through a model in this process: for CPUs, whose memory is back as soon as it is freed."""

from __future__ import annotations

import time

import numpy as np

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory, packing_of
from ensemble_assets.compute.batching.batch_outcome import Finished
from ensemble_assets.compute.batching.dispatcher import Dispatcher, Measure, Run
from ensemble_assets.compute.batching.planner import BatchPlanner
from ensemble_assets.compute.batching.table_result import NOT_FINITE, TableResult
from ensemble_assets.compute.devices.ceiling import MemoryGuard, PeakSampler
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.run_batch import BatchRunner, OutputArrays
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.tokens.token_tables import TokenTable


def run_in_process(
    table: TokenTable,
    planner: BatchPlanner,
    factory: ForwardFactory,
    lease: Lease,
    settings: WorkerSettings,
    events: EventSink,
) -> TableResult:
    """Run the planner's rows of a table on the lease's first device, which must be the CPU.

    Rows that fail in the result are not finite. A GPU's memory would stay with this process, so it is a
    ``DeviceError``.
    """
    device = lease.devices[0]
    if device.torch_device.startswith("cuda"):
        raise DeviceError(f"{device.name}: a GPU is used by worker processes only. Set workers_per_device to 1")
    outputs = {name: np.zeros(spec.size(table), spec.dtype) for name, spec in factory.outputs.items()}
    dispatcher = Dispatcher(planner, [device.uuid], events, settings.patience)
    not_finite: list[int] = []
    session = device.open()
    guard = MemoryGuard(session, settings.ceiling.within(device.total_bytes))
    try:
        with PeakSampler(guard, settings.sampler_seconds) as sampler:
            forward = factory.load(device.torch_device)
            try:
                runner = BatchRunner(session, guard, forward, table, OutputArrays(factory.outputs, outputs))
                session.begin_peak()
                guard.settle()
                dispatcher.joined(device.uuid, session.peak_bytes(), guard.measure())
                planner.packed = packing_of(forward) == "packed"
                for action in dispatcher.actions(time.monotonic, _sleep_until):
                    if isinstance(action, Run):
                        staged = runner.stage(action.assignment.number, action.assignment.batch)
                        outcome = runner.finish(runner.launch(staged))
                        dispatcher.outcome(device.uuid, outcome)
                        if isinstance(outcome, Finished):
                            not_finite += outcome.not_finite
                    elif isinstance(action, Measure):
                        dispatcher.measured(device.uuid, guard.measure())
            finally:
                factory.unload(forward)
    finally:
        session.limit_allocations(None)
        events.emit("device.peak", device=device.uuid, used_bytes=guard.peak_used)
        for at, used in sampler.timeline.points:
            events.emit("device.memory", device=device.uuid, sampled_at=at, used_bytes=used)
    return TableResult(
        outputs,
        dict.fromkeys(not_finite, NOT_FINITE),
        peak_bytes=guard.peak_used,
        precision=forward.precision,
        largest_batch=dispatcher.largest_batch,
    )


def _sleep_until(wakeup: float | None) -> None:
    """Sleep until the dispatcher wants to decide again; nothing else can happen in this process meanwhile."""
    time.sleep(max(0.0, (wakeup or 0.0) - time.monotonic()))
