"""Record each stage in a dataclass of its own, and parse such a record from the facts of an artefact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ensemble_assets.artefacts.stage_record import Record, Scalar, StageRecord
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.stages import list_title


@dataclass(frozen=True, kw_only=True)
class FailedStage(Record):
    """The end of a stage with an error, in a sentence that is safe to show. It has no artefact."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ChunksRecord(Record):
    """The chunks of a collection.

    Attributes:
        alias: name of the collection's folder.
        content: hash of the chunks' content in order, 32 hex digits; "" where an earlier version did not record it.
        source_fingerprint: content hash of the collection's files, 32 hex digits.
        searched: ``whole`` or ``exported``; None where an earlier version did not record it.
        report: counts of records that reading left out or changed, by reason.
    """

    unit: str = "chunks"
    alias: str | None = None
    content: str = ""
    source_fingerprint: str = ""
    skipped: int = 0
    texts_cut: int = 0
    searched: str | None = None
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QueriesRecord(Record):
    """The queries of a collection, from a source ``file`` or ``derived``.

    ``judged`` says whether the judgements come from a file. There is one ``report`` per input file.
    """

    unit: str = "queries"
    query_source: str = ""
    judgements: int = 0
    judged: bool = False
    files: tuple[str, ...] = ()
    report: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class DenseLayout:
    """The vectors of one model in the dense artefact: the weight of its scores, its limit in tokens, wall seconds.

    ``similarity`` is ``dot`` where the chunks' norms are stored too and the search ranks by dot products.
    """

    slug: str
    weight: float
    hf_model_id: str
    max_tokens: int
    dimension: int
    seconds: float = 0.0
    similarity: str = "cosine"


@dataclass(frozen=True, kw_only=True)
class DenseRecord(StageRecord):
    """The dense stage: models whose vectors are stored, the primary first; dropped companions with a fixed word.

    ``unread`` is a ``ForeignTexts`` where most chunks are in a language that no dense model reads, else empty.
    ``states`` is a ``StatesPlan`` where late interaction is to come. ``token_vectors`` describes those to be exported.
    """

    unit: str = "chunks and queries"
    queries: int = 0
    layout: tuple[DenseLayout, ...] = ()
    dropped: dict[str, str] = field(default_factory=dict)
    unread: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] | None = None
    token_vectors: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class SparseRecord(StageRecord):
    """The sparse stage.

    Attributes:
        model: slug of the model that made the vectors, or of the first one asked for.
        index_space: name of the space that the indices number; ``dimension`` is its width.
        vectors_total: chunks; the other three are chunks with a vector, and where it is from.
        coverage_ratio: share of chunks with a vector, 0 to 1; None where the stage is off.
        queries_live: queries with a vector from inference; of these ``queries_pruned`` were cut to ``top_k`` entries.
        unusable: models that were tried before, and for each a fixed word.
    """

    unit: str = "chunks and queries"
    model: str = ""
    index_space: str = "none"
    dimension: int = 0
    vectors_total: int = 0
    vectors_live: int = 0
    vectors_from_metadata: int = 0
    vectors_available: int = 0
    coverage_ratio: float | None = None
    entries: int = 0
    queries: int = 0
    queries_live: int = 0
    queries_pruned: int = 0
    top_k: int = 0
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class UpstreamCosts:
    """Costs of the stages before the fusion, kept in its record because rerank does not read their artefacts.

    ``dense_models`` are fingerprints in order. ``states`` is that of the dense stage's record.
    """

    dense_seconds: float
    sparse_seconds: float
    dense_models: tuple[str, ...]
    dense_device: UsedDevices
    states: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class FusionRecord(StageRecord):
    """The exact searches and their fusion.

    Attributes:
        depth: most chunks per query and list.
        dense_share: weight of the dense list against the sparse one, 0 to 1.
        lexical_share: weight of the BM25 list, 0 to 1; 0 without it.
        lexical_words: the rules by which BM25 finds words; empty without it.
        fitted: judgements that the weights were fitted on; empty where they were set.
        upstream: None where an earlier version did not record it.
    """

    unit: str = "queries"
    queries: int = 0
    candidates: int = 0
    depth: int = 0
    method: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    dense_share: float = 0.0
    lexical_share: float = 0.0
    lexical_words: tuple[str, ...] = ()
    fitted: dict[str, Any] = field(default_factory=dict)
    upstream: UpstreamCosts | None = None


