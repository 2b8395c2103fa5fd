"""Assets ``export_bundle`` and ``qdrant_collection``: the files that databases and older programs load."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import Materialised, collection_asset
from ensemble_assets.orchestration.dagster_metadata import report_metadata, table
from ensemble_assets.orchestration.stage_step import finish
from ensemble_assets.pipeline.bundle.export import bundle_folder, export_collection
from ensemble_assets.pipeline.bundle.inputs import Upstream
from ensemble_assets.pipeline.bundle.qdrant import upload_to_qdrant
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.planning.history import compare_with_plan, remember_run


@collection_asset("export", group="bundles", kinds={"json", "numpy"}, code_version="3")
def export_bundle(
    run: StageRun,
    chunks: Artefact,
    queries: Artefact,
    dense_embeddings: Artefact,
    sparse_vectors: Artefact,
    fused_candidates: Artefact,
    reranked_candidates: Artefact,
) -> Materialised:
    """The finished bundle in the output folder: vectors, texts, ranked lists and manifest, whole or not at all."""
    upstream = Upstream(chunks, queries, dense_embeddings, sparse_vectors, fused_candidates, reranked_candidates)
    record = export_collection(run, upstream, compare_with_plan)
    remember_run(upstream, run, 0.0 if record.unchanged else run.elapsed())
    bundle = bundle_folder(run).absolute()
    record, shown = report_metadata(run, bundle, upstream, record)
    pictures = {
        "bundle": dg.MetadataValue.path(str(bundle)),
        "contents": table([{"file": name, "bytes": size} for name, size in record.sizes.items()]),
        **shown,
    }
    return finish(run, record, record.points, lambda _: pictures)


@collection_asset("qdrant", group="serving", kinds={"qdrant"}, code_version="1")
def qdrant_collection(run: StageRun, export_bundle: Artefact) -> Materialised:
    """The bundle in Qdrant, searched once by every vector. Off by default (qdrant.enabled): nothing is uploaded."""
    record = upload_to_qdrant(run, export_bundle)
    return finish(run, record, record.items)
