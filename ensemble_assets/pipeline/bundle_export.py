"""Write a collection's bundle and the report beside it, and hand the bundle to Qdrant.

The report lies beside the bundle's folder, never in it: the folder's files are a contract with older programs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.quality_baseline import read_quality_baseline
from ensemble_assets.artefacts.records import ExportRecord, QdrantRecord, WrittenRecords
from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets.common.stages import STAGE
from ensemble_assets.common.version import __version__
from ensemble_assets.export.read.bundle_reader import Bundle, open_bundle, read_manifest, with_all_sections
from ensemble_assets.export.suite import ExportResults, public_names, require_gates, require_manifest
from ensemble_assets.export.write.bundle import renew_manifest, write_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.manifest import build_manifest, manifest_text
from ensemble_assets.export.write.names import collection_folder
from ensemble_assets.pipeline.bundle_inputs import (
    Upstream,
    bundle_inputs,
    limits_of,
    own_names,
    ranked_lists,
    run_queries,
)
from ensemble_assets.pipeline.from_settings import open_store, run_telemetry
from ensemble_assets.pipeline.manifest_inputs import manifest_inputs
from ensemble_assets.pipeline.quality_facts import measured_quality
from ensemble_assets.pipeline.run_costs import LatencyBudget, Predicted, report_ratios
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.pipeline.unchanged_bundle import contents_of, unchanged_export
from ensemble_assets.report.facts import Facts, quality_figures
from ensemble_assets.report.page import Section, page_of
from ensemble_assets.report.read_facts import read_facts
from ensemble_assets.retrieval.quality_verdicts import losses
from ensemble_assets.settings import Settings
from ensemble_assets.settings.options import Qdrant

if TYPE_CHECKING:
    from ensemble_assets.export.read.qdrant import Uploaded


def export_collection(run: StageRun, upstream: Upstream, predicted: Predicted) -> ExportRecord:
    """Write ``<output_dir>/<collection>/``, whole or not at all; ``ContractError`` if the bundle fails a gate."""
    clock = datetime.now().isoformat()  # local time without a zone, as the contract has it
    inputs = bundle_inputs(upstream, run.collection, run.settings, clock)
    budget, contents = LatencyBudget.of_export(upstream, run, predicted), contents_of(upstream, run, inputs)
    before = unchanged_export(run, contents)
    if before is None:
        record = _written(run, upstream, inputs, budget, contents)
    else:
        record = _renewed(run, upstream, inputs, budget, before)
    ratios = budget.ratios()
    report_ratios(run, ratios)
    if run.span is not None:
        run.span.set(items=inputs.count, outcome="completed")  # the report that follows shows the span
    return replace(record, items=inputs.count, points=inputs.count, performance=ratios)


def _written(
    run: StageRun, upstream: Upstream, inputs: BundleInputs, budget: LatencyBudget, contents: str
) -> ExportRecord:
    """Write all files of the bundle."""
    limits, judged = limits_of(run.settings), list[ExportResults]()

    def judge(folder: Path) -> None:
        judged.append(require_gates(folder, inputs, limits, run_queries(upstream), own_names(run.settings)))

    bundle = write_bundle(
        Path(run.settings.paths.output_dir),
        inputs,
        lambda written: manifest_inputs(upstream, run, inputs.clock, written.skipped, budget),
        ranked_lists(upstream),
        judge,
    )
    return ExportRecord(
        run.stage,
        "completed",
        **_sizes(bundle.folder, bundle.files),
        skipped_files=dict(bundle.written.skipped),
        gates=judged[0].as_json(),
        written=WrittenRecords(contents, inputs.clock, round(run.elapsed(), 4)),
    )


def _renewed(
    run: StageRun, upstream: Upstream, inputs: BundleInputs, budget: LatencyBudget, before: ExportRecord
) -> ExportRecord:
    """Give the unchanged bundle of the last export the manifest of this run."""
    made = manifest_inputs(upstream, run, inputs.clock, before.skipped_files, budget, before.written)
    manifest = build_manifest(made)
    text, folder = manifest_text(manifest), bundle_folder(run)
    judged = require_manifest(
        Bundle(folder, inputs.names, with_all_sections(manifest)),
        text,
        ExportResults.from_json(before.gates),
        run_queries(upstream),
        lambda: (*own_names(run.settings), *public_names(inputs)),
    )
    renew_manifest(folder, inputs.names, text)
    return ExportRecord(
        run.stage,
        "completed",
        **_sizes(folder, before.sizes),
        skipped_files=before.skipped_files,
        gates=judged.as_json(),
        unchanged=True,
        written=before.written,
    )


def _sizes(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    sizes = {name: (folder / name).stat().st_size for name in names}
    return {"files": len(sizes), "bytes": sum(sizes.values()), "sizes": sizes}


def bundle_folder(run: StageRun) -> Path:
    """Name the folder of the run's bundle."""
    return Path(run.settings.paths.output_dir) / collection_folder(run.collection)


