"""Write a collection's bundle from its artefacts, and hand it to Qdrant."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.stage_record import ExportRecord, QdrantRecord
from ensemble_assets.export.suite import ExportResults, require_gates
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets.export.write.names import collection_folder
from ensemble_assets.pipeline.bundle_inputs import Upstream, bundle_inputs, limits_of, ranked_lists, run_queries
from ensemble_assets.pipeline.manifest_inputs import manifest_inputs
from ensemble_assets.pipeline.run_costs import LatencyBudget, Predicted, report_ratios
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.settings.sources import process_environment


def export_collection(run: StageRun, upstream: Upstream, predicted: Predicted) -> ExportRecord:
    """Write ``<output_dir>/<collection>/``, whole or not at all.

    Args:
        run: the export.
        upstream: the artefacts of the bundle.
        predicted: compares the run with an earlier plan.

    Raises:
        ContractError: if the bundle fails a gate; the bundle that was there before stays.
    """
    clock = datetime.now().isoformat()  # local time without a zone, as the contract has it
    inputs = bundle_inputs(upstream, run.collection, run.settings, clock)
    limits, budget = limits_of(run.settings), LatencyBudget.of_export(upstream, run, predicted)
    judged: list[ExportResults] = []

    def judge(folder: Path) -> None:
        judged.append(require_gates(folder, inputs, limits, run_queries(upstream)))

    bundle = write_bundle(
        Path(run.settings.paths.output_dir),
        inputs,
        lambda written: manifest_inputs(upstream, run, clock, written, budget),
        ranked_lists(upstream),
        judge,
    )
    ratios = budget.ratios()
    report_ratios(run, ratios)
    if run.span is not None:
        run.span.set(items=inputs.count, outcome="completed")  # the report that follows shows the span
    sizes = {name: (bundle.folder / name).stat().st_size for name in bundle.files}
    return ExportRecord(
        run.stage,
        "completed",
        items=inputs.count,
        points=inputs.count,
        files=len(sizes),
        bytes=sum(sizes.values()),
        sizes=sizes,
        skipped_files=dict(bundle.written.skipped),
        performance=ratios,
        gates=judged[0].as_json(),
    )


def bundle_folder(run: StageRun) -> Path:
    """Name the folder of the run's bundle."""
    return Path(run.settings.paths.output_dir) / collection_folder(run.collection)


def upload_to_qdrant(run: StageRun, exported: Artefact[ExportRecord]) -> QdrantRecord:
    """Upload all points of the bundle, and search one chunk each way; nothing where ``qdrant.enabled`` is off."""
    from ensemble_assets.export.read.bundle_reader import open_bundle
    from ensemble_assets.export.read.qdrant import connect, upload_bundle

    options, started = run.settings.qdrant, time.perf_counter()
    if not options.enabled:
        return QdrantRecord(run.stage, "feature_disabled")
    embedded = Path(run.settings.paths.output_dir) / ".qdrant"
    client = connect(options.url, options.path or str(embedded), process_environment().get("QDRANT_API_KEY"))
    try:
        uploaded = upload_bundle(open_bundle(bundle_folder(run)), client, options.collection, options.batch_size)
    finally:
        client.close()
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
