"""Compare the seconds of a run with the latency budget, and derive the time that rerank may take.

The inputs of both come from the stages' records and from the stored baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.latency_baseline import SlaBaseline, baseline_key, baselines, find_baseline
from ensemble_assets.artefacts.records import (
    ChunksRecord,
    DenseRecord,
    ExportRecord,
    FusionRecord,
    Ratios,
    SparseRecord,
    UpstreamCosts,
)
from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets.common.stage_times import BUDGET_SHARE, LIMIT_RATIO, StageSeconds
from ensemble_assets.common.stages import RANKING_STAGES, STAGE, TIMED_STAGES
from ensemble_assets.pipeline.bundle.inputs import Upstream
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import baselines_folder, cache_folder

if TYPE_CHECKING:
    from ensemble_assets.compute.stages.rerank.depth import Allowance

_BUDGET = ("requested_depth", "reached_depth", "queries_cut_short", "floor_depth", "budget_seconds", "budget_reason")
_PLACES = 4

Predicted = Callable[[Settings, str, StageSeconds], dict[str, Any] | None]
"""Compares an earlier plan of the same content with the seconds that the stages took; None without a plan."""


def upstream_costs(dense: Artefact[DenseRecord], sparse: Artefact[SparseRecord]) -> UpstreamCosts:
    """Collect the costs of the stages before the fusion, for its record."""
    return UpstreamCosts(
        dense_seconds=dense.record.wall_seconds,
        sparse_seconds=sparse.record.wall_seconds,
        dense_models=tuple(model.fingerprint for model in dense.record.models),
        dense_device=dense.record.device,
        states=dense.record.states,
    )


def rerank_time(run: StageRun, chunks: Artefact[ChunksRecord], fused: Artefact[FusionRecord]) -> Allowance:
    """Compute the time that rerank may take: the budget, less dense, sparse, fusion and the export to come.

    The export is taken to be as fast per chunk as this collection's last one; without one it counts as nothing.
    """
    from ensemble_assets.compute.stages.rerank.depth import Allowance, rerank_allowance

    options, upstream = run.settings.rerank, fused.record.upstream
    if upstream is None:  # an earlier version made the fused candidates
        return Allowance(reason="costs_unknown")
    spent = StageSeconds(
        dense=upstream.dense_seconds,
        sparse=upstream.sparse_seconds,
        # Reading artefacts and importing libraries is rerank's time too, and it has passed already.
        fusion=fused.record.wall_seconds + run.elapsed(),
        export=_last_export(run.settings, run.collection) * chunks.record.items,
    )
    baseline = _baseline(run.settings, chunks.record.content, upstream.dense_models, upstream.dense_device)
    return rerank_allowance(options.budget, BUDGET_SHARE, options.floor, spent, baseline.seconds if baseline else None)


@dataclass(frozen=True)
class LatencyBudget:
    """The budget of one export: its baseline is looked up once, and is None where it was never measured."""

    upstream: Upstream
    run: StageRun
    baseline: SlaBaseline | None
    predicted: Predicted

    @classmethod
    def of_export(cls, upstream: Upstream, run: StageRun, predicted: Predicted) -> LatencyBudget:
        """Look up the baseline of an export."""
        dense = upstream.dense.record
        models = tuple(model.fingerprint for model in dense.models)
        baseline = _baseline(run.settings, upstream.chunks.record.content, models, dense.device)
        return cls(upstream, run, baseline, predicted)

    def ratios(self) -> Ratios:
        """Compute both ratios, with the export's seconds up to now."""
        return self._ratios(stage_seconds(self.upstream, self.run.elapsed()))

    def section(self) -> dict[str, Any]:
        """Give the manifest's ``performance_baseline``: both ratios, their parts, and how deep rerank went.

        The manifest is a part of the bundle, so the export's own seconds are those up to now. The gate
        ``latency_budget`` and the export's record count all of them.
        """
        upstream, settings = self.upstream, self.run.settings
        seconds = stage_seconds(upstream, self.run.elapsed())
        records = {stage: artefact.record for stage, artefact in upstream.by_stage().items()}
        ranking: dict[str, StageRecord] = {stage: records[stage] for stage in RANKING_STAGES}
        ratios, reranked = self._ratios(seconds), upstream.rerank.record
        budget = {name: getattr(reranked, name) for name in _BUDGET}
        baseline = self.baseline
        return {
            **({"dense_only_seconds": round(baseline.seconds, _PLACES)} if baseline else {}),
            "limit_ratio": ratios.limit_ratio,
            **_without_none(vs_sla=ratios.vs_sla, vs_own_dense=ratios.vs_own_dense),
            "stage_seconds": {stage: round(getattr(seconds, stage), _PLACES) for stage in TIMED_STAGES},
            "precision": {stage: record.precision for stage, record in ranking.items()},
            **_cpu_products(self.run.settings, ranking.values()),
            **_sparse_head(self.run.settings, upstream.sparse.record),
            "reused": {stage: record.reused for stage, record in ranking.items()},
            "one_run": len({record.run_id for record in records.values()}) == 1,
            "budget": {"against": settings.rerank.budget, **_without_none(**budget)},
            **_without_none(prediction=ratios.prediction),
            **({"measured": _provenance(baseline)} if baseline else {"not_measured": self._why_none()}),
        }

    def _why_none(self) -> str:
        """Say why there is no baseline, as a fixed word."""
        stored = baselines(baselines_folder(self.run.settings.paths))
        same_name = any(baseline.collection == self.run.collection for baseline in stored)
        return "other_content_models_or_machine" if same_name else "never_measured"

    def _ratios(self, seconds: StageSeconds) -> Ratios:
        plain = self.baseline.seconds if self.baseline else None
        vs_sla, vs_own_dense = seconds.vs_sla(plain), seconds.vs_own_dense()
        return Ratios(
            limit_ratio=LIMIT_RATIO,
            vs_sla=None if vs_sla is None else round(vs_sla, 6),
            vs_own_dense=None if vs_own_dense is None else round(vs_own_dense, 6),
            prediction=self.predicted(self.run.settings, self.upstream.chunks.record.content, seconds),
        )


