"""Asset ``chunks``: a collection's files as one frame, with a report of everything that was left out or changed."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.latency_baseline import content_fingerprint
from ensemble_assets.collection.fingerprints import collection_fingerprint
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram, table
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.changed_collections import FINGERPRINT
from ensemble_assets.pipeline.collections import chunks_of, find_collection


@collection_asset(group="inputs", kinds={"polars", "parquet"}, code_version="3")
def chunks(
    context: dg.AssetExecutionContext, settings: SettingsForm, progress: dg.ResourceParam[Progress]
) -> dg.MaterializeResult[Artefact]:
    """The collection's chunks in order: ids, texts as they are embedded and what was cut off, metadata, hashes."""
    with stage_run(context, settings, progress, "chunks") as run:
        collection = find_collection(run.settings, run.collection)
        # Before reading: what changes meanwhile then counts as changed.
        fingerprint = collection_fingerprint(collection.folder)
        frame, report = chunks_of(run.settings, collection)
        run.writer.frame("chunks", frame)
        facts = {
            "status": "completed",
            "items": frame.height,
            "unit": "chunks",
            "alias": collection.alias,
            "content": content_fingerprint(frame["content_hash"]),
            FINGERPRINT: fingerprint,
            "skipped": report.skipped,
            "texts_cut": int(frame["cut"].sum()),
            "searched": run.settings.chunks.searched,
            "report": report.as_json(),
            "warnings": report.warnings(),
        }
        pictures = {
            "token_counts": histogram(frame["token_count"].to_numpy(), "Tokens per chunk", "tokens"),
            "report": table([{"reason": code, "count": count} for code, count in report.counts.items()]),
        }
        return finish(run, facts, pictures, rows=frame.height)
