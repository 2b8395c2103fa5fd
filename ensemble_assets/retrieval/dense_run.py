"""Rank chunks by one dense model, or by several whose lists are combined after a normalisation per model."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ensemble_assets.common.errors import StageError
from ensemble_assets.common.frame_schemas import RUN
from ensemble_assets.retrieval.dense_topk import DenseModel, dense_topk
from ensemble_assets.retrieval.fusion import RankedList, fuse, zscore
from ensemble_assets.retrieval.ranked_lists import run_from_topk

COMBINATION = zscore()
"""How the lists of several dense models become one.

Raw scores of two models cannot be averaged: the one whose cosines spread widest would decide. docs/quality.md compares
both on SciFact.
"""


def dense_run(
    models: Sequence[DenseModel], chunk_ids: pl.Series, public_ids: Sequence[str], depth: int
) -> pl.DataFrame:
    """Search with every model and give one RUN frame.

    The scores of one model are its own. Those of several are the weighted mean of ``COMBINATION`` over each model's own
    ``depth`` best chunks; ``chunk_ids`` ``[n_chunks]`` break their ties.

    Vectors that do not fit together or are not finite are an ``ArtefactError``, no model is a ``StageError``. A weight
    that is negative or not finite, or none above 0, is a ``SettingsError``.
    """
    if not models:
        raise StageError("dense search needs at least one model; none was given. Configure a dense model")
    lists = [RankedList(each.name, run_from_topk(dense_topk(each, depth), public_ids), each.weight) for each in models]
    if len(lists) == 1:
        return lists[0].run
    combined = fuse(lists, chunk_ids, COMBINATION, depth=depth, query_order=public_ids)
    return combined.select(list(RUN))
