"""Asset ``chunks``: a collection's files as one frame, with a report of everything that was left out or changed."""

import dagster as dg

from ensemble_assets.core.artefacts import Artefact
from ensemble_assets.core.chunks import read_chunks
from ensemble_assets.core.fingerprints import collection_fingerprint
from ensemble_assets.core.ingest.files import ReadLimits
from ensemble_assets.core.latency_baseline import content_fingerprint
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.collections import find_collection
from ensemble_assets.orchestration.discovery import FINGERPRINT
from ensemble_assets.orchestration.model_choice import choose_models
from ensemble_assets.orchestration.pictures import histogram, table
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import stage_run


@collection_asset(group="inputs", kinds={"polars", "parquet"}, code_version="2")
def chunks(
    context: dg.AssetExecutionContext, settings: SettingsForm, progress: dg.ResourceParam[Progress]
) -> dg.MaterializeResult[Artefact]:
    """The collection's chunks in order: ids, texts as they are embedded, metadata, hashes."""
    with stage_run(context, settings, progress, "chunks") as run:
        options = run.settings.chunks
        collection = find_collection(run.settings, run.collection)
        # Before reading: what changes meanwhile then counts as changed.
        fingerprint = collection_fingerprint(collection.folder)
        limits = ReadLimits(record_bytes=options.max_record_mb * 1_000_000)
        primary = choose_models(run.settings.models).primary
        frame, report = read_chunks(
            collection.folder,
            primary.max_tokens * primary.windows,
            options.min_tokens,
            format_name=options.format or None,
            follow_links=options.follow_links,
            limits=limits,
        )
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
            "report": report.as_json(),
            "warnings": report.warnings(),
        }
        pictures = {
            "token_counts": histogram(frame["token_count"].to_numpy(), "Tokens per chunk", "tokens"),
            "report": table([{"reason": code, "count": count} for code, count in report.counts.items()]),
        }
        return run.finish(facts, pictures, rows=frame.height)
