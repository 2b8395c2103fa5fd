"""``python -m ensemble_assets_tests.benchmarks.open_sets``: both rerankers of a run over open sets, at many shares.

Prints JSON.

Of every set at most 3,000 passages and 400 questions are drawn by hashes of their ids (``collections.sample``), so the
set's name is the seed and everybody draws the same. Where the CrossEncoder was trained on other questions of a set, its
held-out questions are asked too and told apart: only they may decide its share. The stages of a run do the work, with
the settings of the default run; late interaction reads what the dense stage kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.collection.chunk_text import prepare_text
from ensemble_assets.common.errors import EnsembleError, StageError
from ensemble_assets.common.frame_schemas import QRELS
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.running.run_table import TableRunner, in_process_runner
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction
from ensemble_assets.compute.stages.rerank.scores import final_order
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets.compute.stages.states_plan import StatesWanted
from ensemble_assets.models.registry import MODELS
from ensemble_assets.pipeline.stages import share_read
from ensemble_assets.retrieval.bm25_topk import lexical_topk
from ensemble_assets.retrieval.dense_run import dense_run
from ensemble_assets.retrieval.dense_topk import DenseModel
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.quality_verdicts import bootstrap_interval
from ensemble_assets.retrieval.ranked_lists import run_from_topk
from ensemble_assets.retrieval.sparse_topk import SparseRows, sparse_topk
from ensemble_assets.training.collections import Collection, held_out_passages, read_collection, sample
from ensemble_assets.training.measure import LIST_DEPTH, RERANK_DEPTH, fused_run
from ensemble_assets.training.recipe import Recipe

PASSAGES, QUESTIONS = 3000, 400
DENSE, SPARSE, RERANK = (MODELS[slug] for slug in ("all-minilm-l6-v2", "splade-tiny", "ensemble-reranker-tiny"))
SHARES = (
    *((0.0, cross) for cross in (0.0, 0.05, 1.0)),
    *((0.5, cross) for cross in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)),
    *((late, 0.0) for late in (0.2, 0.35, 0.65, 1.0)),
)
"""Shares that are measured: of late interaction, times the part of the texts that it reads; of the CrossEncoder."""


@dataclass(frozen=True)
class Asked:
    """A set with its questions: those of the sample, and held-out ones of the CrossEncoder's training."""

    collection: Collection
    sampled: frozenset[str]
    held_out: frozenset[str]


def drawn(collection: Collection, *, trained_on: bool) -> Asked:
    """Draw passages and questions of a set; public ids are numbers of questions."""
    small = sample(collection, PASSAGES, QUESTIONS)
    sampled = frozenset(str(number) for number in range(len(small.queries)))
    if not trained_on:
        return Asked(small, sampled, frozenset())
    held_out = held_out_passages(collection, Recipe.held_out_share)
    row_of = {key: row for row, key in enumerate(small.passage_ids)}
    asked = dict(zip(small.query_ids, zip(small.queries, small.relevant, strict=True), strict=True))
    chosen = []
    for key, text, rows in zip(collection.query_ids, collection.queries, collection.relevant, strict=True):
        here = frozenset(row_of[collection.passage_ids[row]] for row in rows if collection.passage_ids[row] in row_of)
        if rows & held_out and here:
            asked.setdefault(key, (text, here))
            chosen.append(key)
    numbers = {key: str(number) for number, key in enumerate(asked)}
    texts, relevant = zip(*asked.values(), strict=True)
    whole = replace(small, query_ids=tuple(asked), queries=tuple(texts), relevant=tuple(relevant))
    return Asked(whole, sampled, frozenset(numbers[key] for key in chosen))


