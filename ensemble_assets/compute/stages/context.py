"""What the dense, sparse and rerank stages are given to work with: devices, a runner, precision, events, tokens.

No stage looks any of this up by itself, so tests and the orchestration hand in what they want.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_assets.artefacts.stage_record import ModelFacts, StageRecord, StageStatus
from ensemble_assets.common.errors import (
    DeviceError,
    LeaseTimeoutError,
    MemoryBudgetError,
    ModelUnavailableError,
    StageError,
    failure_word,
)
from ensemble_assets.common.events import EventLog, EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory, Runtime
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.lease import LeaseMaker, local_lease
from ensemble_assets.compute.running.run_table import Runner, in_process_runner
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets.models.registry import ModelSpec

FactoryMaker = Callable[[ModelSpec, ModelFiles, Runtime], ForwardFactory]
"""Makes the factory of a complete spec; the stages' default is ``backends``'."""


@dataclass(frozen=True)
class ComputeContext:
    """What a stage computes with.

    Attributes:
        lease: called once per model, held while it is on a device.
        runner: takes batches through a model.
        runtime: precision and threads.
        events: where the stage reports.
        tokens: shared by stages in one process, so that a vocabulary's ids are made once.
        locate: finds a model's files.
        folder: stage outputs are memory-mapped below it; None keeps them in memory.
    """

    lease: LeaseMaker = local_lease
    runner: Runner = field(default_factory=in_process_runner)
    runtime: Runtime = field(default_factory=Runtime)
    events: EventSink = field(default_factory=EventLog)
    tokens: TokenCache = field(default_factory=TokenCache)
    locate: Callable[[ModelSpec], ModelFiles] = locate
    folder: Path | None = None

    def run(
        self, stage: str, spec: ModelSpec, table: TokenTable, factory: ForwardFactory, part: str = "all"
    ) -> TableResult:
        """Lease, run the table through the model, give the devices back.

        Args:
            stage: ``dense``, ``sparse`` or ``rerank``.
            spec: the model, for names.
            table: the rows.
            factory: how to run the model.
            part: tells two runs of one stage and model apart, where outputs go to a folder.

        Raises:
            EnsembleError: what the lease, loading and the device may raise.
            DeviceOutOfMemoryError: if the weights do not fit.
        """
        folder = self.folder / stage / spec.slug / part if self.folder is not None else None
        with self.lease(model=spec.slug, stage=stage) as lease:
            return self.runner(table, factory, lease=lease, events=self.events, folder=folder)


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (ModelUnavailableError, "model_unavailable"),
    (DeviceOutOfMemoryError, "out_of_memory"),
    (MemoryBudgetError, "out_of_memory"),
    (LeaseTimeoutError, "lease_timeout"),
    (DeviceError, "device_failed"),
    (StageError, "stage_failed"),
)


def reason_of(error: BaseException) -> str:
    """A short fixed word for why a stage fell back, safe as a metric label: never the exception's message."""
    if isinstance(error, ModelFailedError):
        return error.reason
    return next((word for kind, word in _REASONS if isinstance(error, kind)), failure_word(error))


def record_of(
    stage: str,
    status: StageStatus,
    spec: ModelSpec,
    files: ModelFiles,
    factory: ForwardFactory,
    result: TableResult,
) -> StageRecord:
    """The part of a stage's record that a run of one model determines."""
    return StageRecord(
        stage=stage,
        status=status,
        models=(ModelFacts.of(spec, files),),
        device=result.device,
        precision=result.precision,
        backend=getattr(factory, "backend", "torch"),
        backend_reason=getattr(factory, "reason", "reference"),
        tokens=result.tokens,
        reused=result.reused_rows,
        peak_bytes=result.peak_bytes,
        precision_redone=result.precision_redone,
    )
