"""Run the stages that read texts or run models: chunks, queries, dense, sparse and rerank.

Each function reads its settings from the run, writes arrays and frames with the run's writer, and returns the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.latency_baseline import content_fingerprint
from ensemble_assets.artefacts.records import (
    ChunksRecord,
    DenseLayout,
    DenseRecord,
    FusionRecord,
    QueriesRecord,
    RerankRecord,
    SparseRecord,
)
from ensemble_assets.collection.fingerprints import collection_fingerprint
from ensemble_assets.collection.languages import foreign_texts
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.first_stage import SPARSE_PARTS, searched_texts
from ensemble_assets.pipeline.from_settings import (
    collection_chunks,
    collection_queries,
    find_collection,
    require_named_models,
)
from ensemble_assets.pipeline.run_costs import rerank_time
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.settings.chosen_models import choose_models, late_model

if TYPE_CHECKING:
    from ensemble_assets.compute.stages.kept_states import KeptStates
    from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction


def read_chunks(run: StageRun) -> ChunksRecord:
    """Read a collection's chunks into the frame ``chunks``, once the models that the options name are known to run."""
    require_named_models(run.settings)
    collection = find_collection(run.settings, run.collection)
    # The fingerprint comes first: a file that changes while the chunks are read then counts as changed.
    fingerprint = collection_fingerprint(collection.folder)
    frame, report = collection_chunks(run.settings, collection)
    run.writer.frame("chunks", frame)
    return ChunksRecord(
        run.stage,
        "completed",
        items=frame.height,
        alias=collection.alias,
        content=content_fingerprint(frame["content_hash"]),
        source_fingerprint=fingerprint,
        skipped=report.skipped,
        texts_cut=int(frame["cut"].sum()),
        searched=run.settings.chunks.searched,
        report=report.as_json(),
        warnings=tuple(report.warnings()),
    )


def read_queries(run: StageRun, chunks: Artefact[ChunksRecord]) -> QueriesRecord:
    """Read or derive a collection's queries and judgements into the frames ``queries`` and ``qrels``."""
    collection = find_collection(run.settings, run.collection)
    loaded = collection_queries(run.settings, collection, chunks.frame("chunks"))
    run.writer.frame("queries", loaded.queries)
    run.writer.frame("qrels", loaded.qrels)
    reports = [loaded.report] + ([loaded.qrels_report] if loaded.qrels_report else [])
    return QueriesRecord(
        run.stage,
        "completed",
        items=loaded.queries.height,
        query_source=loaded.source,
        judgements=loaded.qrels.height,
        judged=loaded.judged,
        files=loaded.files,
        report=tuple(report.as_json() for report in reports),
        warnings=tuple(line for report in reports for line in report.warnings()),
    )


_LANGUAGE_SAMPLE = 400
"""Chunks whose language is looked at: it takes 0.2 s, and a share of 0.5 is then known to 0.05."""


def encode_dense_vectors(
    run: StageRun, computing: Computing, chunks: Artefact[ChunksRecord], queries: Artefact[QueriesRecord]
) -> DenseRecord:
    """Encode chunks and queries with every dense model.

    Writes ``chunks.<model>`` ``[n_chunks, dim]`` and ``queries.<model>`` ``[n_queries, dim]``, float32 unit rows, and
    for models whose dot products rank ``norms.<model>`` ``[n_chunks] float32``. Where they are to be exported, the
    primary model's ``token_vectors`` ``[tokens, width] int8`` and ``token_offsets`` ``[n_chunks + 1] int64``.
    """
    from ensemble_assets.compute.stages.dense import encode_dense
    from ensemble_assets.compute.stages.states_plan import StatesWanted

    texts = chunks.frame("chunks", columns=["chunk_id", "text"])
    late, limits, reuse = late_model(run.settings), run.settings.rerank, run.settings.encoding.reuse
    wanted = StatesWanted(late.slug, limits.depth, int(limits.states_gb * 1e9), reuse) if late else None
    specs = choose_models(run.settings.models).dense
    result = encode_dense(
        texts["text"],
        queries.frame("queries", columns=["text"])["text"],
        specs,
        computing.context(run.to_compute),
        chunk_ids=texts["chunk_id"],
        states=wanted,
        token_vectors=specs[0].slug if run.settings.export.token_vectors else "",
        **computing.factory("dense"),
    )
    for model in result.models:
        run.writer.array(f"chunks.{model.spec.slug}", model.chunks)
        run.writer.array(f"queries.{model.spec.slug}", model.queries)
        if model.norms is not None:
            run.writer.array(f"norms.{model.spec.slug}", model.norms)
    layout = tuple(
        DenseLayout(
            slug=model.spec.slug,
            weight=model.spec.weight,
            hf_model_id=model.spec.hf_model_id,
            max_tokens=model.spec.max_tokens,
            dimension=int(model.chunks.shape[1]),
            seconds=round(model.record.seconds, 4),
            similarity="cosine" if model.norms is None else "dot",
        )
        for model in result.models
    )
    plans = [asdict(model.states) for model in result.models if model.states]
    tokens = [_write_tokens(run, model.spec.slug, model.tokens) for model in result.models if model.tokens]
    states, of_tokens = plans[0] if plans else None, tokens[0] if tokens else None
    record = replace(result.record, layout=layout, states=states, token_vectors=of_tokens)
    return _with_unread(record, texts["text"], [model.spec for model in result.models])


_TOKENS_AT_ONCE = 65_536
"""Tokens copied at a time: 25 MB of a width of 384."""


