"""Gather what a bundle's report needs besides the bundle, and write the page.

The report lies beside the bundle's folder, never in it: the folder's files are a contract with older programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.stages import STAGE
from ensemble_assets.export.read.bundle_reader import read_manifest
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.quality_facts import measured_quality
from ensemble_assets.pipeline.telemetry_of_run import run_telemetry
from ensemble_assets.report.facts import Facts, read_facts
from ensemble_assets.report.page import page_of
from ensemble_assets.settings import Settings

_READ_STAGES = ("chunks", "fusion", "rerank")


def report_path(bundle: Path) -> Path:
    """Name the report of a bundle: ``<collection>.report.html`` beside its folder."""
    whole = bundle.absolute()
    return whole.with_name(f"{whole.name}.report.html")


def write_report(facts: Facts, path: Path) -> Path:
    """Put the page in place in one step."""
    with atomic_write(path) as stream:
        stream.write(page_of(facts).encode())
    return path


def facts_of_bundle(bundle: Path, settings: Settings) -> Facts:
    """Read the facts of any bundle; journal, scores and quality while its run's artefacts are still beside it.

    Raises:
        ArtefactError: if the folder has no readable manifest.
    """
    manifest = read_manifest(bundle)
    collection = str(manifest.get("collection") or bundle.name)
    here = settings.model_copy(
        update={"paths": settings.paths.model_copy(update={"output_dir": str(bundle.absolute().parent)})}
    )
    artefacts = _artefacts(manifest, collection, here)
    candidates = artefacts["fusion"].frame("candidates") if artefacts else None
    quality = (
        measured_quality(open_store(here), collection, artefacts) if artefacts and "quality" not in manifest else None
    )
    return read_facts(bundle, _journal(manifest, collection, here), candidates, quality)


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
    return artefacts if same and _rows_agree(artefacts["chunks"], artefacts["fusion"]) else {}


def _rows_agree(chunks: Artefact, fused: Artefact) -> bool:
    """Say whether the candidates' rows still number the same chunks; a later run may have read other files."""
    ids = chunks.frame("chunks", columns=["chunk_id"])["chunk_id"]
    pairs = fused.frame("candidates").select("row", "chunk_id").unique()
    inside = not pairs.height or int(pairs["row"].max()) < len(ids)  # type: ignore[arg-type]
    return inside and bool((ids.gather(pairs["row"]) == pairs["chunk_id"]).all())


def _journal(manifest: Mapping[str, Any], collection: str, settings: Settings) -> Path | None:
    """Find the journal of the run that wrote the manifest."""
    telemetry = manifest.get("telemetry")
    spans = telemetry.get("spans") if isinstance(telemetry, dict) else None
    for span in reversed(list(spans.values())) if isinstance(spans, dict) else ():
        attributes = span.get("attributes") if isinstance(span, dict) else None
        run_id = attributes.get("run_id") if isinstance(attributes, dict) else None
        path = run_telemetry(run_id, collection, settings).journal_path if isinstance(run_id, str) else None
        if path is not None and path.is_file():
            return path
    return None
