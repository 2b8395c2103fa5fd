"""Asset ``fused_candidates``: exact dense, sparse and BM25 top-k, fused into one list of candidates per query."""

import time

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.pictures import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.first_stage import first_stage_runs, lexical_run
from ensemble_assets.pipeline.fusion_rule import fusion_rule
from ensemble_assets.pipeline.run_costs import upstream_costs
from ensemble_assets.retrieval.fusion import RankedList, fuse


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
        ids = queries.frame("queries", columns=["public_id"])["public_id"].to_list()
        runs = first_stage_runs(dense_embeddings, sparse_vectors, ids, options.depth)
        if "sparse" in runs and rule.lexical_share > 0:
            runs["lexical"] = lexical_run(chunks, queries, ids, options.depth)
        candidates = fuse(
            [RankedList(name, ranked, rule.weights[name] if len(runs) > 1 else 1.0) for name, ranked in runs.items()],
            chunks.frame("chunks", columns=["chunk_id"])["chunk_id"],
            rule.method,
            query_order=ids,
        )
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
