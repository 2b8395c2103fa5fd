"""Show a bundle's report in Dagster: its path, small pictures and tables."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from ensemble_assets.orchestration.pictures import picture, table
from ensemble_assets.pipeline.bundle_inputs import Upstream
from ensemble_assets.pipeline.run_report import measured_quality, report_path, write_report
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.report.facts import Facts, read_facts
from ensemble_assets.report.small import small_pictures

Cell = str | int | float | bool | None


def report_metadata(run: StageRun, bundle: Path, upstream: Upstream) -> dict[str, dg.MetadataValue]:
    """Writes the report of a bundle that was just exported; its path, small pictures and tables for the UI."""
    artefacts = upstream.by_stage()
    current = run.span.record() if run.span is not None else None
    candidates = artefacts["fusion"].frame("candidates")
    facts = read_facts(bundle, run.telemetry.journal_path, candidates, measured_quality(artefacts), current)
    where: dg.MetadataValue
    try:
        where = dg.MetadataValue.path(str(write_report(facts, report_path(bundle))))
    except OSError as error:  # the bundle is whole and in place; a page about it must not fail it
        where = dg.MetadataValue.text(f"not written ({error.strerror}); ensemble-assets report makes it later")
    pictures = {name: picture(svg, told) for name, (svg, told) in small_pictures(facts).items()}
    return {"run_report": where, **pictures, **_tables(facts)}


def _tables(facts: Facts) -> dict[str, dg.MetadataValue]:
    rows: dict[str, list[dict[str, Cell]]] = {
        "fallback_reasons": [
            dict(zip(("stage", "reason", "source", "count"), row, strict=True)) for row in facts.fallbacks
        ],
        "toggles": [dict(zip(("option", "value", "layer", "set by"), row, strict=True)) for row in facts.toggles],
        "coverage": [dict(facts.coverage)] if facts.coverage else [],
        "quality": [{"list": run, **means} for run, means in facts.quality.items()],
    }
    return {name: table(given) for name, given in rows.items() if given or name == "fallback_reasons"}
