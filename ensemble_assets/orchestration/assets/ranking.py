"""Assets ``fused_candidates``, ``reranked_candidates`` and ``evaluation``: ranked lists and their quality."""

import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import DEVICE_POOL, Materialised, collection_asset
from ensemble_assets.orchestration.dagster_metadata import bars, histogram, lists_by_measures, table
from ensemble_assets.orchestration.stage_step import Pictures, finish
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.first_stage import fuse_candidates
from ensemble_assets.pipeline.quality_facts import evaluate_lists
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.pipeline.stages import rerank_fused
from ensemble_assets.retrieval.quality_verdicts import GATED_MEASURE


@collection_asset("fusion", group="ranking", kinds={"polars", "numpy"}, code_version="4")
def fused_candidates(
    run: StageRun, chunks: Artefact, queries: Artefact, dense_embeddings: Artefact, sparse_vectors: Artefact
) -> Materialised:
    """The best chunks for each query: dense, sparse and BM25 search fused into one list, with the rank in each."""
    record = fuse_candidates(run, chunks, queries, dense_embeddings, sparse_vectors)
    return finish(run, record, record.candidates, _draw_fused)


def _draw_fused(fused: Artefact) -> Pictures:
    scores = fused.frame("candidates", columns=["score"])["score"].to_numpy()
    return {"fused_scores": histogram(scores, "Fused scores", "")}


@collection_asset("rerank", group="ranking", kinds={"torch", "polars"}, code_version="3", pool=DEVICE_POOL)
def reranked_candidates(
    run: StageRun, computing: Computing, chunks: Artefact, queries: Artefact, fused_candidates: Artefact
) -> Materialised:
    """The final order of each query's candidates, by a reranker. Where it did not run, the fused order, marked."""
    record = rerank_fused(run, computing, chunks, queries, fused_candidates)
    return finish(run, record, fused_candidates.record.candidates, _draw_reranked)


def _draw_reranked(reranked: Artefact) -> Pictures:
    scored = reranked.frame("reranked").filter("reranked")
    moved = scored["fused_rank"].cast(pl.Int64) - scored["rank"].cast(pl.Int64)
    return {"places_moved": histogram(moved.to_numpy(), "Places moved up by reranking", "places")}


# It runs before the export, whose report shows its figures.
@collection_asset("evaluation", group="quality", kinds={"polars", "parquet"}, code_version="2", first=True)
def evaluation(
    run: StageRun, chunks: Artefact, queries: Artefact, fused_candidates: Artefact, reranked_candidates: Artefact
) -> Materialised:
    """How good each ranked list is against the judgements: nDCG@10, MRR@10, recall@100 and MAP.

    Derived probes are judged by the chunk that they were made from, and marked so. Without judgements, an empty
    artefact marked no_judgements.
    """
    record = evaluate_lists(run, chunks, queries, fused_candidates, reranked_candidates)
    return finish(run, record, record.items * sum(map(len, record.means.values())), _draw_quality)


def _draw_quality(evaluation: Artefact) -> Pictures:
    means = evaluation.record.means
    gated = [measures[GATED_MEASURE] for measures in means.values()]
    drawn = {GATED_MEASURE: bars(list(means), gated, GATED_MEASURE, "")} if means else {}
    return {"quality": table(lists_by_measures(means)), **drawn}
