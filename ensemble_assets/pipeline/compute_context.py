"""The resource that stages compute with: leased devices, memory limits, shared tokens, and how models are made.

Inert until a step asks: the compute part (and torch with it) is imported then, and a lease is taken per model by the
stage that runs it. Tests hand in other model factories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets.models.registry import ModelKind, ModelSpec
from ensemble_assets.pipeline.stage_run import ComputeRun
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import cache_folder, lock_folder
from ensemble_assets.settings.options import Device as DeviceOptions
from ensemble_assets.settings.sources import process_environment

if TYPE_CHECKING:
    from ensemble_assets.compute.devices.device import Device
    from ensemble_assets.compute.running.run_table import ParallelSettings, Runner
    from ensemble_assets.compute.stages.context import ComputeContext
    from ensemble_assets.compute.tokens.token_cache import TokenCache

_CPU_SHARD_TOKENS = 1 << 18
_GPU_SHARD_TOKENS = 1 << 24
"""Some ten seconds of dense encoding on two cores; a few minutes on a GPU, where workers start anew for every shard."""


@dataclass
class Computing:
    """Makes compute contexts.

    Attributes:
        factories: model factories by kind, where they are not the usual torch ones.
        devices: what is leased, where it is not what the machine has.
    """

    factories: Mapping[ModelKind, Callable[..., Any]] = field(default_factory=dict)
    devices: Sequence[Device] | None = None

    @cached_property
    def _tokens(self) -> TokenCache:
        from ensemble_assets.compute.tokens.token_cache import TokenCache

        return TokenCache()

    def context(self, run: ComputeRun) -> ComputeContext:
        """Leases, memory limits, precision and the event sink of this stage; token ids shared within the process."""
        from ensemble_assets.compute.backends.forward import Runtime
        from ensemble_assets.compute.devices.leases import MemoryGate, lease_gpus
        from ensemble_assets.compute.stages.context import ComputeContext

        options = run.settings.device
        if run.settings.cluster.engine == "ray":
            return self._on_cluster(run)
        devices = self._chosen(options)
        lease = partial(
            lease_gpus,
            lock_folder=lock_folder(run.settings.paths),
            events=run.events,
            devices=devices,
            timeout=options.lease_timeout,
            run=run.run_id,
            gate=MemoryGate(ceiling_bytes=options.ceiling_bytes),
        )
        return ComputeContext(
            lease=lease,
            runner=_runner(run, devices),
            runtime=Runtime(
                precision=options.precision,
                threads=options.threads,
                backend=run.settings.encoding.backend if _on_cpu(devices) else "torch",
                cache_folder=cache_folder(run.settings.paths),
            ),
            events=run.events,
            tokens=self._tokens,
            locate=partial(_located, run),
        )

    def _on_cluster(self, run: ComputeRun) -> ComputeContext:
        """Encoders on the nodes of a Ray cluster, which lease their own devices; nothing is leased or loaded here."""
        from ensemble_assets.compute.backends.forward import Runtime
        from ensemble_assets.compute.ray.cluster import cluster_lease
        from ensemble_assets.compute.stages.context import ComputeContext

        options = run.settings.device
        return ComputeContext(
            lease=cluster_lease,
            runner=_cluster_runner(run),
            runtime=Runtime(precision=options.precision, threads=options.threads, backend="torch"),
            events=run.events,
            tokens=self._tokens,
            locate=partial(_located, run),
        )

    def factory(self, kind: ModelKind) -> dict[str, Any]:
        """The keyword argument that hands a stage another factory; empty for the usual one."""
        return {"make_factory": self.factories[kind]} if kind in self.factories else {}

    def _chosen(self, options: DeviceOptions) -> Sequence[Device]:
        from ensemble_assets.compute.devices.discovery import discover_devices

        if self.devices is not None:
            return self.devices
        visible = process_environment().get("CUDA_VISIBLE_DEVICES")
        return discover_devices(visible, threads=options.threads).chosen


def _located(run: ComputeRun, spec: ModelSpec) -> ModelFiles:
    """A model's files; telemetry may then name its revision."""
    files = locate(spec)
    if run.span is not None:
        run.span.declare_model(spec.slug, files.revision)
    return files


def _on_cpu(devices: Sequence[Device]) -> bool:
    return all(device.torch_device == "cpu" for device in devices)


def _runner(run: ComputeRun, devices: Sequence[Device]) -> Runner:
    from ensemble_assets.compute.running.reuse import ReusingRunner
    from ensemble_assets.compute.running.run_table import ParallelRunner

    inner = ParallelRunner(parallel_settings(run, devices))
    encoding, on_cpu = run.settings.encoding, _on_cpu(devices)
    if not encoding.reuse:
        return inner
    shard_tokens = encoding.shard_tokens or (_CPU_SHARD_TOKENS if on_cpu else _GPU_SHARD_TOKENS)
    return ReusingRunner(inner, run.working_folder / "rows", shard_tokens, keep_loaded=on_cpu)


def _cluster_runner(run: ComputeRun) -> Runner:
    from ensemble_assets.compute.ray.cluster import RayRunner
    from ensemble_assets.compute.ray.node import NodeOptions
    from ensemble_assets.compute.running.reuse import ReusingRunner

    device, cluster, encoding = run.settings.device, run.settings.cluster, run.settings.encoding
    options = NodeOptions(
        on_cpu=settings_of(run.settings, on_cpu=True),
        on_gpu=settings_of(run.settings, on_cpu=False),
        lock_folder=lock_folder(run.settings.paths),
        lease_timeout=device.lease_timeout,
        ceiling_bytes=device.ceiling_bytes,
        threads=device.threads,
        run=run.run_id,
    )
    inner = RayRunner(options, cluster.address, cluster.shard_chunks)
    if not encoding.reuse:
        return inner
    # What is sealed at once must be worth a round through all nodes.
    shard_tokens = encoding.shard_tokens or _GPU_SHARD_TOKENS
    return ReusingRunner(inner, run.working_folder / "rows", shard_tokens, keep_loaded=False)


def parallel_settings(run: ComputeRun, devices: Sequence[Device]) -> ParallelSettings:
    """Workers, memory limits and batch sizes for these devices, as the settings say."""
    return settings_of(run.settings, on_cpu=_on_cpu(devices))


def settings_of(settings: Settings, *, on_cpu: bool) -> ParallelSettings:
    """Workers, memory limits and batch sizes.

    GPUs get one worker process each and batches as large as memory allows. A CPU computes in this process, with batches
    of a fixed size.
    """
    from ensemble_assets.compute.batching.planner import ControllerSettings
    from ensemble_assets.compute.batching.size_limits import SizeSettings
    from ensemble_assets.compute.devices.ceiling import Ceiling
    from ensemble_assets.compute.running.run_table import ParallelSettings
    from ensemble_assets.compute.running.worker_settings import WorkerSettings, cpu_batches

    options = settings.device
    by_memory = ControllerSettings(SizeSettings(options.batch_tokens))
    workers = WorkerSettings(
        controller=cpu_batches(options.batch_tokens) if on_cpu else by_memory,
        ceiling=Ceiling(hard_bytes=options.ceiling_bytes, soft_fraction=options.soft_fraction),
        workers_per_device=0 if on_cpu else 1,
    )
    return ParallelSettings(workers, batch_memory=cache_folder(settings.paths) / "batch_sizes.json")
