"""Manifest inputs for tests: one run with everything on, and how to switch things off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl

from ensemble_assets.common.frame_schemas import CANDIDATES, QUERIES, RERANKED
from ensemble_assets.export.write.bundle import RankedLists
from ensemble_assets.export.write.manifest import FeatureToggles, ManifestInputs
from ensemble_assets.export.write.manifest_stages import RerankRun, SparseRun
from ensemble_assets_tests.export.bundles import CLOCK

PROVENANCE = (
    {"key": "enable_rerank", "value": True, "source": "default", "layer": "default"},
    {"key": "sparse_models", "value": ["splade-tiny"], "source": "--sparse-models", "layer": "run"},
)
RERANK = RerankRun(
    executed=True,
    status="completed",
    model_name="tiny",
    loaded=True,
    requested_device="cuda:0",
    device="cpu",
    run_id="r1",
    latency_ms=12.5,
    gpu_peak_gb=0.0,
    batch_size=8,
    top_k_candidates=20,
    rerank_top_k=20,
    initial_candidate_count=3,
    candidate_ids=("b", "a"),
    scores=(0.75, 0.5),
    dense_scores=(0.5, None),
    candidate_metadata=(
        {"point_id": 1, "rank": 1, "fused_rank": 2, "reranked": True},
        {"point_id": 0, "rank": 2, "fused_rank": 1, "reranked": False},
    ),
    more={"query_count": 2},
)
SPARSE = SparseRun(
    executed=True,
    models=("splade-tiny",),
    vectors_total=3,
    vectors_available=2,
    devices={"splade-tiny": "cpu"},
    run_id="r1",
    latency_ms=3.5,
    success=True,
    fallback_count=1,
    fallback_reason="inference_failed",
)


def everything_on(**changes: Any) -> ManifestInputs:
    run = ManifestInputs(
        generated_at=CLOCK,
        collection="guide",
        chunk_count=3,
        toggles=FeatureToggles(True, True, ("splade-tiny",), {"enable_rerank": "default"}, PROVENANCE),
        dense_run={"models": ["mini"], "latency_ms": 1.0},
        telemetry={
            "spans": {
                "rag.dense": {
                    "span_id": "00f067aa0ba902b7",
                    "status": "active",
                    "attributes": {"chunks": 3},
                    "timestamp": CLOCK,
                }
            },
            "metrics": {"dense": {"status": "emitted", "metrics": ["rag_dense_latency_seconds"]}},
            "lease_events_recorded": 4,
        },
        rerank_run=RERANK,
        sparse_run=SPARSE,
    )
    return replace(run, **changes)


def everything_off(**changes: Any) -> ManifestInputs:
    return everything_on(toggles=FeatureToggles(False, False), rerank_run=None, sparse_run=None, **changes)


def queries(*ids: str) -> pl.DataFrame:
    rows = [(i, f"text of {i}", i, f"{number:032x}") for number, i in enumerate(ids)]
    return pl.DataFrame(rows, schema=dict(QUERIES), orient="row")


def candidates(*rows: tuple[str, int, int, str, float]) -> pl.DataFrame:
    """(public id, rank, row, chunk id, score)."""
    filled = [(*row, row[1], row[4], *[None] * (len(CANDIDATES) - 7)) for row in rows]
    return pl.DataFrame(filled, schema=dict(CANDIDATES), orient="row")


def reranked(*rows: tuple[str, int, int, str, float, int, float, float | None]) -> pl.DataFrame:
    """(public id, rank, row, chunk id, score, fused rank, fused score, rerank score)."""
    filled = [(*row, None, row[-1] is not None) for row in rows]
    return pl.DataFrame(filled, schema=dict(RERANKED), orient="row")


def lists() -> RankedLists:
    return RankedLists(
        queries("q1", "q2", "q3"),
        candidates(("q1", 1, 0, "a", 0.5), ("q1", 2, 1, "b", 0.25), ("q2", 1, 2, "c", 0.5)),
        reranked(
            ("q1", 1, 1, "b", 0.75, 2, 0.25, 3.5),
            ("q1", 2, 0, "a", 0.5, 1, 0.5, None),
            ("q2", 1, 2, "c", 0.5, 1, 0.5, None),
        ),
    )
