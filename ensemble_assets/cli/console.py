"""Show a run on the terminal: the progress of its stages, and a summary of it.

Progress is on standard error: a bar on a terminal, a line every few seconds elsewhere. The summary is on standard
output: JSON, or a table with remarks about each collection, readable at 80 columns.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ensemble_assets.artefacts.records import EvaluationRecord, ExportRecord, FailedStage, RerankRecord
from ensemble_assets.artefacts.remarks import remarks
from ensemble_assets.artefacts.stage_record import Record, StageRecord
from ensemble_assets.common.stages import LISTS, STAGE
from ensemble_assets.pipeline import stage_run
from ensemble_assets.pipeline.bundle.report import report_path

R = TypeVar("R", bound=Record)

_MEASURE = "nDCG@10"
_PLAIN_WIDTH = 140
"""Characters of a line in a file or pipe: enough for every sentence, so that few are wrapped."""
_MARKS = {"failed": "[red]failed[/red]", "feature_disabled": "[dim]off[/dim]", "fallback": "[yellow]fallback[/yellow]"}

_LINE_SECONDS = 5.0
"""Time between two plain lines of one stage: a log of an hour has 720."""
_WHOLE_RATE = 10
"""Rows a second from which a fraction says nothing any more."""


@dataclass
class _Running:
    """The stage that runs now; ``total`` is 0 until its models are loaded and its texts are tokenised."""

    label: str
    doing: str
    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    first_batch: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def in_words(self) -> str:
        """Describe how far the stage is, how fast it goes and how long it will take."""
        now = time.monotonic()
        if not self.done:
            return f"{self.doing}, {now - self.began:.0f} s"
        rate = self.done / max(now - self.first_batch, 1e-3)
        shown = f"{rate:.0f}" if rate >= _WHOLE_RATE else f"{rate:.1f}"
        return f"{self.done} of {self.total} rows, {shown} a second, {(self.total - self.done) / rate:.0f} s left"


class ConsoleProgress(stage_run.Progress):
    """Progress of stages that run one after the other. ``records`` has those of the ended ones, by collection."""

    def __init__(self, console: Console | None = None) -> None:
        self.records: dict[str, list[Record]] = {}
        self._console = console or Console(stderr=True, highlight=False)
        self._running: _Running | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def stage_started(self, stage: str, collection: str) -> None:
        """Begin to show a stage."""
        doing = STAGE[stage].doing if stage in STAGE else "uploading"
        running = self._running = _Running(f"{collection}  {stage}", doing)
        if not self._console.is_terminal:
            self._console.print(f"  {running.label} …", markup=False)
            threading.Thread(target=self._print_lines, args=(running,), daemon=True).start()
            return
        name, how = TextColumn("  {task.description}"), TextColumn("{task.fields[how]}")
        columns = (name, BarColumn(20), MofNCompleteColumn(), how, TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task(running.label, total=None, how=doing)
        self._bar.start()

    def stage_advanced(self, done: int, total: int) -> None:
        """Show how many rows of the running stage are done."""
        running = self._running
        if running is None:
            return
        running.first_batch = running.first_batch or time.monotonic()
        running.done, running.total = done, total
        if self._bar is not None and done:
            how = running.in_words().partition(" rows, ")[2]
            self._bar.update(self._task, completed=done, total=total, how=how)

    def stage_waits(self, stage: str, collection: str, holder: str) -> None:
        """Print who has the device that the stage waits for."""
        self._console.print(f"  {collection}  {stage} waits: {holder}", style="yellow", markup=False)

    def stage_finished(self, collection: str, record: Record) -> None:
        """Print how a stage ended, and store its record."""
        self.close()
        self.records.setdefault(collection, []).append(record)
        mark = _MARKS.get(record.status, f"[green]{record.status}[/green]")
        said = _without_stages_off(record, self.records[collection]).in_words()
        self._console.print(f"  {collection}  {record.stage}: {mark}  {said}", soft_wrap=True)
        if isinstance(record, FailedStage):
            self._console.print(f"    {record.reason}", markup=False)

    def close(self) -> None:
        """End the bar or the lines of the running stage, and show the cursor again."""
        if self._running is not None:
            self._running.over.set()
            self._running = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print_lines(self, running: _Running) -> None:
        while not running.over.wait(_LINE_SECONDS):
            self._console.print(f"  {running.label}: {running.in_words()}", markup=False)


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
    """Print the result of each collection's run, remarks about it, and the next command."""
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
        f"{reused:,}" if (reused := models.reused if models else _records_kept(record)) else "",
        f"{models.peak_bytes / 1e6:,.0f} MB" if models and models.peak_bytes else "",
    ]


def _records_kept(record: Record) -> int:
    """Count the chunks whose records an export found in place, with the same contents."""
    return record.items if isinstance(record, ExportRecord) and record.unchanged else 0


def _to_know(outcome: CollectionOutcome) -> Iterator[str]:
    """Give sentences on texts that were cut, fallbacks, waits and stages that are off, with remedies."""
    for record in outcome.stages:
        yield from remarks(record)
        if record.waited_for:
            yield f"{record.stage} waited {record.waited_seconds:.0f} s, not counted above: {record.waited_for}"
    counting = {row["key"]: row for row in outcome.provenance}  # of several layers the last one counts
    for row in counting.values():
        if row["value"] is False:
            yield f"{row['key'].removeprefix('enable_')} is off ({row['source']})"


def _results(outcome: CollectionOutcome) -> Iterator[str]:
    """Give quality, models, places and the next command."""
    measured = next((record for record in outcome.stages if isinstance(record, EvaluationRecord)), None)
    by_list = _without_stages_off(measured, outcome.stages).means if measured else {}
    means = {ranked.title: by_list[ranked.name][_MEASURE] for ranked in LISTS if ranked.name in by_list}
    if measured and means:
        by = "judged queries" if measured.judged else "derived probes, which are easier than questions"
        figures = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        yield f"{_MEASURE} over {measured.items} {by}: {figures}"
        if measured.judged and measured.files:
            yield f"Judged by {measured.files[-1]}"
        if {"Fused", "Reranked"} <= means.keys():
            reranked = (record.late for record in outcome.stages if isinstance(record, RerankRecord))
            late = any(facts and facts["queries"] for facts in reranked)
            how = ", with late interaction" if late else ""  # the demo and an own run may differ in it
            yield f"Reranking: {means['Reranked'] - means['Fused']:+.3f}{how}"
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


def _without_stages_off(record: R, others: Sequence[Record]) -> R:
    """Leave out of an evaluation the lists of stages that were off: the reranked list is the fused one then."""
    if not isinstance(record, EvaluationRecord):
        return record
    off = {other.stage for other in others if other.status == "feature_disabled"}
    left = {ranked.name for ranked in LISTS if ranked.stage in off}
    return replace(record, means={name: means for name, means in record.means.items() if name not in left})


def _stage_json(record: Record) -> dict[str, Any]:
    """Give a record in plain JSON types, the devices by their label and without its events."""
    facts = {name: value for name, value in record.as_json().items() if name != "events"}
    return {**facts, **({"device": record.device.label} if isinstance(record, StageRecord) else {})}
