"""A few seconds of the real stages on a sample of the collection, where no costs are known for this machine yet.

The stages are called as the pipeline calls them, so whatever backend and precision they choose is what is measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.collection.whole_text import whole_text
from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.model_choice import ModelChoice, choose_models
from ensemble_assets.planning.cost_records import Observation
from ensemble_assets.planning.observed_costs import model_work, models_of
from ensemble_assets.planning.standalone import StandaloneRun
from ensemble_assets.settings import Settings

ENOUGH_SECONDS = 1.5
_TOO_SLOW = 15.0
"""A smallest size that takes so long is not followed by a larger one, so loading and computing are not told apart."""
_SMALLEST, _GROWTH = 8, 4
_PAIRS_PER_TEXT = 8


@dataclass(frozen=True)
class Sample:
    """What is calibrated on: a ``CHUNKS`` frame and a ``QUERIES`` frame."""

    chunks: pl.DataFrame
    queries: pl.DataFrame

    @property
    def searched(self) -> pl.Series:
        """What sparse vectors and the CrossEncoder read of each chunk."""
        return self.chunks.select(whole_text())["text"]


def calibrate(stage: str, sample: Sample, settings: Settings, computing: Computing) -> list[Observation]:
    """Observe a stage at growing sizes until one takes ``ENOUGH_SECONDS`` or the collection is used up.

    The first run is not counted: libraries are imported and models compiled in it.
    """
    from ensemble_assets.planning.model_cost import shape_for

    choice = choose_models(settings.models)
    shapes = [shape_for(spec) for spec in models_of(choice, stage)]
    observed: list[Observation] = []
    size, most = _SMALLEST, sample.chunks.height
    _run(stage, sample, min(size, most), choice, settings, computing)
    while True:
        started = time.perf_counter()
        record = _run(stage, sample, min(size, most), choice, settings, computing)
        seconds = time.perf_counter() - started
        observed.append(Observation(model_work(shapes, record.tokens, record.items), seconds, "calibration"))
        enough = seconds >= ENOUGH_SECONDS and (len(observed) > 1 or seconds >= _TOO_SLOW)
        if enough or size >= most:
            return observed
        size *= _GROWTH


def _run(
    stage: str, sample: Sample, size: int, choice: ModelChoice, settings: Settings, computing: Computing
) -> StageRecord:
    """A stage on ``size`` chunks, evenly spread over the collection; rerank on some pairs for each of them."""
    from ensemble_assets.compute.stages.dense import encode_dense
    from ensemble_assets.compute.stages.rerank import RerankOptions, rerank_candidates
    from ensemble_assets.compute.stages.sparse import encode_sparse

    rows = np.linspace(0, sample.chunks.height - 1, size).astype(np.int64)
    sample = Sample(sample.chunks[rows], sample.queries)
    chunks, queries = sample.chunks, sample.queries
    context = computing.context(StandaloneRun(stage, settings))
    if stage == "dense":
        one = queries["text"].head(1)
        return encode_dense(chunks["text"], one, choice.dense, context, **computing.factory("dense")).record
    if stage == "sparse":
        texts, metadata, one = sample.searched, chunks["metadata"], queries["text"].head(1)
        options = {"top_k": settings.sparse.top_k, **computing.factory("sparse")}
        return encode_sparse(texts, metadata, one, choice.sparse[:1], context, **options).record
    pairs, deep = _pairs(queries, size), RerankOptions(depth=size * _PAIRS_PER_TEXT)
    factory = computing.factory("rerank")
    return rerank_candidates(pairs, sample.searched, queries, choice.rerank, context, deep, **factory).record


def _pairs(queries: pl.DataFrame, chunks: int) -> pl.DataFrame:
    """A ``CANDIDATES`` frame of every chunk with a few queries; the scores mean nothing."""
    count = chunks * _PAIRS_PER_TEXT
    number = pl.int_range(count, eager=True)
    names = queries["public_id"].unique(maintain_order=True)
    frame = pl.DataFrame({"_n": number}).with_columns(
        (pl.col("_n") % len(names)).alias("_query"), (pl.col("_n") % chunks).cast(pl.UInt32).alias("row")
    )
    made = frame.select(
        names.gather(frame["_query"]).alias("public_id"),
        (pl.int_range(pl.len()).over("_query") + 1).cast(pl.UInt32).alias("rank"),
        "row",
        pl.format("c{}", "row").alias("chunk_id"),
        (1.0 / (pl.col("_n") + 1)).cast(pl.Float32).alias("score"),
        *(pl.lit(None, CANDIDATES[name]).alias(name) for name in list(CANDIDATES)[5:]),
        "_query",
    )
    return made.sort("_query", "rank", maintain_order=True).select(list(CANDIDATES))


def calibrate_search() -> list[Observation]:
    """Observe exact dense search over random vectors of two sizes, as a stand-in for the fusion stage."""
    from ensemble_assets.retrieval.dense_topk import DenseModel, dense_topk

    random, observed = np.random.default_rng(0), []
    for rows in (512, 4096):
        chunks, queries = (_unit(random.standard_normal((n, 384), np.float32)) for n in (rows, 64))
        started = time.perf_counter()
        dense_topk([DenseModel("random", chunks, queries, 1.0)], 100)
        observed.append(Observation(64.0 * rows, 2 * (time.perf_counter() - started), "calibration"))
    return observed


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
