"""Collect the artefacts that a bundle is made of, and hand them to the exporter in its own types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import (
    ChunksRecord,
    DenseRecord,
    FusionRecord,
    QueriesRecord,
    RerankRecord,
    SparseRecord,
)
from ensemble_assets.artefacts.store import ArtefactStore
from ensemble_assets.collection.canonical_names import point_name, priority_of
from ensemble_assets.common.stages import STAGE
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.suite import Limits
from ensemble_assets.export.write.bundle import RankedLists
from ensemble_assets.export.write.inputs import BundleInputs, DenseModel, DeviceFacts, LiveSparse, chunk_rows
from ensemble_assets.export.write.token_vectors import TokenVectors
from ensemble_assets.settings import Settings, flatten
from ensemble_assets.telemetry.allowed_names import SPANS
from ensemble_assets.telemetry.metrics import METRICS


@dataclass(frozen=True)
class Upstream:
    """The artefacts of one collection that a bundle is made of: the inputs of the stage ``export``, by stage name."""

    chunks: Artefact[ChunksRecord]
    queries: Artefact[QueriesRecord]
    dense: Artefact[DenseRecord]
    sparse: Artefact[SparseRecord]
    fusion: Artefact[FusionRecord]
    rerank: Artefact[RerankRecord]

    @classmethod
    def load(cls, store: ArtefactStore, collection: str) -> Upstream:
        """Load the current artefacts of a collection; ``ArtefactError`` if one is missing or damaged."""
        return cls(**{stage: store.load(collection, STAGE[stage].asset) for stage in STAGE["export"].inputs})

    def by_stage(self) -> Mapping[str, Artefact[Any]]:
        """Give the artefacts by stage name, in pipeline order."""
        return {stage: getattr(self, stage) for stage in STAGE["export"].inputs}


def bundle_inputs(upstream: Upstream, collection: str, settings: Settings, clock: str) -> BundleInputs:
    """Collect the contents of the v4.0 files; ``clock`` is their time stamp, ISO 8601, local time without a zone."""
    chunks, dense = upstream.chunks, upstream.dense
    named = point_name(settings, collection, chunks.record.alias or collection)
    return BundleInputs(
        collection=collection,
        point_name=named,
        alias=chunks.record.alias,
        rows=chunk_rows(chunks.scan("chunks")),
        count=chunks.record.items,
        dense=tuple(
            DenseModel(
                model.slug,
                model.hf_model_id,
                model.max_tokens,
                dense.array(f"chunks.{model.slug}"),
                dense.array(f"norms.{model.slug}") if model.similarity == "dot" else None,
            )
            for model in dense.record.layout
        ),
        clock=clock,
        prefix=settings.export.prefix,
        priority=priority_of(settings, named),
        devices=DeviceFacts(
            device_count=max(1, len(dense.record.device.uuids)),  # a CPU has no UUID
            precision=dense.record.precision,
        ),
        sparse=_live_sparse(upstream.sparse, settings.export.sparse_norm == "unit")
        if upstream.sparse.has("chunks.indptr")
        else None,
        index=settings.export.faiss_index,
        tokens=TokenVectors(dense.array("token_vectors"), dense.array("token_offsets"))
        if settings.export.token_vectors
        else None,
    )


def _live_sparse(vectors: Artefact[SparseRecord], unit: bool) -> LiveSparse:
    return LiveSparse(
        indptr=vectors.array("chunks.indptr"),
        indices=vectors.array("chunks.indices"),
        values=vectors.array("chunks.values"),
        source=vectors.array("source"),
        vocabulary=tuple(vectors.frame("vocabulary")["token"].to_list()),
        model=vectors.record.model,
        index_space=vectors.record.index_space,
        unit=unit,
    )


def ranked_lists(upstream: Upstream) -> RankedLists | None:
    """Collect the lists to export; None where both optional stages are off, whose bundle is the old dense-only one."""
    reranked = upstream.rerank.record.enabled
    if not (upstream.sparse.record.enabled or reranked):
        return None
    return RankedLists(
        queries=upstream.queries.frame("queries", columns=["query_id", "text", "public_id", "query_hash"]),
        fused=upstream.fusion.frame("candidates"),
        reranked=upstream.rerank.frame("reranked") if reranked else None,
    )


def limits_of(settings: Settings) -> Limits:
    """Give the limits of the bundle checks, as set."""
    checks = settings.checks
    return Limits(checks.sparse_coverage_warn, checks.sparse_coverage_error, settings.device.ceiling_bytes)


def own_names(settings: Settings) -> tuple[str, ...]:
    """List the operator's texts among the settings, such as models' names, and the names that telemetry uses."""
    values = flatten(settings).values()
    texts = (str(text) for value in values for text in (value if isinstance(value, tuple) else (value,)))
    return (*texts, *SPANS, *(f"{settings.metrics.namespace}_{name}" for name in METRICS))


def run_queries(upstream: Upstream) -> tuple[Query, ...]:
    """List the queries to search for, and their ids where those are not public; labelled with the public ids."""
    frame = upstream.queries.frame("queries", columns=["public_id", "text", "query_id"])
    hidden = frame.filter(frame["query_id"] != frame["public_id"])
    labelled = [*frame.select("public_id", "text").iter_rows(), *hidden.select("public_id", "query_id").iter_rows()]
    return tuple(Query(label, text) for label, text in labelled)
