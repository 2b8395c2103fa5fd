"""What the stages of a run cost, what that is held against, and what it leaves for rerank: from artefacts' facts.

The arithmetic is ``core.stage_seconds`` and ``compute.latency_budget``; this module finds the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.latency_baseline import BaselineKey, SlaBaseline, baselines, find_baseline
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import ArtefactError, DeviceError
from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets.common.stage_times import BUDGET_SHARE, LIMIT_RATIO, StageSeconds
from ensemble_assets.common.stages import RANKING_STAGES, TIMED_STAGES
from ensemble_assets.pipeline.bundle_inputs import Upstream
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import baselines_folder

if TYPE_CHECKING:
    from ensemble_assets.compute.stages.rerank_depth import Allowance

_DEPTHS = ("requested_depth", "reached_depth", "queries_cut_short", "floor_depth", "budget_seconds", "budget_reason")
_PLACES = 4

Predicted = Callable[[Settings, str, StageSeconds], dict[str, Any] | None]
"""Compares an earlier plan of the same content with the seconds that the stages took; None without a plan."""


def upstream_costs(dense: Artefact, sparse: Artefact) -> dict[str, Any]:
    """What the stages before fusion took, kept in its facts, since rerank sees no artefact of theirs."""
    return {
        "dense_seconds": float(dense.facts["wall_seconds"]),
        "sparse_seconds": float(sparse.facts["wall_seconds"]),
        "dense_models": [model["fingerprint"] for model in dense.facts["models"]],
        "dense_device": str(dense.facts["device"]),
    }


def allowance_of(run: StageRun, chunks: Artefact, fused: Artefact) -> Allowance:
    """What rerank may take from now on: the budget, less what dense, sparse and fusion took and export will take.

    Export is taken to be as fast per chunk as this collection's last one; without one it counts as nothing.
    """
    from ensemble_assets.compute.stages.rerank_depth import Allowance, rerank_allowance

    options, upstream = run.settings.rerank, fused.facts.get("upstream")
    if upstream is None:  # made by an earlier version
        return Allowance(reason="costs_unknown")
    used = time.perf_counter() - run.started  # reading artefacts and importing libraries is rerank's time too
    spent = StageSeconds(
        dense=float(upstream["dense_seconds"]),
        sparse=float(upstream["sparse_seconds"]),
        fusion=float(fused.facts["wall_seconds"]) + used,
        export=_last_export(run.settings, run.collection) * int(chunks.facts["items"]),
    )
    against = options.budget
    baseline = _baseline(run.settings, chunks, upstream["dense_models"], upstream["dense_device"])
    plain = baseline.seconds if baseline else None
    return rerank_allowance(against, BUDGET_SHARE, options.floor, spent, plain)


def performance_facts(upstream: Upstream, run: StageRun, predicted: Predicted) -> dict[str, Any]:
    """The manifest's ``performance_baseline``: both ratios, what they are made of, and what the governor did.

    The export's own seconds are counted up to this moment, since the manifest is a part of the bundle; the gate
    ``latency_budget`` and the artefact's facts have all of them.
    """
    costs = stage_seconds(upstream, time.perf_counter() - run.started)
    artefacts, dense = upstream.by_stage(), upstream.dense.facts
    fingerprints = [model["fingerprint"] for model in dense["models"]]
    baseline = _baseline(run.settings, upstream.chunks, fingerprints, str(dense["device"]))
    against = run.settings.rerank.budget
    reranked = upstream.reranked.facts
    facts: dict[str, Any] = {
        **({"dense_only_seconds": round(baseline.seconds, _PLACES)} if baseline else {}),
        "limit_ratio": LIMIT_RATIO,
        **ratios(costs, baseline.seconds if baseline else None),
        "stage_seconds": {stage: round(getattr(costs, stage), _PLACES) for stage in TIMED_STAGES},
        "precision": {stage: str(artefacts[stage].facts.get("precision", "none")) for stage in RANKING_STAGES},
        "reused": {stage: int(artefacts[stage].facts.get("reused", 0)) for stage in RANKING_STAGES},
        "one_run": len({artefact.facts["run_id"] for artefact in artefacts.values()}) == 1,
        "budget": {"against": against, **{name: reranked[name] for name in _DEPTHS if name in reranked}},
    }
    prediction = predicted(run.settings, str(upstream.chunks.facts.get("content", "")), costs)
    if prediction is not None:
        facts["prediction"] = prediction
    facts["measured" if baseline else "not_measured"] = (
        _provenance(baseline) if baseline else _why_none(run.settings, run.collection)
    )
    return facts


def final_ratios(upstream: Upstream, run: StageRun, predicted: Predicted) -> dict[str, Any]:
    """Both ratios with all of the export counted, for the artefact's facts and for telemetry."""
    dense = upstream.dense.facts
    fingerprints = [model["fingerprint"] for model in dense["models"]]
    baseline = _baseline(run.settings, upstream.chunks, fingerprints, str(dense["device"]))
    costs = stage_seconds(upstream, time.perf_counter() - run.started)
    prediction = predicted(run.settings, str(upstream.chunks.facts.get("content", "")), costs)
    told = {"prediction": prediction} if prediction is not None else {}
    return {"limit_ratio": LIMIT_RATIO, **ratios(costs, baseline.seconds if baseline else None), **told}