def _write_tokens(run: StageRun, slug: str, tokens: KeptStates) -> dict[str, Any]:
    """Write the vectors of the chunks' tokens, as many chunks at a time as make a piece, and describe them."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(tokens.sizes())])
    run.writer.array("token_offsets", offsets)
    vectors = run.writer.new_array("token_vectors", (int(offsets[-1]), tokens.width), "int8")
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _TOKENS_AT_ONCE, side="right")) - 1)
        vectors[offsets[first] : offsets[last]] = tokens.of_chunks(first, last)
        first = last
    without = int((np.diff(offsets) == 0).sum())
    return {"model": slug, "width": tokens.width, "tokens": int(offsets[-1]), "chunks_without": without}


def _with_unread(record: DenseRecord, chunks: pl.Series, models: Sequence[ModelSpec]) -> DenseRecord:
    """Warn where every model reads English only and most chunks are in another language."""
    if not all(model.english_only for model in models):
        return record
    sample = foreign_texts(chunks.gather_every(1 + len(chunks) // _LANGUAGE_SAMPLE).to_list())
    if not sample.are_most:
        return record
    warning = (
        f"dense: {sample.texts} of {sample.of} sampled chunks are not in English ({sample.writing}), and "
        f"{' and '.join(model.slug for model in models)} read English only. Use --set "
        "models.profile=embedded-multilingual (pip install 'ensemble-assets[multilingual]'), or another model"
    )
    return replace(record, warnings=(*record.warnings, warning), unread=sample.as_json())


def encode_sparse_vectors(
    run: StageRun, computing: Computing, chunks: Artefact[ChunksRecord], queries: Artefact[QueriesRecord]
) -> SparseRecord:
    """Encode chunks and queries as sparse vectors.

    Writes CSR arrays ``chunks.*`` and ``queries.*``, the frame ``vocabulary``, and ``source`` ``[n_chunks] uint8``
    (0 no vector, 1 inference, 2 metadata terms). With the stage off only ``source``, all 0.
    """
    from ensemble_assets.compute.stages.sparse import encode_sparse

    enabled = run.settings.enable_sparse
    result = encode_sparse(
        searched_texts(chunks),
        chunks.frame("chunks", columns=["metadata"])["metadata"],
        queries.frame("queries", columns=["text"])["text"],
        choose_models(run.settings.models).sparse,
        computing.context(run.to_compute),
        enabled=enabled,
        top_k=run.settings.sparse.top_k,
        **computing.factory("sparse"),
    )
    if enabled:
        for side, matrix in (("chunks", result.chunks), ("queries", result.queries)):
            for part in SPARSE_PARTS:
                run.writer.array(f"{side}.{part}", getattr(matrix, part))
        run.writer.frame("vocabulary", pl.DataFrame({"token": result.words}))
    run.writer.array("source", result.source)
    return result.record


def rerank_fused(
    run: StageRun,
    computing: Computing,
    chunks: Artefact[ChunksRecord],
    queries: Artefact[QueriesRecord],
    fused: Artefact[FusionRecord],
) -> RerankRecord:
    """Rerank the fused candidates into the frame ``reranked``; ``queries`` says how deep each query was reranked.

    Where the reranker did not run, the fused order is kept and flagged.
    """
    from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates

    options, model = run.settings.rerank, choose_models(run.settings.models).rerank
    fitted = fused.record.fitted
    share = fitted["rerank_share"] if fitted.get("reranker") == model.slug else None  # None: the model's own
    share = options.weight if options.weight >= 0 else share
    result = rerank_candidates(
        fused.frame("candidates"),
        searched_texts(chunks),
        queries.frame("queries", columns=["public_id", "text"]),
        model,
        computing.context(run.to_compute),
        RerankOptions(
            run.settings.enable_rerank,
            options.depth,
            share,
            rerank_time(run, chunks, fused),
            _late_interaction(run, computing, chunks, fused),
            options.cross_encoder,
        ),
        clock=run.clock,
        **computing.factory("rerank"),
    )
    run.writer.frame("reranked", result.reranked)
    run.writer.frame("queries", result.queries)
    return result.record


def share_read(exported: pl.Series, whole: pl.Series) -> float:
    """Compute the mean share of a chunk's text that dense models read, by characters.

    Blank chunks do not count; without any other the share is 1. Late interaction has that much less to say
    (``docs/decisions/0031``).
    """
    read, there = (texts.str.len_chars().cast(pl.Int64).to_numpy() for texts in (exported, whole))
    shares = np.minimum(read, there) / np.maximum(there, 1)
    return round(float(shares[there > 0].mean()), 4) if (there > 0).any() else 1.0


def _late_interaction(
    run: StageRun, computing: Computing, chunks: Artefact[ChunksRecord], fused: Artefact[FusionRecord]
) -> LateInteraction | None:
    """Set up late interaction as the dense stage has planned for it; None where it takes no part."""
    from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction

    model = late_model(run.settings)
    if model is None:
        return None
    upstream = fused.record.upstream
    plan = (upstream.states if upstream else None) or {"states": "again", "reason": ""}
    texts, fixed = chunks.frame("chunks", columns=["text"])["text"], run.settings.rerank.late_weight >= 0
    return LateInteraction(
        model,
        texts,
        model.late_share * (1.0 if fixed else share_read(texts, searched_texts(chunks))),
        plan["states"],
        plan["reason"] if plan["states"] == "off" else "",
        plan.get("bytes", 0),
        **computing.factory("dense"),
    )
