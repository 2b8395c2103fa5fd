"""Keep the bundle of the last export where nothing that it is made of has changed: only its manifest is new then.

The records of the kept files hold the time of the export that wrote them (``docs/decisions/0036``).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ensemble_assets.artefacts.records import ExportRecord
from ensemble_assets.common.machine import digest, library_versions
from ensemble_assets.common.stages import STAGE
from ensemble_assets.export.suite import ExportResults
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets.export.write.v40_files import why_no_flat_index
from ensemble_assets.pipeline.bundle.inputs import Upstream
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.settings import flatten

PACKAGE = Path(__file__).parents[2]
"""Folder of this program's sources, of which bundles are made too."""

_MADE_ANEW = ("bundle_format", "no_raw_queries")
"""Gates that judge the manifest too. A bundle of which they reported anything is written again."""


def contents_of(upstream: Upstream, run: StageRun, inputs: BundleInputs) -> str:
    """Digest everything that the files of a bundle are made of, apart from the time and the manifest.

    These are the content hashes of the artefacts, the settings, the facts that the files name, the libraries and the
    sources of this program.
    """
    sparse = inputs.sparse
    facts: dict[str, Any] = {
        "artefacts": {stage: artefact.version for stage, artefact in upstream.by_stage().items()},
        "settings": {name: str(value) for name, value in flatten(run.settings).items()},
        "collection": asdict(replace(inputs.facts, clock="")),
        "devices": asdict(inputs.devices),
        "models": [[model.slug, model.hf_model_id, model.max_tokens] for model in inputs.dense],
        "sparse": sparse and [sparse.model, sparse.index_space, sparse.unit],
        "index": why_no_flat_index(),
        "libraries": library_versions(),
        "program": _sources(),
    }
    return digest(facts)


def unchanged_export(run: StageRun, folder: Path, contents: str) -> ExportRecord | None:
    """Give the record of the last export if its bundle in ``folder`` has these contents, byte by byte; else None.

    With ``encoding.reuse`` off nothing of earlier runs is kept, bundles included.
    """
    before = open_store(run.settings).peek(run.collection, STAGE["export"].asset)
    if before is None or not run.settings.encoding.reuse:
        return None
    record: ExportRecord = before.record
    if record.written is None or record.written.contents != contents or record.gates is None:
        return None
    judged = ExportResults.from_json(record.gates)
    if judged.changed(folder) or not all(each.passed for each in judged.results if each.name in _MADE_ANEW):
        return None
    return record


@lru_cache(maxsize=1)
def _sources() -> str:
    """Digest this program's own files."""
    files = (path for pattern in ("*.py", "*.py.txt") for path in sorted(PACKAGE.rglob(pattern)))
    return digest({str(path.relative_to(PACKAGE)): path.read_text("utf-8") for path in files})
