"""Judge a bundle with all gates: for the exporter, for the asset checks and for ``ensemble-assets validate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensemble_assets.artefacts.fast_json import parse_object
from ensemble_assets.common.atomic_files import bytes_hash, file_hash
from ensemble_assets.common.defaults import CEILING_BYTES, COVERAGE_ERROR, COVERAGE_WARN
from ensemble_assets.common.errors import ArtefactError, ContractError
from ensemble_assets.common.stages import first_stage_lists
from ensemble_assets.export.checks.bundle_walk import RowGate, Walk
from ensemble_assets.export.checks.legacy_keys import LegacyKeys, judge_manifest_keys
from ensemble_assets.export.checks.result import Findings, GateResult
from ensemble_assets.export.checks.row_alignment import RowAlignment
from ensemble_assets.export.checks.stage_limits import (
    SparseCoverage,
    StageCost,
    latency_budget,
    memory_ceiling,
    rerank_fallbacks,
)
from ensemble_assets.export.checks.stated_records import StatedRecords
from ensemble_assets.export.checks.unit_vectors import VectorsFiniteAndUnit
from ensemble_assets.export.query_leaks.gate import NoRawQueries, Place, PublicNames, no_raw_queries
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Bundle, list_items, open_bundle
from ensemble_assets.export.write.inputs import BundleInputs, own_metadata
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets.export.write.ranked_list_files import RUN_TAGS
from ensemble_assets.export.write.v40_files import upload_script

DESCRIPTIONS: Mapping[str, str] = {
    "bundle_format": "Every record has the keys that programs expect which load bundles, in order; others come last.",
    "row_alignment": "Texts, vectors, points and ranked lists are about the same chunks in the same order.",
    "vectors_finite_and_unit": "Every dense vector has length 1, and every number is a number.",
    "sparse_coverage": "Nearly every chunk has a sparse vector: a warning below one limit, an error below another.",
    "no_raw_queries": "The text of no query is in anything that the run wrote.",
    "rerank_fallbacks": "Every query was reranked; those that were not are flagged, counted and explained.",
    "memory_ceiling": "No stage took more device memory than device.ceiling_gb.",
    "latency_budget": "The run took at most 1.1 times what a plain script takes; a warning if it took more.",
}
"""One sentence a gate."""

GATES = tuple(DESCRIPTIONS)
"""Every gate by name, in the order in which results are shown."""

_NOW = {"legacy_keys": "bundle_format"}
"""Gates that had another name in results that an earlier version stored."""

_ADD_UP = ("places", "bytes_searched")
"""Figures of ``no_raw_queries`` that count the bundle and the files beside it together."""


@dataclass(frozen=True)
class Limits:
    """The limits of the gates; ``Checks`` and ``Device`` of the settings."""

    sparse_coverage_warn: float = COVERAGE_WARN
    sparse_coverage_error: float = COVERAGE_ERROR
    ceiling_bytes: int = CEILING_BYTES


def judge_bundle(
    bundle: Bundle,
    limits: Limits,
    inputs: BundleInputs | None = None,
    queries: tuple[Query, ...] = (),
    places: Callable[[], Iterable[Place]] = tuple,
    public: PublicNames = tuple,
) -> tuple[GateResult, ...]:
    """Judge everything that is in a bundle, in one pass over its records.

    Without the ``inputs`` of its export, its files are compared with one another only. ``queries`` are looked for in
    the bundle and in ``places``; the names of ``public`` may stand anywhere.
    """
    walk = Walk(bundle, inputs)
    gates: tuple[RowGate, ...] = (
        LegacyKeys(walk),
        RowAlignment(walk),
        VectorsFiniteAndUnit(walk),
        SparseCoverage(walk, limits.sparse_coverage_warn, limits.sparse_coverage_error),
        NoRawQueries(walk, queries, places, public, script=upload_script(inputs) if inputs else ""),
    )
    stated = StatedRecords(walk)
    for row in walk:
        row.stated = stated.metadata_of(row)
        for gate in gates:
            gate.see(row)
    return (*(gate.result() for gate in gates), rerank_fallbacks(bundle))


def judge_costs(
    costs: Mapping[str, StageCost], limits: Limits, manifest: Mapping[str, Any]
) -> tuple[GateResult, GateResult]:
    """Judge the memory and the seconds of the stages by the limits and the manifest's ``performance_baseline``."""
    baseline = manifest.get("performance_baseline")
    return (
        memory_ceiling(costs, limits.ceiling_bytes),
        latency_budget(costs, baseline if isinstance(baseline, dict) else {}),
    )


