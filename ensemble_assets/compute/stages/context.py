"""Hold the tools of the dense, sparse and rerank stages: devices, a runner, precision, events, tokens.

Stages look nothing up by themselves, so ``pipeline.compute_context`` and tests hand in these tools.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ensemble_assets.artefacts.stage_record import ModelFacts, StageRecord, StageStatus
from ensemble_assets.common import errors
from ensemble_assets.common.events import EventLog, EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory, Runtime
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.lease import LeaseMaker, unlocked_lease
from ensemble_assets.compute.running.run_table import TableRunner, in_process_runner
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets.models.spec import ModelSpec

FactoryMaker = Callable[[ModelSpec, ModelFiles, Runtime], ForwardFactory]
"""Makes the factory of a complete spec. The stages' default is in ``backends.choice``."""


@dataclass(frozen=True)
class ComputeContext:
    """The tools of a stage.

    ``lease`` is called once per model, and held while the model is on a device. ``tokens`` serve all stages of a
    process, so that a vocabulary's ids are made once. ``clock`` stands still while a lease is waited for.
    """

    lease: LeaseMaker = unlocked_lease
    runner: TableRunner = field(default_factory=in_process_runner)
    runtime: Runtime = field(default_factory=Runtime)
    events: EventSink = field(default_factory=EventLog)
    tokens: TokenCache = field(default_factory=TokenCache)
    locate: Callable[[ModelSpec], ModelFiles] = locate
    clock: Callable[[], float] = time.perf_counter

    @contextmanager
    def expecting(self, models: int) -> Iterator[ComputeContext]:
        """Return the context of a stage that will hold ``models``, one after another: workers are started ahead."""
        with self.runner.expecting(models) as runner:
            yield replace(self, runner=runner)

    @property
    def in_workers(self) -> bool:
        """Whether other processes of this machine compute; see ``Runner``."""
        return self.runner.runner.in_workers

    def start_workers(self, factory: ForwardFactory) -> None:
        """Have the next model's workers import their libraries while this process does something else."""
        self.runner.runner.start(factory)


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (errors.ModelUnavailableError, "model_unavailable"),
    (DeviceOutOfMemoryError, "out_of_memory"),
    (errors.MemoryBudgetError, "out_of_memory"),
    (errors.LeaseTimeoutError, "lease_timeout"),
    (errors.DeviceError, "device_failed"),
    (errors.StageError, "stage_failed"),
)


def reason_of(error: BaseException) -> str:
    """Return a short fixed word for an error, safe as a metric label: never the exception's message."""
    if isinstance(error, ModelFailedError):
        return error.reason
    return next((word for kind, word in _REASONS if isinstance(error, kind)), errors.failure_word(error))


def record_of(
    stage: str, status: StageStatus, spec: ModelSpec, files: ModelFiles, factory: ForwardFactory, result: TableResult
) -> StageRecord:
    """Record a run of one model: the model, its devices and its costs."""
    return StageRecord(
        stage=stage,
        status=status,
        models=(ModelFacts.of(spec, files),),
        device=result.device,
        precision=result.precision,
        backend=factory.backend,
        backend_reason=factory.reason,
        tokens=result.tokens,
        reused=result.reused_rows,
        peak_bytes=result.peak_bytes,
        precision_redone=result.precision_redone,
    )
