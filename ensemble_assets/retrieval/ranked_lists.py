"""Turn search results into RUN frames, and add chunk ids to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.frame_schemas import RUN
from ensemble_assets.retrieval.topk import TopK


def run_from_topk(topk: TopK, public_ids: Sequence[str] | pl.Series) -> pl.DataFrame:
    """Make the RUN frame of a search result, queries in the order of ``public_ids``."""
    n_queries, k = topk.rows.shape
    ids = pl.Series("public_id", public_ids, dtype=pl.String)
    if len(ids) != n_queries:
        raise ArtefactError(f"{n_queries} searched queries but {len(ids)} query ids. Materialise the queries again")
    filled = np.arange(k) < topk.filled[:, None]
    return pl.DataFrame(
        {
            "public_id": ids.gather(np.repeat(np.arange(n_queries), topk.filled)),
            "rank": np.broadcast_to(np.arange(1, k + 1, dtype=np.uint32), filled.shape)[filled],
            "row": topk.rows[filled],
            "score": topk.scores[filled],
        },
        schema=dict(RUN),
    )


def with_chunk_ids(run: pl.DataFrame, chunk_ids: pl.Series) -> pl.DataFrame:
    """Give ``run`` with a ``chunk_id`` column, taken from ``chunk_ids`` (``[n_chunks]``, collection order) by row."""
    highest = run["row"].max()
    if isinstance(highest, int) and highest >= len(chunk_ids):
        raise ArtefactError(
            f"a ranked list names chunk row {highest}; the collection has {len(chunk_ids)} chunks. "
            "Materialise the search again for this collection"
        )
    return run.with_columns(chunk_ids.gather(run["row"]).alias("chunk_id"))
