"""All gates by name, and the evidence they need: one table for the exporter, the checks and the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.export.checks.bundle_walk import RowGate, Walk
from ensemble_assets.export.checks.legacy_keys import LegacyKeys
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.row_alignment import RowAlignment
from ensemble_assets.export.checks.stage_limits import (
    SparseCoverage,
    StageCost,
    costs_of,
    gpu_ceiling,
    latency_budget,
    rerank_fallbacks,
)
from ensemble_assets.export.checks.unit_vectors import VectorsFiniteAndUnit
from ensemble_assets.export.checks.v40_bytes import DenseParity
from ensemble_assets.export.checks.v40_records import LegacyProjection, Original
from ensemble_assets.export.query_leaks.gate import NoRawQueries, no_raw_queries
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.query_leaks.searched_places import Place
from ensemble_assets.export.read.bundle_reader import Bundle, metadata_items, open_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.v40_files import own_metadata


@dataclass(frozen=True)
class Limits:
    """What the gates measure against; ``Checks`` and ``Device`` of the settings."""

    sparse_coverage_warn: float = 0.95
    sparse_coverage_error: float = 0.8
    ceiling_bytes: int = 12 * 10**9


@dataclass(frozen=True)
class Evidence:
    """A bundle and what it can be held against.

    Attributes:
        original: the bundle, and how to get the v4.0 bundle that it extends.
        limits: of the settings.
        costs: of the stages, by name.
        queries: to look for; empty where they are not known.
        places: gives what was written beside the bundle.
        public: gives names that may stand anywhere.
        known: verdicts on the bundle's records that still hold (``verdicts``); these gates do not read them again.
    """

    original: Original
    limits: Limits = field(default_factory=Limits)
    costs: Mapping[str, StageCost] = field(default_factory=dict)
    queries: tuple[Query, ...] = ()
    places: Callable[[], Iterable[Place]] = tuple
    public: Callable[[], Iterable[str]] = tuple
    known: Mapping[str, GateResult] = field(default_factory=dict)

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self.original.bundle

    @property
    def inputs(self) -> BundleInputs | None:
        """What it was made of, where that is known."""
        return self.original.inputs


def _coverage(walk: Walk, evidence: Evidence) -> RowGate:
    limits = evidence.limits
    return SparseCoverage(walk, limits.sparse_coverage_warn, limits.sparse_coverage_error)


def _latency(evidence: Evidence) -> GateResult:
    baseline = evidence.bundle.manifest.get("performance_baseline")
    return latency_budget(evidence.costs, baseline if isinstance(baseline, dict) else {})


_ROW_GATES: Mapping[str, Callable[[Walk, Evidence], RowGate]] = {
    "legacy_keys": lambda walk, evidence: LegacyKeys(walk),
    "row_alignment": lambda walk, evidence: RowAlignment(walk),
    "vectors_finite_and_unit": lambda walk, evidence: VectorsFiniteAndUnit(walk),
    "legacy_projection": lambda walk, evidence: LegacyProjection(walk, evidence.original),
    "dense_parity": lambda walk, evidence: DenseParity(walk, evidence.original),
    "sparse_coverage": _coverage,
    "no_raw_queries": lambda walk, evidence: NoRawQueries(walk, evidence.queries, evidence.places, evidence.public),
}
_RUN_GATES: Mapping[str, Callable[[Evidence], GateResult]] = {
    "rerank_fallbacks": lambda evidence: rerank_fallbacks(evidence.bundle),
    "gpu_ceiling": lambda evidence: gpu_ceiling(evidence.costs, evidence.limits.ceiling_bytes),
    "latency_budget": _latency,
}

DESCRIPTIONS: Mapping[str, str] = {
    "legacy_keys": "Every v4.0 key has its type and its place in every record.",
    "row_alignment": "Chunks, vectors, sparse rows and points have the same ids in the same order.",
    "vectors_finite_and_unit": "Dense rows have norm 1; no number is not finite.",
    "legacy_projection": "Without what v4.1 adds, the bundle is the v4.0 bundle.",
    "dense_parity": "Dense content is byte-identical to what v4.0 writes.",
    "sparse_coverage": "Enough chunks have a sparse vector. Warns below one limit, fails below another.",
    "rerank_fallbacks": "Queries that were not reranked are flagged, counted and explained. Warns if there are any.",
    "no_raw_queries": "No query, no form of one and no long part of one is in anything that the run wrote.",
    "gpu_ceiling": "No stage took more device memory than the ceiling.",
    "latency_budget": "The run stays within its latency budget, else it warns; both ratios are reported.",
}
"""One sentence a gate."""

GATES = tuple(DESCRIPTIONS)
"""Every gate by name, in the order in which results are shown."""

BEFORE_THE_SWAP = tuple(name for name in GATES if name in _ROW_GATES)
"""What the exporter looks at itself before a bundle takes its place: everything that is in the bundle."""

_ADD_UP = ("places", "bytes_searched")
"""Figures of ``no_raw_queries`` that are of the bundle and of what was written beside it together."""


def judge(evidence: Evidence, wanted: Collection[str] = GATES) -> Iterator[GateResult]:
    """The verdicts of some gates, in the order of ``GATES``. All that look at records share one pass over them."""
    walk = Walk(evidence.bundle, evidence.inputs)
    anew = {name for name in _ROW_GATES if name in wanted and name not in evidence.known}
    looking = {name: make(walk, evidence) for name, make in _ROW_GATES.items() if name in anew}
    if looking:
        walk.show(looking.values())
    for name in GATES:
        if name in looking:
            yield looking[name].result()
        elif name in wanted and name in _ROW_GATES:
            yield _with_places(evidence) if name == "no_raw_queries" else evidence.known[name]
        elif name in wanted:
            yield _RUN_GATES[name](evidence)


def _with_places(evidence: Evidence) -> GateResult:
    """What is known of the bundle, and the search of what was written beside it."""
    known = evidence.known["no_raw_queries"]
    found = no_raw_queries(evidence.queries, evidence.places(), evidence.public)
    both = {
        name: int(known.numbers[name]) + int(found.numbers[name])
        for name in _ADD_UP
        if name in known.numbers and name in found.numbers
    }
    return replace(found, numbers={**found.numbers, **both}, notes=tuple(dict.fromkeys((*known.notes, *found.notes))))


def require_gates(
    folder: Path, inputs: BundleInputs, limits: Limits, queries: tuple[Query, ...]
) -> tuple[GateResult, ...]:
    """The exporter's own look at a finished folder that nobody has seen yet.

    Args:
        folder: all files of the bundle.
        inputs: what they were made of.
        limits: of the settings.
        queries: of the run.

    Returns:
        The verdicts, of which none is a failure.

    Raises:
        ContractError: if a gate fails with severity ERROR; the bundle that was there before stays.
    """
    bundle = open_bundle(folder)
    evidence = Evidence(
        Original(bundle, folder, inputs),
        limits,
        costs_of(bundle.manifest),
        queries=queries,
        public=lambda: public_names(inputs),
    )
    results = tuple(judge(evidence, BEFORE_THE_SWAP))
    for result in results:
        if result.failed:
            count = int(result.numbers["problems"])
            more = f" ({count - 1} more)" if count > 1 else ""
            raise ContractError(f"gate {result.name}: {result.problems[0]}{more}. The bundle was not written")
    return results


def public_names(inputs: BundleInputs) -> Iterator[str]:
    """Names that may stand anywhere: the collection, its models, its chunks' ids and files."""
    yield from (inputs.collection, inputs.alias or inputs.collection, *(model.slug for model in inputs.dense))
    for chunk in inputs.rows():
        identity = own_metadata(chunk).get("chunk_id")
        yield from (str(name) for name in (identity, chunk.source) if isinstance(name, (str, int)))


def public_names_in(bundle: Bundle) -> Iterator[str]:
    """The same as far as a bundle says it: its folder, its collection, its chunks' ids and files."""
    yield from (bundle.folder.resolve().name, str(bundle.manifest.get("collection", "")))
    try:
        for metadata in metadata_items(bundle):
            for key in ("chunk_id", "source_path", "source_file"):
                if isinstance(value := (metadata or {}).get(key), str):
                    yield value
    except ArtefactError:
        return  # legacy_keys says what is wrong with the file
