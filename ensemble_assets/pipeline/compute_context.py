"""Make the resource that stages compute with: leased devices, memory limits, shared tokens and model factories.

The compute part, and torch with it, is imported when a step first asks. Tests hand in other model factories.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_assets.common.errors import ModelUnavailableError, SettingsError
from ensemble_assets.common.events import Value
from ensemble_assets.common.machine import usable_cores
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelKind, ModelSpec
from ensemble_assets.pipeline.from_settings import files_of, local_files
from ensemble_assets.pipeline.stage_run import ComputeRun, WorkClock
from ensemble_assets.settings import Settings
from ensemble_assets.settings.chosen_models import used_models
from ensemble_assets.settings.default_paths import cache_folder, lock_folder
from ensemble_assets.settings.sources import process_environment

if TYPE_CHECKING:
    from ensemble_assets.compute.backends.forward import Runtime
    from ensemble_assets.compute.devices.device import Device
    from ensemble_assets.compute.devices.lease import Lease, LeaseMaker
    from ensemble_assets.compute.running.local_runner import Runner
    from ensemble_assets.compute.running.run_table import TableRunner
    from ensemble_assets.compute.running.worker_settings import WorkerSettings
    from ensemble_assets.compute.stages.context import ComputeContext
    from ensemble_assets.compute.tokens.token_cache import TokenCache

_ROWS, _TOKENS = "rows", "tokens"

_CPU_SHARD_TOKENS = 1 << 18
_GPU_SHARD_TOKENS = 1 << 24
"""Some ten seconds of dense encoding on two cores; a few minutes on a GPU, so that a killed run loses little."""

_STREAMS = 2
"""Parts of a batch that a CPU computes side by side. MiniLM's network alone is 1.13 times as fast in bf16 with a row's
products on one of two cores as with each product on both; a run gains a tenth or nothing (decision 35)."""


@dataclass
class Computing:
    """Makes compute contexts. ``factories`` (by kind) and ``devices`` replace the usual ones where given."""

    factories: Mapping[ModelKind, Callable[..., Any]] = field(default_factory=dict)
    devices: Sequence[Device] | None = None
    _cache: TokenCache | None = None

    def _tokens(self, run: ComputeRun) -> TokenCache:
        """Token ids of one collection at a time, which its stages share."""
        from ensemble_assets.compute.tokens.token_cache import TokenCache

        folder = run.working_folder / _TOKENS if run.working_folder else None
        if self._cache is None or self._cache.folder != folder:
            self._cache = TokenCache(folder)
        return self._cache

    def context(self, run: ComputeRun) -> ComputeContext:
        """Leases, memory limits, precision and the event sink of this stage; token ids shared within the process.

        The nodes of a Ray cluster lease their own devices: nothing is leased or loaded here then.
        """
        from ensemble_assets.compute.backends.forward import Runtime
        from ensemble_assets.compute.devices.discovery import discover_devices
        from ensemble_assets.compute.devices.leases import MemoryGate, lease_devices
        from ensemble_assets.compute.running.local_runner import LocalRunner
        from ensemble_assets.compute.stages.context import ComputeContext

        options = run.settings.device
        runtime = Runtime(options.precision, options.threads, "torch", packed=options.packed_rows)
        if run.settings.cluster.engine == "ray":
            from ensemble_assets.compute.ray.cluster import cluster_lease

            lease: LeaseMaker = cluster_lease
            runner: Runner = _cluster_runner(run)
            on_cpu = False  # a shard must be worth a round through all nodes, so it is as large as on a GPU
        else:
            devices = self.devices
            if devices is None:
                visible = process_environment().get("CUDA_VISIBLE_DEVICES")
                devices = discover_devices(visible, threads=options.threads).chosen
            on_cpu = all(device.torch_device == "cpu" for device in devices)
            locks: Path | None = lock_folder(run.settings.paths)
            if on_cpu:  # not exclusive, unless a user wants his own runs to take turns
                locks = lock_folder(run.settings.paths) / f"user-{os.getuid()}" if options.lease_cpu else None
            lease = partial(
                lease_devices,
                lock_folder=locks,
                events=_TellHolder(run, locks) if locks else run.events,
                devices=devices,
                timeout=options.lease_timeout,
                run=run.run_id,
                gate=MemoryGate(ceiling_bytes=options.ceiling_bytes),
            )
            streams = min(_STREAMS, options.threads or usable_cores())
            runner = LocalRunner(settings_of(run.settings, on_cpu=on_cpu, streams=streams), tuple(devices))
            backend = run.settings.encoding.backend if on_cpu else "torch"
            packed = options.packed_rows and not on_cpu
            runtime = replace(
                runtime, backend=backend, cache_folder=cache_folder(run.settings.paths), packed=packed, streams=streams
            )
            if not self.factories:
                _prepare_models(run.settings, runtime)
        return ComputeContext(
            lease=partial(_without_waiting, run.clock, lease),
            runner=_reusing(run, runner, on_cpu=on_cpu),
            runtime=runtime,
            events=run.events,
            tokens=self._tokens(run),
            locate=partial(_located, run),
            clock=run.clock,
        )

    def factory(self, kind: ModelKind) -> dict[str, Any]:
        """The keyword argument that hands a stage another factory; empty for the usual one."""
        return {"make_factory": self.factories[kind]} if kind in self.factories else {}


@contextmanager
def _without_waiting(clock: WorkClock, lease: LeaseMaker, *, model: str, stage: str) -> Iterator[Lease]:
    """Lease devices, and take the time until they are granted out of the stage's time."""
    with lease(model=model, stage=stage) as held:
        clock.waited += held.waited_seconds
        yield held


