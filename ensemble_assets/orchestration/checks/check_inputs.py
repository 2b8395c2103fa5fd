"""Gather the results of a bundle's gates for the asset checks.

The exporter judged the bundle. Seconds, memory and the files beside it are known later, and are judged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import polars as pl

from ensemble_assets.artefacts.artefact import INDEX_NAME, Artefact
from ensemble_assets.artefacts.stage_record import Record, StageRecord
from ensemble_assets.common.stages import STAGE, TIMED_STAGES
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.stage_limits import StageCost
from ensemble_assets.export.query_leaks.gate import Place, file_place, page_place, text_place
from ensemble_assets.export.query_leaks.query_forms import canonical
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import ExportResults, judge_costs, public_names, with_places
from ensemble_assets.export.write.names import collection_folder
from ensemble_assets.pipeline.bundle.inputs import Upstream, bundle_inputs, limits_of, own_names, run_queries
from ensemble_assets.pipeline.bundle.report import report_path
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import journal_folder

_WORD_BREAK = "\n_____\n"
"""Stands between two values of a frame, so that no match spans both."""


def bundle_results(collection: str, settings: Settings) -> Iterator[GateResult]:
    """Give the result of every gate on the collection's bundle.

    A missing or damaged artefact, a missing bundle and an export without results are an ``ArtefactError``.
    """
    store = open_store(settings)
    upstream = Upstream.load(store, collection)
    artefacts = upstream.by_stage()
    exported = store.load(collection, STAGE["export"].asset)
    bundle = open_bundle(Path(settings.paths.output_dir) / collection_folder(collection))
    for result in ExportResults.from_json(exported.record.gates).reported(bundle.folder):
        if result.name == "no_raw_queries":
            names = partial(_public_names, upstream, collection, settings)
            yield with_places(result, run_queries(upstream), _places(bundle.folder, artefacts), names)
        else:
            yield result
    made = {**artefacts, "export": exported}
    costs = {stage: _cost(made[stage].record) for stage in TIMED_STAGES}
    yield from judge_costs(costs, limits_of(settings), bundle.manifest)


def _public_names(upstream: Upstream, collection: str, settings: Settings) -> Iterator[str]:
    yield from own_names(settings)
    yield from public_names(bundle_inputs(upstream, collection, settings, clock=""))
    yield from upstream.chunks.frame("chunks", columns=["chunk_id"])["chunk_id"]


def _cost(record: Record) -> StageCost:
    if isinstance(record, StageRecord):
        return StageCost(record.wall_seconds, record.peak_bytes, record.device)
    return StageCost(record.wall_seconds, 0)


def _places(bundle: Path, artefacts: Mapping[str, Artefact]) -> Iterator[Place]:
    """Give everything that the run wrote beside the bundle, as far as it is still there."""
    journals = journal_folder(bundle.parent)
    for path in sorted(journals.glob("*")) if journals.is_dir() else ():
        if path.is_file():
            yield file_place(path, f"telemetry {path.name}")
    report = report_path(bundle)
    if report.is_file():
        yield page_place(report)
    for name, artefact in artefacts.items():
        stage = STAGE[name]
        yield file_place(artefact.folder / INDEX_NAME, f"facts of {stage.asset}")
        if not stage.holds_text:
            yield from _frame_places(stage.asset, artefact)


def _frame_places(asset: str, artefact: Artefact) -> Iterator[Place]:
    for file in sorted(artefact.index["files"]):
        name = file.removesuffix(".parquet")
        if name != file:
            schema = artefact.scan(name).collect_schema()
            strings = [column for column, dtype in schema.items() if dtype == pl.String]
            frame = artefact.frame(name, columns=strings) if strings else pl.DataFrame()
            values = [value for column in strings for value in frame[column].unique().drop_nulls().to_list()]
            if name == "vocabulary":  # a word list; a query of several words would still be none of its words
                values = [value for value in values if not _is_one_word(value) and len(canonical(value).split()) > 1]
            yield text_place(f"{name} of {asset}", [_WORD_BREAK.join([*schema, *values])])


def _is_one_word(value: str) -> bool:
    """Whether letters and figures follow a mark of a piece, as in nearly all of a vocabulary's tens of thousands."""
    piece = value.lstrip("#")
    return piece.isascii() and piece.isalnum()
