"""Fill the sections of the run manifest from the stages' records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from ensemble_assets.artefacts.records import DenseRecord, SparseRecord, WrittenRecords
from ensemble_assets.artefacts.remarks import remarks
from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.stages import STAGE
from ensemble_assets.export.write.manifest import FeatureToggles, ManifestInputs
from ensemble_assets.export.write.manifest_stages import RerankRun, SparseRun
from ensemble_assets.pipeline.bundle.inputs import Upstream
from ensemble_assets.pipeline.run_costs import LatencyBudget
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.retrieval.dense_run import COMBINATION
from ensemble_assets.settings.chosen_models import choose_models
from ensemble_assets.telemetry.span_record import telemetry_section

_DENSE_FACTS = (
    "status", "models", "device", "precision", "seconds", "tokens", "tokens_per_second", "items", "truncated",
    "tokens_dropped", "peak_bytes", "precision_redone", "fallback_count", "fallback_reasons", "dropped", "run_id",
)  # fmt: skip
_FUSION_FACTS = (
    "status", "method", "parameters", "lists", "dense_share", "lexical_share", "fitted", "candidates", "seconds",
    "run_id", "lexical_words",
)  # fmt: skip


def manifest_inputs(
    upstream: Upstream,
    run: StageRun,
    clock: str,
    skipped: Mapping[str, str],
    budget: LatencyBudget,
    written: WrittenRecords | None = None,
) -> ManifestInputs:
    """Collect the contents of ``processing_summary.json``.

    ``clock`` is its time stamp, ISO 8601. ``skipped`` has the reason for each file that was not written. Where the
    records of an earlier export stayed, ``written`` is its.
    """
    dense = {**upstream.dense.record.as_json(), **upstream.dense.record.scalars()}
    fusion, metrics = upstream.fusion.record.as_json(), run.settings.metrics
    records = [*run.telemetry.records(), *([run.span.record()] if run.span else [])]  # the export's is still open
    return ManifestInputs(
        generated_at=clock,
        collection=run.collection,
        chunk_count=upstream.chunks.record.items,
        toggles=_toggles(upstream, run),
        telemetry=telemetry_section(records, metrics_enabled=metrics.enabled, namespace=metrics.namespace),
        performance_baseline=budget.section(),
        ensemble_state=_ensemble_state(upstream),
        dense_run={name: dense[name] for name in _DENSE_FACTS}
        | dense_extras(upstream.dense.record, with_tokens=run.settings.export.token_vectors)
        | {
            "total_embeddings_generated": upstream.chunks.record.items,
            "models_executed": [model.slug for model in upstream.dense.record.layout],
        },
        rerank_run=_rerank_run(upstream, run) if upstream.rerank.record.enabled else None,
        sparse_run=_sparse_run(upstream.sparse.record) if upstream.sparse.record.enabled else None,
        warnings=tuple(_warnings(upstream, skipped)),
        more={
            "query_source": upstream.queries.record.query_source,
            **({"query_files": list(files)} if (files := upstream.queries.record.files) else {}),
            "weights": {
                model.slug: model.weights
                for artefact in upstream.by_stage().values()
                for model in getattr(artefact.record, "models", ())
                if model.weights
            },
            "fusion_run": {name: fusion[name] for name in _FUSION_FACTS},
            **({"records_written_at": written.at} if written else {}),
        },
    )


def dense_extras(record: DenseRecord, *, with_tokens: bool) -> dict[str, Any]:
    """Give the facts that only some runs have: comparisons but by one model's cosines, unread texts, token vectors."""
    dot = {model.slug: model.similarity for model in record.layout if model.similarity != "cosine"}
    several = {"combination": COMBINATION.name} if len(record.layout) > 1 else {}
    unread = {"unread": record.unread} if record.unread else {}
    tokens = {"token_vectors": record.token_vectors} if with_tokens and record.token_vectors else {}
    return several | ({"similarity": dot} if dot else {}) | unread | tokens


def _ensemble_state(upstream: Upstream) -> dict[str, Any]:
    record = upstream.dense.record
    primary, *companions = [model.slug for model in record.layout]
    return {"primary_model": primary, "companion_models": companions, "dropped_models": sorted(record.dropped)}


