"""Write the ranked lists of a run, ``<prefix>_rerank.jsonl`` and TREC run files: ids, ranks and scores, no text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.names import trec_id

_RERANKED_COLUMNS = {
    "chunk_id": "chunk_ids",
    "row": "point_ids",
    "rank": "ranks",
    "score": "scores",
    "fused_rank": "fused_ranks",
    "fused_score": "fused_scores",
    "rerank_score": "rerank_scores",
    "reranked": "reranked",
}
"""Keys of the reranked lists, by column of the frame."""


def write_rerank_jsonl(path: Path, reranked: pl.DataFrame, queries: pl.DataFrame) -> None:
    """Write one line per query, in query order; a query without candidates has empty lists.

    ``{"query_id", "query_hash", "chunk_ids", "point_ids", "ranks", "scores", "fused_ranks", "fused_scores",
    "rerank_scores", "reranked"}``, and ``"late_scores"`` where late interaction took part: lists in rank order. Scores
    are null where a pair was not scored; ``reranked`` says whether any was. ``reranked`` is a ``RERANKED`` frame; of
    ``queries`` only ``public_id`` and ``query_hash`` are read. A list of no query, or a score that is not finite, is a
    ``ContractError``.
    """
    of_run = queries.select("public_id", "query_hash")
    strangers = reranked.join(of_run, on="public_id", how="anti")
    if strangers.height:
        raise ContractError(f"list of query {strangers['public_id'][0]}: there is no such query in this run")
    columns = dict(_RERANKED_COLUMNS)
    if "late_score" in reranked.columns and not reranked["late_score"].is_null().all():
        columns["late_score"] = "late_scores"
    lists = reranked.group_by("public_id", maintain_order=True).agg(columns.keys())
    joined = of_run.join(lists, on="public_id", how="left", maintain_order="left")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in joined.iter_rows(named=True):
            record = {"query_id": row["public_id"], "query_hash": row["query_hash"]}
            record |= {name: row[column] or [] for column, name in columns.items()}
            record["reranked"] = any(record["reranked"])
            try:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            except ValueError:
                raise ContractError(f"reranked list of query {row['public_id']}: a score is not finite") from None


RUN_TAGS = ("ensemble-fused", "ensemble-reranked")
"""The last column of the run files."""


def write_trec_run(path: Path, lists: pl.DataFrame, tag: str) -> None:
    """Write a TREC run file: ``query Q0 chunk rank score tag``, separated by single spaces.

    White space in an id becomes ``%20`` and the like, and a ``%`` that reads as such a code ``%25``, so that different
    ids stay different and ``urllib.parse.unquote`` gives them back. Evaluation tools order by score, not by rank: where
    scores tie or rise with the rank, the score is lowered to the next float32 below the one before. ``lists`` is a
    ``CANDIDATES`` or ``RERANKED`` frame; a score that is not finite is a ``ContractError``.
    """
    score = pl.Series("score", _falling(lists).astype(np.float64).astype(str))
    ids = {column: _trec_ids(lists[column]) for column in ("public_id", "chunk_id")}
    literal, name = pl.lit("Q0").alias("Q0"), pl.lit(tag).alias("tag")
    lines = pl.select(ids["public_id"], literal, ids["chunk_id"], lists["rank"], score, name)
    lines.write_csv(path, include_header=False, separator=" ", quote_style="never")


def _trec_ids(ids: pl.Series) -> pl.Series:
    distinct = ids.unique()
    return ids.replace_strict(distinct, pl.Series([trec_id(identifier) for identifier in distinct], dtype=pl.String))


def _falling(lists: pl.DataFrame) -> NDArray[np.float32]:
    """Lower scores until each is below the score before it in its list; ``[n] float32``."""
    scores = lists["score"].cast(pl.Float32).fill_null(np.nan).to_numpy().copy()
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        query, rank = lists["public_id"][int(bad[0])], lists["rank"][int(bad[0])]
        raise ContractError(f"list of query {query}, rank {rank}: the score is not finite")
    goes_on = np.append((lists["public_id"] == lists["public_id"].shift(1)).fill_null(value=False).to_numpy(), False)
    for first in np.flatnonzero(goes_on[1:-1] & (scores[1:] >= scores[:-1])) + 1:
        place = int(first)
        while goes_on[place] and scores[place] >= scores[place - 1]:
            scores[place] = np.nextafter(scores[place - 1], np.float32(-np.inf))
            place += 1
    return scores
