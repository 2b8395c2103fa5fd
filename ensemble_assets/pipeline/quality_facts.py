"""From ranked artefacts to what is measured, and from that to facts and baselines. Maps and names, no figures."""

from __future__ import annotations

from typing import Any

import polars as pl

from ensemble_assets import __version__
from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.quality_baseline import QualityBaseline
from ensemble_assets.artefacts.store import ArtefactStore
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.stages import RANKING_STAGES, STAGE
from ensemble_assets.retrieval.evaluation import Evaluation
from ensemble_assets.retrieval.ranked_lists import with_chunk_ids

FINAL_RUN = "reranked"
"""The list that users get."""
GATED_MEASURE = "nDCG@10"


def measured_lists(chunks: Artefact, fused: Artefact, reranked: Artefact) -> dict[str, pl.DataFrame]:
    """The lists of a run by name: each first-stage list, ``fused`` and ``reranked``, all with chunk ids."""
    ids = chunks.frame("chunks", columns=["chunk_id"])["chunk_id"]
    singles = {name: with_chunk_ids(fused.frame(f"run.{name}"), ids) for name in fused.facts["lists"]}
    return {**singles, "fused": fused.frame("candidates"), FINAL_RUN: reranked.frame("reranked")}


def quality_facts(result: Evaluation, queries: Artefact, fused: Artefact) -> dict[str, Any]:
    """Facts of an evaluation; every mean is a number of its own, so that the UI plots it over time."""
    means = {f"{run} {measure}": mean for run, measure, mean in result.summary.select("run", "measure", "mean").rows()}
    return {
        "status": "completed" if result.queries else "no_judgements",
        "items": result.queries,
        "unit": "judged queries",
        "judged": bool(queries.facts["judged"]),
        "query_source": str(queries.facts["query_source"]),
        "without_relevant": result.without_relevant,
        "not_retrieved": dict(result.not_retrieved),
        "fusion": {
            name: fused.facts[name] for name in ("method", "parameters", "dense_share", "lexical_share", "depth")
        },
        **(means if result.queries else {}),
    }


_SETTINGS = ("method", "parameters", "dense_share", "lexical_share", "depth", "weight", "top_k", "index_space")


def accepted_baseline(store: ArtefactStore, collection: str, accepted_at: str) -> QualityBaseline:
    """The collection's current evaluation as a baseline, with what the lists were made by.

    Raises:
        ArtefactError: if it was never evaluated, or without judgements.
    """
    measured = store.load(collection, "evaluation")
    if measured.facts["status"] == "no_judgements":
        raise ArtefactError(
            f"{collection}: its queries have no judgements, so there is no quality to accept. Add qrels"
        )
    per_query = measured.frame("per_query").filter(pl.col("measure") == GATED_MEASURE)
    means: dict[str, dict[str, float]] = {}
    for run, measure, mean in measured.frame("summary").select("run", "measure", "mean").iter_rows():
        means.setdefault(run, {})[measure] = mean
    values = {
        run: dict(per_query.filter(pl.col("run") == run).select("public_id", "value").iter_rows()) for run in means
    }
    return QualityBaseline(
        collection=collection,
        judged=bool(measured.facts["judged"]),
        accepted_at=accepted_at,
        measure=GATED_MEASURE,
        means=means,
        per_query=values,
        provenance={
            "program": f"ensemble-assets {__version__}",
            "run_id": measured.facts["run_id"],
            "evaluation": measured.version,
            "chunks": store.load(collection, "chunks").version,
            "query_source": measured.facts["query_source"],
            "stages": {stage: _made_by(store.load(collection, STAGE[stage].asset).facts) for stage in RANKING_STAGES},
        },
    )


def _made_by(facts: dict[str, Any]) -> dict[str, Any]:
    models = [f"{model['slug']} {model['revision']} {model['fingerprint']}" for model in facts.get("models", [])]
    settings = {name: facts[name] for name in _SETTINGS if name in facts}
    return {"status": facts["status"], **({"models": models} if models else {}), **settings}
