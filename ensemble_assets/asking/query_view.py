"""Show how reranking changed the lists of a run. The texts are read from the artefacts of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ensemble_assets.artefacts.store import ArtefactStore
from ensemble_assets.collection.chunk_text import WHOLE_TEXT_COLUMNS, whole_text
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.export.write.ranked_list_files import RUN_TAGS, write_trec_run

if TYPE_CHECKING:
    from ensemble_assets.report.page import Cell, Section, Table

_GAIN = "nDCG@10"
_SHOWN, _CHARACTERS = 10, 200
"""Queries of either kind on the page, and characters of a chunk: a page that one scrolls through."""


@dataclass(frozen=True)
class Candidate:
    """One chunk of a query's list; ranks from 1, ``moved`` is positive for up, ``relevance`` None without judgement."""

    rank: int
    fused_rank: int
    chunk_id: str
    text: str
    score: float
    rerank_score: float | None
    relevance: int | None
    late_score: float | None = None

    @property
    def moved(self) -> int:
        """Ranks that reranking moved it up."""
        return self.fused_rank - self.rank


@dataclass(frozen=True)
class QueryChange:
    """A query and its change by reranking: of nDCG@10 with judgements, else the ranks that its first five moved."""

    public_id: str
    text: str
    change: float
    measure: str


class QueryViews:
    """The queries of a collection's last run; a collection that was not run is an ``ArtefactError``.

    ``reranked`` says whether reranking was on.
    """

    def __init__(self, store: ArtefactStore, collection: str) -> None:
        queries = store.load(collection, "queries")
        self._collection = collection
        self._queries = queries.frame("queries", columns=["public_id", "text"])
        self._own_ids = queries.frame("queries", columns=["public_id", "query_id"])
        self._qrels = queries.frame("qrels") if queries.has("qrels") else None
        reranked = store.load(collection, "reranked_candidates")
        self.reranked = reranked.record.enabled
        self._reranked = reranked.frame("reranked")
        self._chunks = store.load(collection, "chunks").scan("chunks", columns=[*WHOLE_TEXT_COLUMNS])
        evaluation = store.peek(collection, "evaluation")
        self._per_query = evaluation.frame("per_query") if evaluation is not None else pl.DataFrame()

    def text_of(self, public_id: str) -> str:
        """Give a query's text; an unknown id is a ``SettingsError``."""
        texts = self._queries.filter(pl.col("public_id") == public_id)["text"]
        if texts.is_empty():
            some = ", ".join(self._queries["public_id"].head(5))
            raise SettingsError(f"{self._collection}: has no query {public_id}. It has {some} ...")
        return str(texts[0])

    def candidates(self, public_id: str, top: int) -> list[Candidate]:
        """Give the query's ``top`` first chunks before and after reranking, in the order after it."""
        own = self._reranked.filter(pl.col("public_id") == public_id)
        shown = own.filter((pl.col("rank") <= top) | (pl.col("fused_rank") <= top)).sort("rank")
        texts = self._chunks.with_row_index("row").filter(pl.col("row").is_in(shown["row"].to_list()))
        by_row = dict(texts.select("row", whole_text()).collect().iter_rows())
        judged = self._judged(public_id)
        return [
            Candidate(
                row["rank"], row["fused_rank"], row["chunk_id"], by_row[row["row"]], row["score"], row["rerank_score"],
                judged.get(row["chunk_id"]), row.get("late_score"),
            )
            for row in shown.iter_rows(named=True)
        ]  # fmt: skip

    def write_run(self, path: Path) -> None:
        """Write the final lists as a TREC run with the ids of the queries file, for its owner alone."""
        own = self._reranked.join(self._own_ids, on="public_id", maintain_order="left")
        path.touch(mode=0o600)
        write_trec_run(path, own.with_columns(public_id="query_id"), RUN_TAGS[1])

    def changes(self) -> list[QueryChange]:
        """List all queries, the one with the largest gain first."""
        gains, measure = self._gains()
        joined = self._queries.join(gains, on="public_id").sort("change", descending=True, maintain_order=True)
        return [QueryChange(**row, measure=measure) for row in joined.iter_rows(named=True)]

    def _judged(self, public_id: str) -> dict[str, int]:
        if self._qrels is None:
            return {}
        own = self._qrels.filter(pl.col("public_id") == public_id)
        return dict(own.select("chunk_id", "relevance").iter_rows())

    def _gains(self) -> tuple[pl.DataFrame, str]:
        if not self._per_query.is_empty():
            wide = self._per_query.filter(pl.col("measure") == _GAIN).pivot("run", index="public_id", values="value")
            if {"fused", "reranked"} <= set(wide.columns):
                return wide.select("public_id", change=pl.col("reranked") - pl.col("fused")), _GAIN
        first = self._reranked.filter(pl.col("rank") <= 5)
        moved = (pl.col("fused_rank").cast(pl.Int64) - pl.col("rank").cast(pl.Int64)).abs().sum().cast(pl.Float64)
        return first.group_by("public_id", maintain_order=True).agg(change=moved), "ranks moved"


def query_sections(views: QueryViews, top: int = 10) -> list[Section]:
    """Make the report's part on the ten queries that gained most and the ten that lost most, with texts."""
    from ensemble_assets.report.page import Section  # here, since show needs no page

    changes = views.changes()
    gained, lost = [each for each in changes if each.change > 0], [each for each in changes[::-1] if each.change < 0]
    return [
        Section(title, "Chunks before and after reranking.", (), [_table(views, each, top) for each in chosen[:_SHOWN]])
        for title, chosen in (("Queries that gained most", gained), ("Queries that lost most", lost))
        if chosen
    ]


def _table(views: QueryViews, query: QueryChange, top: int) -> Table:
    from ensemble_assets.report.page import Table

    rows: list[list[Cell]] = []
    for each in views.candidates(query.public_id, top):
        text = " ".join(each.text.split())[:_CHARACTERS]
        rows.append([str(each.rank), each.fused_rank, each.moved, each.chunk_id, each.relevance, text])
    caption = f"{query.public_id}: {query.text} ({query.measure} {query.change:+.3f})"
    return Table(caption, ("rank", "before", "moved", "chunk", "relevance", "text"), rows)
