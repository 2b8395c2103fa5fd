"""Measure the ranked lists of a run, and make an accepted baseline of the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.quality_baseline import QualityBaseline
from ensemble_assets.artefacts.records import ChunksRecord, EvaluationRecord, FusionRecord, QueriesRecord, RerankRecord
from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.artefacts.store import ArtefactStore
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.stages import RANKING_STAGES, STAGE
from ensemble_assets.common.version import __version__
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.quality_verdicts import GATED_MEASURE
from ensemble_assets.retrieval.ranked_lists import with_chunk_ids

FINAL_RUN = "reranked"
"""The list that users get."""

_FUSION_FACTS = ("method", "parameters", "dense_share", "lexical_share", "depth")
_SETTINGS = (*_FUSION_FACTS, "weight", "top_k", "index_space")


def evaluate_lists(
    run: StageRun,
    chunks: Artefact[ChunksRecord],
    queries: Artefact[QueriesRecord],
    fused: Artefact[FusionRecord],
    reranked: Artefact[RerankRecord],
) -> EvaluationRecord:
    """Measure every list over the judged queries into the frames ``per_query`` and ``summary``.

    Derived probes are judged by the chunk that they were made from.
    """
    qrels = queries.frame("qrels")
    own = queries.frame("queries", columns=["public_id", "query_id"]).rename({"query_id": "chunk_id"})
    # a query that is a document itself finds itself; that is no answer unless somebody judged it one
    own = own.join(qrels.filter(pl.col("relevance") > 0), on=["public_id", "chunk_id"], how="anti")
    lists = measured_lists(chunks, fused, reranked)
    result = evaluate(
        {name: ranked.join(own, on=["public_id", "chunk_id"], how="anti") for name, ranked in lists.items()}, qrels
    )
    run.writer.frame("per_query", result.per_query)
    run.writer.frame("summary", result.summary)
    fusion = fused.record.as_json()
    return EvaluationRecord(
        run.stage,
        "completed" if result.queries else "no_judgements",
        items=result.queries,
        judged=queries.record.judged,
        unit="judged queries" if queries.record.judged else "derived probes",
        query_source=queries.record.query_source,
        files=queries.record.files,
        without_relevant=result.without_relevant,
        not_retrieved=dict(result.not_retrieved),
        fusion={name: fusion[name] for name in _FUSION_FACTS},
        means=_means(result.summary) if result.queries else {},
        measured={"fusion": fused.version, "rerank": reranked.version},
    )


def measured_lists(
    chunks: Artefact[ChunksRecord], fused: Artefact[FusionRecord], reranked: Artefact[RerankRecord]
) -> dict[str, pl.DataFrame]:
    """Collect the lists of a run by name: each first-stage list, ``fused`` and ``reranked``, all with chunk ids."""
    ids = chunks.frame("chunks", columns=["chunk_id"])["chunk_id"]
    singles = {name: with_chunk_ids(fused.frame(f"run.{name}"), ids) for name in fused.record.lists}
    return {**singles, "fused": fused.frame("candidates"), FINAL_RUN: reranked.frame("reranked")}


def measured_quality(store: ArtefactStore, collection: str, artefacts: Mapping[str, Artefact[Any]]) -> _Means | None:
    """Look up the means of a run's lists in the current evaluation: list -> measure -> mean.

    ``artefacts`` has ``fusion`` and ``rerank`` of the run. None without judgements, or if other lists were measured.
    """
    evaluation = store.peek(collection, STAGE["evaluation"].asset)
    if evaluation is None or not evaluation.record.means:
        return None
    record: EvaluationRecord = evaluation.record
    fused, reranked = artefacts["fusion"], artefacts["rerank"]
    # Version 0.1 did not record which lists it measured; within one run they are the same.
    same_run = not record.measured and record.run_id == fused.record.run_id == reranked.record.run_id
    if not same_run and record.measured != {"fusion": fused.version, "rerank": reranked.version}:
        return None
    # With reranking off, the final list is the fused one under another name.
    return {name: means for name, means in record.means.items() if name != FINAL_RUN or reranked.record.enabled}


def accepted_baseline(store: ArtefactStore, collection: str, accepted_at: str) -> QualityBaseline:
    """Make a baseline of the collection's current evaluation, with the models and settings behind its lists.

    A collection that was never evaluated, or has no judgements, is an ``ArtefactError``.
    """
    measured = store.load(collection, STAGE["evaluation"].asset)
    record: EvaluationRecord = measured.record
    if record.status == "no_judgements":
        raise ArtefactError(
            f"{collection}: its queries have no judgements, so there is no quality to accept. Add qrels"
        )
    per_query = measured.frame("per_query").filter(pl.col("measure") == GATED_MEASURE)
    values = {
        name: dict(per_query.filter(pl.col("run") == name).select("public_id", "value").iter_rows())
        for name in record.means
    }
    return QualityBaseline(
        collection=collection,
        judged=record.judged,
        accepted_at=accepted_at,
        measure=GATED_MEASURE,
        means=record.means,
        per_query=values,
        provenance={
            "program": f"ensemble-assets {__version__}",
            "run_id": record.run_id,
            "evaluation": measured.version,
            "chunks": store.load(collection, STAGE["chunks"].asset).version,
            "query_source": record.query_source,
            "stages": {stage: _made_by(store.load(collection, STAGE[stage].asset).record) for stage in RANKING_STAGES},
        },
    )


def _made_by(record: StageRecord) -> dict[str, Any]:
    models = [f"{model.slug} {model.revision} {model.fingerprint}" for model in record.models]
    facts = record.as_json()
    settings = {name: facts[name] for name in _SETTINGS if name in facts} if record.enabled else {}
    return {"status": record.status, **({"models": models} if models else {}), **settings}


_Means = dict[str, dict[str, float]]


def _means(summary: pl.DataFrame) -> _Means:
    means: _Means = {}
    for name, measure, mean in summary.select("run", "measure", "mean").iter_rows():
        means.setdefault(name, {})[measure] = mean
    return means