@dataclass(frozen=True, kw_only=True)
class RerankRecord(StageRecord):
    """The rerank stage.

    Attributes:
        query_count: the same number as ``queries``, under the manifest's name.
        depth: depth that was asked for; ``requested_depth`` is the same number under the budget's name.
        reached_depth: depth that every query reached.
        queries_cut_short: queries of which fewer candidates were scored than asked for.
        weight: share of the reranker in the final score.
        largest_batch: pairs in the largest batch.
        floor_depth: depth that is reached whatever it takes.
        budget_seconds: time that the stage may take; None without a limit, for the fixed word ``budget_reason``.
        fallback_source: where a fallback arose, ``load`` or ``runtime``; None without one.
        late: model, share, costs and fallbacks of late interaction beside the reranker; None without it.
    """

    unit: str = "pairs"
    model: str = ""
    queries: int = 0
    query_count: int = 0
    queries_reranked: int = 0
    pairs_scored: int = 0
    depth: int = 0
    requested_depth: int = 0
    reached_depth: int = 0
    queries_cut_short: int = 0
    weight: float = 0.0
    largest_batch: int = 0
    budget: str = "off"
    floor_depth: int = 0
    budget_seconds: float | None = None
    budget_reason: str | None = None
    fallback_source: str | None = None
    late: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Record):
    """The measured quality of the lists.

    Attributes:
        judged: whether the judgements come from a file; False: derived probes.
        files: the files of queries and judgements.
        not_retrieved: list -> queries for which it has nothing.
        fusion: method, parameters, shares and depth of the fused list.
        means: list -> measure -> mean, 0 to 1; empty without judgements.
        measured: stage -> content hash of the artefact whose lists were measured; empty in earlier versions.
    """

    unit: str = "judged queries"
    judged: bool = False
    query_source: str = ""
    files: tuple[str, ...] = ()
    without_relevant: int = 0
    not_retrieved: dict[str, int] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)
    means: dict[str, dict[str, float]] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)

    def in_words(self) -> str:
        """Describe amount and time, and the nDCG@10 of every list."""
        measured = {list_title(name): means["nDCG@10"] for name, means in self.means.items() if "nDCG@10" in means}
        figures = [f"{title} {mean:.3f}" for title, mean in measured.items()]
        by = f"nDCG@10{'' if self.judged else ' of derived probes'}: {', '.join(figures)}"
        return f"{super().in_words()}, {by}" if figures else super().in_words()

    def scalars(self) -> dict[str, Scalar]:
        """Give the facts that are one figure, switch or word; every mean is one, so that it can be plotted."""
        means = {f"{name} {measure}": mean for name, all_of in self.means.items() for measure, mean in all_of.items()}
        return {**super().scalars(), **means}


@dataclass(frozen=True)
class Ratios:
    """The run against the latency budget; a ratio is None where its divisor was not measured.

    Attributes:
        vs_sla: whole run over the plain script's dense-only time.
        vs_own_dense: dense, sparse, fusion and rerank over dense.
        prediction: an earlier plan of the same content beside what happened; None without a plan.
    """

    limit_ratio: float
    vs_sla: float | None = None
    vs_own_dense: float | None = None
    prediction: dict[str, Any] | None = None


@dataclass(frozen=True)
class WrittenRecords:
    """The writing of a bundle's records.

    Attributes:
        contents: digest of everything that the files are made of, apart from the time.
        at: time stamp in the records, ISO 8601, local time, no zone.
        seconds: wall seconds of the export that wrote them.
    """

    contents: str
    at: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ExportRecord(Record):
    """The bundle in its folder; ``bytes`` is the sum of ``sizes``.

    ``skipped_files`` gives the reason for each optional file that was not written. ``performance`` counts all of the
    export. It and ``gates``, ``ExportResults`` in JSON types, are None in earlier versions. ``figures`` are those that
    the report compares, ``previous`` those of the export before, and ``made_with`` the processor and versions.

    A bundle is ``unchanged``, apart from its manifest, where its contents are those of the last export. ``written`` is
    then of the export that wrote its records; it is None in earlier versions.
    """

    unit: str = "chunks"
    points: int = 0
    files: int = 0
    bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    skipped_files: dict[str, str] = field(default_factory=dict)
    performance: Ratios | None = None
    gates: dict[str, Any] | None = None
    figures: dict[str, float] = field(default_factory=dict)
    previous: dict[str, float] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    unchanged: bool = False
    written: WrittenRecords | None = None

    def in_words(self) -> str:
        """Describe amount and time for people, and whether the files stayed."""
        return f"{super().in_words()}{', bundle unchanged' if self.unchanged else ''}"


@dataclass(frozen=True, kw_only=True)
class QdrantRecord(Record):
    """The bundle in Qdrant: points sent and removed, and the kinds of search by which a chunk found itself."""

    unit: str = "points"
    collection_in_qdrant: str | None = None
    sent: int = 0
    removed: int = 0
    searches: int = 0
    searched_by: tuple[str, ...] = ()
    bundle: str | None = None
    seconds: float = 0.0
