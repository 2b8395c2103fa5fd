"""Hand a bundle to Qdrant, as the options say."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import ExportRecord, QdrantRecord
from ensemble_assets.export.read.bundle_reader import Bundle, open_bundle
from ensemble_assets.pipeline.bundle.export import bundle_folder
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.settings.options import Qdrant

if TYPE_CHECKING:
    from ensemble_assets.export.read.qdrant import Uploaded


def upload_to_qdrant(run: StageRun, exported: Artefact[ExportRecord]) -> QdrantRecord:
    """Upload all points of the bundle, and search one chunk each way; nothing where ``qdrant.enabled`` is off."""
    options, started = run.settings.qdrant, time.perf_counter()
    if not options.enabled:
        return QdrantRecord(run.stage, "feature_disabled")
    key = run.resolved.environment.get("QDRANT_API_KEY")
    uploaded = upload(open_bundle(bundle_folder(run)), options, Path(run.settings.paths.output_dir), key)
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


def upload(
    bundle: Bundle, options: Qdrant, output_dir: Path, key: str | None, progress: Callable[[int], None] | None = None
) -> Uploaded:
    """Upload a bundle as the options say; without a server or path into ``<output_dir>/.qdrant``."""
    from ensemble_assets.export.read.qdrant import NewCollection, Patience, connect, upload_bundle

    patience = Patience(options.timeout, options.retries)
    client = connect(
        options.url, options.path or str(output_dir / ".qdrant"), key, port=options.port, patience=patience
    )
    try:
        return upload_bundle(
            bundle,
            client,
            options.collection,
            options.batch_size,
            progress or (lambda done: None),
            new=NewCollection(
                legacy=options.layout == "legacy",
                on_disk=options.on_disk,
                quantization=options.quantization,
                hnsw_m=options.hnsw_m,
                hnsw_ef=options.hnsw_ef,
                indexes=options.payload_indexes,
                text=options.payload_text,
                echo=options.payload_sparse,
            ),
            point_ids=options.point_ids,
            max_request_mb=options.max_request_mb,
        )
    finally:
        client.close()
