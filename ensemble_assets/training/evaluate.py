"""``python -m ensemble_assets.training.evaluate``: zero-shot figures of a reranker folder, written as JSON.

Four measurements: the development slice of the training sets (the only one that may decide anything), SciFact and sets
that were kept aside over the pipeline's fused list at depth 20, and TREC DL 2019 over BM25's first 100. The
arithmetic is ``measure``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ensemble_assets.collection.qrels import read_qrels
from ensemble_assets.collection.readers.input_files import InputFile
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import EnsembleError, InputError
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import model_spec
from ensemble_assets.models.spec import FolderSource, ModelSpec
from ensemble_assets.training.collections import (
    Collection,
    held_out_passages,
    read_collection,
    read_training_sets,
    sample,
    split_queries,
)
from ensemble_assets.training.measure import (
    LIST_DEPTH,
    RERANK_DEPTH,
    Candidates,
    PairScorer,
    Remembering,
    Scorer,
    StageScorer,
    first_stage_runs,
    fused_run,
    measured,
    stage_candidates,
)
from ensemble_assets.training.preparation import FirstStage, first_stage
from ensemble_assets.training.recipe import Recipe
from ensemble_assets.training.teacher import Teacher, combine

_ASIDE_PASSAGES, _ASIDE_QUERIES = 3000, 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the sets that are given; returns 0, or 1 where something cannot be read."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        figures = measure_all(options)
    except EnsembleError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    text = json.dumps(figures, indent=2) + "\n"
    options.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Figures by set, for the sets whose folders are given."""
    teacher = Teacher(options.work / "encodings")
    spec = _chosen(options)
    weight = spec.share if options.weight is None else options.weight
    scorer = Remembering(
        StageScorer(spec, Runtime(backend="auto", precision="auto", cache_folder=options.work))
        if options.reranker
        else PairScorer(options.model, spec.max_tokens)
    )
    figures: dict[str, Any] = {
        "measure": "nDCG@10",
        "model_fingerprint": locate(spec).fingerprint,
        "max_tokens": spec.max_tokens,
        "weight": weight,
    }
    if options.train:
        figures["development"] = development(options, teacher, scorer, weight)
    if options.scifact:
        figures["scifact"] = scifact(options.scifact, teacher, scorer, weight)
    if options.aside:
        figures["aside"] = {folder.name: aside(folder, teacher, scorer, weight) for folder in options.aside}
    if options.dl19:
        figures["trec-dl19"] = dl19(options.dl19, teacher, scorer, weight)
    return figures


def _chosen(options: argparse.Namespace) -> ModelSpec:
    """The registered reranker, or the shipped one with the given folder in the place of its files."""
    spec = model_spec(options.reranker or "ensemble-reranker-tiny", "rerank")
    if options.model:
        spec = dataclasses.replace(spec, source=FolderSource(str(options.model)))
    return dataclasses.replace(spec, max_tokens=options.max_tokens or spec.max_tokens)


def development(options: argparse.Namespace, teacher: Teacher, scorer: Scorer, weight: float) -> dict[str, Any]:
    """The held-out queries of every training set against all its passages, and the mean over sets by weight."""
    sets: dict[str, dict[str, Any]] = {}
    for collection in read_training_sets(options.train):
        _, held_out = split_queries(collection, held_out_passages(collection, options.held_out_share))
        if held_out:
            stage = first_stage(collection, held_out, teacher)
            sets[collection.name] = _fused_then_reranked(stage, scorer, weight)
    weights = next(iter(sets.values()))["reranked"]
    return {
        "sets": sets,
        "mean_over_sets": {
            weight: round(float(np.mean([one["reranked"][weight] for one in sets.values()])), 4) for weight in weights
        },
    }


def scifact(folder: Path, teacher: Teacher, scorer: Scorer, weight: float) -> dict[str, Any]:
    """SciFact's test queries: dense, sparse, fused, reranked."""
    collection = read_collection(folder, "test")
    stage = first_stage(collection, range(len(collection.queries)), teacher)
    return _fused_then_reranked(stage, scorer, weight)


def aside(folder: Path, teacher: Teacher, scorer: Scorer, weight: float) -> dict[str, Any]:
    """A collection that nothing was trained on or chosen by: a sample of its passages and questions."""
    collection = sample(read_collection(folder, "train"), _ASIDE_PASSAGES, _ASIDE_QUERIES)
    stage = first_stage(collection, range(len(collection.queries)), teacher)
    return {"passages": len(collection.passages), **_fused_then_reranked(stage, scorer, weight)}


