"""Summarise runs: as JSON, or as a table with what is worth knowing about each, readable at 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble_assets.artefacts.records import EvaluationRecord
from ensemble_assets.artefacts.stage_record import Record, StageRecord
from ensemble_assets.common.stages import LISTS
from ensemble_assets.pipeline.bundle_export import report_path

_MEASURE = "nDCG@10"
_PLAIN_WIDTH = 140
"""Characters of a line in a file or pipe: enough for every sentence, so that few are wrapped."""


@dataclass(frozen=True)
class CollectionOutcome:
    """The end of one collection's run: records of its stages, results of its checks, sources of its toggles."""

    collection: str
    succeeded: bool
    bundle: Path
    stages: list[Record] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def report(self) -> Path:
        """Path of the HTML page about the bundle."""
        return report_path(self.bundle)


def as_json(outcomes: list[CollectionOutcome]) -> dict[str, Any]:
    """Give the content of the tables, and the checks, in plain JSON types."""
    return {
        "succeeded": all(outcome.succeeded for outcome in outcomes),
        "collections": [
            {
                "collection": outcome.collection,
                "succeeded": outcome.succeeded,
                "bundle": str(outcome.bundle),
                "report": str(outcome.report),
                "error": outcome.error,
                "stages": [_stage_json(record) for record in outcome.stages],
                "checks": outcome.checks,
                "toggles": outcome.provenance,
            }
            for outcome in outcomes
        ],
    }


def plain_or_terminal(width: int) -> Console:
    """Give a console for standard output; ``width`` characters wide if it is no terminal."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=width)


def print_summary(outcomes: list[CollectionOutcome]) -> None:
    """Print how each collection's run went, what to know about it, and what to do next."""
    console = plain_or_terminal(_PLAIN_WIDTH)
    for outcome in outcomes:
        title = f"{outcome.collection}: {'done' if outcome.succeeded else 'FAILED'}"
        table = Table("stage", "status", title=title, title_justify="left", box=None)
        for name in ("items", "seconds", "reused", "memory"):
            table.add_column(name, justify="right", no_wrap=True)
        for record in outcome.stages:
            table.add_row(*_cells(record))
        console.print(table)
        if outcome.error:
            console.print(f"Error: {outcome.error}", style="red", markup=False)
        for check in outcome.checks:
            if not check["passed"]:
                sentence = f"{check['severity'].lower()}: {check['check']}: {check['description']}"
                console.print(sentence, style="yellow", markup=False)
        for sentence in _to_know(outcome):
            console.print(sentence, style="yellow", markup=False)
        if outcome.succeeded:
            for sentence in _results(outcome):
                console.print(sentence, markup=False, soft_wrap=True)


def _cells(record: Record) -> list[str]:
    models = record if isinstance(record, StageRecord) else None
    return [
        record.stage,
        "off" if record.status == "feature_disabled" else record.status,
        f"{record.items:,}" if record.items else "",
        f"{record.wall_seconds:.1f}",
        f"{models.reused:,}" if models and models.reused else "",
        f"{models.peak_bytes / 1e6:,.0f} MB" if models and models.peak_bytes else "",
    ]


def _to_know(outcome: CollectionOutcome) -> Iterator[str]:
    """Give sentences on what was cut, fell back, waited or is off, with the remedy where there is one."""
    for record in outcome.stages:
        yield from record.warnings
        if isinstance(record, StageRecord):
            yield from _of_models(record)
        if record.waited_for:
            yield f"{record.stage} waited {record.waited_seconds:.0f} s, not counted above: {record.waited_for}"
    for row in outcome.provenance:
        if row["value"] is False:
            yield f"{row['key'].removeprefix('enable_')} is off ({row['source']})"


def _of_models(record: StageRecord) -> Iterator[str]:
    if record.fallback_count:
        reasons = ", ".join(f"{count} {reason}" for reason, count in record.fallback_reasons.items())
        yield f"{record.stage}: {record.fallback_count} fallbacks ({reasons}); the report says more"
    if record.truncated:
        remedy = "" if record.stage == "sparse" else "; --set models.windows=2 reads twice as much"
        yield f"{record.stage}: {record.truncated:,} texts have more tokens than the model reads{remedy}"


def _results(outcome: CollectionOutcome) -> Iterator[str]:
    """Give quality, models, places and the next command."""
    measured = next((record for record in outcome.stages if isinstance(record, EvaluationRecord)), None)
    by_list = measured.means if measured else {}
    off = {record.stage for record in outcome.stages if record.status == "feature_disabled"}
    means = {
        ranked.title: by_list[ranked.name][_MEASURE]
        for ranked in LISTS
        if ranked.name in by_list and ranked.stage not in off
    }
    if measured and means:
        by = "judged queries" if measured.judged else "derived probes, which are easier than questions"
        figures = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        yield f"{_MEASURE} over {measured.items} {by}: {figures}"
        if measured.judged and measured.files:
            yield f"Judged by {measured.files[-1]}"
        if {"Fused", "Reranked"} <= means.keys():
            yield f"Reranking: {means['Reranked'] - means['Fused']:+.3f}"
    models = {
        model.slug: f"{record.device.label}, {record.precision}" if record.tokens else "reused"
        for record in outcome.stages
        if isinstance(record, StageRecord)
        for model in record.models
    }
    yield f"Models: {', '.join(f'{slug} ({how})' for slug, how in models.items())}"
    yield f"Bundle: {outcome.bundle}"
    yield f"Report: {outcome.bundle}.report.html"
    yield f'Next:   ensemble-assets search {shlex.quote(str(outcome.bundle))} "your question"'


def _stage_json(record: Record) -> dict[str, Any]:
    """Give a record in plain JSON types, the devices by their label and without its events."""
    facts = {name: value for name, value in record.as_json().items() if name != "events"}
    return {**facts, **({"device": record.device.label} if isinstance(record, StageRecord) else {})}
