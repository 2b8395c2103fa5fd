"""Asset ``export_bundle``: everything as the files that vector databases and older programs load."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import report_metadata, table
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import finish, stage_step
from ensemble_assets.pipeline.bundle_export import bundle_folder, export_collection
from ensemble_assets.pipeline.bundle_inputs import Upstream
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
    with stage_step(context, settings, progress, "export") as run:
        record = export_collection(run, upstream, compare_with_plan)
        remember_run(upstream, run, run.elapsed())
        bundle = bundle_folder(run).absolute()
        pictures = {
            "bundle": dg.MetadataValue.path(str(bundle)),
            "contents": table([{"file": name, "bytes": size} for name, size in record.sizes.items()]),
            **report_metadata(run, bundle, upstream),
        }
        return finish(run, record, record.points, lambda _: pictures)
