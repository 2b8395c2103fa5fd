"""Write the report of a bundle beside its folder, never in it: its files are a contract with older programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.quality_baseline import read_quality_baseline
from ensemble_assets.artefacts.records import ExportRecord
from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets.common.stages import STAGE
from ensemble_assets.common.version import __version__
from ensemble_assets.export.read.bundle_reader import read_manifest
from ensemble_assets.export.suite import ExportResults
from ensemble_assets.pipeline.from_settings import open_store, run_telemetry
from ensemble_assets.pipeline.quality_facts import measured_quality
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.report.facts import Facts, quality_figures
from ensemble_assets.report.page import Section, page_of
from ensemble_assets.report.read_facts import read_facts
from ensemble_assets.retrieval.quality_verdicts import losses
from ensemble_assets.settings import Settings

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
