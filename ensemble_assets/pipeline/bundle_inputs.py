"""From stage artefacts to what the exporter takes. Maps and names only; nothing is computed or written."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.suite import Limits
from ensemble_assets.export.write.bundle import RankedLists
from ensemble_assets.export.write.inputs import BundleInputs, DenseModel, DeviceFacts, LiveSparse, chunk_rows
from ensemble_assets.settings import Settings


@dataclass(frozen=True)
class Upstream:
    """The artefacts of one collection that a bundle is made of."""

    chunks: Artefact
    queries: Artefact
    dense: Artefact
    sparse: Artefact
    fused: Artefact
    reranked: Artefact

    def by_stage(self) -> dict[str, Artefact]:
        """In pipeline order, by stage name."""
        return {
            "chunks": self.chunks,
            "queries": self.queries,
            "dense": self.dense,
            "sparse": self.sparse,
            "fusion": self.fused,
            "rerank": self.reranked,
        }

    @property
    def versions(self) -> list[str]:
        """Content hashes of all of them."""
        return [artefact.version for artefact in self.by_stage().values()]

    @property
    def sparse_on(self) -> bool:
        """Whether the sparse stage was switched on when its artefact was made."""
        return bool(self.sparse.facts["status"] != "feature_disabled")

    @property
    def rerank_on(self) -> bool:
        """Whether the rerank stage was switched on when its artefact was made."""
        return bool(self.reranked.facts["status"] != "feature_disabled")


def bundle_inputs(upstream: Upstream, collection: str, settings: Settings, clock: str) -> BundleInputs:
    """What the v4.0 files are made of."""
    dense = upstream.dense.facts
    return BundleInputs(
        collection=collection,
        alias=upstream.chunks.facts["alias"],
        rows=chunk_rows(upstream.chunks.scan("chunks")),
        count=int(upstream.chunks.facts["items"]),
        dense=tuple(
            DenseModel(m["slug"], m["hf_model_id"], m["max_tokens"], upstream.dense.array(f"chunks.{m['slug']}"))
            for m in dense["layout"]
        ),
        clock=clock,
        prefix=settings.export.prefix,
        priority=settings.chunks.collection_priority,
        devices=DeviceFacts(device_count=len(dense["device"].split(",")), precision=dense["precision"]),
        sparse=_live_sparse(upstream.sparse) if upstream.sparse.has("chunks.indptr") else None,
    )


def _live_sparse(vectors: Artefact) -> LiveSparse:
    facts = vectors.facts
    return LiveSparse(
        indptr=vectors.array("chunks.indptr"),
        indices=vectors.array("chunks.indices"),
        values=vectors.array("chunks.values"),
        source=vectors.array("source"),
        vocabulary=tuple(vectors.frame("vocabulary")["token"].to_list()),
        model=facts["model"],
        index_space=facts["index_space"],
    )


def ranked_lists(upstream: Upstream) -> RankedLists | None:
    """The exported lists; None where both optional stages are off, whose bundle is the old dense-only one."""
    if not (upstream.sparse_on or upstream.rerank_on):
        return None
    return RankedLists(
        queries=upstream.queries.frame("queries", columns=["query_id", "text", "public_id", "query_hash"]),
        fused=upstream.fused.frame("candidates"),
        reranked=upstream.reranked.frame("reranked") if upstream.rerank_on else None,
    )


def limits_of(settings: Settings) -> Limits:
    """Read the gates' limits from the settings."""
    checks = settings.checks
    return Limits(checks.sparse_coverage_warn, checks.sparse_coverage_error, settings.device.ceiling_bytes)


def run_queries(upstream: Upstream) -> tuple[Query, ...]:
    """Give the run's queries to look for, and those ids that are not public; labelled with the public ids."""
    frame = upstream.queries.frame("queries", columns=["public_id", "text", "query_id"])
    hidden = frame.filter(frame["query_id"] != frame["public_id"])
    labelled = [*frame.select("public_id", "text").iter_rows(), *hidden.select("public_id", "query_id").iter_rows()]
    return tuple(Query(label, text) for label, text in labelled)