@dataclass(frozen=True)
class ExportResults:
    """The gates' results on a bundle at its export, valid as long as the content hashes of its files are the same."""

    files: Mapping[str, str]
    results: tuple[GateResult, ...]

    def as_json(self) -> dict[str, Any]:
        """Give plain JSON types, for the facts of the export artefact."""
        return {"files": dict(self.files), "results": [result.as_json() for result in self.results]}

    @classmethod
    def from_json(cls, content: object) -> ExportResults:
        """Read ``as_json``; ``ArtefactError`` for an export of a version that stored no results."""
        if not isinstance(content, Mapping):
            raise ArtefactError(f"the export has no results of its gates: an earlier version made it. {EXPORT_AGAIN}")
        results = map(GateResult.from_json, content["results"])
        return cls(
            dict(content["files"]), tuple(replace(each, name=_NOW.get(each.name, each.name)) for each in results)
        )

    def changed(self, folder: Path) -> list[str]:
        """Name the files of the bundle that are missing or no longer those that were judged."""
        return [
            name
            for name, content in self.files.items()
            if not (folder / name).is_file() or file_hash(folder / name) != content
        ]

    def reported(self, folder: Path) -> Iterator[GateResult]:
        """Give the results; each as a failure if a file of the bundle is no longer the one that was judged."""
        changed = self.changed(folder)
        if not changed:
            yield from self.results
            return
        for result in self.results:
            findings = Findings(result.name)
            findings.add(
                f"{changed[0]}: is missing or changed since the export, so its results no longer describe the bundle. "
                f"{EXPORT_AGAIN}; ensemble-assets validate judges the files as they are"
            )
            yield findings.result()


def require_gates(
    folder: Path, inputs: BundleInputs, limits: Limits, queries: tuple[Query, ...], names: tuple[str, ...] = ()
) -> ExportResults:
    """Judge a finished folder before its bundle takes the place of the old one.

    A gate that fails with severity ERROR is a ``ContractError``; the old bundle stays. ``names`` may stand anywhere,
    as those of the bundle do.
    """
    results = judge_bundle(open_bundle(folder), limits, inputs, queries, public=lambda: (*names, *public_names(inputs)))
    _require_sound(results)
    return ExportResults({path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file()}, results)


def require_manifest(
    bundle: Bundle, text: str, earlier: ExportResults, queries: tuple[Query, ...], public: PublicNames
) -> ExportResults:
    """Judge a new manifest before it joins files that were judged already; ``ContractError`` as in ``require_gates``.

    Args:
        bundle: the bundle with its files as they are, and the new manifest.
        text: the manifest as it will be written.
        earlier: the results on the other files. Those of ``bundle_format`` and ``no_raw_queries`` have no problems.
        queries: the queries that ``earlier`` looked for.
        public: names that may stand anywhere.
    """
    keys = Findings("bundle_format")
    judge_manifest_keys(bundle.manifest, keys)
    place = Place(MANIFEST_NAME, lambda overlap: iter((text.encode(),)), structured=True)
    leaks, before = no_raw_queries(queries, [place], public), {result.name: result for result in earlier.results}
    anew = {
        "bundle_format": keys.result(records=before["bundle_format"].numbers["records"]),
        "no_raw_queries": replace(
            leaks, numbers={**before["no_raw_queries"].numbers, "problems": leaks.numbers["problems"]}
        ),
        "rerank_fallbacks": rerank_fallbacks(bundle),
    }
    results = tuple(anew.get(result.name, result) for result in earlier.results)
    _require_sound(results)
    written = bytes_hash(text.encode())
    return ExportResults(dict(earlier.files) | dict.fromkeys(bundle.names.manifests, written), results)


def _require_sound(results: Iterable[GateResult]) -> None:
    for result in results:
        if result.failed:
            count = int(result.numbers["problems"])
            more = f" ({count - 1} more)" if count > 1 else ""
            raise ContractError(f"gate {result.name}: {result.problems[0]}{more}. The bundle was not written")


def with_places(
    bundle_result: GateResult, queries: tuple[Query, ...], places: Iterable[Place], public: PublicNames
) -> GateResult:
    """Add to the result of ``no_raw_queries`` on a bundle the search of the files beside it."""
    beside = no_raw_queries(queries, places, public)
    findings = Findings(bundle_result.name)
    findings.add_result(bundle_result)
    findings.add_result(beside)
    numbers = dict(beside.numbers)
    for name in _ADD_UP if queries else ():
        numbers[name] = int(numbers[name]) + int(bundle_result.numbers.get(name, 0))
    return findings.result(**numbers)


_ALWAYS = (*RUN_TAGS, " ".join(first_stage_lists()))
"""Names in every bundle: the last columns of run files, and the lists that are fused, which the manifest lists."""


def public_names(inputs: BundleInputs) -> Iterator[str]:
    """Give the names that may stand anywhere: the collection, its models, its chunks' ids and files."""
    yield from (inputs.collection, inputs.facts.name, inputs.facts.alias, *inputs.names.all(), *_ALWAYS)
    for model in inputs.dense:
        yield from (model.slug, model.hf_model_id)
    for chunk in inputs.rows():
        identity = own_metadata(chunk).get("chunk_id")
        yield from (str(name) for name in (identity, chunk.source) if isinstance(name, (str, int)))


def public_names_in(bundle: Bundle) -> Iterator[str]:
    """Give these names as far as the bundle itself has them: its folder, its collection, its chunks' ids and files."""
    yield from (
        bundle.folder.resolve().name,
        str(bundle.manifest.get("collection", "")),
        *bundle.names.all(),
        *RUN_TAGS,
    )
    try:
        for metadata in map(parse_object, list_items(bundle.path("metadata.json"))):
            for key in ("chunk_id", "source_path", "source_file"):
                if isinstance(value := (metadata or {}).get(key), str):
                    yield value
    except ArtefactError:
        return  # bundle_format says what is wrong with the file
