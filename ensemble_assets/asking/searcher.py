"""Search a bundle for a question: dense, sparse and BM25, fused and reranked as in the run that made it.

Models are loaded on the first question and stay loaded. They run on the CPU: a question is short, and nobody has to
wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import polars as pl

from ensemble_assets.asking.bundle_run import BundleRun
from ensemble_assets.asking.corpus import Corpus, read_corpus
from ensemble_assets.asking.held_models import Factory, HeldModels, rows_of
from ensemble_assets.collection.readers.json_values import replace_surrogates
from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.common.frame_schemas import FUSED
from ensemble_assets.common.stages import first_stage_lists
from ensemble_assets.compute.backends.forward import ForwardFactory, with_states
from ensemble_assets.compute.backends.token_states import STATE
from ensemble_assets.compute.stages.dense import DenseVectors, encode_dense
from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction, with_weights
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.stages.sparse import SparseResult, encode_sparse
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.models.spec import ModelKind, ModelSpec
from ensemble_assets.pipeline.first_stage import TEXTS_IN_MEMORY
from ensemble_assets.retrieval.bm25_topk import LexicalIndex
from ensemble_assets.retrieval.dense_run import dense_run
from ensemble_assets.retrieval.dense_topk import DenseModel
from ensemble_assets.retrieval.fusion import RankedList, fuse
from ensemble_assets.retrieval.ranked_lists import run_from_topk
from ensemble_assets.retrieval.sparse_topk import SparseIndex, SparseRows
from ensemble_assets.settings import Settings

_QUESTION = "question"
_NO_TEXTS = pl.Series([], dtype=pl.String)

_MOST_PREPARED = 4_000
"""Passages whose states are made ahead: as many as are surely kept (``at_once.CACHE_BYTES``)."""

_SCORES = ("rerank_score", "late_score")
"""Scores of the rerank stage that a hit has, as columns of a ``RERANKED`` frame."""

_PREPARED_AT_ONCE = 2
_TURN_SECONDS = 0.005
"""Passages that a question waits for at most, and how often the thread looks whether it is over."""


@dataclass(frozen=True)
class Hit:
    """One passage.

    ``ranks`` has its place in every list that was searched, from 1; None where the list lacks it. ``rerank_score`` and
    ``late_score`` are None where the reranker, or late interaction, has no share in the order.
    """

    rank: int
    score: float
    chunk_id: str
    heading: str
    source: str
    text: str
    ranks: Mapping[str, int | None]
    rerank_score: float | None = None
    late_score: float | None = None


@dataclass(frozen=True)
class QueryVectors:
    """A question as the models of a bundle see it, in plain numbers, for a database that holds the bundle.

    Attributes:
        dense: a unit vector by the name of its model, the primary one first.
        sparse: ``indices`` and ``values`` of its terms; None where the bundle has no sparse model.
        tokens: a unit vector of the primary model for each of its tokens; None where the bundle has no token vectors.
    """

    dense: Mapping[str, list[float]]
    sparse: Mapping[str, list[Any]] | None
    tokens: list[list[float]] | None = None


def _states(factory: ForwardFactory) -> ForwardFactory:
    """Have an encoder give the states of its tokens, if they can be compared."""
    return with_states(factory, "alone") or factory


def _with_tokens(factory: ForwardFactory) -> ForwardFactory:
    """Have an encoder give the states of its tokens beside its vectors, if they can be compared."""
    return with_states(factory, "beside") or factory


class Searcher:
    """Searches one bundle. ``notes`` say which parts of its run could not be repeated here."""

    def __init__(self, bundle: Path, settings: Settings, factories: Mapping[ModelKind, Factory] | None = None) -> None:
        self.corpus: Corpus = read_corpus(open_bundle(bundle))
        self.notes: list[str] = []
        self._settings = settings
        self._models = HeldModels(settings, factories, rows_of(bundle, settings))
        self._run = BundleRun(self.corpus, settings, self._models.completed, self._note)
        self._turn, self._waits, self._closed = Lock(), Event(), Event()
        self._threads, self._loaded = ThreadPoolExecutor(len(first_stage_lists())), False

    def close(self) -> None:
        """Free the models, and end ``prepare``."""
        self._closed.set()
        with self._turn:
            self._threads.shutdown()
            self._models.close()

    def ask(self, question: str, top: int = 10) -> list[Hit]:
        """Find the ``top`` best passages for a question; none for a blank one."""
        if not question.strip() or self.corpus.chunks.is_empty():
            return []
        question = replace_surrogates(question)[0]  # of a terminal that does not write UTF-8; queries of a run as well
        self._waits.set()
        with self._turn:
            self._waits.clear()
            return self._ask(question, top)

    def prepare(self) -> None:
        """Make the states of all passages' tokens ahead, if the bundle's reranker compares these.

        For a thread, while a person reads an answer. A question that comes meanwhile waits for a passage or two.
        """
        chunks = self.corpus.chunks
        if not self._compares_states or chunks.height > _MOST_PREPARED:
            return
        for start in range(0, chunks.height, _PREPARED_AT_ONCE):
            ids = chunks["chunk_id"].slice(start, _PREPARED_AT_ONCE)
            candidates = pl.DataFrame(
                {
                    "public_id": [_QUESTION] * len(ids),
                    "rank": range(1, len(ids) + 1),
                    "row": range(start, start + len(ids)),
                    "chunk_id": ids,
                    "score": [0.0] * len(ids),
                },
                schema=dict(FUSED),
            )
            while self._waits.is_set():
                self._closed.wait(_TURN_SECONDS)
            with self._turn:
                if self._closed.is_set():
                    return
                self._reranked(candidates, _QUESTION)

    def _ask(self, question: str, top: int) -> list[Hit]:
        queries = pl.Series([question])
        runs = self._first_stage(queries)
        ids = self.corpus.chunks["chunk_id"]
        rule = self._run.rule
        lists = [RankedList(name, run, rule.weight(name) if len(runs) > 1 else 1.0) for name, run in runs.items()]
        fused = fuse(lists, ids, rule.method, query_order=[_QUESTION])
        return self._hits(fused, self._reranked(fused, question), tuple(runs), top)

    def encode(self, question: str) -> QueryVectors:
        """Encode a question as ``ask`` does."""
        queries = pl.Series([replace_surrogates(question)[0]])
        sparse = self._encode_sparse(queries)
        row = None if sparse is None else sparse.queries.row(0)
        of_tokens = str(self.corpus.section("dense_run", "token_vectors").get("model", ""))
        dense = self._encode_dense(queries, of_tokens)
        return QueryVectors(
            {model.spec.slug: model.queries[0].tolist() for model in dense},
            None if row is None else {"indices": row.indices.tolist(), "values": row.values.tolist()},
            next((model.tokens.of_query(0).tolist() for model in dense if model.tokens is not None), None),
        )

    def _first_stage(self, queries: pl.Series) -> dict[str, pl.DataFrame]:
        """Search every list of the bundle: the first time one after the other, for that loads the models."""
        names, search = first_stage_lists(), partial(self._search, queries=queries)
        runs = list((self._threads.map if self._loaded else map)(search, names))
        self._loaded = True
        return {name: run for name, run in zip(names, runs, strict=True) if run is not None}

    def _search(self, name: str, queries: pl.Series) -> pl.DataFrame | None:
        return {"dense": self._dense, "sparse": self._sparse, "lexical": self._lexical}[name](queries)

    def _dense(self, queries: pl.Series) -> pl.DataFrame | None:
        models = []
        late = self._late  # the runner remembers the question's states
        for model in self._encode_dense(queries, states_of=late.spec.slug if late else ""):
            vectors, norms = self._arrays[model.spec.slug]
            models.append(DenseModel(model.spec.slug, vectors, model.queries, norms, model.spec.weight))
        return dense_run(models, self.corpus.chunks["chunk_id"], [_QUESTION], self._depth)

    def _encode_dense(self, queries: pl.Series, token_vectors: str = "", states_of: str = "") -> Sequence[DenseVectors]:
        plain, beside = self._models.factory("dense"), self._models.factory("dense", _with_tokens)

        def make(spec: ModelSpec, *rest: Any) -> ForwardFactory:
            return (beside if spec.slug in (token_vectors, states_of) else plain)(spec, *rest)

        context = self._models.context
        encoded = encode_dense(
            _NO_TEXTS, queries, self._run.dense_specs, context, make_factory=make, token_vectors=token_vectors
        )
        here = {model.slug: model.fingerprint for model in encoded.record.models}
        for model in self.corpus.dense_models:
            slug, fingerprint = model.get("slug"), model.get("fingerprint")
            if fingerprint and here.get(str(slug), fingerprint) != fingerprint:
                self._note(
                    f"dense: the files of {slug} here are not those that made the bundle's vectors, so its ranks may "
                    "mean nothing. Name the model as the run did, or run the collection again"
                )
        return encoded.models

    def _sparse(self, queries: pl.Series) -> pl.DataFrame | None:
        encoded = self._encode_sparse(queries)
        if encoded is None:
            return None
        matrix = encoded.queries
        of_question = SparseRows(matrix.indptr, matrix.indices, matrix.values, len(encoded.words))
        if self._sparse_index is None:
            self._sparse_index = SparseIndex(self.corpus.sparse(len(encoded.words)))
        return run_from_topk(self._sparse_index.topk(of_question, self._depth), [_QUESTION])

    def _encode_sparse(self, queries: pl.Series) -> SparseResult | None:
        spec, space = self._run.sparse_spec, self.corpus.section("sparse_run", "payload").get("index_space")
        if spec is None:
            return None
        encoded = encode_sparse(
            _NO_TEXTS, _NO_TEXTS, queries, [spec], self._models.context, make_factory=self._models.factory("sparse")
        )
        if encoded.index_space != space:
            self._note("sparse: the bundle's vectors are not of this model, so this list is left out")
            return None
        return encoded

    _sparse_index: SparseIndex | None = None

    def _lexical(self, queries: pl.Series) -> pl.DataFrame | None:
        if "lexical" not in self.corpus.section("fusion_run").get("lists", ()):
            return None
        return run_from_topk(self._lexical_index.topk(queries, self._depth), [_QUESTION])

    def _reranked(self, fused: pl.DataFrame, question: str) -> pl.DataFrame | None:
        spec = self._run.rerank_spec
        if spec is None or fused.is_empty():
            return None
        run = self.corpus.section("rerank_run", "payload")
        depth = int(run.get("rerank_top_k") or self._settings.rerank.depth)
        late, weight = self._late, run.get("interpolation_weight")
        orders = late is None or (late.spec.slug != spec.slug and weight != 0)  # else it would only take time
        options = RerankOptions(depth=depth, weight=weight, late=late, cross_encoder=orders)
        asked = pl.DataFrame({"public_id": [_QUESTION], "text": [question]})
        result = rerank_candidates(
            fused, self.corpus.chunks["text"], asked, spec, self._models.context, options,
            make_factory=self._models.factory("rerank"),
        )  # fmt: skip
        for reason in result.queries["reason"].drop_nulls():
            self._note(f"reranking failed ({reason}); the order is that of the fused list")
        return result.reranked

    @property
    def _compares_states(self) -> bool:
        spec, context = self._run.rerank_spec, self._models.context
        if self._late is not None or spec is None:
            return self._late is not None
        with suppress(EnsembleError):  # a question tells what is wrong
            return STATE in self._models.factory("rerank")(spec, context.locate(spec), context.runtime).outputs
        return False

    @cached_property
    def _late(self) -> LateInteraction | None:
        """Set up late interaction as the bundle's run had it; None where it took no part."""
        spec, run = self._run.late_spec, self._run.late_interaction
        if spec is None:
            return None
        late = LateInteraction(
            spec, self.corpus.chunks["text"], run["share"],
            weighed_by=run.get("weighed_by", ""), make_factory=self._models.factory("dense", _states),
        )  # fmt: skip
        return with_weights(late, self._models.context)

    def _hits(self, fused: pl.DataFrame, reranked: pl.DataFrame | None, lists: tuple[str, ...], top: int) -> list[Hit]:
        ranks = fused.select("row", pl.col("rank").alias("fused"), *(pl.col(f"{n}_rank").alias(n) for n in lists))
        final = fused.with_columns(pl.lit(None).alias(name) for name in _SCORES) if reranked is None else reranked
        best = (
            final.head(top)
            .select("row", "rank", "score", *_SCORES)
            .join(ranks, on="row", how="left", maintain_order="left")
        )
        hits = []
        for row in best.iter_rows(named=True):
            chunk = self.corpus.chunks.row(row["row"], named=True)
            places = {name: row[name] for name in (*lists, "fused")}
            scores = {name: row[name] for name in _SCORES}
            hits.append(Hit(row["rank"], row["score"], **chunk, ranks=places, **scores))
        return hits

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def _depth(self) -> int:
        return min(self._settings.fusion.depth, self.corpus.chunks.height)

    @cached_property
    def _lexical_index(self) -> LexicalIndex:
        return LexicalIndex(some["text"] for some in self.corpus.chunks.iter_slices(TEXTS_IN_MEMORY))

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return {spec.slug: self.corpus.dense(number) for number, spec in enumerate(self._run.dense_specs)}