def _toggles(upstream: Upstream, run: StageRun) -> FeatureToggles:
    """Say which stages were on when they ran; the sources are those of this run's settings."""
    on = {
        STAGE[name].toggle: artefact.record.enabled
        for name, artefact in upstream.by_stage().items()
        if STAGE[name].toggle
    }
    models = choose_models(run.settings.models).sparse
    sparse_models = [spec.slug for spec in models] if on["enable_sparse"] else []
    effective = {**dict(sorted(on.items())), "models.sparse": sparse_models}
    earlier = {"source": "earlier materialisation of the stage", "layer": "run"}  # with the other setting
    rows: list[dict[str, Any]] = []
    for key, value in effective.items():
        *overruled, counting = run.resolved.provenance(key)
        differs = key in on and counting["value"] != value
        rows += [*overruled, {**counting, "value": value, **(earlier if differs else {})}]
    rows = [{**row, "key": row["key"].replace("models.sparse", "sparse_models")} for row in rows]
    return FeatureToggles(
        enable_rerank=on["enable_rerank"],
        enable_sparse=on["enable_sparse"],
        sparse_models=tuple(sparse_models),
        sources={row["key"]: row["source"] for row in rows},
        provenance=rows,
    )


def _sparse_run(record: SparseRecord) -> SparseRun:
    return SparseRun(
        executed=record.status in {"completed", "partial"},
        models=tuple(model.slug for model in record.models) or (record.model,),
        vectors_total=record.vectors_total,
        vectors_available=record.vectors_available,
        devices={record.model: record.device.label},
        run_id=record.run_id,
        latency_ms=round(1000 * record.seconds, 3),
        success=True,  # a stage that fails leaves no artefact
        fallback_count=record.fallback_count,
        fallback_reason=_main_reason(record),
        more={
            "live": record.vectors_live,
            "from_metadata": record.vectors_from_metadata,
            "top_k": record.top_k,
            "index_space": record.index_space,
            "fallback_reasons": record.fallback_reasons,
            "peak_bytes": record.peak_bytes,
        },
    )


def _rerank_run(upstream: Upstream, run: StageRun) -> RerankRun:
    record, first = upstream.rerank.record, _first_list(upstream)
    return RerankRun(
        executed=record.pairs_scored > 0,
        status=record.status,
        model_name=record.model,
        loaded=any(model.slug == record.model for model in record.models),
        device=record.device.label,
        run_id=record.run_id,
        latency_ms=round(1000 * record.seconds, 3),
        gpu_peak_gb=record.peak_bytes / 1e9 if record.device.on_gpu else 0.0,
        batch_size=record.largest_batch,
        top_k_candidates=run.settings.fusion.depth,
        rerank_top_k=record.depth,
        initial_candidate_count=upstream.fusion.record.candidates,
        candidate_ids=tuple(first["chunk_id"].to_list()),
        scores=tuple(first["score"].to_list()),
        dense_scores=tuple(_dense_scores(upstream, first)),
        candidate_metadata=tuple(first.select(_OF_CANDIDATES).rename({"row": "point_id"}).to_dicts()),
        fallback_count=record.fallback_count,
        fallback_reason=_main_reason(record),
        fallback_source=record.fallback_source,
        more={
            "query_count": record.query_count,
            "query_id": first["public_id"][0] if first.height else None,
            "pairs_scored": record.pairs_scored,
            "requested_depth": record.requested_depth,
            "reached_depth": record.reached_depth,
            "queries_cut_short": record.queries_cut_short,
            "interpolation_weight": record.weight,
            "fallback_reasons": record.fallback_reasons,
            **({} if record.late is None else {"late_interaction": record.late}),
        },
    )


_OF_CANDIDATES = ("row", "rank", "fused_rank", "reranked")


def _dense_scores(upstream: Upstream, first: pl.DataFrame) -> list[float | None]:
    """Read the scores of the dense list for the candidates of the first query, in their order."""
    dense = upstream.fusion.frame("candidates", columns=["public_id", "row", "dense_score"])
    scores = first.join(dense, on=["public_id", "row"], how="left", maintain_order="left")["dense_score"]
    return scores.to_list()


def _first_list(upstream: Upstream) -> pl.DataFrame:
    """Read the reranked list of the first query: the contract's payload shows one."""
    reranked = upstream.rerank.frame("reranked")
    return reranked.filter(reranked["public_id"] == reranked["public_id"][0]) if reranked.height else reranked


def _main_reason(record: StageRecord) -> str | None:
    reasons = record.fallback_reasons
    return max(reasons, key=lambda reason: reasons[reason]) if reasons else None


def _warnings(upstream: Upstream, skipped: Mapping[str, str]) -> Iterator[str]:
    """Give what a person should know of the stages, and files that were not written."""
    for artefact in upstream.by_stage().values():
        yield from remarks(artefact.record)
    for name, reason in skipped.items():
        yield f"{name}: not written ({reason})"
