"""Show a run: progress while it goes on, and a summary as a table or as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble_assets.artefacts.records import FailedStage
from ensemble_assets.artefacts.stage_record import Record, StageRecord
from ensemble_assets.common.stages import STAGE
from ensemble_assets.pipeline.bundle_export import report_path
from ensemble_assets.pipeline.stage_run import Progress

_MARKS = {"failed": "[red]failed[/red]", "feature_disabled": "[dim]off[/dim]", "fallback": "[yellow]fallback[/yellow]"}
_NUMBERS = ("seconds", "items/s", "peak memory", "fallbacks")
_COLUMNS = ("stage", "status", *_NUMBERS, "toggle", "source")
_PLAIN_WIDTH = 140
"""Characters of a line in a file or pipe: enough for every column, so that nothing is cut."""


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


class ConsoleProgress(Progress):
    """Progress on standard error: a line when a stage begins, and when it ends. ``records`` has the ended ones."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}
        self._console = Console(stderr=True, highlight=False)

    def stage_started(self, stage: str, collection: str) -> None:
        """Print that a stage begins."""
        self._console.print(f"  {collection}  {stage} …", style="dim")

    def stage_waits(self, stage: str, collection: str, holder: str) -> None:
        """Print who has the device that the stage waits for."""
        self._console.print(f"  {collection}  {stage} waits: {holder}", style="yellow", markup=False)

    def stage_finished(self, collection: str, record: Record) -> None:
        """Print how a stage ended, and store its record."""
        self.records.setdefault(collection, []).append(record)
        mark = _MARKS.get(record.status, f"[green]{record.status}[/green]")
        count = f"{record.items} {record.unit}, " if record.items else ""
        self._console.print(f"  {collection}  {record.stage}: {mark}  {count}{record.wall_seconds:.1f} s")
        for warning in record.warnings:
            self._console.print(f"    {warning}", style="yellow", markup=False)
        if isinstance(record, FailedStage):
            self._console.print(f"    {record.reason}", markup=False)


def plain_or_terminal(width: int) -> Console:
    """Give a console for standard output; ``width`` characters wide if it is no terminal."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=width)


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


def print_summary(outcomes: list[CollectionOutcome]) -> None:
    """Print one table per collection, failures, and where bundle and report are."""
    console = plain_or_terminal(_PLAIN_WIDTH)
    for outcome in outcomes:
        table = Table(title=f"{outcome.collection}: {'done' if outcome.succeeded else 'FAILED'}", title_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=True)
        toggles = {row["key"]: row for row in outcome.provenance}
        for record in outcome.stages:
            stage = STAGE.get(record.stage)
            table.add_row(*_cells(record, toggles.get(stage.toggle if stage else "", {})))
        console.print(table)
        if outcome.error:
            console.print(f"Error: {outcome.error}", style="red", markup=False)
        failed = [check["check"] for check in outcome.checks if not check["passed"]]
        if failed:
            console.print(f"Checks not passed: {', '.join(failed)}", style="yellow")
        if outcome.succeeded:
            console.print(f"Bundle: {outcome.bundle}")
            console.print(f"Report: {outcome.report}")


def _stage_json(record: Record) -> dict[str, Any]:
    """Give a record in plain JSON types, the devices by their label and without its events."""
    facts = {name: value for name, value in record.as_json().items() if name != "events"}
    return {**facts, **({"device": record.device.label} if isinstance(record, StageRecord) else {})}


def _cells(record: Record, toggle: dict[str, Any]) -> list[str]:
    seconds, models = record.wall_seconds, record if isinstance(record, StageRecord) else None
    return [
        record.stage,
        record.status,
        f"{seconds:.2f}",
        f"{record.items / seconds:,.0f}" if record.items and seconds else "",
        f"{models.peak_bytes / 1e6:,.0f} MB" if models and models.peak_bytes else "",
        str(models.fallback_count) if models and models.fallback_count else "",
        {True: "on", False: "off"}.get(toggle.get("value", ""), ""),
        str(toggle.get("source", "")),
    ]