@dataclass(frozen=True)
class _TellHolder:
    """Hands events on, and says who has a device that is waited for: a name that telemetry does not get."""

    run: ComputeRun
    locks: Path

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now."""
        from ensemble_assets.compute.devices.leases import holder_of

        if name == "lease.waiting":
            self.run.waits_for(f"{facts['device']} is leased by {holder_of(self.locks, str(facts['device']))}")
        self.run.events.emit(name, **facts)


def _prepare_models(settings: Settings, runtime: Runtime) -> None:
    """Prepare all models of a run whose files are on this machine, so that torch is imported once, and not here."""
    from ensemble_assets.compute.backends.preparation import prepare_apart

    models = []
    for spec in used_models(settings):
        with suppress(ModelUnavailableError, OSError):  # its stage says so, or falls back
            if files := local_files(spec, settings):
                models.append((spec, files))
    prepare_apart(models, runtime)


def _located(run: ComputeRun, spec: ModelSpec) -> ModelFiles:
    """A model's files; telemetry may then name its revision."""
    files = files_of(spec, run.settings)
    if run.span is not None:
        run.span.declare_model(spec.slug, files.revision)
    return files


def _cluster_runner(run: ComputeRun) -> Runner:
    from ensemble_assets.compute.ray.cluster import RayRunner
    from ensemble_assets.compute.ray.node import NodeOptions

    device, cluster = run.settings.device, run.settings.cluster
    options = NodeOptions(
        on_cpu=settings_of(run.settings, on_cpu=True),
        on_gpu=settings_of(run.settings, on_cpu=False),
        environment=process_environment,
        lock_folder=lock_folder(run.settings.paths),
        lease_timeout=device.lease_timeout,
        ceiling_bytes=device.ceiling_bytes,
        threads=device.threads,
        run=run.run_id,
    )
    return RayRunner(options, cluster.address, cluster.shard_chunks)


def _reusing(run: ComputeRun, runner: Runner, *, on_cpu: bool) -> TableRunner:
    """Store the rows of a run below its collection's working folder, if it has one.

    Raises:
        SettingsError: if ``encoding.rows_from`` names a collection without stored rows.
    """
    from ensemble_assets.compute.running.run_table import TableRunner
    from ensemble_assets.compute.running.stored_rows.store import stored_secret

    if run.working_folder is None:
        return TableRunner(runner)
    shard_tokens = run.settings.encoding.shard_tokens or (_CPU_SHARD_TOKENS if on_cpu else _GPU_SHARD_TOKENS)
    most_token_bytes = int(run.settings.rerank.states_gb * 1e9)
    others = tuple(folder / _ROWS for folder in run.other_folders)
    for folder in others:
        if not stored_secret(folder):
            raise SettingsError(
                f"encoding.rows_from: no rows of {folder.parent.parent.name!r} are stored in {folder}. "
                "Run that collection first, or copy this folder from the machine that ran it"
            )
    return TableRunner(runner, run.working_folder / _ROWS, shard_tokens, most_token_bytes, others)


def settings_of(settings: Settings, *, on_cpu: bool, streams: int = 1) -> WorkerSettings:
    """Workers, memory limits and batch sizes.

    GPUs get one worker process each and batches as large as memory allows. A CPU computes in this process, with batches
    of a fixed size for every stream.
    """
    from ensemble_assets.compute.batching.planner import PlannerSettings
    from ensemble_assets.compute.batching.size_limits import SizeSettings
    from ensemble_assets.compute.devices.ceiling import Ceiling
    from ensemble_assets.compute.running.worker_settings import WorkerSettings, cpu_batches

    options = settings.device
    by_memory = PlannerSettings(SizeSettings(options.batch_tokens))
    return WorkerSettings(
        batches=cpu_batches(streams * options.batch_tokens) if on_cpu else by_memory,
        ceiling=Ceiling(hard_bytes=options.ceiling_bytes, soft_fraction=options.soft_fraction),
        workers_per_device=0 if on_cpu else 1,
        size_history=cache_folder(settings.paths) / "batch_sizes.json",
    )
