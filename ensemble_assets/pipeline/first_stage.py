"""Search the stored vectors and texts of a collection, exactly, and fuse the ranked lists.

``SEARCHES`` has one search for every first-stage list of ``common/stages.py``. Arrays stay memory-mapped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import ChunksRecord, DenseRecord, FusionRecord, QueriesRecord, SparseRecord
from ensemble_assets.collection.chunk_text import WHOLE_TEXT_COLUMNS, whole_text
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.stages import first_stage_lists
from ensemble_assets.pipeline.run_costs import upstream_costs
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.retrieval.bm25_topk import WORDS, lexical_topk
from ensemble_assets.retrieval.dense_run import dense_run
from ensemble_assets.retrieval.dense_topk import DenseModel
from ensemble_assets.retrieval.fitted_weights import read_weights
from ensemble_assets.retrieval.fusion import METHODS, FusionMethod, RankedList, fuse
from ensemble_assets.retrieval.ranked_lists import run_from_topk
from ensemble_assets.retrieval.sparse_topk import SparseRows, sparse_topk
from ensemble_assets.settings.options import Fusion

SPARSE_PARTS = ("indptr", "indices", "values")
"""Names of the arrays of one CSR matrix."""

TEXTS_IN_MEMORY = 20_000
"""Chunks whose words BM25 holds at once: about 40 MB of texts of 2 kB."""


@dataclass(frozen=True)
class FusionRule:
    """Method and weights of one run; ``fitted`` are the judgements that they were fitted on, empty where they were set.

    ``dense_share`` is the dense list's weight against the sparse one, ``lexical_share`` that of BM25; the others divide
    the rest.
    """

    method: FusionMethod
    dense_share: float
    lexical_share: float
    fitted: dict[str, Any]

    def weight(self, name: str) -> float:
        """Weight of a list: twice its share, so that equal shares leave RRF's textbook score; 1 for an unknown list."""
        rest = 2 * (1 - self.lexical_share)
        weights = {
            "dense": rest * self.dense_share,
            "sparse": rest * (1 - self.dense_share),
            "lexical": 2 * self.lexical_share,
        }
        return weights.get(name, 1.0)


def fusion_rule(options: Fusion, collection: str) -> FusionRule:
    """Choose method and weights: as set, or as fitted on training judgements (``fusion.weights_file``)."""
    name: str = options.method
    share, lexical, fitted = options.dense_weight, options.lexical_share, dict[str, Any]()
    if options.weights_file:
        weights = read_weights(Path(options.weights_file), collection)
        name, share, lexical = weights.method, weights.dense_weight, weights.lexical_share
        fitted = asdict(weights)
    return FusionRule(METHODS[name](), share, lexical, fitted)


@dataclass(frozen=True)
class Searched:
    """The artefacts that the searches of one collection read, the chunks per query and list, and the lists' weights."""

    chunks: Artefact[ChunksRecord]
    queries: Artefact[QueriesRecord]
    dense: Artefact[DenseRecord]
    sparse: Artefact[SparseRecord]
    depth: int
    rule: FusionRule

    @cached_property
    def public_ids(self) -> list[str]:
        """Public ids of the queries, in query order."""
        return self.queries.frame("queries", columns=["public_id"])["public_id"].to_list()

    @property
    def has_sparse(self) -> bool:
        """Whether the sparse stage was on."""
        return self.sparse.has("chunks.indptr")


def _dense(searched: Searched) -> pl.DataFrame | None:
    dense = searched.dense
    models = [
        DenseModel(
            model.slug,
            dense.array(f"chunks.{model.slug}"),
            dense.array(f"queries.{model.slug}"),
            dense.array(f"norms.{model.slug}") if model.similarity == "dot" else None,
            model.weight,
        )
        for model in dense.record.layout
    ]
    chunk_ids = searched.chunks.frame("chunks", columns=["chunk_id"])["chunk_id"]
    return dense_run(models, chunk_ids, searched.public_ids, searched.depth)


def _sparse(searched: Searched) -> pl.DataFrame | None:
    if not searched.has_sparse:
        return None
    chunks, queries = (_sparse_rows(searched.sparse, side) for side in ("chunks", "queries"))
    return run_from_topk(sparse_topk(chunks, queries, searched.depth), searched.public_ids)