def upload_to_qdrant(run: StageRun, exported: Artefact[ExportRecord]) -> QdrantRecord:
    """Upload all points of the bundle, and search one chunk each way; nothing where ``qdrant.enabled`` is off."""
    options, started = run.settings.qdrant, time.perf_counter()
    if not options.enabled:
        return QdrantRecord(run.stage, "feature_disabled")
    key = run.resolved.environment.get("QDRANT_API_KEY")
    uploaded = upload(open_bundle(bundle_folder(run)), options, Path(run.settings.paths.output_dir), key)
    return QdrantRecord(
        run.stage,
        "completed",
        items=uploaded.points,
        collection_in_qdrant=uploaded.collection,
        sent=uploaded.sent,
        removed=uploaded.removed,
        searches=len(uploaded.searches),
        searched_by=tuple(uploaded.searches),
        bundle=exported.version,
        seconds=round(time.perf_counter() - started, 4),
    )


def upload(
    bundle: Bundle, options: Qdrant, output_dir: Path, key: str | None, progress: Callable[[int], None] | None = None
) -> Uploaded:
    """Upload a bundle as the options say; without a server or path into ``<output_dir>/.qdrant``."""
    from ensemble_assets.export.read.qdrant import NewCollection, Patience, connect, upload_bundle

    patience = Patience(options.timeout, options.retries)
    client = connect(
        options.url, options.path or str(output_dir / ".qdrant"), key, port=options.port, patience=patience
    )
    try:
        return upload_bundle(
            bundle,
            client,
            options.collection,
            options.batch_size,
            progress or (lambda done: None),
            new=NewCollection(
                legacy=options.layout == "legacy",
                on_disk=options.on_disk,
                quantization=options.quantization,
                hnsw_m=options.hnsw_m,
                hnsw_ef=options.hnsw_ef,
                indexes=options.payload_indexes,
                text=options.payload_text,
                echo=options.payload_sparse,
            ),
            point_ids=options.point_ids,
            max_request_mb=options.max_request_mb,
        )
    finally:
        client.close()


_READ_STAGES = ("fusion", "rerank")


def report_path(bundle: Path) -> Path:
    """Name the report of a bundle: ``<collection>.report.html`` beside its folder."""
    whole = bundle.absolute()
    return whole.with_name(f"{whole.name}.report.html")


def write_report(facts: Facts, path: Path, more: Sequence[Section] = ()) -> Path:
    """Put the page in place in one step."""
    with atomic_write(path) as stream:
        stream.write(page_of(facts, more).encode())
    return path


def earlier_figures(run: StageRun) -> dict[str, float]:
    """Give the figures of the collection's last export; empty for the first one."""
    before = open_store(run.settings).peek(run.collection, STAGE["export"].asset)
    return dict(before.record.figures) if before is not None else {}


def made_with() -> dict[str, str]:
    """Give the processor, its cores, and the versions of libraries on which results and times depend."""
    host = this_host()
    return {
        "processor": host.cpu, "cores": str(host.cores), "ensemble-assets": __version__, **library_versions()
    }  # fmt: skip


