"""Asset ``export_bundle``: everything as the files that vector databases and older programs load."""

import time
from datetime import datetime
from pathlib import Path

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.export.suite import ExportResults, require_gates
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.checks.check_inputs import GATES_FACT
from ensemble_assets.orchestration.dagster_metadata import report_metadata, table
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.bundle_inputs import Upstream, bundle_inputs, limits_of, ranked_lists, run_queries
from ensemble_assets.pipeline.manifest_inputs import manifest_inputs
from ensemble_assets.pipeline.run_costs import final_ratios, report_ratios
from ensemble_assets.planning.history import compare_with_plan, remember_run


@collection_asset(group="bundles", kinds={"json", "numpy"}, code_version="2")
def export_bundle(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
    queries: Artefact,
    dense_embeddings: Artefact,
    sparse_vectors: Artefact,
    fused_candidates: Artefact,
    reranked_candidates: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """The bundle in ``<output_dir>/<collection>/``, written whole or not at all."""
    upstream = Upstream(chunks, queries, dense_embeddings, sparse_vectors, fused_candidates, reranked_candidates)
    with stage_run(context, settings, progress, "export") as run:
        clock = datetime.now().isoformat()  # local time without a zone, as the contract has it
        inputs = bundle_inputs(upstream, run.collection, run.settings, clock)
        judged: list[ExportResults] = []

        def judge(folder: Path) -> None:
            judged.append(require_gates(folder, inputs, limits_of(run.settings), run_queries(upstream)))

        bundle = write_bundle(
            Path(run.settings.paths.output_dir),
            inputs,
            lambda written: manifest_inputs(upstream, run, clock, written, compare_with_plan),
            ranked_lists(upstream),
            judge,
        )
        performance = final_ratios(upstream, run, compare_with_plan)
        report_ratios(run, performance)
        remember_run(upstream, run, time.perf_counter() - run.started)
        sizes = {name: (bundle.folder / name).stat().st_size for name in bundle.files}
        facts = {
            "status": "completed",
            "items": int(chunks.index["files"]["chunks.parquet"]["rows"]),
            "unit": "chunks",
            "points": inputs.count,
            "files": len(bundle.files),
            "bytes": sum(sizes.values()),
            "skipped_files": dict(bundle.written.skipped),
            "performance": performance,
            GATES_FACT: judged[0].as_json(),
        }
        if run.span is not None:
            run.span.set(items=inputs.count, outcome="completed")
        pictures = {
            "bundle": dg.MetadataValue.path(str(bundle.folder.absolute())),
            "contents": table([{"file": name, "bytes": size} for name, size in sizes.items()]),
            **report_metadata(run, bundle.folder, upstream),
        }
        return finish(run, facts, pictures, rows=inputs.count)
