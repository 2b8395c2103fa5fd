"""Write a collection's bundle, or keep the one of the last export where nothing has changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ensemble_assets.artefacts.records import ExportRecord, WrittenRecords
from ensemble_assets.export.read.bundle_reader import Bundle, with_all_sections
from ensemble_assets.export.suite import ExportResults, public_names, require_gates, require_manifest
from ensemble_assets.export.write.bundle import renew_manifest, write_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.manifest import build_manifest, manifest_text
from ensemble_assets.export.write.names import collection_folder
from ensemble_assets.pipeline.bundle.inputs import (
    Upstream,
    bundle_inputs,
    limits_of,
    own_names,
    ranked_lists,
    run_queries,
)
from ensemble_assets.pipeline.bundle.manifest import manifest_inputs
from ensemble_assets.pipeline.bundle.unchanged import contents_of, unchanged_export
from ensemble_assets.pipeline.run_costs import LatencyBudget, Predicted, report_ratios
from ensemble_assets.pipeline.stage_run import StageRun


def export_collection(run: StageRun, upstream: Upstream, predicted: Predicted) -> ExportRecord:
    """Write ``<output_dir>/<collection>/``, whole or not at all; ``ContractError`` if the bundle fails a gate."""
    clock = datetime.now().isoformat()  # local time without a zone, as the contract has it
    inputs = bundle_inputs(upstream, run.collection, run.settings, clock)
    budget, contents = LatencyBudget.of_export(upstream, run, predicted), contents_of(upstream, run, inputs)
    before = unchanged_export(run, bundle_folder(run), contents)
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
