"""From folders of training sets to everything the loop needs: mined queries and token tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import Vocabulary
from ensemble_assets.retrieval.bm25_topk import bm25_rows
from ensemble_assets.training.collections import (
    Collection,
    held_out_passages,
    read_training_sets,
    sentence_queries,
    split_queries,
)
from ensemble_assets.training.pairs import MinedQueries, mine
from ensemble_assets.training.recipe import Recipe
from ensemble_assets.training.teacher import Teacher, combine, dense_scores, sparse_scores
from ensemble_assets.training.tokens import read_vocabulary, tokenise

Say = Callable[[str], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FirstStage:
    """Dense and sparse scores of some queries against all passages of one collection.

    Attributes:
        collection: whose passages the columns are.
        queries: texts.
        relevant: labelled passage rows per query.
        dense: ``[queries, passages] float32`` cosines.
        sparse: ``[queries, passages] float32`` dot products.
        lexical: ``[queries, passages] float32`` BM25 scores.
    """

    collection: Collection
    queries: Sequence[str]
    relevant: Sequence[frozenset[int]]
    dense: Floats
    sparse: Floats
    lexical: Floats


@dataclass(frozen=True)
class Prepared:
    """What a training loop reads.

    Attributes:
        mined: per collection: its labelled queries, then its sentences.
        query_tokens: tokens of all queries; ``MinedQueries.query_rows`` are rows of it.
        passage_tokens: tokens of all passages, collection after collection.
        passage_from: first row of each collection in ``passage_tokens``.
        vocabulary: the student's.
        files: SHA-256 of every data file, by ``<set>/<file>``.
        counts: queries and passages per set.
    """

    mined: list[MinedQueries]
    query_tokens: TokenBodies
    passage_tokens: TokenBodies
    passage_from: NDArray[np.int64]
    vocabulary: Vocabulary
    files: dict[str, str]
    counts: dict[str, dict[str, int]]


def prepare(data: Path, body: Path, teacher: Teacher, recipe: Recipe, seed: int, say: Say) -> Prepared:
    """Read, split, score, mine and tokenise all training sets of a folder.

    Raises:
        InputError: if a set cannot be read.
        ModelUnavailableError: if an embedded model is not installed.
    """
    collections = read_training_sets(data)
    mined: list[MinedQueries] = []
    texts: list[str] = []
    counts: dict[str, dict[str, int]] = {}
    for index, collection in enumerate(collections):
        held_out = held_out_passages(collection, recipe.held_out_share)
        kept, _ = split_queries(collection, held_out)
        sentences = sentence_queries(collection, held_out, recipe.sentence_queries, seed)
        queries = [collection.queries[i] for i in kept] + sentences
        relevant = [collection.relevant[i] for i in kept] + [frozenset[int]()] * len(sentences)
        rows = np.arange(len(texts), len(texts) + len(queries), dtype=np.int32)
        texts += queries
        scores = combine(*_scores(teacher, collection.passages, queries), recipe.dense_weight)
        mined.append(mine(index, rows, scores, relevant, held_out, recipe))
        counts[collection.name] = {
            "passages": len(collection.passages),
            "held_out_passages": len(held_out),
            "queries": len(kept),
            "sentences": len(sentences),
        }
        say(f"{collection.name}: {counts[collection.name]}")
    vocabulary = read_vocabulary(body)
    passages = [text for collection in collections for text in collection.passages]
    return Prepared(
        mined=mined,
        query_tokens=tokenise(vocabulary, texts, recipe.max_tokens, recipe.max_query_tokens),
        passage_tokens=tokenise(vocabulary, passages, recipe.max_tokens),
        passage_from=np.cumsum([0, *(len(c.passages) for c in collections)]),
        vocabulary=vocabulary,
        files={f"{c.name}/{name}": digest for c in collections for name, digest in c.files.items()},
        counts=counts,
    )


def first_stage(collection: Collection, queries: Iterable[int], teacher: Teacher) -> FirstStage:
    """Score the given queries of a collection against all its passages."""
    chosen = list(queries)
    texts = [collection.queries[i] for i in chosen]
    dense, sparse = _scores(teacher, collection.passages, texts)
    lexical = lexical_scores(collection.passages, texts)
    return FirstStage(collection, texts, [collection.relevant[i] for i in chosen], dense, sparse, lexical)


def lexical_scores(passages: Sequence[str], queries: Sequence[str]) -> Floats:
    """BM25 ``[queries, passages] float32``, as the pipeline's lexical list has it."""
    rows = bm25_rows([pl.Series(passages, dtype=pl.String)], pl.Series(queries, dtype=pl.String))
    documents, asked = (
        csr_array((one.values, one.indices, one.indptr), shape=(len(one), one.dimension)) for one in rows
    )
    scores: Floats = (asked @ documents.T).toarray()
    return scores


def _scores(teacher: Teacher, passages: Sequence[str], queries: Sequence[str]) -> tuple[Floats, Floats]:
    return (
        dense_scores(teacher.dense(queries), teacher.dense(passages)),
        sparse_scores(teacher.sparse(queries), teacher.sparse(passages)),
    )
