"""Show the progress of stages on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ensemble_assets.artefacts.records import FailedStage
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.pipeline import stage_run

_MARKS = {"failed": "[red]failed[/red]", "feature_disabled": "[dim]off[/dim]", "fallback": "[yellow]fallback[/yellow]"}

_LINE_SECONDS = 5.0
"""Time between two plain lines of one stage: a log of an hour has 720."""


@dataclass
class _Running:
    """The stage that runs now; ``total`` is 0 until its models are loaded and its texts are tokenised."""

    label: str
    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    first_batch: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def in_words(self) -> str:
        """Describe how far the stage is, how fast it goes and how long it will take."""
        now = time.monotonic()
        if not self.done:
            return f"preparing models and texts, {now - self.began:.0f} s"
        rate = self.done / max(now - self.first_batch, 1e-3)
        return f"{self.done} of {self.total} rows, {rate:.0f} a second, {(self.total - self.done) / rate:.0f} s left"


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
        running = self._running = _Running(f"{collection}  {stage}")
        if not self._console.is_terminal:
            self._console.print(f"  {running.label} …", markup=False)
            threading.Thread(target=self._print_lines, args=(running,), daemon=True).start()
            return
        name, how = TextColumn("  {task.description}"), TextColumn("{task.fields[how]}")
        columns = (name, BarColumn(20), MofNCompleteColumn(), how, TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task(running.label, total=None, how="preparing models and texts")
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
        count = f"{record.items} {record.unit}, " if record.items else ""
        self._console.print(f"  {collection}  {record.stage}: {mark}  {count}{record.wall_seconds:.1f} s")
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