def scored(collection: Collection, work: Path) -> tuple[pl.DataFrame, float]:
    """Run a set through the stages.

    Returns the fused candidates with the scores of both rerankers, a ``RERANKED`` frame, and the share of the texts
    that the dense model reads.
    """
    runner = TableRunner(in_process_runner().runner, work / collection.name, 1 << 18)
    context = ComputeContext(
        runner=runner, runtime=Runtime(backend="auto", precision="auto", cache_folder=work / "cache")
    )
    prepared = [prepare_text(passage, DENSE.max_tokens) for passage in collection.passages]
    chunks = pl.Series([text.text for text in prepared])
    whole = pl.Series([text.text[:-3] + text.rest if text.cut else text.text for text in prepared])
    questions = pl.Series(list(collection.queries))
    public_ids = [str(number) for number in range(len(questions))]
    ids = pl.Series("chunk_id", collection.passage_ids, dtype=pl.String)
    wanted = StatesWanted(DENSE.slug, RERANK_DEPTH, 4_000_000_000)
    dense = encode_dense(chunks, questions, [DENSE], context, states=wanted).models[0]
    sparse = encode_sparse(whole, pl.Series(["{}"] * len(whole)), questions, [SPARSE], context)
    words, both = len(sparse.words), (sparse.chunks, sparse.queries)
    of_chunks, of_queries = (SparseRows(side.indptr, side.indices, side.values, words) for side in both)
    model = DenseModel(DENSE.slug, dense.chunks, dense.queries, dense.norms, 1.0)
    runs = {
        "dense": dense_run([model], ids, public_ids, LIST_DEPTH),
        "sparse": run_from_topk(sparse_topk(of_chunks, of_queries, LIST_DEPTH), public_ids),
        "lexical": run_from_topk(lexical_topk([whole], questions, LIST_DEPTH), public_ids),
    }
    result = rerank_candidates(
        fused_run("fused", runs, ids),
        whole,
        pl.DataFrame({"public_id": public_ids, "text": questions}),
        RERANK,
        context,
        RerankOptions(depth=RERANK_DEPTH, late=LateInteraction(DENSE, chunks, DENSE.late_share)),
    )
    late = result.record.late or {}
    if result.record.status != "completed" or late.get("fallback_reasons"):
        raise StageError(f"{collection.name}: {result.record.fallback_reasons} {late}. Correct the model")
    return result.reranked, share_read(chunks, whole)


def measured(asked: Asked, reranked: pl.DataFrame, read: float) -> dict[str, Any]:
    """Measure nDCG@10 at all shares for the sample and for held-out questions, with intervals of the differences."""
    ids = asked.collection.passage_ids
    judged = [(str(query), ids[row], 1) for query, rows in enumerate(asked.collection.relevant) for row in sorted(rows)]
    qrels = pl.DataFrame(judged, schema=dict(QRELS), orient="row")
    candidates = reranked.select(
        "public_id", pl.col("fused_rank").alias("rank"), "row", "chunk_id", pl.col("fused_score").alias("score"),
        "rerank_score", "late_score",
    ).sort("public_id", "rank")  # fmt: skip
    lists = {_name(late, cross): final_order(candidates, cross, late * read) for late, cross in SHARES}
    parts = {"sample": asked.sampled, "held_out": asked.held_out}
    return {
        "passages": len(ids),
        "share_read": read,
        **{name: dict(_figures(lists, qrels, questions)) for name, questions in parts.items() if questions},
    }


def _name(late: float, cross: float) -> str:
    return f"late {late:g}, CrossEncoder {cross:g}"


def _figures(
    lists: Mapping[str, pl.DataFrame], qrels: pl.DataFrame, questions: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    mine = pl.col("public_id").is_in(list(questions))
    result = evaluate({name: ranked.filter(mine) for name, ranked in lists.items()}, qrels.filter(mine))
    values: dict[str, NDArray[np.float64]] = {name: result.values(name)["value"].to_numpy() for name in lists}
    fused = values[_name(0.0, 0.0)]
    yield "queries", result.queries
    yield "fused", round(float(fused.mean()), 4)
    for name, own in values.items():
        low, high = bootstrap_interval(own - fused)
        mean = round(float((own - fused).mean()), 4)
        yield name, {"reranked - fused": mean, "interval95": [round(low, 4), round(high, 4)]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the sets that are given; returns 0, or 1 where something cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemble_assets_tests.benchmarks.open_sets", description=main.__doc__
    )
    parser.add_argument("folders", type=Path, nargs="+", help="sets in BEIR layout")
    parser.add_argument("--split", default="train", help="judgements that are read (default: %(default)s)")
    parser.add_argument("--untrained", nargs="*", default=["medquad"], help="sets that the CrossEncoder never saw")
    parser.add_argument("--work", type=Path, default=Path("build/open-sets"), help="rows (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file that the figures are added to")
    options = parser.parse_args(arguments)
    output: Path | None = options.output
    figures = json.loads(output.read_text()) if output and output.is_file() else {}
    try:
        for folder in options.folders:
            asked = drawn(read_collection(folder, options.split), trained_on=folder.name not in options.untrained)
            figures[folder.name] = measured(asked, *scored(asked.collection, options.work))
            text = json.dumps(figures, indent=2) + "\n"
            if output:
                output.write_text(text, encoding="utf-8")
    except EnsembleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
