"""Measure a stage on a few chunks of the collection, if no run on this machine has measured it yet.

The stages are called as the pipeline calls them, so calibration uses the backend and precision of the run.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import numpy as np
import polars as pl

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.collection.chunk_text import whole_text
from ensemble_assets.collection.folders import Collection
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.frame_schemas import FUSED
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.from_settings import collection_chunks, collection_queries
from ensemble_assets.pipeline.stage_run import ComputeRun
from ensemble_assets.planning.history import Observation
from ensemble_assets.settings import Settings
from ensemble_assets.settings.chosen_models import choose_models

_SIZES = (8, 64)
"""Chunks of the two measurements. The embedded models take about a second for the larger one on two cores."""
_QUERIES_PER_CHUNK = 8


@dataclass(frozen=True)
class Sample:
    """A collection as a run reads it: a ``CHUNKS`` frame and a ``QUERIES`` frame."""

    chunks: pl.DataFrame
    queries: pl.DataFrame

    @property
    def searched(self) -> pl.Series:
        """Texts that sparse vectors and the reranker read, one per chunk."""
        return self.chunks.select(whole_text())["text"]

    def spread(self, size: int) -> Sample:
        """Take ``size`` chunks (at most all), evenly spread over the collection."""
        rows = np.linspace(0, self.chunks.height - 1, min(size, self.chunks.height)).astype(np.int64)
        return Sample(self.chunks[rows], self.queries)


def read_sample(settings: Settings, collection: Collection) -> Sample:
    """Read a collection's chunks and queries as the assets read them."""
    chunks, _ = collection_chunks(settings, collection)
    return Sample(chunks, collection_queries(settings, collection, chunks).queries)


def calibrate(stage: str, sample: Sample, settings: Settings, computing: Computing) -> list[Observation]:
    """Measure a stage at two sizes, so that loading and computing can be told apart.

    A first run is not counted: it imports libraries and compiles models.
    """
    run_stage(stage, sample.spread(_SIZES[0]), settings, computing)
    observations = []
    for part in (sample.spread(size) for size in _SIZES):
        started = time.perf_counter()
        record = run_stage(stage, part, settings, computing)
        observations.append(Observation(float(record.tokens), time.perf_counter() - started, "calibration"))
    return observations


def run_stage(stage: str, sample: Sample, settings: Settings, computing: Computing) -> StageRecord:
    """Run a stage on all chunks of a sample: encoders with one query, rerank with a few queries per chunk."""
    from ensemble_assets.compute.stages.dense import encode_dense
    from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
    from ensemble_assets.compute.stages.sparse import encode_sparse

    choice = choose_models(settings.models)
    context = computing.context(ComputeRun(settings, secrets.token_hex(16), EventLog()))  # no rows are reused
    texts, searched, query = sample.chunks["text"], sample.searched, sample.queries["text"].head(1)
    if stage == "dense":
        return encode_dense(texts, query, choice.dense, context, **computing.factory("dense")).record
    if stage == "sparse":
        metadata, options = sample.chunks["metadata"], {"top_k": settings.sparse.top_k, **computing.factory("sparse")}
        return encode_sparse(searched, metadata, query, choice.sparse, context, **options).record
    every_chunk = RerankOptions(depth=sample.chunks.height)
    candidates, factory = _pair_every_chunk(sample), computing.factory("rerank")
    result = rerank_candidates(candidates, searched, sample.queries, choice.rerank, context, every_chunk, **factory)
    return result.record


def _pair_every_chunk(sample: Sample) -> pl.DataFrame:
    """Make the ``FUSED`` frame of every chunk with a few queries; the scores mean nothing."""
    queries = sample.queries["public_id"].unique(maintain_order=True).head(_QUERIES_PER_CHUNK)
    chunks = sample.chunks.select("chunk_id").with_row_index("row")
    pairs = pl.DataFrame(queries).join(chunks, how="cross")
    ranked = pairs.with_columns(rank=pl.col("row") + 1, score=1 / (pl.col("row") + 1.0))
    return ranked.select(pl.col(name).cast(kind) for name, kind in FUSED.items())