def ratios(costs: StageSeconds, plain_dense: float | None) -> dict[str, float]:
    """``vs_sla`` and ``vs_own_dense``, each where it is known."""
    found = {"vs_sla": costs.vs_sla(plain_dense), "vs_own_dense": costs.vs_own_dense()}
    return {name: round(ratio, 6) for name, ratio in found.items() if ratio is not None}


def report_ratios(run: StageRun, facts: Mapping[str, Any]) -> None:
    """Both ratios as events; only the one that the budget is held against has a limit, so only it raises an alert."""
    deciding = "own_dense" if run.settings.rerank.budget == "own_dense" else "sla"
    for name, against in (("vs_sla", "sla"), ("vs_own_dense", "own_dense")):
        if name in facts:
            limit = facts["limit_ratio"] if against == deciding else None
            run.events.emit("budget.measured", against=against, ratio=facts[name], limit=limit)


def stage_seconds(upstream: Upstream, export: float) -> StageSeconds:
    """Wall seconds of every stage as its artefact has them."""
    seconds = {stage: float(artefact.facts["wall_seconds"]) for stage, artefact in upstream.by_stage().items()}
    return StageSeconds.of({**seconds, "export": export})


def _baseline(settings: Settings, chunks: Artefact, models: list[str], device: str) -> SlaBaseline | None:
    key = BaselineKey(
        this_host(_accelerators(UsedDevices.from_json(device))), str(chunks.facts.get("content", "")), tuple(models)
    )
    return find_baseline(baselines_folder(settings.paths), key)


def _accelerators(used: UsedDevices) -> tuple[str, ...]:
    """Name the GPUs of this host, as the baseline was measured on them; empty for a stage that ran on the CPU."""
    from ensemble_assets.compute.devices.cuda import list_cuda_devices
    from ensemble_assets.compute.stages import plain_baseline

    gpus = used.on_gpu
    if used.kind == "none":  # every row was reused, so the stage does not say where it would have run
        with suppress(DeviceError):
            gpus = bool(list_cuda_devices())
    return plain_baseline.accelerators() if gpus else ()


def _last_export(settings: Settings, collection: str) -> float:
    """Seconds per chunk of the collection's last export; 0 where it has none."""
    try:
        facts = open_store(settings).load(collection, "export_bundle").facts
    except ArtefactError:
        return 0.0
    return float(facts["wall_seconds"]) / max(1, int(facts["items"]))


def _provenance(baseline: SlaBaseline) -> dict[str, Any]:
    """Where the reference comes from; says so where libraries changed since."""
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


def _why_none(settings: Settings, collection: str) -> str:
    """Why there is no baseline, as a fixed word."""
    stored = any(one.collection == collection for one in baselines(baselines_folder(settings.paths)))
    return "other_content_models_or_machine" if stored else "never_measured"
