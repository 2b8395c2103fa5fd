"""The stage's rows through a model in this very process: for CPUs, where a second process buys nothing.

A worker process exists to give a GPU's memory back and to survive its death. Host memory comes back when it is freed,
so on a CPU a process only costs its start. Batches and limits are the same as with workers.
"""

from __future__ import annotations

import time
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory, HasRelease, HasWidth
from ensemble_assets.compute.batching.batch_outcome import Finished
from ensemble_assets.compute.batching.dispatcher import Dispatcher, Measure, Run
from ensemble_assets.compute.batching.planner import BatchController
from ensemble_assets.compute.batching.size_limits import SizeMemory
from ensemble_assets.compute.devices.ceiling import MemoryGuard, PeakSampler
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.compute.running.run_batch import BatchRunner, Outputs
from ensemble_assets.compute.running.worker_settings import PassResult, WorkerSettings, for_width
from ensemble_assets.compute.tokens.token_tables import TokenTable


class InProcess:
    """One device used by this process itself; a drop-in for ``WorkerPool``.

    Args:
        device: the CPU.
        factory: what to load.
        table: the rows.
        outputs: ``[n, *shape]`` arrays by output name.
        settings: how to run.
        events: where everything that happens is reported.

    Raises:
        DeviceError: if the device is a GPU: its memory would stay with this process.
    """

    def __init__(
        self,
        device: Device,
        factory: ForwardFactory,
        table: TokenTable,
        outputs: Outputs,
        settings: WorkerSettings,
        events: EventSink,
    ) -> None:
        if device.torch_device.startswith("cuda"):
            raise DeviceError(f"{device.name}: a GPU is used by worker processes only. Set workers_per_device to 1")
        self._device = device
        self._events = events
        self._settings = settings
        self._batches = for_width(settings.controller, factory.width if isinstance(factory, HasWidth) else 0)
        used_before = device.memory().used
        self._session = device.open()
        self._guard = MemoryGuard(self._session, settings.ceiling.within(device.total_bytes))
        self._guard.measure_reserve(used_before)
        self._sampler = PeakSampler(self._guard, settings.sampler_seconds)
        self._factory = factory
        self._table = table
        self._outputs = outputs
        self.result = PassResult()

    def __enter__(self) -> InProcess:
        self._sampler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.__exit__()
        self._session.limit_allocations(None)
        self._events.emit("device.peak", device=self._device.uuid, used_bytes=self._guard.peak_used)
        for at, used in self._sampler.timeline.points:
            self._events.emit("device.memory", device=self._device.uuid, sampled_at=at, used_bytes=used)
        self.result.peak_bytes = max(self.result.peak_bytes, self._guard.peak_used)

    def run(self, lengths: NDArray[np.int64], rows: NDArray[np.int64], memory: SizeMemory | None = None) -> PassResult:
        """Take every row through the model; see ``WorkerPool.run``."""
        forward = self._factory.load(self._device.torch_device)
        self.result.precision = getattr(forward, "precision", "fp32")
        try:
            runner = BatchRunner(self._session, self._guard, forward, self._table, self._outputs)
            self._drive(runner, lengths, rows, memory)
        finally:
            # The network may sit in a reference cycle; a full collection takes longer than a small batch.
            if isinstance(forward, HasRelease):
                forward.release()
            del forward
        return self.result

    def _drive(
        self, runner: BatchRunner, lengths: NDArray[np.int64], rows: NDArray[np.int64], memory: SizeMemory | None
    ) -> None:
        name = self._device.uuid
        controller = BatchController(lengths, rows, self._batches, self._events, memory)
        dispatcher = Dispatcher(controller, [name], self._events, self._settings.patience)
        self._session.begin_peak()
        dispatcher.joined(name, self._session.peak_bytes(), self._guard.tick())
        while not dispatcher.finished:
            actions = dispatcher.decide(time.monotonic())
            for action in actions:
                if isinstance(action, Run):
                    outcome = runner.run(action.assignment.number, action.assignment.batch)
                    dispatcher.outcome(name, outcome)
                    if isinstance(outcome, Finished):
                        self.result.take(outcome)
                elif isinstance(action, Measure):
                    dispatcher.measured(name, self._guard.tick())
            failure = dispatcher.failure()
            if failure is not None:
                raise failure
            if not actions and not dispatcher.finished:
                time.sleep(max(0.0, (dispatcher.wakeup() or 0.0) - time.monotonic()))
        self.result.failed = controller.failed
        self.result.sizes = controller.sizes.memory()
        self.result.largest_batch = dispatcher.largest_batch
