"""The ranked lists of a run as files: ``<prefix>_rerank.jsonl`` and TREC run files. Ids, ranks and scores; no text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from ensemble_assets.core.errors import ContractError

_UNSAFE = re.compile(r"[\s\x00-\x20\x7f]|%(?=[0-9A-Fa-f]{2})")
_WRITTEN_LIST = ("chunk_id", "row", "rank", "score", "fused_rank", "fused_score", "rerank_score", "reranked")


def write_rerank_jsonl(path: Path, reranked: pl.DataFrame, queries: pl.DataFrame) -> None:
    """One line a query, in query order; a query without candidates has empty lists.

    ``{"query_id", "query_hash", "chunk_ids", "point_ids", "ranks", "scores", "fused_ranks", "fused_scores",
    "rerank_scores", "reranked"}``: lists in rank order, ``rerank_scores`` null where the CrossEncoder did not score the
    pair, ``reranked`` whether it scored any.

    Args:
        path: the file.
        reranked: a ``RERANKED`` frame.
        queries: a ``QUERIES`` frame; only ``public_id`` and ``query_hash`` are looked at.

    Raises:
        ContractError: if a list belongs to no query or has a score that is not finite.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for query_id, query_hash, found in _by_query(reranked, queries):
            record = {
                "query_id": query_id,
                "query_hash": query_hash,
                "chunk_ids": found["chunk_id"],
                "point_ids": found["row"],
                "ranks": found["rank"],
                "scores": found["score"],
                "fused_ranks": found["fused_rank"],
                "fused_scores": found["fused_score"],
                "rerank_scores": found["rerank_score"],
                "reranked": any(found["reranked"]),
            }
            try:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            except ValueError:
                raise ContractError(f"reranked list of query {query_id}: a score is not finite") from None


def write_trec_run(path: Path, lists: pl.DataFrame, tag: str) -> None:
    """A TREC run file: ``query Q0 chunk rank score tag``, separated by single spaces.

    White space in an id becomes ``%20`` and the like, and a ``%`` that reads as such a code ``%25``, so that different
    ids stay different and ``urllib.parse.unquote`` gives them back. Evaluation tools order by score, not by rank: where
    scores tie or rise with the rank, the score is lowered to the next float32 below the one before.

    Args:
        path: the file.
        lists: a ``CANDIDATES`` or ``RERANKED`` frame, each list in rank order.
        tag: name of the run.

    Raises:
        ContractError: if a score is not finite.
    """
    columns = lists.select("public_id", "chunk_id", "rank", "score").iter_rows()
    with path.open("w", encoding="utf-8", newline="\n") as file:
        _write_lines(file, columns, tag)


def trec_id(identifier: str) -> str:
    """``identifier`` as one TREC column."""
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), identifier)


def _write_lines(file: IO[str], columns: Iterator[tuple[Any, ...]], tag: str) -> None:
    query, limit = None, np.float32(np.inf)
    for public_id, chunk_id, rank, score in columns:
        if score is None or not math.isfinite(score):
            raise ContractError(f"list of query {public_id}, rank {rank}: the score is not finite")
        limit = np.nextafter(limit, np.float32(-np.inf)) if public_id == query else np.float32(np.inf)
        limit = min(np.float32(score), limit)
        query = public_id
        file.write(f"{trec_id(public_id)} Q0 {trec_id(chunk_id)} {rank} {limit} {tag}\n")


def _by_query(lists: pl.DataFrame, queries: pl.DataFrame) -> Iterator[tuple[str, str, dict[str, list[Any]]]]:
    known = queries.select("public_id", "query_hash")
    strangers = lists.join(known, on="public_id", how="anti")
    if strangers.height:
        raise ContractError(f"list of query {strangers['public_id'][0]}: there is no such query in this run")
    gathered = lists.group_by("public_id", maintain_order=True).agg(_WRITTEN_LIST)
    joined = known.join(gathered, on="public_id", how="left", maintain_order="left")
    for row in joined.iter_rows(named=True):
        yield row["public_id"], row["query_hash"], {name: row[name] or [] for name in _WRITTEN_LIST}