def _cpu_products(settings: Settings, records: Iterable[StageRecord]) -> dict[str, Any]:
    """Give the rates that the precision on a CPU was chosen by, in 10^9 operations a second."""
    if all(record.backend != "openvino" for record in records):
        return {}
    from ensemble_assets.compute.backends.cpu_products import stored_products

    products = stored_products(cache_folder(settings.paths))
    return {"cpu_products": asdict(products)} if products else {}


def _sparse_head(settings: Settings, record: StageRecord) -> dict[str, Any]:
    """Give the way that sparse terms were computed on a CPU, and how fast the ways were that were tried."""
    if not record.models or record.device.on_gpu:
        return {}
    from ensemble_assets.compute.splade_head.measured_ways import stored_ways

    ways = stored_ways(cache_folder(settings.paths))
    return {"sparse_head": asdict(ways)} if ways else {}


def report_ratios(run: StageRun, ratios: Ratios) -> None:
    """Report both ratios as events; only the one that the budget is held against has a limit, so only it alerts."""
    deciding = "own_dense" if run.settings.rerank.budget == "own_dense" else "sla"
    for against, ratio in (("sla", ratios.vs_sla), ("own_dense", ratios.vs_own_dense)):
        if ratio is not None:
            limit = ratios.limit_ratio if against == deciding else None
            run.events.emit("budget.measured", against=against, ratio=ratio, limit=limit)


def stage_seconds(upstream: Upstream, export: float) -> StageSeconds:
    """Collect the wall seconds of every stage from its record."""
    seconds = {stage: artefact.record.wall_seconds for stage, artefact in upstream.by_stage().items()}
    return StageSeconds.from_stages({**seconds, "export": export})


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _baseline(settings: Settings, content: str, models: tuple[str, ...], device: UsedDevices) -> SlaBaseline | None:
    from ensemble_assets.compute.devices.cuda import torch_gpus

    # "none": every row was reused, so the record does not say where it would have run
    gpus = torch_gpus() if device.kind in ("cuda", "none") else ()
    key = baseline_key(this_host(gpus), content, models)
    return find_baseline(baselines_folder(settings.paths), key)


def _last_export(settings: Settings, collection: str) -> float:
    """Seconds per chunk of the collection's last export that wrote records; 0 where it has none."""
    export = open_store(settings).peek(collection, STAGE["export"].asset)
    if export is None:
        return 0.0
    record: ExportRecord = export.record
    seconds = record.written.seconds if record.unchanged and record.written else record.wall_seconds
    return seconds / max(1, record.items)


def _provenance(baseline: SlaBaseline) -> dict[str, Any]:
    """Describe the measurement of a baseline, and the libraries that changed since."""
    now = library_versions()
    changed = sorted(name for name, version in baseline.libraries.items() if now.get(name) != version)
    return {
        "measured_at": baseline.measured_at,
        "texts": baseline.texts,
        "cpu": baseline.host.cpu,
        "cores": baseline.host.cores,
        "accelerators": list(baseline.host.accelerators),
        "models": {model.slug: round(model.seconds, _PLACES) for model in baseline.models},
        "repeats": min(len(model.encode_seconds) for model in baseline.models),
        "libraries": dict(baseline.libraries),
        "libraries_changed_since": changed,
    }
