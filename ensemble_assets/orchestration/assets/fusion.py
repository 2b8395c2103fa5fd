"""Asset ``fused_candidates``: exact dense, sparse and BM25 top-k, fused into one list of candidates per query."""

import time

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.first_stage import Searched, first_stage_runs, fused, fusion_rule
from ensemble_assets.pipeline.run_costs import upstream_costs


@collection_asset(group="ranking", kinds={"polars", "numpy"}, code_version="3")
def fused_candidates(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
    queries: Artefact,
    dense_embeddings: Artefact,
    sparse_vectors: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """Candidates per query with the rank and score that each first-stage list gave them."""
    with stage_run(context, settings, progress, "fusion") as run:
        options, started = run.settings.fusion, time.perf_counter()
        rule = fusion_rule(options, run.collection)
        searched = Searched(chunks, queries, dense_embeddings, sparse_vectors, options.depth, rule)
        ids, runs = searched.public_ids, first_stage_runs(searched)
        candidates = fused(searched, runs)
        run.writer.frame("candidates", candidates)
        for name, ranked in runs.items():
            run.writer.frame(f"run.{name}", ranked)
        seconds = time.perf_counter() - started
        numbers: dict[str, int | str] = {
            "queries": len(ids),
            "candidates": candidates.height,
            "depth": options.depth,
            "method": rule.method.name,
        }
        record = StageRecord(
            "fusion", "completed", items=len(ids), seconds=seconds, device=UsedDevices("cpu"), facts=numbers
        )
        facts = {
            "unit": "queries",
            "parameters": dict(rule.method.parameters),
            "lists": list(runs),
            "dense_share": rule.dense_share,
            "lexical_share": rule.lexical_share if "lexical" in runs else 0.0,
            "fitted": rule.fitted,
            "upstream": upstream_costs(dense_embeddings, sparse_vectors),
        }
        picture = histogram(candidates["score"].to_numpy(), "Fused scores", "")
        return finish(run, facts, {"fused_scores": picture}, rows=candidates.height, record=record)
