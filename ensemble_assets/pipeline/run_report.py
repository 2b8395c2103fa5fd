"""A bundle's report: what goes into it besides the bundle, and where it is put. Its looks are ``telemetry.report``.

The report lies beside the bundle's folder, never in it: the folder's files are a contract with older programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.read.bundle_reader import read_object
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.telemetry_of_run import run_telemetry
from ensemble_assets.report import page_of
from ensemble_assets.report.facts import Facts, read_facts
from ensemble_assets.settings import Settings

Means = dict[str, dict[str, float]]


def report_path(bundle: Path) -> Path:
    """Where the report of a bundle is: ``<collection>.report.html`` beside its folder."""
    whole = bundle.absolute()
    return whole.with_name(f"{whole.name}.report.html")


def write_report(facts: Facts, path: Path) -> Path:
    """Puts the page in place in one step."""
    with atomic_write(path) as stream:
        stream.write(page_of(facts).encode())
    return path


def facts_of_bundle(bundle: Path, settings: Settings) -> Facts:
    """The facts of any bundle; journal, scores and quality as far as its run's artefacts are still beside it.

    Raises:
        ArtefactError: if the folder has no readable manifest.
    """
    if not (bundle / MANIFEST_NAME).is_file():
        return read_facts(bundle)
    manifest = read_object(bundle / MANIFEST_NAME)
    collection = str(manifest.get("collection") or bundle.name)
    here = dataclasses.replace(
        settings, paths=dataclasses.replace(settings.paths, output_dir=str(bundle.absolute().parent))
    )
    artefacts = _artefacts(manifest, collection, here)
    candidates = artefacts["fusion"].frame("candidates") if artefacts else None
    quality = measured_quality(artefacts) if artefacts and "quality" not in manifest else None
    return read_facts(bundle, _journal(manifest, collection, here), candidates, quality)


def measured_quality(artefacts: Mapping[str, Artefact]) -> Means | None:
    """Mean of every measure per list, over the judged queries; None without judgements."""
    qrels = artefacts["queries"].frame("qrels")
    if not qrels.height:
        return None
    from ensemble_assets.retrieval.evaluation import evaluate

    fused = artefacts["fusion"].frame("candidates")
    lists = {name: _single_list(fused, name) for name in ("dense", "sparse")}
    lists |= {"fused": fused, "reranked": artefacts["rerank"].frame("reranked")}
    if artefacts["rerank"].facts["status"] == "feature_disabled":
        del lists["reranked"]
    measured = evaluate({name: frame for name, frame in lists.items() if frame.height}, qrels)
    means: Means = {}
    for run, measure, mean in measured.summary.select("run", "measure", "mean").iter_rows():
        means.setdefault(run, {})[measure] = mean
    return means if measured.queries else None


def _single_list(fused: pl.DataFrame, name: str) -> pl.DataFrame:
    """What a first-stage list said, in its own order: every one of its candidates is among the fused ones."""
    found = fused.filter(pl.col(f"{name}_rank").is_not_null())
    return found.select("public_id", pl.col(f"{name}_rank").alias("rank"), "chunk_id")


def _artefacts(manifest: Mapping[str, Any], collection: str, settings: Settings) -> dict[str, Artefact]:
    """The artefacts that the bundle was made of; none where they are gone or newer."""
    store = open_store(settings)
    assets = {"queries": "queries", "fusion": "fused_candidates", "rerank": "reranked_candidates"}
    try:
        found = {stage: store.load(collection, asset) for stage, asset in assets.items()}
    except ArtefactError:
        return {}
    fused, reranked = manifest.get("fusion_run"), manifest.get("rerank_run")
    same = isinstance(fused, dict) and fused.get("run_id") == found["fusion"].facts["run_id"]
    if isinstance(reranked, dict):
        payload = reranked.get("payload")
        same &= isinstance(payload, dict) and payload.get("run_id") == found["rerank"].facts["run_id"]
    return found if same else {}


def _journal(manifest: Mapping[str, Any], collection: str, settings: Settings) -> Path | None:
    telemetry = manifest.get("telemetry")
    spans = telemetry.get("spans") if isinstance(telemetry, dict) else None
    for span in reversed(list(spans.values())) if isinstance(spans, dict) else ():
        attributes = span.get("attributes") if isinstance(span, dict) else None
        run_id = attributes.get("run_id") if isinstance(attributes, dict) else None
        path = run_telemetry(run_id, collection, settings).journal_path if isinstance(run_id, str) else None
        if path is not None and path.is_file():
            return path
    return None
