"""Turns results into RUN frames and RUN frames into TREC run files.

Computing the results is other modules' business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.common.frame_schemas import RUN, conform
from ensemble_assets.retrieval.topk import TopK


def run_from_topk(topk: TopK, public_ids: Sequence[str] | pl.Series) -> pl.DataFrame:
    """A RUN frame of a search result, queries in the order of ``public_ids``.

    Raises:
        ArtefactError: if the number of ids is not the number of queries.
    """
    n_queries, k = topk.rows.shape
    ids = pl.Series("public_id", public_ids, dtype=pl.String)
    if len(ids) != n_queries:
        raise ArtefactError(f"{n_queries} searched queries but {len(ids)} query ids. Materialise the queries again")
    kept = np.arange(k) < topk.filled[:, None]
    return pl.DataFrame(
        {
            "public_id": ids.gather(np.repeat(np.arange(n_queries), topk.filled)),
            "rank": np.broadcast_to(np.arange(1, k + 1, dtype=np.uint32), kept.shape)[kept],
            "row": topk.rows[kept],
            "score": topk.scores[kept],
        },
        schema=dict(RUN),
    )


def as_run(ranked: pl.DataFrame, what: str) -> pl.DataFrame:
    """The RUN frame inside a CANDIDATES or RERANKED frame: its own rank and score per chunk.

    Raises:
        ArtefactError: if the frame lacks a RUN column; ``what`` names it in the message.
    """
    return conform(ranked, RUN, what)


def with_chunk_ids(run: pl.DataFrame, chunk_ids: pl.Series) -> pl.DataFrame:
    """``run`` with a ``chunk_id`` column, taken from ``chunk_ids`` (``[n_chunks]``, collection order) by row.

    Raises:
        ArtefactError: if a row lies outside the collection.
    """
    highest = run["row"].max()
    if isinstance(highest, int) and highest >= len(chunk_ids):
        raise ArtefactError(
            f"a ranked list names chunk row {highest}; the collection has {len(chunk_ids)} chunks. "
            "Materialise the search again for this collection"
        )
    return run.with_columns(chunk_ids.gather(run["row"]).alias("chunk_id"))


def trec_lines(run: pl.DataFrame, tag: str) -> Iterator[str]:
    """The lines of a TREC run file, ``query Q0 chunk rank score tag``, in the frame's order, without line ends.

    Programs that read such files sort by score and ignore the rank. So the scores that are written fall strictly: one
    that does not (a tie, or a tail that was scored on another scale) is lowered to the next float32 below its
    predecessor's. White space inside an id is written as ``%20`` and the like, because fields are separated by white
    space.

    Args:
        run: columns ``public_id, rank, chunk_id, score``; sorted by rank within each query.
        tag: name of the run, without white space.

    Raises:
        ContractError: if two ids become the same when white space is escaped, or the tag has white space.
    """
    if not tag or tag.split() != [tag]:
        raise ContractError("a TREC run needs a tag without white space. Correct the tag")
    written = run.select(
        _escaped(run["public_id"]),
        pl.col("rank"),
        _escaped(run["chunk_id"]),
        _strictly_falling().alias("score"),
    )
    for public_id, rank, chunk_id, score in written.iter_rows():
        yield f"{public_id} Q0 {chunk_id} {rank} {score} {tag}"


def _strictly_falling() -> pl.Expr:
    """The score column of each query as text, lowered where needed to fall strictly in float32."""

    def lower(scores: pl.Series) -> pl.Series:
        bits = (scores.to_numpy().astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
        # Consecutive float32 numbers as consecutive integers; then s[i] = min(s[i], s[i - 1] - 1) as one running
        # minimum.
        steps = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
        places = np.arange(len(steps))
        lowered = np.minimum.accumulate(steps + places) - places
        bits = np.where(lowered < 0, -lowered | 0x80000000, lowered).astype(np.uint32)
        return pl.Series(bits.view(np.float32)).cast(pl.String)

    return pl.col("score").map_batches(lower, return_dtype=pl.String).over("public_id")


def _escaped(ids: pl.Series) -> pl.Series:
    """Ids with white space percent-encoded."""
    distinct = ids.unique()
    escaped = pl.Series(
        ["".join(_percent(c) if c.isspace() else c for c in text) for text in distinct], dtype=pl.String
    )
    if escaped.n_unique() != len(distinct):
        raise ContractError(
            f"two values of {ids.name} differ only in how white space is written and cannot both stand in a TREC run. "
            "Rename one of them in the input"
        )
    return ids.replace_strict(distinct, escaped, return_dtype=pl.String) if len(ids) else ids


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
