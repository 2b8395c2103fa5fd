"""Asset ``qdrant_collection``: the bundle in Qdrant, where that is configured."""

import time
from pathlib import Path

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.read.qdrant import connect, upload_bundle
from ensemble_assets.export.write.names import collection_folder
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.settings.sources import process_environment


@collection_asset(group="serving", kinds={"qdrant"}, code_version="1")
def qdrant_collection(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    export_bundle: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """All points of the bundle, searched once each way; where it is off, an empty artefact marked so."""
    with stage_run(context, settings, progress, "qdrant") as run:
        options = run.settings.qdrant
        if not options.enabled:
            return finish(run, {"status": "feature_disabled", "items": 0, "unit": "points"}, {}, rows=0)
        output, started = Path(run.settings.paths.output_dir), time.perf_counter()
        client = connect(
            options.url, options.path or str(output / ".qdrant"), process_environment().get("QDRANT_API_KEY")
        )
        try:
            bundle = open_bundle(output / collection_folder(run.collection))
            uploaded = upload_bundle(bundle, client, options.collection, options.batch_size)
        finally:
            client.close()
        facts = {
            "status": "completed",
            "items": uploaded.points,
            "unit": "points",
            "collection_in_qdrant": uploaded.collection,
            "sent": uploaded.sent,
            "removed": uploaded.removed,
            "searches": len(uploaded.searches),
            "searched_by": list(uploaded.searches),
            "bundle": export_bundle.version,
            "seconds": round(time.perf_counter() - started, 4),
        }
        return finish(run, facts, {}, rows=uploaded.points)