def _fused_then_reranked(stage: FirstStage, scorer: Scorer, weight: float) -> dict[str, Any]:
    runs = first_stage_runs(stage)
    return measured(stage_candidates(stage, runs["fused"]), runs, scorer, RERANK_DEPTH, weight)


def dl19(folder: Path, teacher: Teacher, scorer: Scorer, weight: float) -> dict[str, Any]:
    """TREC DL 2019: BM25's first 100 reranked by the CrossEncoder, and by the encoders it was distilled from."""
    collection = read_collection(folder, "test")
    ranked = _bm25(folder, collection)
    official = "qrels_full_official.txt"
    judgements = read_qrels(InputFile(folder / official, official), Tally())
    candidates = Candidates(
        ranked=ranked,
        queries=dict(zip(collection.query_ids, collection.queries, strict=True)),
        passages=collection.passages,
        qrels=judgements.select(pl.col("query_id").alias("public_id"), "chunk_id", "relevance"),
    )
    stage = first_stage(collection, range(len(collection.queries)), teacher)
    tables = {
        "dense": stage.dense,
        "sparse": stage.sparse,
        "teacher": combine(stage.dense, stage.sparse, 0.5),
    }
    rows = {query_id: position for position, query_id in enumerate(collection.query_ids)}
    others = {"bm25": ranked}
    for name, table in tables.items():
        scores = [float(table[rows[query], row]) for query, row in ranked.select("public_id", "row").iter_rows()]
        ordered = ranked.with_columns(pl.Series("score", scores, pl.Float32)).sort(
            "public_id", -pl.col("score"), "rank"
        )
        ranks = pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("public_id")
        others[name] = ordered.with_columns(ranks.alias("rank"))
    alone = measured(candidates, others, scorer, LIST_DEPTH, weight)
    # the pipeline's rule on the same hundred: dense, sparse and BM25's own scores fused, then the CrossEncoder
    runs = {"dense": others["dense"], "sparse": others["sparse"], "lexical": ranked}
    fused = fused_run("fused", runs, pl.Series("chunk_id", collection.passage_ids, dtype=pl.String))
    whole = measured(dataclasses.replace(candidates, ranked=fused), {"fused": fused}, scorer, RERANK_DEPTH, weight)
    return {**alone, "pipeline": whole}


def _bm25(folder: Path, collection: Collection) -> pl.DataFrame:
    path = folder / "candidates" / "bm25.tsv"
    if not path.is_file():
        raise InputError(f"{folder.name}/candidates/bm25.tsv", "the file is missing", "Give the folder that has it")
    rows = {passage_id: row for row, passage_id in enumerate(collection.passage_ids)}
    frame = pl.read_csv(path, separator="\t", schema_overrides={"query-id": pl.String, "corpus-id": pl.String})
    return frame.filter(pl.col("query-id").is_in(list(collection.query_ids)) & (pl.col("rank") <= LIST_DEPTH)).select(
        pl.col("query-id").alias("public_id"),
        pl.col("rank").cast(pl.UInt32),
        pl.col("corpus-id").alias("chunk_id"),
        pl.col("corpus-id").replace_strict(rows, return_dtype=pl.UInt32).alias("row"),
        pl.col("score").cast(pl.Float32),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ensemble_assets.training.evaluate", description=main.__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="reranker folder, read as plain transformers does, in float32")
    what.add_argument("--reranker", help="registered reranker, run as the rerank stage runs it")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--train", type=Path, help="folder of the training sets, for the development slice")
    parser.add_argument("--scifact", type=Path, help="SciFact in BEIR layout")
    parser.add_argument(
        "--aside",
        type=Path,
        action="append",
        help="a set in BEIR layout that was kept aside; repeatable",
    )
    parser.add_argument("--dl19", type=Path, help="TREC DL 2019 in BEIR layout with candidates/bm25.tsv")
    parser.add_argument(
        "--held-out-share",
        type=float,
        default=Recipe.held_out_share,
        help="the recipe's share of passages whose questions are the development slice (default: %(default)s)",
    )
    parser.add_argument("--weight", type=float, help="interpolation (default: the reranker's own share)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        help="tokens per pair (default: the registered reranker's; for a folder the shipped one's)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="encodings (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
