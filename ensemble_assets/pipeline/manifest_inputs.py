"""From stage records to the run manifest's sections. Every figure comes from a record; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.export.write.manifest import FeatureToggles, ManifestInputs
from ensemble_assets.export.write.manifest_stages import RerankRun, SparseRun
from ensemble_assets.export.write.v40_files import Written
from ensemble_assets.pipeline.bundle_inputs import Upstream
from ensemble_assets.pipeline.model_choice import choose_models
from ensemble_assets.pipeline.run_costs import Predicted, performance_facts
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.pipeline.telemetry_of_run import manifest_section

_TOGGLE_KEYS = ("enable_rerank", "enable_sparse", "models.sparse")
_DENSE_FACTS = (
    "status", "models", "device", "precision", "seconds", "tokens", "tokens_per_second", "items", "truncated",
    "tokens_dropped", "peak_bytes", "precision_redone", "fallback_count", "fallback_reasons", "dropped", "run_id",
)  # fmt: skip


_DEPTHS = ("requested_depth", "reached_depth", "queries_cut_short")


def manifest_inputs(
    upstream: Upstream, run: StageRun, clock: str, written: Written, predicted: Predicted
) -> ManifestInputs:
    """Everything that ``processing_summary.json`` says of this run."""
    dense = upstream.dense.facts
    return ManifestInputs(
        generated_at=clock,
        collection=run.collection,
        chunk_count=int(upstream.chunks.facts["items"]),
        toggles=_toggles(upstream, run),
        telemetry=manifest_section(run.telemetry, run.span.record() if run.span else None, run.settings),
        performance_baseline=performance_facts(upstream, run, predicted),
        dense_run={"executed": True, **{name: dense[name] for name in _DENSE_FACTS if name in dense}},
        rerank_run=_rerank_run(upstream, run) if upstream.rerank_on else None,
        sparse_run=_sparse_run(upstream.sparse.facts) if upstream.sparse_on else None,
        warnings=tuple(_warnings(upstream, written)),
        more={"query_source": upstream.queries.facts["query_source"], "fusion_run": _fusion_run(upstream.fused.facts)},
    )


def _toggles(upstream: Upstream, run: StageRun) -> FeatureToggles:
    """What was on when the stages ran; the sources are those of this run's settings."""
    provenance = run.resolved.provenance(*_TOGGLE_KEYS)
    effective = {"enable_rerank": upstream.rerank_on, "enable_sparse": upstream.sparse_on}
    rows = [_effective_row(row, effective) for row in provenance]
    models = choose_models(run.settings.models).sparse
    return FeatureToggles(
        enable_rerank=upstream.rerank_on,
        enable_sparse=upstream.sparse_on,
        sparse_models=tuple(spec.slug for spec in models) if upstream.sparse_on else (),
        sources={row["key"]: row["source"] for row in rows},
        provenance=rows,
    )


def _effective_row(row: Mapping[str, Any], effective: Mapping[str, bool]) -> dict[str, Any]:
    """The row, corrected where the stage was materialised earlier with the other setting."""
    value = effective.get(row["key"], row["value"])
    if value == row["value"]:
        return dict(row)
    return {**row, "value": value, "source": "earlier materialisation of the stage", "layer": "run"}


def _sparse_run(facts: Mapping[str, Any]) -> SparseRun:
    return SparseRun(
        executed=facts["status"] in {"completed", "partial"},
        models=tuple(model["slug"] for model in facts["models"]) or (facts["model"],),
        vectors_total=int(facts["vectors_total"]),
        vectors_available=int(facts["vectors_available"]),
        devices={facts["model"]: facts["device"]},
        run_id=facts["run_id"],
        latency_ms=round(1000 * float(facts["seconds"]), 3),
        success=facts["status"] != "failed",
        fallback_count=int(facts["fallback_count"]),
        fallback_reason=_main_reason(facts),
        more={
            "live": facts["vectors_live"],
            "from_metadata": facts["vectors_from_metadata"],
            "top_k": facts["top_k"],
            "index_space": facts["index_space"],
            "fallback_reasons": facts["fallback_reasons"],
            "peak_bytes": facts["peak_bytes"],
        },
    )


def _rerank_run(upstream: Upstream, run: StageRun) -> RerankRun:
    facts = upstream.reranked.facts
    first = _first_list(upstream)
    loaded = bool(facts["models"])
    return RerankRun(
        executed=facts["pairs_scored"] > 0,
        status=facts["status"],
        model_name=facts["model"],
        loaded=loaded,
        device=facts["device"],
        run_id=facts["run_id"],
        latency_ms=round(1000 * float(facts["seconds"]), 3),
        gpu_peak_gb=facts["peak_bytes"] / 1e9 if UsedDevices.from_json(facts["device"]).on_gpu else 0.0,
        batch_size=int(facts["largest_batch"]),
        top_k_candidates=run.settings.fusion.depth,
        rerank_top_k=int(facts["depth"]),
        initial_candidate_count=int(upstream.fused.facts["candidates"]),
        candidate_ids=tuple(first["chunk_id"].to_list()),
        scores=tuple(first["score"].to_list()),
        fallback_count=int(facts["fallback_count"]),
        fallback_reason=_main_reason(facts),
        fallback_source=facts.get("fallback_source"),
        more={
            "query_count": facts["query_count"],
            "query_id": first["public_id"][0] if first.height else None,
            "pairs_scored": facts["pairs_scored"],
            **{name: facts[name] for name in _DEPTHS if name in facts},
            "interpolation_weight": facts["weight"],
            "fallback_reasons": facts["fallback_reasons"],
        },
    )


def _first_list(upstream: Upstream) -> Any:
    """The reranked list of the first query: the contract's payload shows one."""
    reranked = upstream.reranked.frame("reranked")
    return reranked.filter(reranked["public_id"] == reranked["public_id"][0]) if reranked.height else reranked


def _fusion_run(facts: Mapping[str, Any]) -> dict[str, Any]:
    shown = (
        "status",
        "method",
        "parameters",
        "lists",
        "dense_share",
        "lexical_share",
        "fitted",
        "candidates",
        "seconds",
        "run_id",
    )
    return {name: facts[name] for name in shown if name in facts}


def _main_reason(facts: Mapping[str, Any]) -> str | None:
    reasons = facts["fallback_reasons"]
    return max(reasons, key=reasons.get) if reasons else None


def _warnings(upstream: Upstream, written: Written) -> list[str]:
    lines = [line for artefact in upstream.by_stage().values() for line in artefact.facts.get("warnings", [])]
    for stage, artefact in upstream.by_stage().items():
        lines += [
            f"{stage}: {count} fallbacks ({reason})"
            for reason, count in artefact.facts.get("fallback_reasons", {}).items()
        ]
    truncated = int(upstream.dense.facts.get("truncated", 0))
    if truncated:
        lines.append(f"dense: {truncated} texts exceeded the model's token limit and were truncated")
    return lines + [f"{name}: not written ({reason})" for name, reason in written.skipped.items()]