def accepted_figures(settings: Settings, collection: str) -> dict[str, float]:
    """Give the quality of the accepted baseline; empty where none was accepted or its file is damaged."""
    try:
        baseline = read_quality_baseline(Path(settings.checks.baselines_dir), collection)
    except ArtefactError:  # the gates of quality say it
        return {}
    return quality_figures(baseline.means) if baseline is not None else {}


def facts_of_bundle(bundle: Path, settings: Settings) -> Facts:
    """Read the facts of any bundle; journal, scores and quality while its run's artefacts are still beside it."""
    manifest = read_manifest(bundle)
    collection = str(manifest.get("collection") or bundle.name)
    here = settings.model_copy(
        update={"paths": settings.paths.model_copy(update={"output_dir": str(bundle.absolute().parent)})}
    )
    artefacts, candidates, quality = _artefacts(manifest, collection, here), None, None
    if artefacts:
        candidates = artefacts["fusion"].frame("candidates")
        quality = None if "quality" in manifest else measured_quality(open_store(here), collection, artefacts)
    facts = read_facts(bundle, _journal(manifest, collection, here), candidates, quality)
    exported = open_store(here).peek(collection, STAGE["export"].asset) if artefacts else None
    if exported is None:
        return facts
    record: ExportRecord = exported.record
    return with_own_facts(facts, bundle, record, settings)


def with_own_facts(facts: Facts, bundle: Path, record: ExportRecord, settings: Settings) -> Facts:
    """Add facts that only the installation knows that wrote the bundle: earlier figures, versions, its own warnings.

    The manifest of another one may hold any text, so of that the page shows names and numbers only.
    """
    manifest = read_manifest(bundle)
    return replace(
        facts,
        previous=record.previous,
        accepted=accepted_figures(settings, str(manifest["collection"])),
        made_with=record.made_with,
        warning_texts=tuple(_warning_texts(facts, manifest, record)),
    )


_WAITED_SECONDS = 0.5
"""A wait that rounds to a second; a free device is had in milliseconds."""


def _warning_texts(facts: Facts, manifest: Mapping[str, Any], record: ExportRecord) -> Iterator[str]:
    """Give what the console says of the run in yellow: of its stages, the bundle's gates, its lists, and waiting."""
    yield from manifest.get("warnings", ())
    for result in ExportResults.from_json(record.gates).results if record.gates else ():
        if not result.passed:
            yield f"{result.severity.lower()}: {result.name}: {result.problems[0]}"
    yield from losses(facts.quality)
    for stage in facts.stages:
        if (stage.wait_seconds or 0) >= _WAITED_SECONDS:
            yield f"{stage.name} waited {stage.wait_seconds:.0f} s for a device, not counted as its time"
    for option, value, _, source in facts.toggles:
        if value == "off":
            yield f"{option.removeprefix('enable_')} is off ({source})"


def _artefacts(manifest: Mapping[str, Any], collection: str, settings: Settings) -> dict[str, Artefact]:
    """Load the artefacts that the bundle was made of; none if any is gone or newer."""
    store = open_store(settings)
    try:
        artefacts = {stage: store.load(collection, STAGE[stage].asset) for stage in _READ_STAGES}
    except ArtefactError:
        return {}
    fused, reranked = manifest.get("fusion_run"), manifest.get("rerank_run")
    same = isinstance(fused, dict) and fused.get("run_id") == artefacts["fusion"].record.run_id
    if isinstance(reranked, dict):
        payload = reranked.get("payload")
        same &= isinstance(payload, dict) and payload.get("run_id") == artefacts["rerank"].record.run_id
    return artefacts if same else {}


def _journal(manifest: Mapping[str, Any], collection: str, settings: Settings) -> Path | None:
    """Find the journal of the run that wrote the manifest."""
    telemetry = manifest.get("telemetry")
    spans = telemetry.get("spans") if isinstance(telemetry, dict) else None
    for span in reversed(list(spans.values())) if isinstance(spans, dict) else ():
        attributes = span.get("attributes") if isinstance(span, dict) else None
        run_id = attributes.get("run_id") if isinstance(attributes, dict) else None
        path = run_telemetry(run_id, collection, settings, {}).journal_path if isinstance(run_id, str) else None
        if path is not None and path.is_file():
            return path
    return None