def _sparse_rows(vectors: Artefact[SparseRecord], side: str) -> SparseRows:
    indptr, indices, values = (vectors.array(f"{side}.{part}") for part in SPARSE_PARTS)
    return SparseRows(indptr, indices, values, vectors.record.dimension)


def _bm25(searched: Searched) -> pl.DataFrame | None:
    # With the sparse stage off the run is the old dense-only one, which has no second list.
    if not searched.has_sparse or not searched.rule.lexical_share:
        return None
    texts = searched.queries.frame("queries", columns=["text"])["text"]
    topk = lexical_topk(searched_slices(searched.chunks, TEXTS_IN_MEMORY), texts, searched.depth)
    return run_from_topk(topk, searched.public_ids)


Search = Callable[[Searched], pl.DataFrame | None]
"""Gives the best chunks of every query as a RUN frame; None where the search is off."""

SEARCHES: dict[str, Search] = {"dense": _dense, "sparse": _sparse, "lexical": _bm25}
"""The search of every first-stage list, by the list's name."""


def first_stage_runs(searched: Searched) -> dict[str, pl.DataFrame]:
    """Run every search that is on: RUN frames by list name, in the order of the table."""
    runs = {name: SEARCHES[name](searched) for name in first_stage_lists()}
    return {name: run for name, run in runs.items() if run is not None}


def fuse_candidates(
    run: StageRun,
    chunks: Artefact[ChunksRecord],
    queries: Artefact[QueriesRecord],
    dense: Artefact[DenseRecord],
    sparse: Artefact[SparseRecord],
) -> FusionRecord:
    """Search, and fuse the lists of every query into one.

    Writes a CANDIDATES frame ``candidates``, and a RUN frame ``run.<list>`` for every list.
    """
    started = time.perf_counter()
    options = run.settings.fusion
    rule = fusion_rule(options, run.collection)
    searched = Searched(chunks, queries, dense, sparse, options.depth, rule)
    runs = first_stage_runs(searched)
    candidates = fuse(
        # A list alone has weight 1, so that its scores are those of the method.
        [RankedList(name, ranked, rule.weight(name) if len(runs) > 1 else 1.0) for name, ranked in runs.items()],
        chunks.frame("chunks", columns=["chunk_id"])["chunk_id"],
        rule.method,
        query_order=searched.public_ids,
    )
    run.writer.frame("candidates", candidates)
    for name, ranked in runs.items():
        run.writer.frame(f"run.{name}", ranked)
    return FusionRecord(
        run.stage,
        "completed",
        items=len(searched.public_ids),
        seconds=time.perf_counter() - started,
        device=UsedDevices("cpu"),
        queries=len(searched.public_ids),
        candidates=candidates.height,
        depth=options.depth,
        method=rule.method.name,
        parameters=dict(rule.method.parameters),
        lists=tuple(runs),
        dense_share=rule.dense_share,
        lexical_share=rule.lexical_share if "lexical" in runs else 0.0,
        lexical_words=WORDS if "lexical" in runs else (),
        fitted=rule.fitted,
        upstream=upstream_costs(dense, sparse),
    )


def searched_texts(chunks: Artefact[ChunksRecord]) -> pl.Series:
    """Read the text of every chunk that sparse encoding, BM25 and reranking take, in row order.

    It is whole unless ``chunks.searched`` is ``exported``: the asset ``chunks`` leaves ``rest`` empty then. Embeddings
    and exports always take the cut text (docs/decisions/0012).
    """
    return chunks.frame("chunks", columns=[*WHOLE_TEXT_COLUMNS]).select(whole_text())["text"]


def searched_slices(chunks: Artefact[ChunksRecord], rows: int) -> Iterator[pl.Series]:
    """Read the same texts, at most ``rows`` in memory at once."""
    texts = chunks.scan("chunks", columns=[*WHOLE_TEXT_COLUMNS])
    for start in range(0, chunks.record.items, rows):
        yield texts.slice(start, rows).collect().select(whole_text())["text"]
