"""Measure ranked lists against relevance judgements with ir-measures: per query and on average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import ir_measures
import polars as pl

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.frame_schemas import QRELS, conform

MEASURES: Mapping[str, ir_measures.measures.Measure] = MappingProxyType(
    {
        "nDCG@10": ir_measures.nDCG @ 10,
        "MRR@10": ir_measures.RR @ 10,
        "recall@100": ir_measures.R @ 100,
        "MAP": ir_measures.AP,
    }
)
"""The measures. nDCG has linear gain (the relevance grade itself); relevant means a grade of at least 1."""

_RANKED = ["public_id", "rank", "chunk_id"]


@dataclass(frozen=True)
class Evaluation:
    """Measured quality of one or several runs over the same judged queries.

    Attributes:
        per_query: ``public_id, run, measure`` (String), ``value`` (Float64, 0 to 1); runs as given, measures as in
            ``MEASURES``, queries in the order of the judgements.
        summary: ``run, measure`` (String), ``mean`` (Float64), ``queries`` (UInt32).
        queries: judged queries with at least one relevant chunk; all runs are measured on exactly these.
        without_relevant: judged queries left out because none of their judgements is relevant.
        not_retrieved: per run, queries for which it has no list; they count as 0.
    """

    per_query: pl.DataFrame
    summary: pl.DataFrame
    queries: int
    without_relevant: int
    not_retrieved: Mapping[str, int]

    def values(self, run: str, measure: str = "nDCG@10") -> pl.DataFrame:
        """Select ``public_id, value`` of one run and one measure, as the gates compare them."""
        chosen = (pl.col("run") == run) & (pl.col("measure") == measure)
        return self.per_query.filter(chosen).select("public_id", "value")

    def means(self, measure: str = "nDCG@10") -> dict[str, float]:
        """Give the mean of one measure by run; empty where no query is judged."""
        rows = self.summary.filter(pl.col("measure") == measure)
        return dict(rows.select("run", "mean").iter_rows()) if self.queries else {}


def evaluate(runs: Mapping[str, pl.DataFrame], qrels: pl.DataFrame) -> Evaluation:
    """Measure every run on every query that has a relevant judgement.

    The order of a list is its ``rank`` column, not its scores: evaluation programs break score ties by document id,
    which is not the order that users get. A judged query without a list counts as 0, so ``qrels`` (QRELS) must be of
    the queries that were run.

    Runs need the columns ``public_id, rank, chunk_id``. A missing column, a chunk or a rank twice in a list, and a pair
    judged twice are an ``ArtefactError``.
    """
    judged = conform(qrels, QRELS, "the relevance judgements")
    if judged.select("public_id", "chunk_id").is_duplicated().any():
        raise ArtefactError("the relevance judgements judge a query and chunk twice. Remove one of the two lines")
    relevant = judged.filter(pl.col("relevance") > 0)["public_id"].unique(maintain_order=True)
    used = judged.filter(pl.col("public_id").is_in(relevant.implode()))
    gains = _nested(used, "relevance")
    frames, missing = [], {}
    for name, run in runs.items():
        ranked = _checked(run, name).filter(pl.col("public_id").is_in(relevant.implode()))
        missing[name] = len(relevant) - ranked["public_id"].n_unique()
        frames.append(_measured(name, ranked, gains, relevant))
    per_query = pl.concat(frames) if frames else _measured("", pl.DataFrame(), {}, relevant).clear()
    summary = per_query.group_by("run", "measure", maintain_order=True).agg(
        pl.col("value").mean().alias("mean"), pl.len().alias("queries")
    )
    return Evaluation(per_query, summary, len(relevant), judged["public_id"].n_unique() - len(relevant), missing)


def _measured(name: str, ranked: pl.DataFrame, gains: dict[str, dict[str, int]], relevant: pl.Series) -> pl.DataFrame:
    """Measure one run: one row per relevant query and measure."""
    values: dict[tuple[str, str], float] = {}
    if len(ranked) and gains:
        lists = _nested(ranked.with_columns(-pl.col("rank").cast(pl.Float64)), "rank")
        titles = {measure: title for title, measure in MEASURES.items()}
        for metric in ir_measures.iter_calc(list(MEASURES.values()), gains, lists):
            values[metric.query_id, titles[metric.measure]] = metric.value
    rows = [(query, name, measure, values.get((query, measure), 0.0)) for measure in MEASURES for query in relevant]
    schema = {"public_id": pl.String, "run": pl.String, "measure": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _nested(frame: pl.DataFrame, value: str) -> dict[str, dict[str, int]]:
    """Nest a frame as ``{query: {chunk: value}}``, the form of judgements and lists in ir-measures."""
    nested: dict[str, dict[str, int]] = {}
    for public_id, chunk_id, number in frame.select("public_id", "chunk_id", value).iter_rows():
        nested.setdefault(public_id, {})[chunk_id] = number
    return nested


def _checked(run: pl.DataFrame, name: str) -> pl.DataFrame:
    absent = [column for column in _RANKED if column not in run.columns]
    if absent:
        raise ArtefactError(f"the {name} run lacks {', '.join(absent)}. Add chunk ids to it before it is evaluated")
    for column in ("chunk_id", "rank"):
        if run.select("public_id", column).is_duplicated().any():
            raise ArtefactError(f"the {name} run has a {column} twice for one query. Materialise it again")
    return run.select(_RANKED)
